"""The loader: the same clips per step for every number of ranks and workers, bad samples included."""

import ctypes
import faulthandler
import itertools
import os
import shutil
import sys
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
import torch

from avff.data import shards
from avff.data.plan import build_plan
from avff.data.quarantine import Quarantine, Quarantined
from avff.data.selection import evaluation_samples
from avff.data.shards import open_directory
from avff.data.stream import evaluation_loader, rank_places, train_loader
from avff.data.views import AVView
from avff.errors import ConfigError, ShardError

NUM_STEPS = 3
GLOBAL_BATCH = 12


@pytest.fixture(scope="module")
def uneven(make_sample, write_directory, tmp_path_factory):
    """20 clips in shards of 7, 7 and 6: 17 real and 3 fake."""
    samples = [make_sample(f"k{i:02d}", num_frames=10, is_fake=int(i % 7 == 3)) for i in range(20)]
    return write_directory(tmp_path_factory.mktemp("uneven") / "shards", samples, num_shards=3)


@pytest.fixture(scope="module")
def damaged(uneven, tmp_path_factory):
    """The same directory with flipped bits in the sound of three real clips."""
    path = shutil.copytree(uneven.path, tmp_path_factory.mktemp("damaged") / "shards")
    for row in uneven.rows:
        if row.key in DAMAGED_KEYS:
            offset = next(member.offset for member in row.members if member.name == "flac")
            with (path / row.shard).open("r+b") as file:
                file.seek(offset + 50)
                byte = file.read(1)
                file.seek(offset + 50)
                file.write(bytes([byte[0] ^ 0xFF]))
    return open_directory(path)


DAMAGED_KEYS = {"k01", "k08", "k15"}


@pytest.fixture
def setup(tiny_config):
    """Plan and view for a directory: `setup(directory, ...config sections)`."""

    def make(directory, group_size=6, **overrides):
        config = tiny_config(
            data={"train": [{"path": str(directory.path)}]},
            engine={"global_batch_size": GLOBAL_BATCH, "micro_batch_size": 1},
            pretrain={"contrastive_group_size": group_size},
            **overrides,
        )
        return build_plan(config, [directory]), AVView(config.clip)

    return make


def no_quarantine(plan):
    return Quarantine([], samples_per_step=plan.samples_per_step)


def read_globally(
    plan,
    view,
    *,
    world_size,
    num_workers,
    start_step=0,
    num_steps=NUM_STEPS,
    group_size=6,
    quarantine=None,
    timeout_seconds=60,
):
    """Reads all ranks and puts every step's clips back into global batch order, with all substitutions."""
    steps = {}
    for rank in range(world_size):
        loader = train_loader(
            plan,
            view,
            rank=rank,
            world_size=world_size,
            micro_batch_size=2,
            group_size=group_size,
            num_workers=num_workers,
            prefetch_steps=2,
            steps=range(start_step, num_steps),
            timeout_seconds=timeout_seconds,
            quarantine=quarantine or no_quarantine(plan),
        )
        places = rank_places(plan.samples_per_step, group_size, rank, world_size)
        batches = list(loader)
        assert [batch.step for batch in batches] == list(range(start_step, num_steps))
        for batch in batches:
            clips, substitutions = steps.setdefault(batch.step, ([None] * plan.samples_per_step * plan.num_repeats, []))
            assert all(len(micro.keys) == 2 for micro in batch.micro_batches)
            described = itertools.chain.from_iterable(map(describe, batch.micro_batches))
            for place, clip in zip(places, described, strict=True):
                clips[place] = clip
            substitutions += batch.substitutions
    return {step: (clips, sorted(found, key=lambda s: s.position)) for step, (clips, found) in steps.items()}


