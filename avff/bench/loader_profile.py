"""Where the time of a clip goes, from a tar to its place in a batch."""

import cProfile
from collections.abc import Callable, Iterator
from typing import Any

PARTS = {
    "read the bytes of a sample": ("data/shards.py", "_read_range"),
    "tar entries, checksums, metadata": ("data/samples.py", "parse_sample"),
    "pictures": ("data/decode.py", "decode_frames"),
    "sound": ("data/decode.py", "decode_sound"),
    "stack into a batch": ("data/views.py", "_stack"),
}
"""File and function of each; none calls another. `rest` is what is in none of them."""

PARTS_OF_PICTURES = {
    "pictures: to RGB": ("~", "<method 'reformat' of 'av.video.reformatter.VideoReformatter' objects>"),
    "pictures: copy": ("data/decode.py", "decode_frames"),
}
"""Time of their own. With --decoder pyav the rest of `pictures` is nearly all H.264; other libraries do not show theirs."""


def profile_batches(batches: Callable[..., Iterator[Any]], num_clips: int) -> list[dict[str, Any]]:
    """Reads all clips in this process, twice, and returns the parts of the second time.

    Args:
        batches: called with `num_workers`, reads `num_clips` clips.

    Returns:
        Rows of part, milliseconds per clip and percent; the last is the whole. Times are by the clock, and the
        profiler's own makes what calls many small functions look longer than it is.
    """
    profile = cProfile.Profile()
    for each in (None, profile):
        if each:
            each.enable()
        for _ in batches(num_workers=0):
            pass
    profile.disable()
    profile.create_stats()
    # By (file, line, function): calls twice, seconds of its own, seconds with what it calls, callers.
    stats = {(file, function): times for (file, _, function), times in profile.stats.items()}  # type: ignore[attr-defined]
    total = sum(times[2] for times in stats.values())
    seconds = {name: _find(stats, *place)[3] for name, place in PARTS.items()}
    seconds["rest"] = total - sum(seconds.values())
    seconds |= {name: _find(stats, *place)[2] for name, place in PARTS_OF_PICTURES.items()}
    seconds["all"] = total
    return [
        {"part": name, "milliseconds_per_clip": 1000 * spent / num_clips, "percent": 100 * spent / total}
        for name, spent in seconds.items()
    ]


def _find(stats: dict[tuple[str, str], Any], file: str, function: str) -> tuple[int, int, float, float, Any]:
    found = [times for (path, name), times in stats.items() if path.endswith(file) and name == function]
    return found[0] if found else (0, 0, 0.0, 0.0, {})
