"""The result of a probe as a picture: AUC and its interval per feature set and classifier."""

import io
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from avff.evaluation.plots import DETECTOR_COLOURS, STYLE

CLASSIFIERS = {"knn": "nearest neighbours", "linear": "linear probe"}
PANELS = {"auc": "AUC", "balanced_accuracy": "balanced accuracy"}


def draw_probe(report: dict[str, Any]) -> bytes:
    """Returns a PNG; the dotted line is what guessing reaches."""
    names = list(report["results"])
    chance = {"auc": 0.5, "balanced_accuracy": 1 / len(report["classes"])}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 1.4 + 0.55 * len(names)), layout="constrained", dpi=110)
        panels = figure.subplots(1, len(PANELS), sharey=True)
        for axes, (metric, title) in zip(panels, PANELS.items(), strict=True):
            axes.axvline(chance[metric], color="#999999", linewidth=0.9, linestyle=":")
            for offset, colour, (classifier, legend) in zip(
                (-0.14, 0.14), DETECTOR_COLOURS, CLASSIFIERS.items(), strict=False
            ):
                for place, name in enumerate(names):
                    found = report["results"][name][classifier][metric]
                    if found["low"] is not None:
                        axes.plot([found["low"], found["high"]], [place + offset] * 2, color=colour, linewidth=1.6)
                    axes.plot(found["value"], place + offset, "o", color=colour, label=legend if place == 0 else None)
            axes.set(title=title, xlim=(-0.02, 1.02))
        panels[0].set_yticks(range(len(names)), names)
        panels[0].invert_yaxis()
        panels[0].legend(loc="lower left")
        test = report["test"]
        figure.suptitle(
            f"{report['label']}: {test['rows']} test rows of {test['groups']} groups, 95 % intervals over groups",
            x=0.01,
            ha="left",
        )
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        return buffer.getvalue()
