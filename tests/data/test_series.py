"""Several values per item: whole series in order, whoever reads them and whatever happens to who does."""

import os
import signal
import time

import pytest

from avff.data.series import read_series
from avff.data.worker_process import Place
from avff.errors import ReadError, ShardError

LENGTHS = (3, 0, 5, 1, 2)


def value_of(series, number, slot):
    """Values of series s are 100 s, 100 s + 1...; as many as LENGTHS says."""
    with slot.reading(Place(series, number, f"series {series}")):
        return 100 * series + number if number < LENGTHS[series] else None


def read(job, num_workers, timeout_seconds=20.0, prefetch=2):
    found = read_series(job, len(LENGTHS), num_workers=num_workers, prefetch=prefetch, timeout_seconds=timeout_seconds)
    by_series = [[] for _ in LENGTHS]
    for series, value in found:
        by_series[series].append(value)
    return by_series


def expected():
    return [[*range(100 * series, 100 * series + length), None] for series, length in enumerate(LENGTHS)]


@pytest.mark.parametrize("num_workers", [0, 1, 2, 9])
def test_every_series_comes_whole_in_order_and_ends_once(num_workers):
    assert read(value_of, num_workers) == expected()


def test_a_long_series_does_not_hold_up_the_others():
    def slow_first(series, number, slot):
        if series == 0:
            time.sleep(0.4)
        return value_of(series, number, slot)

    order = [v.series for v in read_series(slow_first, 5, num_workers=2, prefetch=2, timeout_seconds=20.0)]
    assert order[-1] == 0 and order.index(4) < len(order) - 2


def test_no_more_is_read_ahead_than_asked_for(tmp_path):
    def endless(series, number, slot):
        (tmp_path / str(number)).touch()
        return number

    values = read_series(endless, 1, num_workers=1, prefetch=3, timeout_seconds=20.0)
    assert [next(values).value for _ in range(4)] == [0, 1, 2, 3]
    time.sleep(0.3)
    assert 4 <= len(list(tmp_path.iterdir())) <= 8
    values.close()


@pytest.mark.parametrize("fault", ["dies", "hangs"])
def test_a_place_that_ends_its_worker_twice_is_a_read_error_of_that_place(fault):
    def job(series, number, slot):
        try:
            with slot.reading(Place(series, number, f"series {series}")):
                if (series, number) == (2, 1):
                    os._exit(7) if fault == "dies" else time.sleep(60)
        except ReadError as error:
            return str(error)
        return value_of(series, number, slot)

    found = read(job, 2, timeout_seconds=1.0)
    words = "ended with code 7" if fault == "dies" else "took longer than 1 s"
    assert found[2][1] == f"series 2: its worker {words} in 2 attempts"
    found[2][1] = 201
    assert found == expected()


def test_a_worker_that_was_killed_once_leaves_no_trace(tmp_path):
    def job(series, number, slot):
        with slot.reading(Place(series, number, f"series {series}")):
            if (series, number) == (2, 3) and not (tmp_path / "once").exists():
                (tmp_path / "once").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return value_of(series, number, slot)

    assert read(job, 2) == expected()


def test_errors_of_the_job_reach_the_caller():
    def job(series, number, slot):
        raise ShardError("rebuild it") if series else ZeroDivisionError

    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        read(job, 1)
    with pytest.raises(ShardError, match="rebuild it"):
        list(read_series(lambda s, n, slot: job(1, n, slot), 1, num_workers=1, prefetch=1, timeout_seconds=9.0))