def describe(batch):
    """Everything that a step may depend on, one tuple per clip."""
    video_sums = batch.video_BTHWC.sum(dim=(1, 2, 3, 4)).tolist()
    sound_sums = batch.waveform_BN.double().sum(dim=1).tolist()
    return zip(batch.keys, batch.seed_B.tolist(), batch.start_seconds_B.tolist(), video_sums, sound_sums, strict=True)


TOPOLOGIES = list(itertools.product([1, 2, 3], [0, 1, 2]))


def test_the_same_clips_on_every_topology(setup, uneven):
    plan, view = setup(uneven)
    expected = read_globally(plan, view, world_size=1, num_workers=0)
    keys = [[entry.sample.row.key for entry in plan.entries(step)] for step in range(NUM_STEPS)]
    assert [[clip[0] for clip in expected[step][0]] for step in range(NUM_STEPS)] == keys
    for world_size, num_workers in [(1, 1), (1, 2), (2, 0), (2, 1), (3, 0)]:
        assert read_globally(plan, view, world_size=world_size, num_workers=num_workers) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("world_size", "num_workers"), TOPOLOGIES)
def test_the_same_clips_and_substitutes_on_every_topology(setup, damaged, world_size, num_workers):
    plan, view = setup(damaged)
    expected = read_globally(plan, view, world_size=1, num_workers=0)
    assert sum(len(substitutions) for _, substitutions in expected.values()) >= len(DAMAGED_KEYS)
    assert read_globally(plan, view, world_size=world_size, num_workers=num_workers) == expected


def test_bad_samples_are_replaced_by_others_of_their_kind_and_reported(setup, damaged):
    plan, view = setup(damaged)
    rows = {row.key: row for row in damaged.rows}
    seen = []
    for step, (clips, substitutions) in read_globally(plan, view, world_size=2, num_workers=0).items():
        entries = plan.entries(step)
        planned = [entry.sample.row.key for entry in entries]
        delivered = [clip[0] for clip in clips]
        replaced = {entries[place].position for place in range(GLOBAL_BATCH) if planned[place] != delivered[place]}
        assert replaced == {s.position for s in substitutions}
        for substitution in substitutions:
            place = substitution.position - step * GLOBAL_BATCH
            assert substitution.step == step
            assert substitution.key in DAMAGED_KEYS and substitution.substitute_key not in DAMAGED_KEYS
            assert delivered[place] == substitution.substitute_key
            assert rows[substitution.substitute_key].is_fake == 0
            assert substitution.shard == str(damaged.path / rows[substitution.key].shard)
            assert "member flac has crc32" in substitution.reason
            assert not substitution.lasting
        seen += [s.key for s in substitutions]
    assert set(seen) == DAMAGED_KEYS


def test_seeking_equals_reading(setup, uneven):
    plan, view = setup(uneven)
    read = read_globally(plan, view, world_size=1, num_workers=1)
    sought = read_globally(plan, view, world_size=3, num_workers=2, start_step=2)
    assert sought == {step: read[step] for step in (2,)}


def test_reading_leaves_the_global_random_state_alone(setup, uneven):
    plan, view = setup(uneven)
    before = torch.get_rng_state()
    read_globally(plan, view, world_size=1, num_workers=1, num_steps=1)
    assert torch.equal(before, torch.get_rng_state())


# ------------------------------------------------------------------------------------------- circumstances


TIMEOUT_SECONDS = 3.0


class HangingView(AVView):
    """Hangs inside FFmpeg, in native code, on some samples: it opens a named pipe that nobody writes to."""

    def __init__(self, clip, keys, fifo):
        super().__init__(clip)
        self.keys = keys
        self.fifo = fifo

    def train_clips(self, sample, seeds):
        self._hang_on(sample)
        return super().train_clips(sample, seeds)

    def evaluation_clips(self, sample):
        self._hang_on(sample)
        return super().evaluation_clips(sample)

    def _hang_on(self, sample):
        if sample.metadata.key in self.keys:
            av.open(str(self.fifo))


