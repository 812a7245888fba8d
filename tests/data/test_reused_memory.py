"""Arrays in memory that is used again: what is in use is left alone, and what was let go is kept for a while only."""

import numpy as np
import torch

from avff.data.reused_memory import ReusedMemory


def address(array):
    return array.__array_interface__["data"][0]


def test_what_is_in_use_is_left_alone():
    memory = ReusedMemory()
    held = []
    for number in range(20):
        array = memory.empty((4, 6), np.int32)
        array[:] = number
        held.append((number, torch.from_numpy(array)[1:3] if number % 2 else array[2]))
        del array
    assert all((kept == number).all() for number, kept in held)


def test_memory_is_used_again_by_arrays_of_its_size():
    memory = ReusedMemory()
    first = memory.empty((100, 3), np.float32)
    view, place = torch.from_numpy(first)[5:], address(first)
    del first
    other = memory.empty((100, 3), np.float32)
    assert address(other) != place, "a view of it is there yet"
    del view
    assert address(memory.empty((50, 3), np.float32)) != place
    assert address(memory.empty((300, 4), np.uint8)) == place


def test_only_some_memory_is_kept():
    memory = ReusedMemory()
    arrays = [memory.empty((8,), np.uint8) for _ in range(10)]
    del arrays
    assert len(memory._free) < 10
