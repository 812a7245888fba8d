"""The pool of workers: results do not depend on what becomes of its processes."""

import contextlib
import ctypes
import faulthandler
import gc
import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from avff.batch import AVBatch
from avff.data.worker_process import Place
from avff.data.workers import read_in_order
from avff.errors import ReadError, ShardError, TrainingError

ITEMS = range(3, 15)
PATIENCE_SECONDS = 300
TIMEOUT_SECONDS = 2.0
"""Of a reading, where one hangs: longer than a busy machine takes for all others."""


READINGS = weakref.WeakSet()
"""Begun and still held by somebody."""


def read(job, items=ITEMS, *, num_workers=2, prefetch=2, timeout_seconds=PATIENCE_SECONDS):
    results = read_in_order(job, items, num_workers=num_workers, prefetch=prefetch, timeout_seconds=timeout_seconds)
    READINGS.add(results)
    return results


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """Ends the workers of a test that failed; the next one would count them."""
    yield
    for results in list(READINGS):
        results.close()


def square(item, slot):
    with slot.reading(Place(item, 0, f"item {item}")):
        return item, item * item, os.getpid()


def squares(results):
    return [result[:2] for result in results]


EXPECTED = [(item, item * item) for item in ITEMS]


def workers_of(pid):
    """Returns those that have a name by now; a worker takes it before it reads, but the result may be another's."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [child for child in psutil.Process(pid).children() if child.name().startswith("avff-data-")]
    return []


def all_workers_of(pid, count):
    wait_until(lambda: len(workers_of(pid)) == count)
    return workers_of(pid)


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def once(tmp_path):
    """`once(name)` is true the first time, whichever process asks."""

    def first(name):
        with contextlib.suppress(FileExistsError):
            (tmp_path / f"once-{name}").touch(exist_ok=False)
            return True
        return False

    return first


@pytest.fixture
def fifo(tmp_path):
    """A named pipe that nobody writes to: opening it for reading never returns."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


# ------------------------------------------------------------------------------------------- order and content


def batch_of(item, slot):
    rng = np.random.default_rng(item)
    count = item % 3 + 1
    return AVBatch(
        keys=tuple(f"k{item}" for _ in range(count)),
        tracks=(0,) * count,
        start_seconds_B=torch.from_numpy(rng.normal(size=count)),
        seed_B=torch.arange(count),
        video_BTHWC=torch.from_numpy(rng.integers(0, 255, size=(count, 4, 5, 6, 3), dtype=np.uint8)),
        waveform_BN=torch.from_numpy(rng.normal(size=(7, count)).astype(np.float32)).T,
        is_fake_B=torch.empty(0, dtype=torch.int64),
        video_is_fake_B=torch.tensor(True),
        audio_is_fake_B=torch.zeros(count),
    )


@pytest.mark.parametrize("num_workers", [1, 2, 3, 4, 20])
@pytest.mark.parametrize("prefetch", [1, 3, 100])
def test_the_same_results_in_the_same_order(num_workers, prefetch):
    expected = list(read(batch_of, num_workers=0))
    found = list(read(batch_of, num_workers=num_workers, prefetch=prefetch))
    assert len(found) == len(expected) == len(ITEMS)
    for batch, same in zip(found, expected, strict=True):
        assert type(batch) is AVBatch and batch.keys == same.keys
        for tensor, other in zip(batch[2:], same[2:], strict=True):
            assert tensor.dtype == other.dtype and torch.equal(tensor, other)
            tensor.zero_()  # a result may be changed, as one made in this process


def test_results_are_at_an_address_of_their_own():
    first, second = list(read(batch_of, range(2), num_workers=1))
    kept = second.video_BTHWC.clone()
    first.video_BTHWC.fill_(7)
    assert torch.equal(second.video_BTHWC, kept)


def test_no_items_and_fewer_items_than_workers():
    assert list(read(square, range(0))) == []
    assert squares(read(square, range(3, 5), num_workers=4)) == EXPECTED[:2]


def test_workers_read_ahead_as_far_as_they_may(tmp_path):
    def mark(item, slot):
        (tmp_path / str(item)).touch()
        return item

    results = read(mark, range(20), num_workers=2, prefetch=3)
    assert next(results) == 0
    # 2 x 3 items ahead of the one delivered.
    wait_until(lambda: len(list(tmp_path.iterdir())) == 7)
    time.sleep(0.2)
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == list(range(7))
    results.close()


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_an_error_of_the_job_comes_in_its_turn(num_workers):
    def fail(item, slot):
        if item == 8:
            raise ShardError("a.tar: torn")
        return square(item, slot)

    results = read(fail, num_workers=num_workers)
    assert squares(next(results) for _ in range(5)) == EXPECTED[:5]
    with pytest.raises(ShardError, match=r"^a.tar: torn$"):
        next(results)
    assert workers_of(os.getpid()) == []


