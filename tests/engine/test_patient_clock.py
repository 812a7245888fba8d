"""Time in which a machine that stands still is not counted."""

import time

from avff.engine.patient_clock import PatientClock


def test_between_two_looks_only_a_tick_is_counted():
    clock = PatientClock(0.01)
    time.sleep(0.1)
    assert clock.seconds() == 0.01
    time.sleep(0.1)
    assert clock.seconds() == 0.02


def test_who_looks_often_sees_the_seconds_that_pass():
    began, clock = time.monotonic(), PatientClock(60.0)
    while clock.seconds() < 0.05:
        pass
    assert time.monotonic() - began >= 0.05
