"""The formulas against real training on one and two processes: bytes sent and held; times are printed and not judged."""

import pytest

from avff.simulation.check import calibrated, check_config, compare, measure
from avff.simulation.traffic import KINDS

pytestmark = pytest.mark.slow
ONE_SECOND = {"step_seconds": 1.0, "cpu_seconds": 1.0}


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> dict[tuple[int, int], dict]:
    config, folder = check_config(micro_batch_size=2), tmp_path_factory.mktemp("check")
    found = {}
    for ranks in (1, 2):
        measured = measure(config, folder, ranks, num_updates=1)
        links = calibrated(measured["all_reduces"], ranks)
        found |= {(ranks, row["zero_stage"]): compare(config, row, links, ONE_SECOND) for row in measured["rows"]}
    return found


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_memory_held_is_as_computed(rows, ranks, zero_stage):
    row = rows[ranks, zero_stage]
    assert row["state"] == pytest.approx(1, abs=0.05)
    assert row["stepping"] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_two_ranks_send_the_bytes_that_were_computed(rows, zero_stage):
    row = rows[2, zero_stage]
    sent = {kind: row[kind] for kind in KINDS if row[kind] is not None}
    assert set(sent) == set(KINDS)  # contrast gathers and scatters under every stage
    assert sent == pytest.approx(dict.fromkeys(sent, 1), rel=2e-3)


def test_a_prediction_of_time_grows_with_what_is_sent(rows):
    assert rows[1, 0]["predicted ms"] == 1000
    assert rows[2, 2]["predicted ms"] > rows[2, 0]["predicted ms"] > rows[1, 0]["predicted ms"]
