"""`avff demo`: the three-stage run on two CPU cores, as the commands that a user would type.

Each phase is one or more commands and leaves a marker with its seconds and a fingerprint of what it was made from
(commands, configs, earlier phases); a phase whose marker still fits is kept. `summary.json` collects the results.
"""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from avff import __version__
from avff.data.shards import ShardDirectory, open_directory
from avff.errors import AvffError, ConfigError
from avff.evaluation.compare import auc_difference
from avff.evaluation.rows import read_rows
from avff.evaluation.text import format_estimate

ROOT = Path(__file__).parents[1]
CONFIGS = Path("configs/demo")
OUTPUT = "runs/demo"
NUM_PROCESSES = 2
PHASES = "phases.json"


class Phase(NamedTuple):
    """Commands that make one thing, as typed after `python`."""

    name: str
    title: str
    commands: Sequence[str]
    configs: Sequence[Path] = ()


def run_demo(*, fresh: bool) -> str:
    """Runs what is missing below `runs/demo` of the checkout and returns the closing report.

    Args:
        fresh: delete the folder first.

    Raises:
        ConfigError: not a checkout, or the folder was made by other commands or configs.
        AvffError: a command failed; its own message stands above.
    """
    if not (ROOT / CONFIGS).is_dir():
        raise ConfigError(f"{ROOT / CONFIGS}: not found; `avff demo` needs a checkout installed with `pip install -e`")
    os.chdir(ROOT)  # the configs name their shards and weights relative to the checkout
    output = Path(OUTPUT)
    if fresh and output.exists():
        delete(output)
    output.mkdir(parents=True, exist_ok=True)
    run_phases(plan_phases(output), output)
    summary = summarize_demo(output)
    (output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    return describe_demo(summary, output)


def plan_phases(output: Path) -> list[Phase]:
    """Returns the phases in order; everything they write lies below `output`."""
    stage1, stage2, stage3 = (CONFIGS / f"stage{number}.yaml" for number in (1, 2, 3))
    train = f"-m torch.distributed.run --standalone --nproc-per-node {NUM_PROCESSES} -m avff train"
    clips = "--set frames_per_second=10 --set side_pixels=80 --min-seconds 1.6"
    evaluate = f"-m avff evaluate --shards {output}/shards/heads"
    scratch_rows = f"{output}/scratch/evaluation/test/rows.jsonl"
    return [
        Phase(
            "media",
            "draw talking heads, and things that move and sound",
            [
                f"tools/generate_data.py general --num-clips 48 --output {output}/media/general",
                f"tools/generate_data.py heads --output {output}/media/heads",
            ],
        ),
        Phase(
            "shards",
            "find faces, cut clips, write WebDataset shards",
            [
                f"tools/make_shards.py --input {output}/media/general --output {output}/shards/general"
                f" --mode frame --is-fake 0 --val-fraction 0.1 {clips}",
                f"tools/make_shards.py --input {output}/media/heads/metadata.csv --output {output}/shards/heads"
                f" --set faces.detect_every_frames=20 {clips}",
            ],
        ),
        Phase("stage1", "stage 1: pretrain on general video", [f"{train} {stage1}"], [stage1]),
        Phase(
            "stage2",
            "stage 2: pretrain on real talking faces",
            [_adapt(f"{output}/stage1", stage2, f"{output}/weights/stage2_init.safetensors"), f"{train} {stage2}"],
            [stage2],
        ),
        Phase(
            "stage3",
            "stage 3: finetune the real/fake classifier",
            [_adapt(f"{output}/stage2", stage3, f"{output}/weights/stage3_init.safetensors"), f"{train} {stage3}"],
            [stage3],
        ),
        Phase(
            "scratch",
            "for comparison: the same network and budget without pretraining",
            [f"{train} {stage3} name=scratch engine.init_weights="],
            [stage3],
        ),
        Phase(
            "evaluate",
            "score people never seen in training",
            [
                f"{evaluate} --checkpoint {output}/scratch",
                f"{evaluate} --checkpoint {output}/stage3 --baselines --compare {scratch_rows}",
            ],
        ),
        Phase(
            "predict",
            "judge one real and one forged file",
            [
                f"-m avff predict {output}/media/heads/videos/{name}.mp4 --checkpoint {output}/stage3"
                f" --output {output}/predictions/{name}"
                for name in HELD_OUT_CLIPS
            ],
        ),
    ]


HELD_OUT_CLIPS = ("person_0040_00", "person_0041_03")
"""Of the test split: a real clip, and one forged in picture and sound."""


def _adapt(source: str, target: Path, output: str) -> str:
    return f"tools/adapt_weights.py --from {source} --to {target} --output {output}"


# ------------------------------------------------------------------------------------------- running


def run_phases(phases: Sequence[Phase], output: Path) -> None:
    """Runs the phases that have no marker yet, in order.

    Raises:
        ConfigError: a phase was made by other commands or configs, or the folder is not a demo's.
        AvffError: a command failed.
    """
    _read_markers(output)
    for phase in phases:
        _run(phase, output)


def _run(phase: Phase, output: Path) -> None:
    markers = _read_markers(output)
    fingerprint = _fingerprint(phase, list(markers.values()))
    marker = next((m for m in markers.values() if m["name"] == phase.name), None)
    if marker and marker["fingerprint"] == fingerprint:
        _say(f"== {phase.title}: kept from an earlier demo ({marker['seconds']:.0f} s then)")
        return
    if marker:
        raise ConfigError(
            f"{output}: phase {phase.name!r} was made by other commands or configs than these; "
            "start over with `avff demo --fresh`"
        )
    _say(f"== {phase.title}")
    start = time.monotonic()
    for command in phase.commands:
        _say(f"$ python {command}")
        environment = {"OMP_NUM_THREADS": "1", **os.environ}  # two processes share the cores
        code = subprocess.run([sys.executable, *shlex.split(command)], check=False, env=environment).returncode
        if code:
            raise AvffError(
                f"phase {phase.name!r} ended with exit code {code}; see above, mend it and run the demo again"
            )
    markers[phase.name] = {"name": phase.name, "fingerprint": fingerprint, "seconds": time.monotonic() - start}
    (output / PHASES).write_text(json.dumps(markers, indent=1) + "\n")


def _fingerprint(phase: Phase, earlier: list[dict[str, Any]]) -> str:
    """Covers the commands, the configs' text and every phase before this one."""
    before = [marker["fingerprint"] for marker in earlier]
    names = [marker["name"] for marker in earlier]
    before = before[: names.index(phase.name)] if phase.name in names else before
    texts = [path.read_text() for path in phase.configs]
    content = json.dumps([__version__, phase.name, list(phase.commands), texts, before])
    return hashlib.sha256(content.encode()).hexdigest()


def _read_markers(output: Path) -> dict[str, dict[str, Any]]:
    path = output / PHASES
    if not path.exists():
        if any(output.iterdir()):
            raise ConfigError(f"{output}: is not empty and holds no demo; move it away")
        path.write_text("{}\n")
    return json.loads(path.read_text())


def delete(output: Path) -> None:
    """Deletes a demo's folder, and no other.

    Raises:
        ConfigError: the folder is not a demo's.
    """
    if not (output / PHASES).exists():
        raise ConfigError(f"{output}: holds no demo ({PHASES} is missing), so --fresh does not delete it")
    shutil.rmtree(output)


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


# ------------------------------------------------------------------------------------------- results


def summarize_demo(output: Path) -> dict[str, Any]:
    """Returns the AUCs with their 95 % intervals over people, seconds per phase and face statistics."""
    evaluation = output / "stage3/evaluation/test"
    pretrained = json.loads((evaluation / "summary.json").read_text())
    scratch = json.loads((output / "scratch/evaluation/test/summary.json").read_text())
    baselines = json.loads((evaluation / "baselines.json").read_text())
    rows = read_rows(evaluation / "rows.jsonl")
    difference = auc_difference(rows, read_rows(output / "scratch/evaluation/test/rows.jsonl"))
    markers = _read_markers(output)
    return {
        "auc_pretrained": pretrained["overall"]["auc"],
        "auc_scratch": scratch["overall"]["auc"],
        "auc_pretrained_minus_scratch": difference,
        "auc_metadata_only": baselines["metadata_only"]["overall"]["auc"],
        "auc_random_features": baselines["random_features"],
        "auc_per_category": {name: part["auc"] for name, part in pretrained["categories"].items()},
        "auc_per_category_scratch": {name: part["auc"] for name, part in scratch["categories"].items()},
        "auc_video_head": pretrained["heads"]["video"]["auc"],
        "auc_audio_head": pretrained["heads"]["audio"]["auc"],
        "num_test_clips": pretrained["scored"],
        "num_test_people": len({group for row in rows for group in row.group_ids}),
        "faces_found_share": _faces_found_share(open_directory(output / "shards/heads")),
        "seconds_per_phase": {name: round(marker["seconds"], 1) for name, marker in markers.items()},
        "seconds_total": round(sum(marker["seconds"] for marker in markers.values()), 1),
    }


def _faces_found_share(directory: ShardDirectory) -> float:
    return sum("NO_FACE" not in row.status for row in directory.rows) / len(directory.rows)


def describe_demo(summary: dict[str, Any], output: Path) -> str:
    """Returns the closing report of the demo."""
    run = output / "stage3"
    panels = sorted((output / "stage2/panels").glob("*.png"))
    labels = {
        "auc_pretrained": "pretrained (stages 1, 2, 3)",
        "auc_scratch": "same network from scratch",
        "auc_pretrained_minus_scratch": "difference, paired over people",
        "auc_metadata_only": "metadata only, no pixels or samples",
        "auc_random_features": "untrained network, linear probe",
    }
    lines = ["", f"AUC on {summary['num_test_people']} people never seen in training, with 95 % intervals:"]
    lines += [f"  {label:<38}{format_estimate(summary[name])}" for name, label in labels.items()]
    lines += [f"  {name:<38}{format_estimate(auc)}" for name, auc in summary["auc_per_category"].items()]
    lines += [
        f"faces found in {summary['faces_found_share']:.1%} of clips; {summary['seconds_total']:.0f} s of work in all",
        "",
        f"page:            {run / 'evaluation/test/page.html'}",
        f"reconstruction:  {panels[-1] if panels else 'none drawn'}",
        f"timelines:       {', '.join(str(p) for p in sorted((output / 'predictions').glob('*.png')))}",
        f"numbers:         {output / 'summary.json'}",
    ]
    return "\n".join(lines)
