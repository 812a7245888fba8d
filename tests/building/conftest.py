"""A folder of tiny media files to build from."""

from pathlib import Path

import pytest
from media_files import noise, solid, steady, write_media


@pytest.fixture(scope="session")
def media_folder(tmp_path_factory) -> Path:
    """Six decodable files of 4 s in two subfolders, one too short, one mute, one broken."""
    folder = tmp_path_factory.mktemp("media")
    for number in range(6):
        frames = solid((40 * number, 90, 200 - 30 * number), 100, (64, 64))
        write_media(folder / "ab"[number % 2] / f"clip {number}.mov", [steady(frames, 25)], [noise(4.0)])
    write_media(folder / "short.mov", [steady(solid((9, 9, 9), 25, (64, 64)), 25)], [noise(1.0)])
    write_media(folder / "mute.mov", [steady(solid((9, 9, 9), 100, (64, 64)), 25)])
    (folder / "broken.mp4").write_bytes(b"not a video" * 99)
    (folder / "notes.txt").write_text("not media at all")
    return folder
