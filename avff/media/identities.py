"""Who is who: dlib embeddings join the face tracks of one person within a source."""

import importlib.util
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from avff.errors import ConfigError
from avff.media.tracks import Detection, LinkedTrack

_DETECTIONS_PER_TRACK = 3
"""Best detections whose embeddings are averaged."""


@lru_cache(maxsize=1)
def _networks() -> tuple[Any, Any]:
    """The 5-point landmark and the 128-d identity network."""
    # Found, not imported: the package's own import needs pkg_resources, which newer setuptools lack.
    package = importlib.util.find_spec("face_recognition_models")
    try:
        import dlib
    except ImportError as error:
        raise ConfigError("mode faces needs dlib; install it with `pip install dlib-bin`") from error
    if package is None or package.origin is None:
        raise ConfigError("mode faces needs dlib's weights; install `pip install face-recognition-models==0.3.0`")
    models = Path(package.origin).parent / "models"
    landmarks = dlib.shape_predictor(str(models / "shape_predictor_5_face_landmarks.dat"))
    return landmarks, dlib.face_recognition_model_v1(str(models / "dlib_face_recognition_resnet_model_v1.dat"))


class _Person:
    """One person by the surest detections of his first track; embedded when first compared with somebody."""

    def __init__(self, track: LinkedTrack):
        self._best = sorted(track.detections, key=lambda d: (-round(d.score, 4), d.seconds))[:_DETECTIONS_PER_TRACK]

    @cached_property
    def embedding(self) -> np.ndarray:
        """Mean 128-d embedding."""
        return np.mean([_embed_detection(detection) for detection in self._best], axis=0)

    def distance(self, other: "_Person") -> float:
        return float(np.linalg.norm(self.embedding - other.embedding))


class IdentityBook:
    """Numbers the persons of one source in order of appearance.

    Embedding costs as much as finding the faces, so a source with one track never does it.
    """

    def __init__(self, max_distance: float):
        self._max_distance = max_distance
        self._persons: list[_Person] = []

    def name(self, tracks: list[LinkedTrack]) -> list[int]:
        """Returns one identity per track; tracks that are on the screen together are different persons."""
        names: list[int] = []
        for place, track in enumerate(tracks):
            taken = {n for other, n in zip(tracks[:place], names, strict=True) if _overlap(track, other)}
            names.append(self._nearest(_Person(track), taken))
        return names

    def _nearest(self, person: _Person, taken: set[int]) -> int:
        distances = [(known.distance(person), n) for n, known in enumerate(self._persons) if n not in taken]
        distance, nearest = min(distances, default=(np.inf, -1))
        if distance <= self._max_distance:
            return nearest
        self._persons.append(person)
        return len(self._persons) - 1


def _overlap(a: LinkedTrack, b: LinkedTrack) -> bool:
    return a.start_seconds <= b.stop_seconds and b.start_seconds <= a.stop_seconds


def _embed_detection(detection: Detection) -> np.ndarray:
    import dlib

    landmarks, network = _networks()
    box = dlib.rectangle(*(round(float(value) * detection.scale) for value in detection.box))
    picture = np.ascontiguousarray(detection.picture_HWC)
    return np.array(network.compute_face_descriptor(picture, landmarks(picture, box)))
