"""Samples to score: one that hangs is named, and the others come all the same."""

import os
import shutil

import pytest

from avff.data.selection import evaluation_samples
from avff.data.shards import open_directory
from avff.data.views import AVView
from avff.errors import ShardError
from avff.inference.loading import load_samples, map_samples

TIMEOUT_SECONDS = 3.0


@pytest.fixture
def hanging(shard_directory, tmp_path):
    """24 samples, of which those in the second tar cannot be read: opening a FIFO waits for its writer for ever."""
    folder = shutil.copytree(shard_directory.path, tmp_path / "shards")
    directory = open_directory(folder)
    (folder / "shard-000001.tar").unlink()
    os.mkfifo(folder / "shard-000001.tar")
    return evaluation_samples([directory], split="")


@pytest.mark.slow
def test_a_sample_that_hangs_comes_with_its_problem(hanging, tiny_config):
    view = AVView(tiny_config().clip)
    stuck = next(i for i, sample in enumerate(hanging) if sample.row.shard == "shard-000001.tar")
    chosen = [hanging[0], hanging[stuck], hanging[-1]]
    loaded = list(load_samples(chosen, view, num_workers=2, timeout_seconds=TIMEOUT_SECONDS))
    assert [sample.position for sample in loaded] == [0, 1, 2]
    assert [bool(sample.windows) for sample in loaded] == [True, False, True]
    assert loaded[0].problem is None and loaded[2].problem is None
    assert f"shard-000001.tar: sample {hanging[stuck].row.key!r}" in str(loaded[1].problem)
    assert "took longer than 3 s" in str(loaded[1].problem)


@pytest.mark.slow
def test_a_mapped_sample_that_hangs_is_an_error(hanging):
    stuck = [sample for sample in hanging if sample.row.shard == "shard-000001.tar"]
    with pytest.raises(ShardError, match=r"shard-000001.tar: sample .*took longer than 3 s"):
        list(
            map_samples(
                stuck[:1],
                lambda sample: sample.directory.path.joinpath(sample.row.shard).read_bytes(),
                num_workers=1,
                timeout_seconds=TIMEOUT_SECONDS,
            )
        )
