"""tools/adapt_weights.py from the command line."""

import json
import sys
from pathlib import Path

import pytest

from avff.config import save_config
from avff.files import sha256_of
from avff.models import build_model
from avff.models.weights import load_initial_weights, make_sidecar, save_weights

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import adapt_weights


@pytest.fixture
def run(capsys):
    """Calls the tool: `code, stdout, stderr = run(arguments)`."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = adapt_weights.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


def test_stage_2_to_3_on_the_command_line(tmp_path: Path, odd_config, run) -> None:
    source, target = odd_config(name="stage2"), odd_config("finetune", name="stage3")
    weights, config, output = tmp_path / "in.safetensors", tmp_path / "stage3.yaml", tmp_path / "out.safetensors"
    trained_on = [{"path": "shards/faces", "fingerprint": "0" * 64}]
    about = make_sidecar("stage 2", source, build={"mode": "frame"}, trained_on=trained_on)
    save_weights(weights, build_model(source).state_dict(), about)
    save_config(target, config)

    code, ledger, _ = run("--from", weights, "--to", config, "--output", output, "--dry-run")
    assert code == 0 and "dropped        62" in ledger and not output.exists()
    code, _, problem = run("--from", weights, "--to", config, "--output", output)
    assert code == 0, problem
    sidecar = json.loads(output.with_suffix(".json").read_text())
    assert sidecar["parents"][0]["sha256"] == sha256_of(weights) and sidecar["build"] == {"mode": "frame"}
    assert sidecar["trained_on"] == trained_on
    assert len(sidecar["ledger"]["mapped"]) == 143 and sidecar["ledger"]["new"] == sidecar["new"]
    assert load_initial_weights(build_model(target), output, target) == sorted(sidecar["new"])

    code, _, problem = run(
        "--from", tmp_path / "none.safetensors", "--to", config, "--output", tmp_path / "b.safetensors"
    )
    assert code == 2 and "no such file" in problem
    assert not (tmp_path / "b.safetensors").exists()
