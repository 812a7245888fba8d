"""One self-contained HTML page of results: no script, no network, pictures inline."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from avff.evaluation import plots
from avff.evaluation.rows import Row
from avff.files import write_durably

NUM_MISTAKES = 15
METRIC_NAMES = {
    "auc": "AUC",
    "ap_fake": "AP fake",
    "ap_real": "AP real",
    "eer": "EER",
    "balanced_accuracy": "Balanced accuracy",
    "tpr_at_1_percent_fpr": "TPR at 1 % FPR",
    "ece": "ECE",
}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; max-width: 1160px; margin: 2.5rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin-bottom: 0.2rem; } h2 { font-size: 1.15rem; margin: 2.4rem 0 0.6rem; }
p.sub { color: #666; margin-top: 0; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.8rem 0.3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #e6e6e6; font-size: 0.92em; }
th { font-weight: 600; color: #555; }
.interval { color: #777; font-size: 0.85em; white-space: nowrap; } .none { color: #777; font-style: italic; }
.note { border-left: 3px solid #d55e00; background: #fdf5ef; padding: 0.5rem 0.9rem; margin: 0.5rem 0; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(400px, 1fr)); gap: 1rem; }
.plots svg { width: 100%; height: auto; } code { font-size: 0.88em; overflow-wrap: anywhere; }
"""


class Result(NamedTuple):
    """One detector on the page.

    Attributes:
        summary: what `avff.evaluation.summary.summarize` returned.
        provenance: name -> text: config, checkpoint, shards, how they were built.
        training: records of the run's metrics.jsonl; empty when there are none.
    """

    summary: Mapping[str, Any]
    rows: Sequence[Row]
    provenance: Mapping[str, str]
    training: Sequence[Mapping[str, Any]] = ()

    @property
    def name(self) -> str:
        return self.rows[0].label


