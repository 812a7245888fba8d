"""tools/adapt_weights.py from the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from avff.config import save_config
from avff.models import build_model
from avff.models.weights import load_initial_weights, make_sidecar, save_weights, sha256_of

ROOT = Path(__file__).parents[2]


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "tools" / "adapt_weights.py", *arguments]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_stage_2_to_3_on_the_command_line(tmp_path: Path, odd_config) -> None:
    source, target = odd_config(name="stage2"), odd_config("finetune", name="stage3")
    weights, config, output = tmp_path / "in.safetensors", tmp_path / "stage3.yaml", tmp_path / "out.safetensors"
    save_weights(weights, build_model(source).state_dict(), make_sidecar("stage 2", source, build={"mode": "frame"}))
    save_config(target, config)

    dry = run("--from", weights, "--to", config, "--output", output, "--dry-run")
    assert dry.returncode == 0 and "dropped        62" in dry.stdout and not output.exists()
    done = run("--from", weights, "--to", config, "--output", output)
    assert done.returncode == 0, done.stderr
    sidecar = json.loads(output.with_suffix(".json").read_text())
    assert sidecar["parents"][0]["sha256"] == sha256_of(weights) and sidecar["build"] == {"mode": "frame"}
    assert len(sidecar["ledger"]["mapped"]) == 143 and sidecar["ledger"]["new"] == sidecar["new"]
    assert load_initial_weights(build_model(target), output, target) == sorted(sidecar["new"])

    failed = run("--from", tmp_path / "none.safetensors", "--to", config, "--output", tmp_path / "b.safetensors")
    assert failed.returncode == 2 and "no such file" in failed.stderr and "Traceback" not in failed.stderr
    assert not (tmp_path / "b.safetensors").exists()
