"""The media files that shards are built from, with what is known about each."""

import hashlib
import os
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from avff.building.tables import read_table
from avff.errors import ConfigError
from avff.schema import FakeSegments, Label, Split, complete_labels

VIDEO_SUFFIXES = frozenset(".3gp .avi .flv .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogv .ts .webm .wmv".split())
_LONGEST_SOURCE_KEY = 64
"""Leaves room for the segment number in a key of 80 characters."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One media file and its labels.

    Attributes:
        path: where the file lies.
        name: its path below the input root, POSIX; `source_path` in the metadata.
        source_key: unique in one build; begins the keys of its segments.
        is_fake, video_is_fake, audio_is_fake: 0 real, 1 fake, None unknown.
        group_ids: persons and original videos; a clip without any is its own group.
        fake_segments_seconds: forged stretches in the file's own time; None unknown.
    """

    path: Path
    name: str
    source_key: str
    dataset: str = ""
    split: Split = ""
    is_fake: Label = None
    video_is_fake: Label = None
    audio_is_fake: Label = None
    group_ids: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    fake_segments_seconds: FakeSegments | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def read_sources(
    path: Path,
    *,
    root: Path | None = None,
    dataset: str = "",
    split: Split = "",
    is_fake: Label = None,
    extra_columns: tuple[str, ...] = (),
) -> list[Source]:
    """Lists the media files of a folder, of a CSV file, or one file.

    Args:
        path: a folder (searched with its subfolders), a `.csv` file, or one media file.
        root: folder that the CSV's names are relative to; the CSV's own by default.
        dataset, split, is_fake: for every file whose row does not say otherwise.
        extra_columns: CSV columns to keep as they are in the metadata's `extra`.

    Returns:
        Sources in order of name, with unique keys.

    Raises:
        ConfigError: no such input or no video in it; unknown columns, bad values, missing files, one file twice: all
            problems of a CSV in one message.
    """
    if not path.exists():
        raise ConfigError(f"{path}: no such folder or file")
    if path.suffix.lower() == ".csv":
        rows = read_table(path, root or path.parent, extra_columns)
    elif path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in VIDEO_SUFFIXES and file.is_file())
        rows = [{"path": file, "name": file.relative_to(path).as_posix()} for file in files]
    else:
        rows = [{"path": path, "name": path.name}]
    if not rows:
        raise ConfigError(f"{path}: no video in it; known endings are {' '.join(sorted(VIDEO_SUFFIXES))}")
    defaults = {"dataset": dataset, "split": split}
    sources = [Source(source_key="", **{**defaults, **row}) for row in sorted(rows, key=lambda row: row["name"])]
    return _with_keys([_with_labels(source, is_fake) for source in sources])


def single_source(path: Path) -> Source:
    """Returns one unlabelled file as prediction reads it; its key is that of a build of this file alone."""
    return read_sources(path)[0]


def _with_labels(source: Source, is_fake: Label) -> Source:
    known = (source.is_fake, source.video_is_fake, source.audio_is_fake)
    if known == (None, None, None):
        known = (is_fake, None, None)
    overall, video, audio, _ = complete_labels(*known)
    return replace(source, is_fake=overall, video_is_fake=video, audio_is_fake=audio)


def _with_keys(sources: list[Source]) -> list[Source]:
    """Sanitised names; where two names become one, or a name is cut, a hash of the name keeps them apart."""
    plain = [re.sub(r"[^A-Za-z0-9]+", "_", str(Path(source.name).with_suffix(""))).strip("_") for source in sources]
    counts = Counter(plain)
    keyed = []
    for source, name in zip(sources, plain, strict=True):
        ambiguous = not name or len(name) > _LONGEST_SOURCE_KEY or counts[name] > 1
        digest = hashlib.sha256(os.fsencode(source.name)).hexdigest()[:10]
        key = f"{name[: _LONGEST_SOURCE_KEY - 11]}-{digest}".lstrip("-") if ambiguous else name
        keyed.append(replace(source, source_key=key))
    return keyed
