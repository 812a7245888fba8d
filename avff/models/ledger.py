"""What became of every key of a conversion: printed for people, kept in the sidecar."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class KeyLedger:
    """Each key of the target is in exactly one of `mapped`, `interpolated`, `folded`, `filled` and `new`.

    Attributes:
        mapped: copied as they are.
        made_of: name -> what the source calls it, where that is something else.
        interpolated: name -> its shapes on the old and the new grid of tokens.
        folded: name -> what was taken up into it without loss, such as an input normalisation.
        filled: name -> why it holds a constant.
        dropped: key of the source -> why it has no place in the target.
        new: name -> why it is left to its random start.
        fixed_tables: name of a position table that can be cut, not resampled -> why; a later adaptation asks for it.
        notes: changes of the clip that alter no weight, and what else a reader should know.
    """

    mapped: list[str] = field(default_factory=list)
    made_of: dict[str, str] = field(default_factory=dict)
    interpolated: dict[str, str] = field(default_factory=dict)
    folded: dict[str, str] = field(default_factory=dict)
    filled: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    new: dict[str, str] = field(default_factory=dict)
    fixed_tables: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def describe(self) -> str:
        """Returns a summary for people: counts per part of the network, reasons, and every changed key by name."""
        lines = [_line("mapped", len(self.mapped), by_part(self.mapped))] if self.mapped else []
        lines += [_line("interpolated", None, f"{name} {shapes}") for name, shapes in self.interpolated.items()]
        for kind in ("folded", "filled"):
            for reason, names in _by_reason(getattr(self, kind)).items():
                lines.append(_line(kind, len(names), f"{', '.join(join_numbered(names))}: {reason}"))
        for kind in ("dropped", "new"):
            for reason, names in _by_reason(getattr(self, kind)).items():
                lines.append(_line(kind, len(names), f"{by_part(names)}: {reason}"))
        lines += [_line("note", None, note) for note in self.notes]
        return "\n".join(lines)


def by_part(names: Iterable[str]) -> str:
    """Returns how many keys each part has: `video_encoder 52, a2v 17`."""
    # In a ledger of several files a key is written `file: key`.
    parts = Counter(name.rpartition(": ")[2].split(".")[0] for name in names)
    return ", ".join(f"{part} {count}" for part, count in parts.items())


def join_numbered(names: Iterable[str]) -> list[str]:
    """Joins names that differ in one number: `blocks.0.norm.bias` to `blocks.11.norm.bias` is `blocks.0-11.norm.bias`."""
    numbers: dict[str, list[int]] = {}
    for name in names:
        number = re.search(r"(?<=\.)\d+(?=\.)", name)
        pattern = name if number is None else f"{name[: number.start()]}{{}}{name[number.end() :]}"
        numbers.setdefault(pattern, []).extend([int(number[0])] if number else [])
    return [pattern.replace("{}", _ranges(found)) for pattern, found in numbers.items()]


def _ranges(numbers: list[int]) -> str:
    """Writes ascending numbers as runs: `0-3,7`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return names


def _line(kind: str, count: int | None, text: str) -> str:
    return f"{kind:<13}{'' if count is None else count:>4}  {text}"
