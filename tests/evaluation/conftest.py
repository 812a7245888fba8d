"""Made-up rows of a detector on a small balanced split."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from avff.evaluation.aggregate import WINDOW_AGGREGATION, probability
from avff.evaluation.rows import Row


def _row(key: str, logit: float | None, *, category: str = "RVRA", person: str = "", **changes) -> Row:
    video, audio = int(category[0] == "F"), int(category[2] == "F")
    values = {
        "run": "unit",
        "detector": "avff",
        "checkpoint_sha256": ["c0ffee" * 10],
        "dataset": "made_up",
        "split": "test",
        "key": key,
        "source_key": key,
        "track": 0,
        "window_aggregation": WINDOW_AGGREGATION,
        "group_ids": [person] if person else [],
        "status": ["OK"],
        "is_fake": int(video or audio),
        "video_is_fake": video,
        "audio_is_fake": audio,
        "category": category,
        "methods": ["blend"] if video else [],
        "fake_logit": logit,
        "fake_probability": None if logit is None else probability(logit),
        "threshold": 0.5,
        "predicted": None if logit is None else int(logit >= 0),
        "video_fake_logit": None if logit is None else logit - 0.1,
        "audio_fake_logit": None if logit is None else logit + 0.1,
        "num_windows": 2,
        "leading_silence_seconds": 0.0,
        "seconds_spent": 0.25,
    }
    return Row(**{**values, **changes})


@pytest.fixture
def make_row() -> Callable[..., Row]:
    return _row


@pytest.fixture
def make_rows() -> Callable[..., list[Row]]:
    """Returns rows of `num_people` people, four categories each, scored with a given skill and keyed noise."""

    def build(num_people: int = 25, skill: float = 2.0, seed: int = 0, detector: str = "avff") -> list[Row]:
        rng = np.random.default_rng(seed)
        rows = []
        for person in range(num_people):
            for category in ("RVRA", "RVFA", "FVRA", "FVFA"):
                logit = skill * (math.tanh(category.count("F")) - 0.4) + float(rng.normal())
                key = f"p{person:02}_{category}"
                rows.append(_row(key, logit, category=category, person=f"person{person:02}", detector=detector))
        return rows

    return build
