"""What a shard directory holds, in numbers."""

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from avff.data.index import IndexRow
from avff.data.shards import ShardDirectory

REJECTS_NAME = "rejects.csv"
_LABEL_NAMES = {0: "real", 1: "fake", None: "unknown"}


@dataclass(frozen=True)
class BuildSummary:
    """Counts of one shard directory.

    Attributes:
        num_rejects: rejected sources or segments by reason.
        by_group: samples per (split, label, category).
        by_status: samples per status code.
        media_seconds: total duration of the samples.
        already_complete: the directory was finished before, and nothing was done.
    """

    num_samples: int
    num_sources: int
    num_rejects: dict[str, int]
    by_group: dict[tuple[str, str, str], int]
    by_status: dict[str, int]
    media_seconds: float
    num_bytes: int
    already_complete: bool = False

    @property
    def num_with_face(self) -> int:
        return self.num_samples - self.by_status.get("NO_FACE", 0)

    def as_text(self) -> str:
        """Returns the summary as a short table."""
        lines = [f"{self.num_samples} samples of {self.num_sources} sources, {self.media_seconds:.1f} s of media"]
        lines.append(
            f"{self.num_bytes / 1e6:.1f} MB, {self.num_bytes / max(self.media_seconds, 1e-9) / 1e3:.1f} kB per second"
        )
        lines.append(f"face or whole frame stored: {self.num_with_face / self.num_samples:.1%}")
        lines.append(f"{'split':8}{'label':10}{'category':10}{'samples':>8}")
        for (split, label, category), count in sorted(self.by_group.items()):
            lines.append(f"{split or '-':8}{label:10}{category or '-':10}{count:8d}")
        lines.append("status: " + ", ".join(f"{name} {count}" for name, count in sorted(self.by_status.items())))
        rejected = ", ".join(f"{name} {count}" for name, count in sorted(self.num_rejects.items()))
        lines.append(f"rejected: {rejected or 'none'}" + ("; see rejects.csv" if rejected else ""))
        return "\n".join(lines)


def summarize(directory: ShardDirectory, *, already_complete: bool = False) -> BuildSummary:
    """Counts a shard directory from its manifest and index; opens no tar."""
    rows = directory.rows
    return BuildSummary(
        num_samples=len(rows),
        num_sources=len({row.source_key for row in rows}),
        num_rejects=directory.manifest["rejects"],
        by_group=dict(Counter(_group(row) for row in rows)),
        by_status=dict(Counter(status for row in rows for status in row.status)),
        media_seconds=sum(row.duration_seconds for row in rows),
        num_bytes=sum(info.bytes for info in directory.shards),
        already_complete=already_complete,
    )


def rejects_table(output: Path) -> list[str]:
    """Returns a line per reason for which sources or segments were left out, the most frequent first, with an example."""
    with (output / REJECTS_NAME).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        return []
    examples = {row["reason"]: f"{row['source_path']}: {row['detail']}" for row in reversed(rows)}
    counts = Counter(row["reason"] for row in rows).most_common()
    return [
        f"{'rejected':16}{'count':>8}  such as",
        *(f"{name:16}{count:8d}  {examples[name]}" for name, count in counts),
    ]


def _group(row: IndexRow) -> tuple[str, str, str]:
    return row.split, _LABEL_NAMES[row.is_fake], row.category or ""
