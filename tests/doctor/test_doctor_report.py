import json

import pytest

from avff.doctor.check import Measure, fail, ok, warn
from avff.doctor.report import Report, as_json, as_text, shorten


def speed(number: float) -> Measure:
    return Measure("write", number, "MB/s")


REPORT = Report(
    "avff doctor: 4 ranks on 4 nodes",
    {
        "n1": {"python": ok("3.11"), "speed": ok("good", speed(800)), "wandb": ok("offline")},
        "n2": {"python": ok("3.11"), "speed": ok("good", speed(900))},
        "n3": {"python": ok("3.10"), "speed": ok("good", speed(90))},
        "n4": {"python": ok("3.11"), "speed": fail("no disk", "mount it", speed(0))},
    },
    {"clocks": warn("n2 is off", "set it", Measure("apart", 3000.0, "ms"))},
)


def test_nodes_that_agree_share_a_line_and_odd_ones_are_named():
    assert as_text(REPORT).splitlines() == [
        "avff doctor: 4 ranks on 4 nodes",
        "ok    python  n[1-2,4]: 3.11",
        "ok    python  n3: 3.10",
        "ok    speed   n[1-3]: good; write 90 (n3) to 900 (n2) MB/s",
        "FAIL  speed   n4: no disk; write 0 MB/s -> mount it",
        "ok    wandb   offline",
        "warn  clocks  n2 is off; apart 3,000 ms -> set it",
        "1 FAIL, 1 warn, 4 ok: mend what FAILs, then train",
    ]
    assert REPORT.has_failed


def test_a_warning_alone_lets_training_start():
    report = Report("", {}, {"clocks": warn("off", "set it")})
    assert not report.has_failed
    assert as_text(report).endswith("1 warn, 0 ok: training can start")


def test_lines_are_folded_for_a_terminal_below_their_answer():
    rows = as_text(REPORT, width=40).splitlines()
    assert all(len(row) <= 40 for row in rows[1:-1])
    assert " " * 14 + "-> mount it" in "\n".join(rows)


def test_json_holds_every_answer_of_every_node():
    values = json.loads(as_json(REPORT))
    assert values["ok"] is False
    assert values["nodes"]["n4"]["speed"]["fix"] == "mount it"
    assert values["nodes"]["n3"]["speed"]["measures"] == [{"label": "write", "number": 90, "unit": "MB/s"}]
    assert values["together"]["clocks"]["status"] == "warn"


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["n1"], "n1"),
        (["n1", "n2", "n3", "n7"], "n[1-3,7]"),
        (["gpu009", "gpu010", "login"], "gpu[009-010] login"),
        (["n9", "n10"], "n9 n10"),
        (["host", "host#2"], "host host#2"),
    ],
)
def test_names_are_written_as_slurm_does(names, short):
    assert shorten(names) == short
