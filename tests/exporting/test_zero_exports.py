"""ZeRO 0-3 at 1 and 2 ranks: what comes out of a run computes what the run computed, and starts the next stage."""

import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from little_runs import build_shards
from safetensors.torch import load_file as load_tensors

from avff.checkpoints import read_checkpoint
from avff.exporting.weights import export_weights
from avff.files import sha256_of
from avff.models import build_model
from avff.models.weights import load_into, load_weights, save_weights
from avff.run_folder import resolve_checkpoint
from avff.sidecar import read_sidecar

sys.path.insert(0, str(Path(__file__).parent / "workers"))

from export_worker import IN_TRAINING, LIVE, ZERO_STAGES, cell_stages, outputs_of

pytestmark = pytest.mark.slow
WORKER = Path(__file__).parent / "workers" / "export_worker.py"


@pytest.fixture(scope="module")
def trained(forks, tmp_path_factory):
    """Folder of runs by number of ranks, and their shards; each launch trains eight little runs."""
    folder = tmp_path_factory.mktemp("exports")
    shards = build_shards(folder / "shards")
    for num_ranks in (1, 2):
        printed = folder / f"{num_ranks}.txt"
        codes = forks.run(WORKER, folder / str(num_ranks), shards, num_ranks=num_ranks, output=printed)
        assert not any(codes), printed.read_text()
    return folder, shards


@pytest.fixture(autouse=True)
def _one_thread():
    """As the runs had: the order of sums is part of a bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("zero_stage", "num_ranks"), product(ZERO_STAGES, (1, 2)))
def test_an_export_computes_to_the_bit_what_the_run_computed(trained, tmp_path, zero_stage, num_ranks):
    folder, shards = trained
    for config, what in zip(
        cell_stages(folder / str(num_ranks), shards, zero_stage), ("full", "classifier"), strict=True
    ):
        export = export_weights(read_checkpoint(resolve_checkpoint(f"{config.run_dir}:last:raw")), what)
        save_weights(tmp_path / "out.safetensors", *export)
        again = resolve_checkpoint(str(tmp_path / "out.safetensors"))
        network = build_model(again.config)
        initial = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        load_into(network, load_weights(again.weights_path)[0], "export")
        assert any(not torch.equal(initial[name], tensor) for name, tensor in network.state_dict().items())
        live, in_training = (load_tensors(config.run_dir / name) for name in (LIVE, IN_TRAINING))
        found = outputs_of(network.eval(), again.config)
        assert found.keys() == live.keys() == in_training.keys()
        assert all(torch.equal(found[name], live[name]) for name in live), what
        # DeepSpeed's own linear function rounds otherwise (see the worker); below ZeRO-3 it is torch's.
        tolerance = 1e-5 if zero_stage == 3 else 0.0
        assert all((found[name] - in_training[name]).abs().max() <= tolerance for name in live), what


@pytest.mark.parametrize(("zero_stage", "num_ranks"), product(ZERO_STAGES, (1, 2)))
def test_the_next_stage_started_from_the_run_folder(trained, zero_stage, num_ranks):
    folder, shards = trained
    pretrain, finetune = cell_stages(folder / str(num_ranks), shards, zero_stage)
    run_weights = resolve_checkpoint(f"{pretrain.run_dir}:last").weights_path
    sidecar = read_sidecar(resolve_checkpoint(f"{finetune.run_dir}:last").weights_path)
    (adapted,) = sidecar["parents"]
    (parent,) = adapted["parents"]
    assert (adapted["file"], parent["file"]) == (Path(finetune.engine.init_weights).name, run_weights.name)
    assert parent["sha256"] == sha256_of(run_weights)
