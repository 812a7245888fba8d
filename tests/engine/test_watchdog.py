"""Real ranks, of which one freezes, dies, waits or raises: who is named, and with which code each rank ends."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from avff.engine.watchdog import Watchdog

pytestmark = [pytest.mark.slow, pytest.mark.faults]

WORKER = Path(__file__).parent / "workers" / "watched_worker.py"
HANG_SECONDS = 20
"""Long enough for the times of real runs, such as a beat of one second, to be those of the cases."""
CASES = (
    "fine:all frozen:0 frozen:1 paused:0 paused:1 suspended:all killed:0 killed:1 orphaned:1 stuck:0 stuck:1 waiting:all alone:0 "
    "raising:0 raising:1 refusing:all recovered:0"
).split()


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("watched")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    command = [sys.executable, str(WORKER), str(folder), str(HANG_SECONDS), *CASES]
    subprocess.run(command, check=True, timeout=900, env=environment)
    return folder


def codes_of(case: Path) -> list[int | None]:
    return json.loads((case / "codes.json").read_text())


def output_of(case: Path) -> str:
    """What all ranks of a case printed."""
    return "".join(path.read_text() for path in sorted(case.glob("rank-*.txt")))


def said(case: Path) -> str:
    """What all ranks of a case printed about it, without the stacks."""
    return "".join(line for line in output_of(case).splitlines(keepends=True) if line.startswith("avff train:"))


@pytest.mark.parametrize(
    ("case", "codes", "sentence"),
    [
        ("frozen:0", [None, 4], r"rank 0 \(host .*\) does not answer: frozen, killed"),
        ("frozen:1", [4, None], r"rank 1 \(host .*\) has shown no sign of life for 20 s: .* at step 3, reading data"),
        ("killed:0", [-9, 4], r"rank 0 \(host .*\) does not answer: frozen, killed"),
        ("killed:1", [4, -9], r"rank 1 \(host .*\) has gone: killed, .* at step 3, reading data"),
        ("orphaned:1", [4, -9], r"rank 1 \(host .*\) has gone: killed, .* at step 3, reading data"),
        ("stuck:0", [4, 4], r"rank 0 .* no progress for 20 s: step 3, reading data; rank 1 .* step 3, computing"),
        ("stuck:1", [4, 4], r"rank 1 .* no progress for 20 s: step 3, reading data; rank 0 .* step 3, computing"),
        ("waiting:all", [4, 4], r"no rank has made progress for 20 s: all 2 are at step 3, reading data"),
        ("alone:0", [4], r"no progress for 20 s: step 3, reading data"),
    ],
)
def test_the_rank_that_keeps_the_others_waiting_is_named(cases, case, codes, sentence):
    assert codes_of(cases / case) == codes, output_of(cases / case)
    end = json.loads((cases / case / "exit.json").read_text())
    assert re.match(sentence, end["reason"]) and (end["code"], end["step"]) == (4, 3)
    assert {line.removeprefix("avff train: ") for line in said(cases / case).splitlines()} == {end["reason"]}


def test_a_hang_shows_what_the_ranks_were_doing(cases):
    assert "in wait_for_ever" in (cases / "stuck:1" / "rank-1.txt").read_text()
    assert "in all_reduce" in (cases / "stuck:1" / "rank-0.txt").read_text()


@pytest.mark.parametrize("case", ["fine:all", "paused:0", "paused:1", "suspended:all"])
def test_a_pause_accuses_nobody(cases, case):
    assert codes_of(cases / case) == [75, 75], output_of(cases / case)
    assert json.loads((cases / case / "exit.json").read_text())["reason"] == "stopped"
    assert output_of(cases / case) == ""


def test_a_rank_0_that_was_frozen_for_long_is_in_touch_again(cases):
    end = json.loads((cases / "recovered:0" / "exit.json").read_text())
    assert re.match(r"rank 0 .* no progress for 20 s: step 5, reading data; rank 1 .* step 5, computing", end["reason"])


@pytest.mark.parametrize(("case", "codes"), [("raising:0", [1, 4]), ("raising:1", [4, 1])])
def test_an_error_of_one_rank_is_printed_by_it_alone(cases, case, codes):
    assert codes_of(cases / case) == codes, output_of(cases / case)
    end = json.loads((cases / case / "exit.json").read_text())
    rank = codes.index(1)
    assert (end["reason"], end["code"], end["rank"]) == ("KeyError: 'a bug'", 1, rank)
    assert re.fullmatch(rf"avff train: rank {rank} \(host .*\): Traceback .*\n", said(cases / case))
    assert (cases / case / f"rank-{1 - rank}.txt").read_text() == ""


def test_a_refusal_of_all_ranks_is_printed_once_and_ends_with_its_code(cases):
    assert codes_of(cases / "refusing:all") == [2, 2], output_of(cases / "refusing:all")
    assert output_of(cases / "refusing:all") == "avff train: the same is wrong everywhere\n"


def test_an_unknown_phase_is_refused():
    with pytest.raises(ValueError, match="phase 'reading' is not one of"):
        Watchdog(60, lambda sentence, step: None).mark("reading", 3)
