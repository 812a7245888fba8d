"""Many media files to verdicts: workers prepare them ahead, and windows of several files share a batch."""

import contextlib
import dataclasses
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from avff.data.series import SeriesValue, read_series
from avff.data.worker_process import Place, Slot
from avff.errors import MediaError, ReadError
from avff.evaluation.aggregate import WindowScore
from avff.inference.detector import Detector, FilePart

PART_TIMEOUT_SECONDS = 300.0
"""Longest that one part of a file may take to prepare, some hundred times what is usual; then the file is undecided."""
_PREFETCH = 2


class ScoredPart(NamedTuple):
    """A stretch of a file, its windows scored and forgotten."""

    part: FilePart
    scores: list[WindowScore]


@dataclasses.dataclass
class ScoredFile:
    """All that was found in one file.

    Attributes:
        problem: why it could not be read, else empty; its parts are then left out.
        seconds: of work on it: reading, as long as that took its worker, and its share of the scoring.
        is_read: no more of its parts will come.
        num_waiting: windows that are not yet scored.
    """

    path: Path
    parts: list[ScoredPart] = dataclasses.field(default_factory=list)
    problem: str = ""
    seconds: float = 0.0
    is_read: bool = False
    num_waiting: int = 0


def score_files(
    paths: Sequence[Path],
    detector: Detector,
    *,
    batch_size: int = 8,
    num_workers: int = 0,
    timeout_seconds: float = PART_TIMEOUT_SECONDS,
) -> Iterator[ScoredFile]:
    """Yields every file, read and scored, once it is finished: a long one does not hold up those after it.

    Args:
        batch_size: windows per forward pass, of as many files as it takes.
        num_workers: cores to read with: processes, each with a file of its own, and where files are fewer, threads
            within them. 0 reads in this process, where no time-out is possible. No effect on what comes but its order.
        timeout_seconds: longest that one part of a file may take.

    Raises:
        CheckpointError: the checkpoint does not say how to cut files.
    """
    unfinished: dict[int, ScoredFile] = {}
    desk = _Desk(detector, batch_size)
    values = prepare_files(paths, detector, num_workers=num_workers, timeout_seconds=timeout_seconds)
    with contextlib.closing(values):
        for number, prepared in values:
            _take_in(unfinished.setdefault(number, ScoredFile(paths[number])), prepared, desk)
            del prepared  # its windows lie in memory that the worker can use again
            for finished in [n for n, file in unfinished.items() if file.is_read and not file.num_waiting]:
                yield unfinished.pop(finished)
    desk.score_rest()
    yield from unfinished.values()


def prepare_files(
    paths: Sequence[Path],
    detector: Detector,
    *,
    num_workers: int = 0,
    timeout_seconds: float = PART_TIMEOUT_SECONDS,
) -> Generator[SeriesValue, None, None]:
    """Yields files part by part, ready to score: the number of the file with a `PreparedPart`, or with None at its end.

    Args:
        num_workers, timeout_seconds: as for `score_files`.
    """
    num_processes = min(num_workers, len(paths))
    num_threads = num_workers // num_processes if num_processes else 0
    reader = _Reader(paths, detector, num_threads if num_threads > 1 else 0)
    return read_series(
        reader, len(paths), num_workers=num_processes, prefetch=_PREFETCH, timeout_seconds=timeout_seconds
    )


def _take_in(file: ScoredFile, prepared: "PreparedPart | None", desk: "_Desk") -> None:
    if prepared is None:
        file.is_read = True
        return
    file.seconds += prepared.seconds
    if prepared.part is None:
        file.problem = prepared.problem
        return
    scored = ScoredPart(dataclasses.replace(prepared.part, windows=[]), [])
    file.parts.append(scored)
    desk.add(file, scored, prepared.part.windows)


class PreparedPart(NamedTuple):
    """One part of a file, or why there is none."""

    part: FilePart | None
    problem: str
    seconds: float


class _Reader:
    """Reads files part by part; lives in every worker process and keeps the place in its file."""

    def __init__(self, paths: Sequence[Path], detector: Detector, num_threads: int):
        self._paths = paths
        self._detector = detector
        self._num_threads = num_threads
        self._at = (-1, 0)
        self._parts: Iterator[FilePart] = iter(())

    def __call__(self, number: int, part: int, slot: Slot) -> PreparedPart | None:
        if self._at[0] != number or self._at[1] > part:
            self._parts = self._read(self._paths[number])
            self._at = (number, 0)
        prepared = None
        while self._at[1] <= part:
            prepared = self._next(Place(number, self._at[1], str(self._paths[number])), slot)
            self._at = (number, self._at[1] + 1)
        return prepared

    def _read(self, path: Path) -> Iterator[FilePart]:
        if not path.is_file():
            raise MediaError(f"{path}: no such file", reason="MISSING")
        yield from self._detector.read_file(path, num_threads=self._num_threads)

    def _next(self, place: Place, slot: Slot) -> PreparedPart | None:
        start = time.perf_counter()
        part, problem = None, ""
        try:
            with slot.reading(place):
                part = next(self._parts, None)
        except MediaError as error:
            problem = f"{error.reason}: {error}"
        except ReadError as error:
            problem = f"UNREADABLE: {error}"
        if problem:
            self._parts = iter(())
        elif part is None:
            return None
        return PreparedPart(part, problem, time.perf_counter() - start)


class _Desk:
    """Where windows wait until they fill a batch."""

    def __init__(self, detector: Detector, batch_size: int):
        self._detector = detector
        self._batch_size = batch_size
        self._waiting: deque[tuple[ScoredFile, ScoredPart, Any]] = deque()

    def add(self, file: ScoredFile, scored: ScoredPart, windows: Sequence[Any]) -> None:
        file.num_waiting += len(windows)
        self._waiting.extend((file, scored, window) for window in windows)
        while len(self._waiting) >= self._batch_size:
            self._score(self._batch_size)

    def score_rest(self) -> None:
        if self._waiting:
            self._score(len(self._waiting))

    def _score(self, count: int) -> None:
        batch = [self._waiting.popleft() for _ in range(count)]
        start = time.perf_counter()
        scores = self._detector.score([window for _, _, window in batch], batch_size=count)
        seconds = (time.perf_counter() - start) / count
        for (file, scored, _), score in zip(batch, scores, strict=True):
            scored.scores.append(score)
            file.num_waiting -= 1
            file.seconds += seconds
