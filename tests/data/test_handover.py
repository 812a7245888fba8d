"""Values between processes: the limits on open files, which bind unprivileged users only."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

# The limits bind the user `nobody`, not root. Imports come first: that user may not read every file.
PREAMBLE = """
import os, resource, socket, time
import numpy as np
from avff.data.handover import receive_value, send_value, socket_pair
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


def test_a_sender_waits_while_too_many_values_are_on_their_way():
    script = """
limit_files(30, 30)
near, far = socket_pair()
if os.fork() == 0:
    for number in range(60):
        send_value(far, np.full(3, number))
    os._exit(0)
far.close()

def receive():
    while True:
        try:
            return receive_value(near)
        except BlockingIOError:
            time.sleep(0.01)

time.sleep(1)  # long enough for more values than may be on their way; the values are the same in any case
print(*(int(receive().sum()) for _ in range(60)))
os.wait()
"""
    assert output_as_nobody(script) == [str(3 * number) for number in range(60)]


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


def test_a_receiver_without_room_for_a_value_says_what_to_raise():
    script = """
near, far = socket_pair()
limit_files(30, 30)
for number in range(5):
    send_value(far, number)
opened = []
try:
    while True:
        opened.append(os.dup(0))
except OSError:
    pass
try:
    receive_value(near)
except TrainingError as error:
    print(error)
"""
    assert "has as many open files as it may, 30, and every step" in " ".join(output_as_nobody(script))
