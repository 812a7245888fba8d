"""Values between processes: memory that is used again, and the limits on open files, which bind unprivileged users only."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from avff.data.handover import Receiver, Sender, socket_pair

# The limits bind the user `nobody`, not root. Imports come first: that user may not read every file.
PREAMBLE = """
import os, resource, socket, time
import numpy as np
from avff.data.handover import Receiver, Sender, socket_pair
from avff.data.workers import read_in_order
from avff.errors import TrainingError

if os.getuid() == 0:
    os.setuid(65534)

def limit_files(soft, hard):
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
"""


def output_as_nobody(script):
    """Returns the words that a script prints."""
    command = [sys.executable, "-c", PREAMBLE + script]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=600).stdout.split()


@pytest.mark.slow
def test_a_sender_waits_while_too_many_values_are_on_their_way():
    script = """
limit_files(30, 30)
near, far = socket_pair()
if os.fork() == 0:
    sender = Sender(far)
    for number in range(60):
        sender.send(np.full(3, number))
    os._exit(0)
far.close()
receiver = Receiver(near)

def receive():
    while True:
        try:
            return receiver.receive()
        except BlockingIOError:
            time.sleep(0.01)

time.sleep(1)  # long enough for more values than may be on their way; the values are the same in any case
print(*(int(receive().sum()) for _ in range(60)))
os.wait()
"""
    assert output_as_nobody(script) == [str(3 * number) for number in range(60)]


@pytest.mark.slow
def test_workers_may_read_further_ahead_than_the_soft_limit():
    script = """
limit_files(30, 4000)
read = read_in_order(lambda item, slot: np.full(3, item), range(120), num_workers=2, prefetch=40, timeout_seconds=60)
results = [next(read)]
time.sleep(1)  # long enough for the workers to read all they may
results += read
print(*(int(result[0]) for result in results))
"""
    assert output_as_nobody(script) == [str(number) for number in range(120)]


@pytest.mark.slow
def test_a_receiver_without_room_for_a_value_says_what_to_raise():
    script = """
near, far = socket_pair()
limit_files(30, 30)
sender, receiver = Sender(far), Receiver(near)
for number in range(5):
    sender.send(number)
opened = []
try:
    while True:
        opened.append(os.dup(0))
except OSError:
    pass
try:
    receiver.receive()
except TrainingError as error:
    print(error)
"""
    assert "has as many open files as it may, 30; raise" in " ".join(output_as_nobody(script))


# ------------------------------------------------------------------------------------------- memory used again


@pytest.fixture
def pair():
    near, far = socket_pair()
    with near, far:
        yield Sender(far), Receiver(near)


def give_back(sender, receiver):
    """Tells the sender what the receiver is through with; returns how many files that is."""
    numbers = [receiver.released.popleft() for _ in range(len(receiver.released))]
    sender.reuse(numbers)
    return len(numbers)


def test_what_is_in_use_is_left_alone(pair):
    sender, receiver = pair
    held = []
    for number in range(30):
        sender.send({"tensor": torch.full((50, 100), number), "array": np.full(7, number)})
        value = receiver.receive()
        if number % 3:
            held.append((number, value["tensor"][3:5, 2]))  # a view alone keeps the memory
        else:
            held.append((number, value["array"]))
        del value
        give_back(sender, receiver)
    for number, kept in held:
        assert (kept == number).all()


def test_memory_is_used_again_once_nothing_of_a_value_is_left(pair):
    sender, receiver = pair
    addresses = set()
    for number in range(20):
        sender.send([torch.full((1000,), number)] * 2)
        first, second = receiver.receive()
        addresses.add(first.data_ptr())
        del first
        assert give_back(sender, receiver) == 0, "the second tensor is there yet"
        assert (second == number).all()
        del second
        assert give_back(sender, receiver) == 1
    assert len(addresses) == 1


def test_a_file_that_is_too_small_makes_room_for_a_larger_one(pair):
    sender, receiver = pair
    files_before = mapped_files()
    for size in (10, 100_000, 5, 200_000, 200_000, 100_000, 0):
        sender.send(np.arange(size))
        assert receiver.receive().tolist() == list(range(size))
        assert give_back(sender, receiver) == 1
    assert mapped_files() == files_before + 2, "one file, mapped at both ends"
    del sender, receiver


def mapped_files():
    with open("/proc/self/maps") as maps:
        return sum("memfd:avff" in line for line in maps)
