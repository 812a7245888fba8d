"""tools/checkpoint.py from the command line, on checkpoints written as training writes them."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from avff import __version__, run_folder
from avff.checkpoint_files import Piece, commit, list_files, write_pieces
from avff.config import save_config
from avff.files import write_durably
from avff.models import build_model
from avff.models.weights import load_into, load_weights, make_sidecar, save_tensors, save_weights

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import checkpoint as tool

STATE_JSON = (
    b'{"step": %d, "samples_seen": 64, "world_size": %d, "zero_stage": 1, "avff_version": "1", "code_revision": null, '
    b'"validation": {"metric": "auc", "value": 0.75, "higher_is_better": true}}'
)


@pytest.fixture
def run(capsys):
    """Calls the tool: `code, stdout, stderr = run(arguments)`."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = tool.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def add(tiny_config):
    """Writes `step-N` of a run by so many ranks: `run_dir = add(name, step, num_ranks=1, change=lambda state: None)`."""

    def write(name: str, step: int, *, num_ranks: int = 1, change=lambda state: None) -> Path:
        config = tiny_config(name=name)
        torch.manual_seed(0)
        weights = {name: tensor.detach() for name, tensor in build_model(config).named_parameters()}
        state = {"weights": weights, "exp_avg": {n: 0.1 * t for n, t in weights.items()}}
        state |= {"exp_avg_sq": {n: t**2 for n, t in weights.items()}, "ema": {n: 0.9 * t for n, t in weights.items()}}
        change(state)
        config.run_dir.mkdir(parents=True, exist_ok=True)
        save_config(config, config.run_dir / "config.yaml")
        write_checkpoint(run_folder.checkpoint_dir(config.run_dir, step), state, num_ranks, make_sidecar("toy", config))
        return config.run_dir

    return write


def write_checkpoint(final: Path, state: dict[str, dict[str, Tensor]], num_ranks: int, sidecar: dict) -> None:
    folder = final.with_name(final.name + ".tmp")
    shapes = {name: tuple(tensor.shape) for name, tensor in state["weights"].items()}
    for rank in range(num_ranks):
        pieces = []
        for name, shape in shapes.items():
            flat = {key: tensors[name].flatten().chunk(num_ranks) for key, tensors in state.items()}
            if rank < len(flat["weights"]):
                start = rank * len(flat["weights"][0])
                pieces.append(Piece(name, start, shape, {key: run[rank] for key, run in flat.items()}))
        write_pieces(folder / "model" / f"rank-{rank:05d}.safetensors", pieces, num_updates=8)
    save_weights(folder / run_folder.WEIGHTS, state["weights"], sidecar)
    save_weights(folder / run_folder.EMA, state["ema"], {**sidecar, "averaged": True})
    step = int(final.name.removeprefix("step-"))
    write_durably(folder / run_folder.STATE, STATE_JSON % (step, num_ranks))
    commit(folder, final, list_files(folder, [path for path in folder.rglob("*") if path.is_file()]))


def test_inspect_says_what_a_checkpoint_is(run, add):
    run_dir = add("a", 8, num_ranks=3)
    add("a", 12)
    (run_dir / "checkpoints" / "step-16.tmp").mkdir()
    code, text, problem = run("inspect", f"{run_dir}:step-8")
    assert (code, problem) == (0, "")
    size = (run_dir / "checkpoints/step-8/ema.safetensors").stat().st_size
    num_parameters = sum(
        tensor.numel() for tensor in load_weights(run_dir / "checkpoints/step-8/ema.safetensors")[0].values()
    )
    for expected in (
        "8, 64 samples seen",
        "3 ranks under ZeRO 1",
        f"model                   {num_parameters:,} parameters in ",
        "each with weights, ema, exp_avg, exp_avg_sq; 8 updates",
        f"ema.safetensors       {size:,} bytes",
        "model/rank-00002.safetensors",
        "auc 0.7500",
        "step-8, step-12 (best)",
        "step-16.tmp: being written",
    ):
        assert expected in text


