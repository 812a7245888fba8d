"""Which library decodes a run's video: timed on some of its own samples, in turns, in a process like those that read."""

import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing, suppress
from typing import NamedTuple

from avff.config import ClipConfig, DecoderName, ShardSource
from avff.data.index import ShardInfo
from avff.data.selection import StoredSample
from avff.data.shards import ShardDirectory, local_directory, read_manifest, read_rows, read_sample
from avff.data.stream import place_of
from avff.data.views import AVView
from avff.data.worker_process import Slot
from avff.data.workers import read_in_order
from avff.errors import ShardError

NUM_SAMPLES = 24
NUM_ROUNDS = 3
"""The first one, which fills caches, does not count."""


class DecoderTimes(NamedTuple):
    """What a measurement found.

    Attributes:
        fastest: None where no sample could be decoded.
        milliseconds: of one core per clip, by decoder.
    """

    fastest: DecoderName | None
    milliseconds: dict[DecoderName, float]


def time_decoders(
    sources: Sequence[ShardSource], clip: ClipConfig, decoders: Sequence[DecoderName], *, timeout_seconds: float
) -> DecoderTimes:
    """Times decoders on the first samples of the first shard of every directory, in a process of its own.

    Raises:
        ShardError: a directory is missing or incomplete.
        TrainingError: the process keeps dying.
    """
    share = -(-NUM_SAMPLES // max(1, len(sources)))
    samples = [sample for source in sources for sample in _first_samples(source, clip, share)]
    job, rounds = _TimedRound(samples, clip, decoders), range(NUM_ROUNDS)
    with closing(read_in_order(job, rounds, num_workers=1, prefetch=1, timeout_seconds=timeout_seconds)) as found:
        _, *counted = found
    seconds: dict[DecoderName, list[float]] = defaultdict(list)
    for one in counted:
        for decoder, times in one.items():
            seconds[decoder] += times
    milliseconds = {decoder: 1000 * statistics.median(times) for decoder, times in seconds.items()}
    ranked = sorted(milliseconds, key=lambda decoder: milliseconds[decoder])
    return DecoderTimes(ranked[0] if ranked else None, milliseconds)


def _first_samples(source: ShardSource, clip: ClipConfig, limit: int) -> list[StoredSample]:
    """Returns samples of one shard, so that not the whole index of a directory is read for this."""
    folder = local_directory(source.path)
    manifest = read_manifest(folder)
    shards = [ShardInfo(**values) for values in manifest["shards"]]
    rows = [row for info in shards[:1] for row in read_rows(folder, info) if row.can_hold(clip.duration_seconds)]
    directory = ShardDirectory(folder, manifest, shards, rows)
    return [StoredSample(directory, row) for row in rows[:limit]]


class _TimedRound:
    """The job: one item is one round over all samples, with every decoder in turn at each."""

    def __init__(self, samples: Sequence[StoredSample], clip: ClipConfig, decoders: Sequence[DecoderName]):
        self.samples = samples
        self.views = {decoder: AVView(clip, decoder) for decoder in decoders}

    def __call__(self, number: int, slot: Slot) -> dict[DecoderName, list[float]]:
        seconds: dict[DecoderName, list[float]] = {decoder: [] for decoder in self.views}
        for position, sample in enumerate(self.samples):
            # What is wrong with a sample is said when the run reads it.
            with suppress(ShardError), slot.reading(place_of(position, sample)):
                times = self._times(sample, seed=number)
                for decoder, time_taken in times.items():
                    seconds[decoder].append(time_taken)
        return {decoder: times for decoder, times in seconds.items() if times}

    def _times(self, sample: StoredSample, seed: int) -> dict[DecoderName, float]:
        """Returns seconds of all cores, which other processes have little effect on."""
        stored, times = read_sample(*sample), {}
        for decoder, view in self.views.items():
            before = time.process_time()
            view.train_clips(stored, [seed])
            times[decoder] = time.process_time() - before
        return times
