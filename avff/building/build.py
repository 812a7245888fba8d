"""Sources into a shard directory: parallel, resumable, and always the same bytes.

Workers build one *part* per source under `.parts/`; this process lays finished parts, in the order of the sources, into
shards. The order is a hash of the names, so that labels are mixed over shards, and a shard closes after the part that
fills it: neither depends on the number of workers or on interruptions.

    shards/build.json          request and finished shards, rewritten after every shard
    shards/.parts/             finished parts that wait for their shard; removed at the end
    shards/rejects.csv         source_path,reason,detail
    shards/manifest.json       written last
"""

import csv
import fcntl
import hashlib
import io
import json
import logging
import multiprocessing
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from avff.build_config import BuildConfig
from avff.building.journal import FinishedShard, is_whole, load_journal, request_of, save_journal
from avff.building.parts import Part, Reject, Task, build_part, read_part, remove_part, start_worker
from avff.building.sources import Source
from avff.building.summary import BuildSummary, summarize
from avff.data.shards import MANIFEST_NAME, open_directory, read_shard_info, write_manifest, write_shard
from avff.errors import ConfigError, MediaError
from avff.files import write_durably
from avff.media.boxes import BoxTracks
from avff.seeding import derive_seed
from avff.strict_yaml import to_dict

logger = logging.getLogger(__name__)

DEFAULT_SHARD_BYTES = 700_000_000
REJECTABLE = ("NO_FACE", "NO_AUDIO", "TOO_SHORT")


def build_shards(
    sources: Sequence[Source],
    output: Path,
    config: BuildConfig,
    *,
    num_workers: int = 0,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    reject: frozenset[str] = frozenset(),
    boxes: Mapping[str, BoxTracks] | None = None,
    arguments: dict[str, Any] | None = None,
    progress: bool = False,
) -> BuildSummary:
    """Builds a shard directory, continues an interrupted one, or finds it finished.

    Args:
        num_workers: processes; 0 builds in this one. No effect on the result.
        shard_bytes: a shard closes once its parts reach this size.
        reject: statuses whose samples are left out and listed in rejects.csv.
        boxes: tracks by source name, for mode `boxes`.
        arguments: how the builder was called; recorded in the manifest.
        progress: draw a progress bar on stderr.

    Raises:
        ConfigError: another build lies in `output`, another process is building there, or an argument is impossible.
        MediaError: no source gave a sample, or a worker died.
    """
    _check_arguments(sources, config, reject, boxes)
    ordered = sorted(sources, key=lambda source: (derive_seed("shard order", source.name), source.name))
    request = request_of(ordered, config, shard_bytes, reject, _digest(boxes))
    finished = load_journal(output, request)
    whole = [shard for shard in finished if is_whole(output, shard)]
    complete = len(whole) == len(finished) and (output / MANIFEST_NAME).is_file()
    if complete:
        logger.info("%s: already built with these arguments, nothing to do", output)
    else:
        output.mkdir(parents=True, exist_ok=True)
        with _only_builder(output) as parts:
            save_journal(output, request, finished)
            tasks = [
                Task(parts, number, source, config, (boxes or {}).get(source.name), reject)
                for number, source in enumerate(ordered)
            ]
            build = _Build(output, request, shard_bytes, tasks, finished, whole)
            build.run(num_workers, progress)
            _finish(output, build.shards, config, {**(arguments or {}), **request})
    return summarize(open_directory(output), already_complete=complete)


def _check_arguments(
    sources: Sequence[Source], config: BuildConfig, reject: frozenset[str], boxes: Mapping[str, BoxTracks] | None
) -> None:
    if unknown := reject.difference(REJECTABLE):
        raise ConfigError(f"reject {', '.join(sorted(unknown))}: choose among {', '.join(REJECTABLE)}")
    if config.mode != "boxes":
        return
    if boxes is None:
        raise ConfigError("mode boxes needs a box file: add --boxes FILE.csv")
    without = [source.name for source in sources if source.name not in boxes]
    if len(without) == len(sources):
        raise ConfigError(
            f"none of the {len(boxes)} names in the box file, such as {min(boxes, default='')!r}, is a source, such as "
            f"{without[0]!r}; write the path below the input folder"
        )
    if without:
        logger.warning("%d of %d sources have no boxes, such as %s", len(without), len(sources), without[0])


