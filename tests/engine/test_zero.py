"""ZeRO 0-3, fp32 and bf16, 1 and 2 ranks: the same weights, moments and averages as plain torch, and portable."""

import json
from itertools import product

import pytest

pytestmark = pytest.mark.slow

STAGES = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def results(launch, tmp_path_factory) -> dict[int, dict]:
    """One process first; then two, which also load what the one process saved."""
    folder = tmp_path_factory.mktemp("zero")
    launch("zero_worker.py", 1, folder / "one.json", folder / "one", "")
    launch("zero_worker.py", 2, folder / "two.json", folder / "two", folder / "one")
    return {1: json.loads((folder / "one.json").read_text()), 2: json.loads((folder / "two.json").read_text())}


@pytest.mark.parametrize(("stage", "precision", "num_ranks"), product(STAGES, ("fp32", "bf16"), (1, 2)))
def test_every_stage_equals_plain_torch(results, stage, precision, num_ranks):
    found = results[num_ranks]["plain_torch"][f"{stage} {precision}"]
    assert found["worst"] < 1e-6
    assert found["gradient_norm"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("stage", "precision", "num_ranks"), product(STAGES, ("fp32", "bf16"), (1, 2)))
def test_a_nan_on_one_rank_skips_the_update_of_both_engines_everywhere(results, stage, precision, num_ranks):
    found = results[num_ranks]["plain_torch"][f"{stage} {precision}"]
    assert not found["skip_applied"]
    assert not found["skip_changed"]
    assert found["updates"] == [4, 4]
    last_rank = found["bad_keys"][-1]
    assert last_rank == [["clip6", "clip7"]]
    assert not any(found["bad_keys"][:-1])


@pytest.mark.parametrize(("source", "target"), product(STAGES, STAGES))
def test_two_ranks_load_any_checkpoint_into_any_stage(results, source, target):
    """Saved by two ranks or by one, in turn: every stage is loaded, and saved, in both ways."""
    step, read_back, worst = results[2]["loaded"][f"{source} -> {target}"]
    assert (step, read_back) == (3, 0.0)
    assert worst < 1e-6  # after two more updates
