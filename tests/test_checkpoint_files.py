"""Fragments of any cut give back one state; what is missing or torn is named."""

import json
from itertools import pairwise

import pytest
import torch
from safetensors import safe_open

from avff import run_folder
from avff.checkpoint_files import CanonicalState, Piece, commit, list_files, write_pieces
from avff.errors import CheckpointError
from avff.files import sha256_of
from avff.run_folder import find_problems

SHAPES = {"a.weight": (3, 5), "b.bias": (7,), "c.scale": (1,)}
STATE = {
    key: {name: torch.randn(shape, generator=torch.Generator().manual_seed(i)) for name, shape in SHAPES.items()}
    for i, key in enumerate(("weights", "exp_avg", "exp_avg_sq", "ema"))
}


def cut(name: str, start: int, stop: int) -> Piece:
    tensors = {key: state[name].flatten()[start:stop].clone() for key, state in STATE.items()}
    return Piece(name, start, SHAPES[name], tensors)


def write_cut(folder, *cuts: int) -> None:
    """Writes the state as ranks would that own [0, cut), [cut, cut), ... of all parameters laid end to end."""
    bounds = [0, *cuts, sum(torch.Size(shape).numel() for shape in SHAPES.values())]
    for rank, (first, last) in enumerate(pairwise(bounds)):
        pieces, offset = [], 0
        for name, shape in SHAPES.items():
            size = torch.Size(shape).numel()
            start, stop = max(first - offset, 0), min(last - offset, size)
            if start < stop:
                pieces.append(cut(name, start, stop))
            offset += size
        write_pieces(folder / f"rank-{rank:05d}.safetensors", pieces, num_updates=4)


@pytest.mark.parametrize("cuts", [(), (4,), (4, 9, 15), (15, 22), (0, 23)])
def test_any_cut_gives_back_the_state(tmp_path, cuts):
    write_cut(tmp_path / "model", *cuts)
    state = CanonicalState(tmp_path / "model")
    assert (state.keys, state.num_updates) == (["weights", "ema", "exp_avg", "exp_avg_sq"], 4)
    for key, expected in STATE.items():
        found = state.read_all(key)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_run_is_read_across_files_and_nothing_around_it_is_touched(tmp_path):
    write_cut(tmp_path, 4, 9)
    view = torch.full((10,), torch.nan)
    CanonicalState(tmp_path).read_into("ema", "a.weight", 3, view[1:9])
    assert torch.equal(view[1:9], STATE["ema"]["a.weight"].flatten()[3:11])
    assert view[[0, 9]].isnan().all()


def test_equal_states_give_equal_files(tmp_path):
    for name in ("one", "two"):
        write_cut(tmp_path / name, 9)
    sums = [[sha256_of(path) for path in sorted((tmp_path / name).iterdir())] for name in ("one", "two")]
    assert sums[0] == sums[1] and len(set(sums[0])) == 2


def test_a_missing_rank_and_a_foreign_parameter_are_named(tmp_path):
    write_cut(tmp_path, 4, 9)
    (tmp_path / "rank-00001.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"holds 10 of the 15 values of weights that parameter a.weight \[0, 15\)"
    ):
        CanonicalState(tmp_path).read("weights", "a.weight")
    with pytest.raises(CheckpointError, match="holds 0 of the 2 values of ema that parameter nobody"):
        CanonicalState(tmp_path).read_into("ema", "nobody", 0, torch.zeros(2))
    with pytest.raises(CheckpointError, match=r"no \.safetensors file"):
        CanonicalState(tmp_path / "nowhere")


def test_a_torn_file_is_named(tmp_path):
    write_cut(tmp_path, 9)
    torn = tmp_path / "rank-00001.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"rank-00001.safetensors: not a whole fragment file"):
        CanonicalState(tmp_path)


def test_a_foreign_safetensors_file_is_named(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"other.safetensors: not a whole fragment file"):
        CanonicalState(tmp_path)


def test_a_committed_folder_is_whole_and_lists_every_file(tmp_path):
    final = run_folder.checkpoint_dir(tmp_path, 3)
    unfinished = final.with_name(f"step-3{run_folder.UNFINISHED}")
    write_cut(unfinished / "model", 9)
    (unfinished / run_folder.STATE).write_text(json.dumps({"step": 3}))
    commit(unfinished, final, list_files(unfinished, [path for path in unfinished.rglob("*") if path.is_file()]))
    assert run_folder.committed_steps(tmp_path) == [3] and not unfinished.exists()
    assert find_problems(final) == []
    assert list(run_folder.read_listing(final)) == [f"model/rank-0000{i}.safetensors" for i in (0, 1)] + ["state.json"]
    with safe_open(final / "model" / "rank-00000.safetensors", framework="pt") as file:
        assert len(file.metadata()) == 1, "several entries are written in random order"
