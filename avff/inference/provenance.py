"""Where a result comes from: how clips were made, who was trained on, which files took part."""

from collections.abc import Sequence
from pathlib import Path

from avff import __version__
from avff.build_config import BuildConfig, VideoProfile
from avff.data.shards import ShardDirectory
from avff.data.trained_on import trained_groups
from avff.errors import EvaluationError
from avff.evaluation.hazards import find_leaks
from avff.evaluation.rows import Row
from avff.inference.detector import Detector
from avff.json_lines import read_lines
from avff.strict_yaml import flatten, from_dict


def check_build(build: BuildConfig | None, weights_path: Path, directory: ShardDirectory, *, allow: bool) -> list[str]:
    """Compares how the shards and the checkpoint's training clips were made.

    Args:
        build: of the training clips; None where the checkpoint does not say.

    Returns:
        Sentences for the page, where the builds differ (and `allow` is set) or the checkpoint does not say.

    Raises:
        EvaluationError: they differ; the message has both values of each setting.
    """
    if build is None:
        return ["The checkpoint does not record how its clips were made, so nobody checked that these were made alike."]
    stored = from_dict(BuildConfig, directory.manifest["build"], where=f"{directory.path}: manifest.json: build")
    ours, theirs = _appearance(build), _appearance(stored)
    differences = ", ".join(f"{name} {ours[name]} / {theirs[name]}" for name in ours if ours[name] != theirs[name])
    if not differences:
        return []
    if not allow:
        raise EvaluationError(
            f"{directory.path} was built otherwise than the clips that {weights_path} was trained on "
            f"(checkpoint / shards): {differences}; build the shards like the checkpoint, or pass --allow-other-build"
        )
    return [f"{directory.path.name} was built otherwise than the training clips (checkpoint / shards): {differences}."]


def describe_build(build: BuildConfig | None) -> str:
    """Returns what a build's clips look like, in one line."""
    return "not recorded" if build is None else ", ".join(f"{k} {v}" for k, v in _appearance(build).items())


def leak_notes(detector: Detector, rows: Sequence[Row]) -> list[str]:
    """Looks for people of the test clips in what any stage was trained on, where that is still on this machine."""
    trained = trained_groups(detector.trained_on)
    return [*find_leaks(rows, trained.where), *trained.notes]


def describe_provenance(detector: Detector, directories: Sequence[ShardDirectory]) -> dict[str, str]:
    """Returns name -> text for the foot of the page."""
    shards = {f"shards {d.path}": f"{len(d.rows)} samples, sha256 {d.fingerprint}" for d in directories}
    return {
        **detector.describe(),
        "weights": str(detector.weights_path),
        "sha256": detector.checkpoint_sha256,
        "threshold": "none" if detector.threshold is None else f"{detector.threshold:.6f} on the fake probability",
        **shards,
        "avff": __version__,
    }


def read_training(detector: Detector) -> list[dict]:
    """Returns the records of the run's metrics.jsonl; none for a bare weight file."""
    return read_lines(detector.run_dir / "metrics.jsonl")


def _appearance(build: BuildConfig) -> dict[str, object]:
    """Settings that change what a stored clip looks like; where it is cut does not."""
    video: VideoProfile = build.video
    return {"mode": build.mode, "profile": build.profile, **flatten(video)}