class _Build:
    """The running build: which shards are whole, and the one being filled."""

    def __init__(
        self,
        output: Path,
        request: dict[str, Any],
        shard_bytes: int,
        tasks: list[Task],
        finished: list[FinishedShard],
        whole: list[FinishedShard],
    ):
        self.shards = {shard.first: shard for shard in whole}
        self._output, self._request, self._shard_bytes, self._tasks = output, request, shard_bytes, tasks
        # A lost shard is rebuilt under its name from its own sources.
        self._lost = {shard.first: shard for shard in finished if shard not in whole}
        self._next_shard = sum(bool(shard.name) for shard in finished)

    def run(self, num_workers: int, progress: bool) -> None:
        done = {number for shard in self.shards.values() for number in range(shard.first, shard.stop)}
        todo = [task for task in self._tasks if task.number not in done]
        pending: list[tuple[Task, Part]] = []
        with (
            _run_in(num_workers) as run_all,
            tqdm(
                total=len(self._tasks), initial=len(done), unit="file", disable=None if progress else True, smoothing=0
            ) as bar,
        ):
            for task, part in zip(todo, run_all(todo), strict=True):
                pending.append((task, part))
                bar.update()
                if self._closes(pending):
                    self._close(pending)
                    pending = []

    def _closes(self, pending: list[tuple[Task, Part]]) -> bool:
        first, last = pending[0][0].number, pending[-1][0].number
        if lost := self._lost.get(first):
            return last + 1 == lost.stop
        is_last = last + 1 == len(self._tasks)
        return is_last or sum(part.num_bytes for _, part in pending) >= self._shard_bytes

    def _close(self, pending: list[tuple[Task, Part]]) -> None:
        first, stop = pending[0][0].number, pending[-1][0].number + 1
        rejects = [reject for _, part in pending for reject in part.rejects]
        shard = FinishedShard(self._name(first, any(part.num_bytes for _, part in pending)), first, stop, rejects)
        if shard.name:
            samples = (sample for task, _ in pending for sample in read_part(task.directory, task.number))
            write_shard(self._output, shard.name, samples)
        self.shards[first] = shard
        save_journal(self._output, self._request, list({**self._lost, **self.shards}.values()))
        for task, _ in pending:
            remove_part(task.directory, task.number)

    def _name(self, first: int, has_samples: bool) -> str:
        if lost := self._lost.get(first):
            return lost.name
        if not has_samples:
            return ""
        self._next_shard += 1
        return f"shard-{self._next_shard - 1:06d}.tar"


@contextmanager
def _run_in(num_workers: int) -> Iterator[Callable[[list[Task]], Iterator[Part]]]:
    """Gives a function that runs tasks and yields their parts in order."""
    if num_workers == 0:
        yield lambda tasks: map(build_part, tasks)
        return
    # spawn: a forked copy of a process that has used torch's threads can hang.
    context = multiprocessing.get_context("spawn")
    level = logging.getLogger().getEffectiveLevel()
    executor = ProcessPoolExecutor(num_workers, mp_context=context, initializer=start_worker, initargs=(level,))
    try:
        yield lambda tasks: executor.map(build_part, tasks)
    except BrokenProcessPool as error:
        raise MediaError(
            "a worker process died, killed for its memory or by a crash inside a decoder; run the same command again to "
            "continue, with fewer --num-workers if memory is short",
            reason="WORKER_DIED",
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


@contextmanager
def _only_builder(output: Path) -> Iterator[Path]:
    """Holds the directory's lock and gives its parts folder; the lock ends with the process, however it ends."""
    parts = output / ".parts"
    parts.mkdir(exist_ok=True)
    with (parts / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"{output}: another process is building here; wait for it or stop it") from error
        yield parts


def _finish(output: Path, shards: dict[int, FinishedShard], config: BuildConfig, arguments: dict[str, Any]) -> None:
    """Writes the files that describe the whole build, the manifest last."""
    rejects = [reject for _, shard in sorted(shards.items()) for reject in shard.rejects]
    infos = [read_shard_info(output, shard.name) for shard in shards.values() if shard.name]
    if not infos:
        shutil.rmtree(output)
        reasons = "; ".join(f"{reject.source_path}: {reject.reason}" for reject in rejects[:5])
        raise MediaError(f"none of {arguments['num_sources']} sources gave a sample: {reasons}", reason="NO_SAMPLE")
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerows([Reject._fields, *rejects])
    write_durably(output / "rejects.csv", table.getvalue().encode())
    counts = dict(sorted(Counter(reject.reason for reject in rejects).items()))
    write_manifest(output, infos, build=to_dict(config), arguments=arguments, rejects=counts)
    shutil.rmtree(output / ".parts")


def _digest(boxes: Mapping[str, BoxTracks] | None) -> str:
    if boxes is None:
        return ""
    plain = {name: {t: rows.tolist() for t, rows in tracks.items()} for name, tracks in boxes.items()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
