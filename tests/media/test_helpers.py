"""Threads that help: the same in the same order, faults included."""

import itertools
import threading

import pytest
import torch

from avff.build_config import BuildConfig, FaceConfig
from avff.media.clips import cut_clips
from avff.media.helpers import Helpers
from avff.media.synthetic import SplitPlan, generate_talking_heads


@pytest.fixture(autouse=True)
def _one_torch_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("num_threads", [0, 1, 3])
def test_map_keeps_the_order_and_reads_few_ahead(num_threads):
    read = []
    items = (read.append(n) or n for n in itertools.count())
    with Helpers(num_threads) as helpers:
        results = helpers.map(lambda n: n * n, items)
        assert [next(results) for _ in range(20)] == [n * n for n in range(20)]
        assert len(read) <= 20 + 2 * num_threads + 1


def test_one_ahead_makes_the_next_item_elsewhere_while_one_is_used():
    second = threading.Event()

    def items():
        yield threading.get_ident()
        second.set()
        yield threading.get_ident()

    with Helpers(1) as helpers, helpers.one_ahead(items()) as coming:
        first = next(coming)
        assert first != threading.get_ident() and second.wait(10)
        assert next(coming) == first
        assert list(coming) == []


@pytest.mark.parametrize("num_threads", [0, 2])
def test_faults_reach_the_caller(num_threads):
    def items():
        yield 1
        raise ValueError("broken source")

    with Helpers(num_threads) as helpers:
        with pytest.raises(ZeroDivisionError):
            helpers.submit(lambda: 1 / 0).result()
        with pytest.raises(ValueError, match="broken source"), helpers.one_ahead(items()) as coming:
            list(coming)
        with pytest.raises(ZeroDivisionError):
            list(helpers.map(lambda n: 1 / n, [1, 0]))


def test_threads_are_refused_where_torch_uses_several():
    torch.set_num_threads(2)
    with pytest.raises(ValueError, match=r"torch computes on 2 threads; call torch\.set_num_threads\(1\)"):
        Helpers(2)


@pytest.mark.slow
def test_clips_are_the_same_bytes_with_any_number_of_threads(tmp_path):
    plan = {"train": SplitPlan(num_people=2, clips_per_person={"RVRA": 1})}
    generate_talking_heads(tmp_path, plan=plan, num_workers=0, progress=False)
    path = sorted(tmp_path.rglob("*.mp4"))[0]
    faces = FaceConfig(detect_every_frames=10)
    config = BuildConfig(side_pixels=96, frames_per_second=12.5, segment_seconds=1.6, min_seconds=1.0, faces=faces)
    alone = list(cut_clips(path, config))
    assert len(alone) == 2 and all(clip.videos for clip in alone)
    assert list(cut_clips(path, config, num_threads=3)) == alone
