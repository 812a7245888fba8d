"""Where the time of a clip goes, from a tar to its place in a batch."""

import cProfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Place = tuple[str, str]
"""End of a file's path, and a function in it."""
Function = tuple[str, int, str]
"""As cProfile names it: file, line, name."""

PICTURES = "pictures"
DECODE_FRAMES, DECODE_PICTURES = ("data/decode.py", "decode_frames"), ("data/mp4.py", "decode_pictures")

PARTS = {
    "read the bytes of a sample": ("data/shards.py", "_read_range"),
    "tar entries, checksums, metadata": ("data/samples.py", "parse_sample"),
    PICTURES: DECODE_FRAMES,
    "sound": ("data/decode.py", "decode_sound"),
    "stack into a batch": ("data/views.py", "_stack"),
}
"""File and function of each; none calls another. `rest` is what is in none of them."""

PARTS_OF_PICTURES = {
    "  H.264": (("~", "<method 'decode' of 'av.codec.context.CodecContext' objects>"), DECODE_PICTURES),
    "  to RGB": (("~", "<method 'reformat' of 'av.video.reformatter.VideoReformatter' objects>"), DECODE_PICTURES),
    "  copy": (DECODE_FRAMES, None),
}
"""Time of their own, called by that function. Other libraries than PyAV show none but `copy`."""


def profile_batches(batches: Callable[..., Iterator[Any]], num_clips: int) -> list[dict[str, Any]]:
    """Reads all clips in this process, twice, and returns the parts of the second time.

    Args:
        batches: called with `num_workers`, reads `num_clips` clips.

    Returns:
        Rows of part, milliseconds per clip and percent; the last is the whole. Indented parts are of the one above them,
        and the others add up. Times are by the clock, and the profiler's own makes what calls many small functions look
        longer than it is.
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
    stats: dict[Function, Any] = profile.stats  # type: ignore[attr-defined]
    total = sum(times[2] for times in stats.values())
    seconds: dict[str, float] = {}
    for name, place in PARTS.items():
        seconds[name] = _find(stats, place)[3]
        if name == PICTURES:
            seconds |= {part: _own_seconds(stats, *places) for part, places in PARTS_OF_PICTURES.items()}
    seconds["rest"] = total - sum(seconds[name] for name in PARTS)
    seconds["all"] = total
    return [
        {"part": name, "milliseconds_per_clip": 1000 * spent / num_clips, "percent": 100 * spent / total}
        for name, spent in seconds.items()
        if spent
    ]


def _own_seconds(stats: dict[Function, Any], place: Place, caller: Place | None) -> float:
    """Returns the seconds of a function alone, all of them or those of the calls from one other."""
    times = _find(stats, place)
    return (_find(times[4], caller) if caller else times)[2]


def _find(stats: dict[Function, Any], place: Place) -> Sequence[Any]:
    found = [times for (path, _, name), times in stats.items() if path.endswith(place[0]) and name == place[1]]
    return found[0] if found else (0, 0, 0.0, 0.0, {})