def read_as_a_run_does(plan, view, *, world_size, num_workers, timeout_seconds=TIMEOUT_SECONDS):
    """Reads step by step; what is lasting goes on the list, which all ranks follow from the next step on."""
    listed = no_quarantine(plan)
    steps = {}
    for step in range(NUM_STEPS):
        steps |= read_globally(
            plan, view, world_size=world_size, num_workers=num_workers, start_step=step, num_steps=step + 1,
            quarantine=listed, timeout_seconds=timeout_seconds,
        )  # fmt: skip
        new = [s for s in steps[step][1] if s.lasting]
        listed = listed.with_(Quarantined(s.key, Path(s.shard).name, s.position, s.reason) for s in new)
    return steps, listed


def without_lasting(steps):
    return {
        step: (clips, [s._replace(lasting=False) for s in substitutions])
        for step, (clips, substitutions) in steps.items()
    }


@pytest.mark.slow
def test_a_hanging_decode_gives_the_same_clips_everywhere_once_it_is_listed(setup, uneven, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    plan, view = setup(uneven)
    hanging = HangingView(view.clip, {"k05", "k11"}, tmp_path / "fifo")
    steps, listed = read_as_a_run_does(plan, hanging, world_size=1, num_workers=1)
    assert {entry.key for entry in listed.entries} == {"k05", "k11"}
    assert all("its worker took longer than 3 s in 2 attempts" in entry.reason for entry in listed.entries)
    for step, (clips, substitutions) in steps.items():
        planned = [entry.sample.row.key for entry in plan.entries(step)]
        assert len([key for key in planned if key in hanging.keys]) <= len(substitutions)
        assert not {clip[0] for clip in clips} & hanging.keys
    for world_size, num_workers in [(2, 2)]:
        assert (
            read_as_a_run_does(plan, hanging, world_size=world_size, num_workers=num_workers)[1].entries
            == listed.entries
        )
    # A run that goes on with the list never touches those samples again, so it may even read in its own process.
    for world_size, num_workers in [(1, 0), (1, 1), (1, 2), (1, 3), (2, 2)]:
        again = read_globally(plan, hanging, world_size=world_size, num_workers=num_workers, quarantine=listed)
        assert again == without_lasting(steps)


@pytest.mark.slow
def test_a_shard_that_hangs_is_left_behind(setup, uneven, tmp_path):
    directory = open_directory(shutil.copytree(uneven.path, tmp_path / "shards"))
    shard = directory.path / "shard-000002.tar"
    shard.unlink()
    os.mkfifo(shard)
    plan, view = setup(directory)
    steps, listed = read_as_a_run_does(plan, view, world_size=1, num_workers=2)
    assert {entry.shard for entry in listed.entries} == {shard.name}
    assert read_globally(plan, view, world_size=2, num_workers=0, quarantine=listed) == without_lasting(steps)


def test_an_error_of_the_file_system_is_lasting_and_one_of_the_content_is_not(setup, uneven, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "READ_AGAIN_SECONDS", 0)
    directory = open_directory(shutil.copytree(uneven.path, tmp_path / "shards"))
    plan, view = setup(directory)
    os.truncate(directory.path / "shard-000000.tar", directory.rows[4].offset + 1000)
    (directory.path / "shard-000001.tar").unlink()
    steps, listed = read_as_a_run_does(plan, view, world_size=1, num_workers=0)
    found = [substitution for _, substitutions in steps.values() for substitution in substitutions]
    assert {s.lasting for s in found if s.shard.endswith("000000.tar")} == {False}
    assert {s.reason for s in found if s.lasting and "No such file" not in s.reason} == set()
    # Known ones are told again at every place, with the reason they were listed for.
    known = [s for s in found if s.shard.endswith("000001.tar") and not s.lasting]
    assert known and all(s.reason in {entry.reason for entry in listed.entries} for s in known)
    assert read_globally(plan, view, world_size=3, num_workers=1, quarantine=listed) == without_lasting(steps)


@pytest.fixture
def no_stack_dump():
    """Keeps pytest's fault handler from printing the stacks of workers that are meant to crash."""
    faulthandler.disable()
    yield
    faulthandler.enable(file=sys.__stderr__)


class CrashingView(AVView):
    """Reads address 0 on one sample, as a broken decoder does."""

    def train_clips(self, sample, seeds):
        if sample.metadata.key == "k05":
            ctypes.string_at(0)
        return super().train_clips(sample, seeds)


def test_a_decoder_that_crashes_is_lasting(setup, uneven, no_stack_dump):
    plan, view = setup(uneven)
    crashing = CrashingView(view.clip)
    steps, listed = read_as_a_run_does(plan, crashing, world_size=1, num_workers=2, timeout_seconds=60)
    assert {entry.key for entry in listed.entries} == {"k05"}
    assert all(
        entry.reason.endswith("'k05': its worker was ended by SIGSEGV in 2 attempts") for entry in listed.entries
    )
    assert read_globally(plan, crashing, world_size=2, num_workers=0, quarantine=listed) == without_lasting(steps)


def test_a_video_that_decord_crashes_or_fails_on(setup, make_sample, write_directory, tmp_path, no_stack_dump):
    samples = [make_sample(f"k{i:02d}", num_frames=10) for i in range(12)]
    video = bytearray(samples[4].members["face0.mp4"])
    sizes = video.index(b"stsz") + 16  # a table of 32-bit sizes; too large a one ends decord in an error or SIGSEGV
    video[sizes + 4 * 5 + 1] = 0xD7
    samples[4].members["face0.mp4"] = bytes(video)
    directory = write_directory(tmp_path / "shards", samples)
    plan, view = setup(directory)
    left_out = no_quarantine(plan).with_([Quarantined("k04", directory.shards[0].name, -1, "known")])
    expected = read_globally(plan, view, world_size=1, num_workers=0, quarantine=left_out)
    found, _ = read_as_a_run_does(plan, view, world_size=1, num_workers=2, timeout_seconds=60)
    assert {step: clips for step, (clips, _) in found.items()} == {step: clips for step, (clips, _) in expected.items()}


def test_killed_workers_leave_no_trace_in_what_comes(setup, damaged):
    plan, view = setup(damaged)
    places = dict(rank=0, world_size=1, micro_batch_size=2, group_size=6, prefetch_steps=2, timeout_seconds=60)
    shared = dict(**places, steps=[7, 8, 2, 3, 4, 5], quarantine=no_quarantine(plan))
    expected = list(train_loader(plan, view, num_workers=0, **shared))
    assert [batch.step for batch in expected] == [7, 8, 2, 3, 4, 5]
    found = []
    for batch in train_loader(plan, view, num_workers=2, **shared):
        found.append(batch)
        for worker in psutil.Process().children():
            worker.kill()
    assert [batch.substitutions for batch in found] == [batch.substitutions for batch in expected]
    for batch, same in zip(found, expected, strict=True):
        for micro, other in zip(batch.micro_batches, same.micro_batches, strict=True):
            assert list(describe(micro)) == list(describe(other))


def test_it_stops_when_every_substitute_fails_too(setup, uneven, tmp_path):
    path = shutil.copytree(uneven.path, tmp_path / "shards")
    directory = open_directory(path)
    for info in directory.shards:
        (path / info.name).write_bytes(bytes(info.bytes))
    plan, view = setup(directory)
    with pytest.raises(
        ShardError, match=r"step 0: sample 'k\d\d' and all 8 substitutes of its split and labels cannot"
    ):
        read_globally(plan, view, world_size=1, num_workers=0, num_steps=1)


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_every_rank_takes_an_equal_run_of_every_group(world_size):
    places = [rank_places(12, 6, rank, world_size).tolist() for rank in range(world_size)]
    assert sorted(itertools.chain.from_iterable(places)) == list(range(12))
    share = 6 // world_size
    first = list(range(share))
    assert places[0] == first + [6 + place for place in first]
    assert all(np.diff(np.array(own).reshape(2, share), axis=0).tolist() == [[6] * share] for own in places)


def test_sizes_that_do_not_fit(setup, uneven):
    plan, view = setup(uneven)
    with pytest.raises(
        ConfigError,
        match=r"5 ranks cannot share groups of 6 in a step of 12 samples: .* use 1, 2, 3, 6 ranks and .* of 6$",
    ):
        read_globally(plan, view, world_size=5, num_workers=0)
    with pytest.raises(
        ConfigError, match=r"engine.micro_batch_size 2 does not divide the 3 clips that each of 4 ranks"
    ):
        read_globally(plan, view, world_size=4, num_workers=0, group_size=12)


def evaluated(samples, view, world_size, num_workers):
    batches = [
        batch
        for rank in range(world_size)
        for batch in evaluation_loader(
            samples,
            view,
            rank=rank,
            world_size=world_size,
            micro_batch_size=4,
            num_workers=num_workers,
            timeout_seconds=60,
        )
    ]
    assert all(1 <= len(batch.keys) <= 4 for batch in batches)
    return sorted(
        row
        for batch in batches
        for row in zip(batch.keys, batch.tracks, batch.start_seconds_B.tolist(), batch.seed_B.tolist(), strict=True)
    )


def test_evaluation_reads_every_window_once(tmp_path, make_sample, write_directory, tiny_config):
    samples = [make_sample(f"k{i}", num_frames=8 + i) for i in range(6)]
    samples += [make_sample("two", tracks=[(0, 16), (4, 12)]), make_sample("none", status=["NO_FACE"])]
    directory = write_directory(tmp_path / "shards", samples)
    view = AVView(tiny_config().clip)
    stored = evaluation_samples([directory], split="train")
    assert len(stored) == 8
    expected = sorted((c.key, c.track, c.start_seconds, c.seed) for s in samples for c in view.evaluation_clips(s))
    assert {(key, track) for key, track, _, _ in expected} >= {("two", 0), ("two", 1)}
    for world_size, num_workers in [(1, 0), (2, 1), (3, 2)]:
        assert evaluated(stored, view, world_size, num_workers) == expected


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_evaluation_never_substitutes(damaged, tiny_config, num_workers):
    view = AVView(tiny_config().clip)
    stored = evaluation_samples([damaged], split="train")
    with pytest.raises(ShardError, match=r"shard-000000.tar: sample 'k01': member flac has crc32"):
        evaluated(stored, view, 1, num_workers)


def test_batches_of_evaluation_do_not_depend_on_the_workers(uneven, tiny_config):
    view = AVView(tiny_config().clip)
    stored = evaluation_samples([uneven], split="train")
    shared = dict(rank=0, world_size=1, micro_batch_size=3, timeout_seconds=60)
    expected = [list(describe(batch)) for batch in evaluation_loader(stored, view, num_workers=0, **shared)]
    assert {len(batch) for batch in expected[:-1]} == {3}
    assert [list(describe(batch)) for batch in evaluation_loader(stored, view, num_workers=2, **shared)] == expected


@pytest.mark.slow
def test_a_hang_in_evaluation_is_named(uneven, tiny_config, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    view = HangingView(tiny_config().clip, {"k09"}, tmp_path / "fifo")
    stored = evaluation_samples([uneven], split="train")
    loader = evaluation_loader(
        stored, view, rank=0, world_size=1, micro_batch_size=4, num_workers=2, timeout_seconds=TIMEOUT_SECONDS
    )
    with pytest.raises(
        ShardError, match=r"shard-000001.tar: sample 'k09': its worker took longer than 3 s in 2 attempts"
    ):
        list(loader)
