"""What `avff predict` and `avff evaluate` ask of a detector, whatever its network and whatever it looks at."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from avff.config import Config
from avff.data.selection import StoredSample
from avff.data.shards import ShardDirectory
from avff.errors import ConfigError
from avff.evaluation.aggregate import WindowScore
from avff.inference.loading import EvaluationView
from avff.schema import Track


@dataclass(frozen=True, kw_only=True)
class FilePart:
    """One stretch of a raw media file, ready to score.

    Attributes:
        start_seconds, stop_seconds: in the file.
        frames_per_second: of the frames that the tracks count.
        status: ["OK"], or every reason why the stretch cannot be judged.
        tracks: faces found; empty where whole frames are read.
        windows: clips for `Detector.score`, with `start_seconds` counted from the part's start.
        window_seconds: how long each of them lasts.
    """

    key: str
    start_seconds: float
    stop_seconds: float
    frames_per_second: float
    status: list[str]
    tracks: list[Track]
    windows: list[Any]
    window_seconds: float


class Detector(Protocol):
    """A network in evaluation mode, and all that a score needs besides. Implementations: `AvffDetector`, `OpenAvffDetector`.

    Attributes:
        name: of the kind of detector, in rows and legends.
        run: name of the run or file.
        run_dir: where results go by default, and where a run's training records lie.
        weights_path: the file that was loaded.
        threshold: on the fake probability, chosen on validation; None where the weights bring none.
        config: of the run; None for a published file.
        trained_on: records of the shard directories behind the weights (avff.data.trained_on).
        decode_timeout_seconds: longest that one stored sample may take to read.
        view: how it looks at stored samples; its clips are what `score` takes.
    """

    @property
    def name(self) -> str: ...
    @property
    def run(self) -> str: ...
    @property
    def run_dir(self) -> Path: ...
    @property
    def weights_path(self) -> Path: ...
    @property
    def checkpoint_sha256(self) -> str: ...
    @property
    def threshold(self) -> float | None: ...
    @property
    def config(self) -> Config | None: ...
    @property
    def trained_on(self) -> list[dict[str, Any]]: ...
    @property
    def decode_timeout_seconds(self) -> float: ...
    @property
    def view(self) -> EvaluationView: ...

    def score(self, clips: Iterable[Any], *, batch_size: int = 8) -> list[WindowScore]:
        """Returns one score per clip, in order; a clip's score does not depend on its batch."""

    def read_file(self, path: Path, *, num_threads: int = 0) -> Iterator[FilePart]:
        """Yields a raw media file part by part.

        Args:
            num_threads: that help this one, where torch has one only (avff.media.helpers). No effect on what comes.

        Raises:
            MediaError: the file cannot be decoded or holds no picture.
            CheckpointError: the checkpoint does not say how to cut files.
        """

    def check_shards(
        self, directories: Sequence[ShardDirectory], samples: Sequence[StoredSample], *, allow_other_build: bool
    ) -> list[str]:
        """Returns sentences for the page on how these samples differ from what the weights were trained on.

        Raises:
            EvaluationError: they differ, and that was not allowed.
            ConfigError: they cannot be read by this detector at all.
        """

    def describe(self) -> dict[str, str]:
        """Returns name -> text on the network and its input, for the foot of the page."""


def choose_device(device: str) -> torch.device:
    """Returns the device that `auto`, `cpu` or `cuda` means here."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device {device!r} was asked for, but torch sees no GPU; use --device cpu or auto")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device {device!r} is unknown; use --device auto, cpu, cuda or cuda:N") from error
