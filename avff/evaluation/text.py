"""A summary as lines for a terminal."""

from typing import Any

HEADLINE = (
    ("AUC", "auc"),
    ("AP fake", "ap_fake"),
    ("AP real", "ap_real"),
    ("EER", "eer"),
    ("TPR at 1 % FPR", "tpr_at_1_percent_fpr"),
    ("balanced accuracy", "balanced_accuracy"),
    ("calibration error", "ece"),
)


def format_estimate(estimate: dict[str, Any]) -> str:
    """Returns `0.912 [0.870, 0.944]`, or why there is no value."""
    if estimate["value"] is None:
        return f"none: {estimate['reason']}"
    if estimate["low"] is None:
        return f"{estimate['value']:.3f} (no interval: {estimate['reason']})"
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def describe_summary(summary: dict[str, Any]) -> str:
    """Returns counts, metrics with 95 % intervals, AUC per head and category, differences and hazards."""
    overall = summary["overall"]
    lines = [
        f"{summary['run']}: scored {summary['scored']} of {summary['expected']} clips, "
        f"{summary['undecided']['count']} undecided, {overall['num_fake']} fake, {overall['num_real']} real, "
        f"{overall['num_groups']} independent groups"
    ]
    lines += [f"  {label:<20}{format_estimate(overall[name])}" for label, name in HEADLINE if name in overall]
    lines += [f"  AUC {head} head{'':<7}{format_estimate(part['auc'])}" for head, part in summary["heads"].items()]
    lines += [f"  AUC {name:<16}{format_estimate(part['auc'])}" for name, part in summary["categories"].items()]
    lines += [
        f"  AUC minus {name}: {format_estimate(difference)}"
        for name, difference in summary.get("differences", {}).items()
    ]
    lines += [f"  note: {hazard}" for hazard in summary["hazards"]]
    return "\n".join(lines)