def test_a_state_of_an_older_version_says_so(run, add):
    run_dir = add("a", 8)
    path = run_dir / "checkpoints/step-8/model/rank-00000.safetensors"
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["fragments"])
    del about["shapes"]
    save_tensors(path, load_file(path), {"fragments": json.dumps(about)})
    code, _, problem = run("inspect", run_dir)
    assert code == 2
    assert f"{path}: does not record shapes; an older version of avff wrote it" in problem and __version__ in problem


def test_verify_names_the_damaged_file_and_fails(run, add):
    run_dir = add("a", 8)
    add("a", 12)
    assert run("verify", run_dir)[:2] == (
        0,
        f"{run_dir}/checkpoints/step-8: whole\n{run_dir}/checkpoints/step-12: whole\n",
    )
    path = run_dir / "checkpoints/step-8/model/rank-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    code, text, _ = run("verify", run_dir)
    assert code == 1
    assert f"{path}: sha256 differs" in text and "step-12: whole" in text and "1 of 2 checkpoints damaged" in text
    assert run("verify", f"{run_dir}:last")[0] == 0
    (run_dir / "checkpoints/step-12/COMMIT").write_text("other")
    assert run("verify", f"{run_dir}:step-12")[0] == 1


def test_diff_compares_across_numbers_of_ranks(run, add):
    one, same = add("one", 8, num_ranks=1), add("same", 8, num_ranks=4)
    code, text, _ = run("diff", one, same)
    assert code == 0
    assert text.count("tensors equal") == 4

    def change(state: dict[str, dict[str, Tensor]]) -> None:
        state["exp_avg"]["audio_decoder.head.bias"][[0, 7]] += 0.5
        state["ema"]["audio_decoder.head.bias"][3] = torch.nan

    code, text, _ = run("diff", one, add("changed", 8, num_ranks=2, change=change))
    size = 256
    assert code == 1
    assert f"audio_decoder.head.bias: 2 of {size} values differ, by up to 0.5\n" in text
    assert f"audio_decoder.head.bias: 1 of {size} values differ, by up to nan\n" in text
    total = text.splitlines()[0].split()[4]
    assert f"model weights: {total} of {total} tensors equal" in text
    assert f"model exp_avg: {int(total) - 1} of {total} tensors equal" in text


def test_diff_names_what_only_one_has(run, add):
    def change(state: dict[str, dict[str, Tensor]]) -> None:
        for tensors in state.values():
            tensors["extra"] = torch.zeros(3)
            tensors["audio_decoder.head.bias"] = torch.zeros(5)

    code, text, _ = run("diff", add("one", 8), add("other", 8, change=change))
    assert code == 1
    assert "extra: nothing against shape [3]" in text
    assert "audio_decoder.head.bias: shape [256] against shape [5]" in text


def test_export_writes_the_average_or_the_weights(run, add, tmp_path, tiny_config):
    run_dir = add("a", 8)
    averaged, raw = tmp_path / "averaged.safetensors", tmp_path / "raw.safetensors"
    assert run("export", run_dir, "--output", averaged)[0] == 0
    assert run("export", f"{run_dir}:last:raw", "--output", raw)[0] == 0
    tensors, sidecar = load_weights(averaged)
    assert sidecar["averaged"] and sidecar["what"] == "toy at step 8"
    weights, _ = load_weights(raw)
    assert all(torch.equal(tensors[name], 0.9 * weights[name]) for name in weights)
    load_into(build_model(tiny_config()), weights, str(raw))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("inspect", "{run}:step-9"), "no checkpoint 'step-9'; use best, last or one of step-8"),
        (("verify", "{run}/nothing"), "not a run folder"),
        (("export", "{run}", "--output", "{run}/x.bin"), "a weight file's name ends in .safetensors"),
        (("export", "{run}", "--output", "/proc/nowhere/x.safetensors"), "/proc/nowhere"),
    ],
)
def test_mistakes_get_one_message_and_code_2(run, add, arguments, message):
    run_dir = add("a", 8)
    code, text, problem = run(*(argument.replace("{run}", str(run_dir)) for argument in arguments))
    assert (code, text) == (2, "")
    assert message in problem and problem.startswith("error: ")
