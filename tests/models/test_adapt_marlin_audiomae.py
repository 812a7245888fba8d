"""MARLIN and AudioMAE into one start of stage 2: files of the published layout at base size, and a real run.

The run trains at `small` and on smaller pictures: at base size one update and its checkpoint take 10 GB of memory and
two minutes of a core (tried by hand: it starts and names both parents likewise).
"""

import json
import subprocess
import sys
from pathlib import Path

import published_video as picture
import pytest
from made_samples import build_directory, build_sample
from published_files import save_audiomae, save_marlin

from avff.config import load_config
from avff.engine.origin import start_from
from avff.files import sha256_of
from avff.json_lines import read_lines
from avff.models import build_model
from avff.models.weights import load_weights
from avff.run_folder import resolve_checkpoint

ROOT = Path(__file__).parents[2]
VARIANT = ROOT / "configs/variants/stage2_marlin_audiomae.yaml"
LITTLE = ("model.size=small", "clip.image_size=64")
pytestmark = pytest.mark.slow


def call(*arguments: object) -> str:
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def adapt_pair(folder: Path, size: picture.Size, *overrides: str) -> tuple[list[Path], Path, str]:
    """Returns the two published files, the start that the tool made of them, and what it printed."""
    marlin = save_marlin(folder / "marlin_vit_base_ytf.encoder.pt", size)
    audiomae = save_audiomae(folder / "audiomae_pretrained.pth", size)
    start = folder / "start.safetensors"
    pair = ("--from", f"video={marlin}", "--from", f"audio={audiomae}")
    said = call(ROOT / "tools/adapt_weights.py", *pair, "--to", VARIANT, *overrides, "--output", start)
    return [marlin, audiomae], start, said


def check_parents(start_as_parent: dict, start: Path, published: list[Path]) -> None:
    assert start_as_parent["sha256"] == sha256_of(start)
    assert [(one["file"], one["sha256"], one["licences"]) for one in start_as_parent["parents"]] == [
        (path.name, sha256_of(path), ["CC-BY-NC-4.0"]) for path in published
    ]


def test_the_published_layouts_fill_both_base_encoders(tmp_path: Path) -> None:
    published, start, said = adapt_pair(tmp_path, picture.BASE)
    assert said.count("is CC-BY-NC-4.0, not for commercial use") == 2
    assert "mapped        294  video_encoder 147, audio_encoder 147" in said
    tensors, _ = load_weights(start)
    assert sum(tensor.numel() for tensor in tensors.values()) == 173_088_768, "two ViT-B with their tables"
    config = load_config(VARIANT, [f"engine.init_weights={start}"])
    origin = start_from(config, build_model(config), own_records=[])
    assert {name.split(".")[0] for name in origin.new_names} == {
        "a2v", "v2a", "temperature", "video_decoder", "audio_decoder",
    }  # fmt: skip
    check_parents(origin.parents[0], start, published)


def test_a_run_from_a_converted_pair_starts_and_names_both_parents(tmp_path: Path) -> None:
    published, start, said = adapt_pair(tmp_path, picture.SMALL, *LITTLE)
    assert "video_encoder.position_table [1, 1568, 384] -> [1, 128, 384]" in said
    shards = build_directory(tmp_path / "shards", [build_sample(f"clip{i}") for i in range(2)])
    call("-m", "avff", "train", VARIANT, *LITTLE, *little_run(tmp_path, start, shards.path))
    run = tmp_path / "runs" / "stage2_marlin_audiomae"
    (line,) = [line for line in read_lines(run / "metrics.jsonl") if line["kind"] == "train"]
    assert line["step"] == 1 and line["skipped_updates"] == 0 and line["reconstruction_video"] > 0
    sidecar = json.loads(resolve_checkpoint(str(run)).weights_path.with_suffix(".json").read_text())
    assert sidecar["non_commercial"] and sidecar["licences"] == ["Apache-2.0", "CC-BY-NC-4.0"]
    check_parents(sidecar["parents"][0], start, published)


def little_run(folder: Path, start: Path, shards: Path) -> list[str]:
    """One update on two clips."""
    source = f"[{{path: {shards}}}]"
    return [
        f"runs_dir={folder / 'runs'}",
        f"engine.init_weights={start}",
        f"data.train={source}",
        "data.validation=[]",
        "data.num_workers=0",
        "engine.global_batch_size=2",
        "engine.micro_batch_size=2",
        "engine.compile=false",
        "engine.precision=fp32",
        "pretrain.contrastive_group_size=2",
        "pretrain.adversarial_weight=0",
        "optim.num_steps=1",
        "optim.warmup_steps=0",
        "logging.wandb=disabled",
        "logging.log_every_steps=1",
        "logging.panel_every_steps=0",
        "logging.progress=false",
    ]
