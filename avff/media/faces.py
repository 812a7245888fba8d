"""Faces of a source: MTCNN on every k-th picture, tracks per segment, identities per source."""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from avff.build_config import FaceConfig
from avff.errors import ConfigError
from avff.media.crops import FacePath
from avff.media.helpers import Helpers
from avff.media.identities import IdentityBook
from avff.media.reader import MediaInfo, ShownFrame, upright_rgb
from avff.media.tracks import Detection, lay_on_frames, link_detections

_BATCH = 8
_SMALLEST_DETECTOR_FACE = 20
"""Below this many pixels of its copy MTCNN is slow and finds little."""


@lru_cache(maxsize=8)
def _detector(min_face_pixels: int) -> Any:
    try:
        from facenet_pytorch import MTCNN
    except ImportError as error:
        raise ConfigError(
            "mode faces needs the MTCNN detector; install it with `pip install --no-deps facenet-pytorch==2.6.0` "
            "(its pinned torch is too old, hence --no-deps), or build with --mode frame"
        ) from error
    return MTCNN(keep_all=True, select_largest=False, min_face_size=min_face_pixels, device="cpu").eval()


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """The last bits of a convolution depend on torch's threads; boxes should not depend on the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class FaceScanner:
    """Looks at a source's pictures as they pass by, and hands out face tracks segment by segment."""

    def __init__(self, config: FaceConfig, info: MediaInfo, stored_fps: float, helpers: Helpers):
        self._config = config
        self._frame_seconds = 1 / stored_fps
        self._info = info
        self._scale = min(1.0, config.detect_max_side_pixels / max(info.width, info.height))
        self._size = (max(1, round(info.width * self._scale)), max(1, round(info.height * self._scale)))
        smallest = max(_SMALLEST_DETECTOR_FACE, round(config.min_face_pixels * self._scale))
        self._detector = _detector(smallest)
        self._batch: list[tuple[float, np.ndarray]] = []
        self._helpers = helpers
        self._coming: list[Future[list[Detection]]] = []
        self._detections: list[Detection] = []
        self._identities = IdentityBook(config.identity_distance)

    def watch(self, frames: Iterable[ShownFrame]) -> Iterator[ShownFrame]:
        """Passes pictures on unchanged and looks for faces in every k-th."""
        for number, frame in enumerate(frames):
            if number % self._config.detect_every_frames == 0:
                self._batch.append((float(frame.start_seconds), upright_rgb(frame.picture, self._size)))
                if len(self._batch) == _BATCH:
                    self._detect()
            yield frame

    def take_tracks(self, times_T: np.ndarray, stop_seconds: float) -> list[FacePath]:
        """Returns the accepted tracks of the segment that ends at `stop_seconds`, largest first, and forgets it.

        Args:
            times_T: when the picture of each stored frame of the segment begins in the source, seconds.
        """
        self._detect()
        for detections in self._coming:
            self._detections += detections.result()
        self._coming.clear()
        here = [d for d in self._detections if d.seconds < stop_seconds]
        self._detections = [d for d in self._detections if d.seconds >= stop_seconds]
        tracks = link_detections(here, self._config)
        paths = [
            lay_on_frames(
                track,
                times_T,
                smooth_seconds=self._config.smooth_seconds,
                frame_seconds=self._frame_seconds,
                look_seconds=self._config.detect_every_frames / (self._info.fps_source or 25),
            )
            for track in tracks
        ]
        order = sorted(range(len(paths)), key=lambda i: -paths[i].areas.mean() * paths[i].num_frames)
        chosen = order[: self._config.max_tracks]
        identities = self._identities.name([tracks[i] for i in chosen])
        return [dataclasses.replace(paths[i], identity=n) for i, n in zip(chosen, identities, strict=True)]

    def _detect(self) -> None:
        if self._batch:
            self._coming.append(self._helpers.submit(_find, self._detector, self._batch, self._scale))
            self._batch = []


def _find(detector: Any, batch: list[tuple[float, np.ndarray]], scale: float) -> list[Detection]:
    """Returns the faces in some pictures, given with their seconds."""
    with one_torch_thread():
        boxes, scores = detector.detect(np.stack([picture for _, picture in batch]))
    return [
        Detection(seconds, np.asarray(box, dtype=np.float64) / scale, float(score), picture, scale)
        for (seconds, picture), picture_boxes, picture_scores in zip(batch, boxes, scores, strict=True)
        for box, score in zip(picture_boxes if picture_boxes is not None else (), picture_scores, strict=False)
    ]
