"""Curves of one or several detectors as SVG text, for a page that needs no network."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from avff.evaluation import metrics
from avff.evaluation.rows import Row

# Okabe & Ito's colours stay apart for most kinds of colour blindness.
DETECTOR_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
CATEGORY_COLOURS = {"RVRA": "#009E73", "RVFA": "#56B4E9", "FVRA": "#E69F00", "FVFA": "#D55E00", "other": "#777777"}
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "path",
    "svg.hashsalt": "avff",
}
Detectors = Mapping[str, Sequence[Row]]


def roc_plot(detectors: Detectors) -> str:
    """ROC of each detector; chance is the dotted diagonal."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _square("ROC", "real clips called fake", "fake clips found")
        axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, linestyle=":")
        for colour, (name, scores_N, labels_N) in _labelled(detectors):
            false_rate, true_rate = metrics.curve(scores_N, labels_N, np.ones((1, len(scores_N)))).rates()
            auc = metrics.roc_auc(scores_N, labels_N)
            axes.plot(false_rate[0], true_rate[0], color=colour, label=f"{name}  AUC {auc:.3f}")
        _legend(axes, "lower right")
        return _svg(figure)


def precision_recall_plot(detectors: Detectors) -> str:
    """Precision over recall of the fake class; the dotted line is the share of fakes, which guessing reaches."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _square(
            "Precision and recall of fakes", "fake clips found (recall)", "called fake and fake (precision)"
        )
        for colour, (name, scores_N, labels_N) in _labelled(detectors):
            points = metrics.curve(scores_N, labels_N, np.ones((1, len(scores_N))))
            recall = points.true_RU[0] / points.true_RU[0, -1]
            precision = points.true_RU[0] / (points.true_RU[0] + points.false_RU[0])
            average = metrics.average_precision(scores_N, labels_N)
            axes.plot(recall, precision, color=colour, label=f"{name}  AP {average:.3f}", drawstyle="steps-pre")
            axes.axhline(labels_N.mean(), color="#999999", linewidth=0.8, linestyle=":")
        _legend(axes, "lower left")
        return _svg(figure)


def histogram_plot(rows: Sequence[Row], name: str) -> str:
    """Fake probabilities by category, one panel each over the same axis, and the threshold."""
    decided = [row for row in rows if row.fake_probability is not None]
    groups: dict[str, list[float]] = {}
    for row in decided:
        groups.setdefault(_category(row), []).append(row.fake_probability or 0.0)
    order = [category for category in CATEGORY_COLOURS if category in groups]
    threshold = next((row.threshold for row in decided if row.threshold is not None), None)
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(4.4, 4.0), layout="constrained")
        panels = np.atleast_1d(figure.subplots(max(1, len(order)), 1, sharex=True))
        for axes, category in zip(panels, order, strict=False):
            axes.hist(groups[category], bins=np.linspace(0, 1, 41), color=CATEGORY_COLOURS[category])
            axes.set_ylabel(f"{category}\nn={len(groups[category])}", rotation=0, ha="right", va="center")
            axes.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(2, integer=True))
            if threshold is not None:
                axes.axvline(threshold, color="black", linewidth=0.9, linestyle="--")
        panels[0].set_title(f"Scores by category: {name}")
        panels[-1].set_xlabel(
            "fake probability" + ("" if threshold is None else f"  (dashed: threshold {threshold:.3f})")
        )
        panels[-1].set_xlim(0, 1)
        return _svg(figure)


def reliability_plot(detectors: Detectors) -> str:
    """Observed share of fakes against the predicted probability; marks grow with the clips in a bin."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _square("Reliability", "predicted fake probability", "observed share of fakes")
        axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, linestyle=":")
        for colour, (name, rows) in zip(DETECTOR_COLOURS, detectors.items(), strict=False):
            known = [row for row in rows if row.fake_probability is not None and row.is_fake is not None]
            if not known:
                continue
            probabilities_N = np.array([row.fake_probability for row in known], dtype=np.float64)
            labels_N = np.array([row.is_fake for row in known], dtype=np.int64)
            bins_N = metrics.calibration_bins(probabilities_N)
            filled = np.unique(bins_N)
            x = [probabilities_N[bins_N == b].mean() for b in filled]
            y = [labels_N[bins_N == b].mean() for b in filled]
            sizes = [10 + 120 * float(np.mean(bins_N == b)) for b in filled]
            error = metrics.calibration_error(probabilities_N, labels_N)
            axes.plot(x, y, color=colour, linewidth=0.9, label=f"{name}  ECE {error:.3f}")
            axes.scatter(x, y, s=sizes, color=colour)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14))
        return _svg(figure)


def training_plot(records: Sequence[Mapping[str, Any]]) -> str | None:
    """Loss and validation curves of a run's metrics.jsonl, or None when it holds none."""
    losses = _series(records, r"(^|/)(loss|total)$")
    validation = _series(records, r"validation.*auc|^val.*auc")
    panels = [
        (title, series) for title, series in (("Training loss", losses), ("Validation AUC", validation)) if series
    ]
    if not panels:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.4 * len(panels), 2.6), layout="constrained")
        for axes, (title, series) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
            for colour, (name, (steps, values)) in zip(DETECTOR_COLOURS, series.items(), strict=False):
                axes.plot(steps, values, color=colour, linewidth=1, label=name, marker="." if len(steps) < 30 else None)
            axes.set_title(title)
            axes.set_xlabel("step")
            axes.legend()
        return _svg(figure)


def _series(records: Sequence[Mapping[str, Any]], pattern: str) -> dict[str, tuple[list[int], list[float]]]:
    series: dict[str, tuple[list[int], list[float]]] = {}
    for record in records:
        for name, value in record.items():
            if re.search(pattern, name) and isinstance(value, int | float) and "step" in record:
                steps, values = series.setdefault(name, ([], []))
                steps.append(record["step"])
                values.append(value)
    return series


def _labelled(detectors: Detectors):
    """Yields (colour, (name, logits_N, labels_N)) of every detector that scored both classes."""
    for colour, (name, rows) in zip(DETECTOR_COLOURS, detectors.items(), strict=False):
        known = [row for row in rows if row.fake_logit is not None and row.is_fake is not None]
        labels_N = np.array([row.is_fake for row in known], dtype=np.int64)
        if metrics.undefined_reason(labels_N) is None:
            yield colour, (name, np.array([row.fake_logit for row in known], dtype=np.float64), labels_N)


def _category(row: Row) -> str:
    return row.category or "other"


def _square(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.4, 4.0), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y, xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
    return figure, axes


def _legend(axes: Axes, place: Literal["lower right", "lower left"]) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc=place)
    else:
        axes.text(0.5, 0.5, "needs real and fake clips", ha="center", color="#777777", transform=axes.transAxes)


def _svg(figure: Figure) -> str:
    """Returns the <svg> element alone, without the XML head that a page cannot hold."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
