import threading

import pytest

from avff.doctor.check import Check, Measure, Status, fail, ok, run_check, warn


def test_a_check_that_raises_is_an_answer_with_its_words():
    def broken() -> Check:
        raise OSError(28, "No space left on device", "/runs")

    answer = run_check(broken, limit_seconds=60)
    assert answer.status is Status.FAIL
    assert answer.value == "OSError: [Errno 28] No space left on device: '/runs'"
    assert answer.fix


def test_a_check_that_hangs_is_left_behind():
    release = threading.Event()

    def hanging() -> Check:
        release.wait()
        return ok("late")

    answer = run_check(hanging, limit_seconds=0.05)
    release.set()
    assert answer.status is Status.FAIL
    assert answer.value == "no answer after 0.05 s"


@pytest.mark.parametrize(
    "check",
    [
        ok("fine", Measure("free", 2.5, "GB"), facts={"torch": "2.11.0"}),
        warn("slow", "buy a faster one", Measure("write", 3.0, "MB/s"), Measure("read", 4.0, "MB/s")),
        fail("gone", "bring it back"),
    ],
)
def test_plain_values_read_back(check):
    assert Check.from_dict(check.to_dict()) == check