def write_page(path: Path, results: Sequence[Result], *, title: str) -> None:
    """Writes the page of one or more detectors on the same clips, whole or not at all.

    Args:
        results: the first is the page's subject; the others are drawn beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, render_page(results, title=title).encode())


def render_page(results: Sequence[Result], *, title: str) -> str:
    """Returns the page as HTML text."""
    main = results[0]
    sections = [
        f"<h1>{_text(title)}</h1>",
        f'<p class="sub">{_text(_counts(main.summary))}</p>',
        _section("Result", _headline(results)),
        _section("Read with care", _hazards(results)),
        _section("Curves", _curves(results)),
        _section("By category and method", _breakdown(main.summary)),
        _section("Worst mistakes", _mistakes(main.rows)),
        _section("Undecided", _undecided(main.summary)),
        _section("Training", _training(main.training)),
        _section("Where this comes from", "".join(_provenance(result) for result in results if result.provenance)),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n<body>'
        + "\n".join(section for section in sections if section)
        + "</body></html>\n"
    )


# ------------------------------------------------------------------------------------------- sections


def _counts(summary: Mapping[str, Any]) -> str:
    overall = summary["overall"]
    return (
        f"{summary['dataset']}, split {summary['split']}: scored {summary['scored']} / {summary['expected']} clips, "
        f"{summary['undecided']['count']} of them undecided; {overall['num_real']} real and {overall['num_fake']} fake "
        f"from {overall['num_groups']} groups of people."
    )


def _headline(results: Sequence[Result]) -> str:
    header = ["detector", "clips (groups)", *METRIC_NAMES.values()]
    lines = []
    for result in results:
        overall = result.summary["overall"]
        counts = f"{overall['num_clips']} ({overall['num_groups']})"
        lines.append([_text(result.name), counts, *(_estimate(overall.get(name)) for name in METRIC_NAMES)])
    caption = (
        "<p class='sub'>Brackets: 95 % bootstrap interval that resamples people, not clips. Balanced accuracy is at the "
        "threshold chosen on validation.</p>"
    )
    return _table(header, lines) + caption


def _hazards(results: Sequence[Result]) -> str:
    sentences = dict.fromkeys(hazard for result in results for hazard in result.summary["hazards"])
    missing = results[0].summary["expected"] - results[0].summary["scored"]
    warnings = [f"{missing} clips are missing, so these numbers describe a part of the split."] if missing else []
    found = [*warnings, *sentences]
    if not found:
        return (
            "<p>Looked for leaked people, few groups, imbalance, undecided clips and leading silence; found none.</p>"
        )
    return "".join(f'<div class="note">{_text(sentence)}</div>' for sentence in found)


def _curves(results: Sequence[Result]) -> str:
    detectors = {result.name: result.rows for result in results}
    drawn = [
        plots.roc_plot(detectors),
        plots.precision_recall_plot(detectors),
        plots.histogram_plot(results[0].rows, results[0].name),
        plots.reliability_plot(detectors),
    ]
    return f'<div class="plots">{"".join(f"<div>{svg}</div>" for svg in drawn)}</div>'


def _breakdown(summary: Mapping[str, Any]) -> str:
    names = ("auc", "ap_fake", "eer", "balanced_accuracy", "tpr_at_1_percent_fpr")
    parts = [
        *((f"category {name}", part) for name, part in summary["categories"].items()),
        *((f"method {name}", part) for name, part in summary["methods"].items()),
        *((f"{name} head, {name} fake or not", part) for name, part in summary["heads"].items()),
    ]
    lines = [
        [_text(name), f"{part['num_real']} + {part['num_fake']} ({part['num_groups']})"]
        + [_estimate(part.get(metric)) for metric in names]
        for name, part in parts
    ]
    caption = "<p class='sub'>Every category and method is measured against all real clips.</p>"
    return _table(["", "real + fake (groups)", *(METRIC_NAMES[name] for name in names)], lines) + caption


def _mistakes(rows: Sequence[Row]) -> str:
    """The clips that the verdict got wrong, the most confident first."""
    wrong = [
        row for row in rows if row.predicted is not None and row.is_fake is not None and row.predicted != row.is_fake
    ]
    wrong.sort(key=lambda row: -abs((row.fake_probability or 0.0) - (row.threshold or 0.5)))
    if not wrong:
        return "<p>None.</p>"
    lines = [
        [
            f"<code>{_text(row.key)}</code>",
            "fake" if row.is_fake else "real",
            _text(row.category or ""),
            _text(", ".join(row.methods)),
            f"{row.fake_probability:.3f}",
            str(row.track),
            _text(", ".join(row.group_ids)),
        ]
        for row in wrong[:NUM_MISTAKES]
    ]
    header = ["key", "truth", "category", "methods", "fake probability", "track", "people"]
    shown = "" if len(wrong) <= NUM_MISTAKES else f"; the {NUM_MISTAKES} most confident"
    caption = f"<p class='sub'>{len(wrong)} clips are on the wrong side of the threshold{shown}.</p>"
    return caption + _table(header, lines)


def _undecided(summary: Mapping[str, Any]) -> str:
    undecided = summary["undecided"]
    if not undecided["count"]:
        return "<p>None: every clip had a face (or frame) and sound.</p>"
    truth = {0: "real", 1: "fake", None: "unknown"}
    lines = [
        [f"<code>{_text(clip['key'])}</code>", _text(", ".join(clip["status"])), truth[clip["is_fake"]]]
        for clip in undecided["clips"]
    ]
    return "<p>These clips have no score and enter no metric.</p>" + _table(["key", "reason", "truth"], lines)


def _training(records: Sequence[Mapping[str, Any]]) -> str:
    svg = plots.training_plot(records) if records else None
    return f'<div class="plots"><div>{svg}</div></div>' if svg else ""


def _provenance(result: Result) -> str:
    lines = [[_text(name), f"<code>{_text(value)}</code>"] for name, value in result.provenance.items()]
    return f"<h3>{_text(result.name)}</h3>" + _table(["", ""], lines)


# ------------------------------------------------------------------------------------------- pieces


def _section(title: str, body: str) -> str:
    return f"<h2>{_text(title)}</h2>{body}" if body else ""


def _estimate(found: Mapping[str, Any] | None) -> str:
    """Returns a cell with the value and its interval, or the reason why there is none."""
    if found is None:
        return '<span class="none">–</span>'
    if found["value"] is None:
        return f'<span class="none">{_text(found["reason"])}</span>'
    if found["low"] is None:
        return f'{found["value"]:.3f}<br><span class="none">{_text(found["reason"])}</span>'
    return f'{found["value"]:.3f}<br><span class="interval">[{found["low"]:.3f}, {found["high"]:.3f}]</span>'


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Returns a table of cells that are HTML already."""
    head = f"<tr>{''.join(f'<th>{_text(name)}</th>' for name in header)}</tr>" if any(header) else ""
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in lines)
    return f'<div class="scroll"><table>{head}{body}</table></div>'


def _text(value: object) -> str:
    return html.escape(str(value))
