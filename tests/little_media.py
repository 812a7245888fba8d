"""Folders of little media to build shards from, and what a build left."""

from pathlib import Path

from media_files import noise, solid, steady, write_media


def write_clips(folder: Path, count: int) -> Path:
    """Writes `clip N.mov` of 4 s, which can be decoded, and `broken.mp4`, which cannot; returns the folder."""
    for number in range(count):
        frames = solid((200 * number // count, 90, 9), 100, (64, 64))
        write_media(folder / f"clip {number}.mov", [steady(frames, 25)], [noise(4.0)])
    (folder / "broken.mp4").write_bytes(b"not a video" * 99)
    return folder


def content(directory: Path) -> dict[str, bytes]:
    """Returns the files of a shard directory; fails on a folder in it, which a finished one does not hold."""
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}