def test_an_unforeseen_error_brings_its_traceback():
    def divide(item, slot):
        return 1 // (item - 4)

    results = read(divide)
    next(results)
    with pytest.raises(RuntimeError, match=r"(?s)reading item 4 failed in a data worker.*in divide.*ZeroDivisionError"):
        next(results)


def test_what_cannot_be_sent_is_an_error_too():
    with pytest.raises(RuntimeError, match=r"(?s)reading item 3 failed.*pickle"):
        next(read(lambda item, slot: lambda: item))


# ------------------------------------------------------------------------------------------- death


def test_killed_workers_are_replaced():
    results = read(square, range(3, 40), num_workers=3)
    found = [next(results)]
    for _ in range(3):  # a fourth kill could condemn a sample
        for worker in all_workers_of(os.getpid(), 3):
            worker.kill()
        found.append(next(results))
    found += results
    assert squares(found) == [(item, item * item) for item in range(3, 40)]
    assert len({pid for _, _, pid in found}) > 3


def test_a_worker_that_ends_between_samples(once):
    def exit_once(item, slot):
        if item == 6 and once(item):
            os._exit(9)
        return square(item, slot)

    assert squares(read(exit_once)) == EXPECTED


def test_a_decoder_that_crashes_once_is_tried_again(once):
    def crash_once(item, slot):
        with slot.reading(Place(item, 0, f"item {item}")):
            if item % 4 == 0 and once(item):
                faulthandler.disable()
                os.kill(os.getpid(), signal.SIGBUS)
        return square(item, slot)

    assert squares(read(crash_once)) == EXPECTED


def test_a_decoder_that_crashes_twice_is_condemned():
    def crash(item, slot):
        for attempt in range(3):
            with contextlib.suppress(ReadError), slot.reading(Place(item, attempt, f"a.tar: sample 'k{item}'")):
                if item == 6 and attempt < 2:
                    faulthandler.disable()  # pytest's would print a stack
                    ctypes.string_at(0)
                return item, attempt
        return None

    assert list(read(crash)) == [(item, 2 if item == 6 else 0) for item in ITEMS]

    def crash_for_good(item, slot):
        with slot.reading(Place(item, 0, f"a.tar: sample 'k{item}'")):
            faulthandler.disable()
            ctypes.string_at(0)

    with pytest.raises(ReadError, match=r"^a.tar: sample 'k3': its worker was ended by SIGSEGV in 2 attempts$"):
        next(read(crash_for_good))


def test_kills_from_outside_condemn_a_sample_late(once):
    def kill(item, slot):
        with slot.reading(Place(item, 0, "a.tar: sample 'k'")):
            if item == 6 and any(once(f"{item}-{attempt}") for attempt in range(num_kills)):
                os.kill(os.getpid(), signal.SIGKILL)
        return square(item, slot)

    num_kills = 3
    assert squares(read(kill)) == EXPECTED
    num_kills = 3 + 4
    with pytest.raises(ReadError, match=r"sample 'k': its worker was ended by SIGKILL in 4 attempts"):
        list(read(kill))


def test_workers_that_keep_dying_end_the_reading(once):
    def die(item, slot):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(
        TrainingError, match=r"in 5 attempts; in the last, it was ended by SIGKILL.*lower data.num_work"
    ):
        next(read(die))

    def die_anywhere(item, slot):
        for position in range(100):
            with slot.reading(Place(position, 0, "a.tar")):
                if once(position):
                    os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(TrainingError, match=r"in 5 attempts"):
        next(read(die_anywhere, num_workers=1))
    assert workers_of(os.getpid()) == []


# ------------------------------------------------------------------------------------------- hangs


def test_a_reading_that_hangs_once_is_tried_again(once, fifo):
    def hang_once(item, slot):
        with slot.reading(Place(item, 0, f"item {item}")):
            if item == 7 and once(item):
                fifo.open("rb")
        return square(item, slot)

    assert squares(read(hang_once, timeout_seconds=TIMEOUT_SECONDS)) == EXPECTED


def test_a_reading_that_hangs_twice_is_condemned(fifo):
    def hang(item, slot):
        with slot.reading(Place(item, 0, f"a.tar: sample 'k{item}'")):
            if item == 5:
                fifo.open("rb")
        return square(item, slot)

    results = read(hang, timeout_seconds=TIMEOUT_SECONDS)
    assert squares(next(results) for _ in range(2)) == EXPECTED[:2]
    with pytest.raises(ReadError, match=r"^a.tar: sample 'k5': its worker took longer than 2 s in 2 attempts$"):
        next(results)


