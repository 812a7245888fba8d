"""Several clips of each sample read: which stand where in a step, on every topology, and what they cost."""

import shutil

import numpy as np
import pytest

from avff.data.plan import build_plan
from avff.data.plan_change import describe_change
from avff.data.quarantine import Quarantine
from avff.data.shards import open_directory
from avff.data.stream import rank_places, train_loader
from avff.data.views import AVView
from avff.errors import ConfigError

BATCH, WINDOWS, GROUP = 12, 2, 3
SAMPLES = BATCH // WINDOWS
NUM_STEPS = 4


@pytest.fixture(scope="module")
def directory(make_sample, write_directory, tmp_path_factory):
    """11 clips of two seconds and a half, in which a window of 1.6 s has five places."""
    samples = [make_sample(f"k{i:02d}", num_frames=12) for i in range(11)]
    return write_directory(tmp_path_factory.mktemp("repeats") / "shards", samples, num_shards=2)


@pytest.fixture
def config_of(tiny_config):
    def make(directory, windows=WINDOWS, batch=BATCH, **pretrain):
        return tiny_config(
            data={"train": [{"path": str(directory.path)}], "windows_per_sample": windows},
            engine={"global_batch_size": batch, "micro_batch_size": 1},
            pretrain={"contrastive_group_size": GROUP, **pretrain},
        )

    return make


def read_globally(plan, view, *, world_size, num_workers):
    """Returns the clips of every step in batch order, and all substitutions."""
    steps = [[None] * BATCH for _ in range(NUM_STEPS)]
    substitutions = []
    for rank in range(world_size):
        places = rank_places(SAMPLES, GROUP, rank, world_size)
        places = np.concatenate([places + repeat * SAMPLES for repeat in range(WINDOWS)])
        loader = train_loader(
            plan, view, rank=rank, world_size=world_size, micro_batch_size=2, group_size=GROUP, num_workers=num_workers,
            prefetch_steps=2, steps=range(NUM_STEPS), timeout_seconds=60,
            quarantine=Quarantine([], samples_per_step=plan.samples_per_step),
        )  # fmt: skip
        for batch in loader:
            clips = [clip for micro in batch.micro_batches for clip in described(micro)]
            for place, clip in zip(places, clips, strict=True):
                steps[batch.step][place] = clip
            substitutions += batch.substitutions
    return steps, sorted(substitutions, key=lambda s: s.position)


def described(batch):
    sums = batch.video_BTHWC.sum(dim=(1, 2, 3, 4)).tolist(), batch.waveform_BN.double().sum(dim=1).tolist()
    return zip(batch.keys, batch.seed_B.tolist(), batch.start_seconds_B.tolist(), *sums, strict=True)


def test_a_step_reads_each_sample_once_and_gives_it_several_clips(config_of, directory):
    config = config_of(directory)
    plan = build_plan(config, [directory])
    steps, _ = read_globally(plan, AVView(config.clip), world_size=1, num_workers=0)
    read = []
    for step, clips in enumerate(steps):
        keys = [entry.sample.row.key for entry in plan.entries(step)]
        assert [clip[0] for clip in clips] == keys * WINDOWS
        assert len({clip[1] for clip in clips}) == BATCH, "every clip has its own seed"
        read += keys
    assert sorted(read[:11]) == sorted(row.key for row in directory.rows), "an epoch reads each sample once"
    starts = [(clips[i][2], clips[i + SAMPLES][2]) for clips in steps for i in range(SAMPLES)]
    assert any(first != second for first, second in starts), "windows of one sample differ"


def test_the_first_clip_of_a_sample_is_what_it_is_without_repeats(config_of, directory):
    several, alone = (
        build_plan(config_of(directory, windows, batch=SAMPLES * windows), [directory]) for windows in (3, 1)
    )
    for step in range(NUM_STEPS):
        for entry, single in zip(several.entries(step), alone.entries(step), strict=True):
            assert entry == single and alone.clip_seeds(single) == several.clip_seeds(entry)[:1]
            assert len(set(several.clip_seeds(entry))) == 3


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 1), (1, 2), (3, 0), (3, 2)])
def test_the_same_clips_on_every_topology(config_of, directory, world_size, num_workers):
    config = config_of(directory)
    view = AVView(config.clip)
    expected = read_globally(build_plan(config, [directory]), view, world_size=1, num_workers=0)
    found = read_globally(build_plan(config, [directory]), view, world_size=world_size, num_workers=num_workers)
    assert found == expected


def test_all_clips_of_a_bad_sample_are_replaced_and_it_is_reported_once(config_of, directory, tmp_path):
    damaged = shutil.copytree(directory.path, tmp_path / "damaged")
    row = next(row for row in directory.rows if row.key == "k03")
    with (damaged / row.shard).open("r+b") as file:
        file.seek(row.members[0].offset + 40)
        file.write(b"\xff\xff")
    opened = open_directory(damaged)
    config = config_of(opened)
    plan, view = build_plan(config, [opened]), AVView(config.clip)
    steps, substitutions = read_globally(plan, view, world_size=1, num_workers=0)
    planned = [entry for step in range(NUM_STEPS) for entry in plan.entries(step) if entry.sample.row.key == "k03"]
    assert planned and [s.position for s in substitutions] == [entry.position for entry in planned]
    for substitution in substitutions:
        clips = steps[substitution.step][substitution.position % SAMPLES :: SAMPLES]
        assert [clip[0] for clip in clips] == [substitution.substitute_key] * WINDOWS
    assert read_globally(plan, view, world_size=3, num_workers=1) == (steps, substitutions)


class CountingView(AVView):
    """Notes how often it is shown a sample."""

    def __init__(self, clip):
        super().__init__(clip)
        self.seen = []

    def train_clips(self, sample, seeds):
        self.seen.append((sample.metadata.key, len(seeds)))
        return super().train_clips(sample, seeds)


def test_a_sample_is_read_once_for_all_its_clips(config_of, directory):
    config = config_of(directory)
    plan, view = build_plan(config, [directory]), CountingView(config.clip)
    read_globally(plan, view, world_size=1, num_workers=0)
    assert view.seen == [(entry.sample.row.key, WINDOWS) for step in range(NUM_STEPS) for entry in plan.entries(step)]


def test_repeats_belong_to_the_plan_only_where_there_are_any(config_of, directory):
    alone, several = (build_plan(config_of(directory, windows), [directory]) for windows in (1, 2))
    assert "windows_per_sample" not in alone.signature and alone.hash != several.hash
    assert any(
        "data.windows_per_sample: None then, 2 now" in line
        for line in describe_change(alone.signature, several.signature)
    )


def test_batches_that_repeats_do_not_tile_are_refused(config_of, directory):
    with pytest.raises(
        ConfigError, match=r"windows_per_sample 5 does not divide engine.global_batch_size 12; .* 1, 2, 3"
    ):
        config_of(directory, windows=5)
    message = (
        r"contrastive_group_size 4 does not divide the 6 samples of a step \(engine.global_batch_size 12 / "
        r"data.windows_per_sample 2\); divisors are 1, 2, 3, 6"
    )
    with pytest.raises(ConfigError, match=message):
        config_of(directory, contrastive_group_size=4)
    with pytest.raises(ConfigError, match=r"the 6 samples of a step .* does not divide over 4 ranks; .* 1, 2, 3, 6"):
        config_of(directory).accumulation_steps(4)
