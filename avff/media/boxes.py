"""The user's own face boxes, for sets that come with tracks.

A box file is CSV with the header `video_name,time_seconds,track,x0,y0,x1,y1`: corners in upright source pixels, times
from the first picture, track numbers of the user's choice. Boxes are interpolated between rows and not smoothed; a
track exists from its first row to its last, and a gap of more than MAX_GAP_SECONDS splits it.
"""

import csv
import math
from pathlib import Path

import numpy as np

from avff.errors import MediaError
from avff.media.crops import FacePath

COLUMNS = ("video_name", "time_seconds", "track", "x0", "y0", "x1", "y1")
MAX_GAP_SECONDS = 1.0
_MATCH_SECONDS = 1e-3

BoxTracks = dict[int, np.ndarray]
"""Rows (time, x0, y0, x1, y1) in order of time, by track number."""


def load_boxes(path: Path) -> dict[str, BoxTracks]:
    """Reads a box file.

    Returns:
        The tracks by `video_name`.

    Raises:
        MediaError: no such file, another header, or rows that are no numbers or no boxes; all of them in one message.
    """
    if not path.is_file():
        raise MediaError(f"{path}: no such box file", reason="BOXES")
    rows: dict[str, dict[int, list[list[float]]]] = {}
    problems = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise MediaError(f"{path}: the header is {reader.fieldnames}; write {','.join(COLUMNS)}", reason="BOXES")
        for line, row in enumerate(reader, start=2):
            try:
                values = [float(row[name]) for name in ("time_seconds", "x0", "y0", "x1", "y1")]
                track = int(row["track"])
            except (TypeError, ValueError) as error:
                problems.append(f"line {line}: {error}")
                continue
            if not all(map(math.isfinite, values)) or values[1] >= values[3] or values[2] >= values[4]:
                problems.append(f"line {line}: {values[1:]} is not x0 < x1, y0 < y1")
            rows.setdefault(row["video_name"], {}).setdefault(track, []).append(values)
    if problems:
        raise MediaError(f"{path}: " + "; ".join(problems[:20]), reason="BOXES")
    return {name: {t: np.array(sorted(r)) for t, r in tracks.items()} for name, tracks in rows.items()}


def box_paths(tracks: BoxTracks, times_T: np.ndarray) -> list[FacePath]:
    """Returns the user's tracks on a segment's stored frames, largest first.

    Args:
        times_T: when the picture of each stored frame begins in the source, seconds.
    """
    paths = []
    for number, rows in sorted(tracks.items()):
        for piece in np.split(rows, np.flatnonzero(np.diff(rows[:, 0]) > MAX_GAP_SECONDS) + 1):
            inside = np.flatnonzero(
                (times_T >= piece[0, 0] - _MATCH_SECONDS) & (times_T <= piece[-1, 0] + _MATCH_SECONDS)
            )
            if len(inside):
                paths.append(_interpolate(number, piece, times_T[inside], int(inside[0])))
    return sorted(paths, key=lambda path: -path.areas.mean() * path.num_frames)


def _interpolate(number: int, rows: np.ndarray, times_T: np.ndarray, first_frame: int) -> FacePath:
    boxes_T4 = np.stack([np.interp(times_T, rows[:, 0], rows[:, c]) for c in range(1, 5)], axis=1)
    distance_T = np.abs(times_T[:, None] - rows[None, :, 0]).min(axis=1)
    return FacePath(
        first_frame=first_frame,
        boxes_T4=boxes_T4,
        scores_T=np.ones(len(times_T)),
        detected_T=distance_T <= _MATCH_SECONDS,
        identity=number,
    )