def test_a_stopped_worker_is_replaced():
    results = read(square, num_workers=1, prefetch=1, timeout_seconds=TIMEOUT_SECONDS)
    found = [next(results)]
    (worker,) = workers_of(os.getpid())
    worker.suspend()
    found += results
    assert squares(found) == EXPECTED
    assert not psutil.pid_exists(worker.pid)


def test_time_in_which_nobody_waits_does_not_count(fifo, once):
    def slow(item, slot):
        with slot.reading(Place(item, 0, f"item {item}")):
            if item == ITEMS[1]:
                fifo.open("rb").read()
        return square(item, slot)

    results = read(slow, num_workers=1, timeout_seconds=TIMEOUT_SECONDS)
    found = [next(results)]
    writer = open_when_read(fifo)
    time.sleep(1.5 * TIMEOUT_SECONDS)
    os.close(writer)
    found += results
    assert squares(found) == EXPECTED
    assert len({pid for _, _, pid in found}) == 1


def open_when_read(fifo, reader=None):
    """Opens a named pipe for writing once somebody reads it; returns the descriptor.

    Args:
        reader: process that must not end before.
    """
    found = []

    def try_open():
        assert reader is None or reader.poll() is None, f"it ended with code {reader.returncode}"
        with contextlib.suppress(OSError):
            found.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        return bool(found)

    wait_until(try_open)
    return found[0]


# ------------------------------------------------------------------------------------------- life and signals


def test_close_and_garbage_collection_end_the_workers():
    for end in (lambda results: results.close(), lambda results: results.throw(KeyboardInterrupt)):
        results = read(square)
        next(results)
        workers = all_workers_of(os.getpid(), 2)
        with contextlib.suppress(KeyboardInterrupt):
            end(results)
        assert not any(worker.is_running() for worker in workers)
    results = read(square)
    next(results)
    workers = all_workers_of(os.getpid(), 2)
    del results
    gc.collect()
    assert not any(worker.is_running() for worker in workers)


def test_a_worker_that_hangs_is_ended_too(fifo):
    results = read(lambda item, slot: square(item, slot) if item == 3 else fifo.open("rb"))
    next(results)
    workers = all_workers_of(os.getpid(), 2)
    results.close()
    assert not any(worker.is_running() for worker in workers)


def test_signals_to_the_process_group_are_the_parents():
    results = read(square, range(3, 40), num_workers=1)
    found = [next(results)]
    (worker,) = workers_of(os.getpid())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        worker.send_signal(number)
    found += results
    assert {pid for _, _, pid in found} == {worker.pid}


SCRIPT = """
import os, sys
from avff.data.worker_process import Place
from avff.data.workers import read_in_order

def job(item, slot):
    with slot.reading(Place(item, 0, str(item))):
        if item == 2:
            open(sys.argv[1], "rb").read()
    return item, os.getpid()

for item, pid in read_in_order(job, range(4), num_workers=2, prefetch=1, timeout_seconds=float(sys.argv[2])):
    print(item, pid, flush=True)
"""


@pytest.fixture
def start_script(fifo):
    """`start_script(timeout_seconds)` starts SCRIPT, which is killed at the end of the test at the latest."""
    with contextlib.ExitStack() as ends:

        def start(timeout_seconds):
            command = [sys.executable, "-c", SCRIPT, str(fifo), str(timeout_seconds)]
            parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
            ends.enter_context(parent)
            ends.callback(parent.kill)
            return parent

        yield start


@pytest.mark.slow
def test_a_killed_parent_leaves_nothing_behind(fifo, start_script):
    in_shared_memory = set(os.listdir("/dev/shm"))
    parent = start_script(PATIENCE_SECONDS)
    writer = open_when_read(fifo, parent)  # one worker hangs in item 2, the other waits for work
    workers = all_workers_of(parent.pid, 2)
    parent.kill()
    parent.communicate()
    wait_until(lambda: not any(worker.is_running() for worker in workers))
    os.close(writer)
    assert {name for name in os.listdir("/dev/shm") if name not in in_shared_memory and "avff" in name} == set()


@pytest.mark.slow
def test_a_suspended_machine_condemns_nobody(fifo, start_script):
    parent = start_script(5.0)
    writer = open_when_read(fifo, parent)
    os.killpg(parent.pid, signal.SIGSTOP)
    time.sleep(6.0)  # longer than the time-out
    os.killpg(parent.pid, signal.SIGCONT)
    time.sleep(0.5)  # the parent looks before the worker is done
    os.close(writer)
    output, _ = parent.communicate(timeout=PATIENCE_SECONDS)
    lines = [line.split() for line in output.splitlines()]
    assert [int(item) for item, _ in lines] == [0, 1, 2, 3]
    assert len({pid for _, pid in lines}) == 2
    assert Path(fifo).exists() and parent.returncode == 0
