"""Batches on their way to the device: the same ones in the same order, and on a GPU copied while it computes."""

import time

import pytest
import torch

from avff.batch import AVBatch
from avff.data.stream import StepBatch
from avff.engine.prefetch import DevicePrefetcher, LookAhead
from avff.errors import ShardError

CPU = torch.device("cpu")


def batch_of(number, side=8):
    return AVBatch(
        keys=(f"k{number}",),
        tracks=(0,),
        start_seconds_B=torch.zeros(1),
        seed_B=torch.tensor([number]),
        video_BTHWC=torch.full((1, 2, side, side, 3), number, dtype=torch.uint8),
        waveform_BN=torch.full((1, 5), float(number)),
        is_fake_B=torch.tensor([0]),
        video_is_fake_B=torch.tensor([0]),
        audio_is_fake_B=torch.tensor([0]),
    )


def steps_of(num_steps, per_step, *, pinned=False):
    """Yields steps; every micro batch holds its own number."""
    for step in range(num_steps):
        batches = [batch_of(step * per_step + index) for index in range(per_step)]
        if pinned:
            batches = [
                AVBatch(*(part.pin_memory() if isinstance(part, torch.Tensor) else part for part in b)) for b in batches
            ]
        yield StepBatch(step, batches, [])


def numbers_taken(steps, prefetcher, *, twice=False):
    """Takes batches as updates do (twice: as those of two passes); returns what their pixels and seeds say."""
    found = []
    ahead = LookAhead(steps, prefetcher)
    for step in ahead:
        for _ in range(1 + twice):
            for index in range(len(step.micro_batches)):
                batch = prefetcher.take(step.micro_batches, index)
                assert batch.video_BTHWC.device.type == prefetcher.device.type
                assert batch.keys == step.micro_batches[index].keys
                found.append((int(batch.video_BTHWC.double().mean()), int(batch.seed_B), int(batch.waveform_BN[0, -1])))
        ahead.look_ahead()
    return found


def test_a_cpu_gets_every_batch_in_order():
    assert numbers_taken(steps_of(4, 3), DevicePrefetcher(CPU)) == [(n, n, n) for n in range(12)]


def test_nothing_is_fetched_early_for_a_cpu():
    steps = steps_of(3, 1)
    ahead = LookAhead(steps, DevicePrefetcher(CPU))
    assert next(ahead).step == 0
    ahead.look_ahead()
    assert next(steps).step == 1 and ahead.idle_seconds == 0


@pytest.mark.gpu
@pytest.mark.parametrize("twice", [False, True])
def test_a_gpu_gets_every_batch_in_order(twice):
    found = numbers_taken(steps_of(5, 3, pinned=True), DevicePrefetcher(torch.device("cuda")), twice=twice)
    steps = [list(range(3 * step, 3 * step + 3)) * (1 + twice) for step in range(5)]
    assert found == [(n, n, n) for step in steps for n in step]


@pytest.mark.gpu
def test_copies_run_while_the_device_computes():
    prefetcher = DevicePrefetcher(torch.device("cuda"))
    [step] = steps_of(1, 2, pinned=True)
    prefetcher.take(step.micro_batches, 0)
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # a second or so of work on the present stream
    computed = torch.cuda.Event()
    computed.record()
    prefetcher.stage(step.micro_batches[1])
    prefetcher._stream.synchronize()
    assert not computed.query(), "the copy waited for the computation"
    moved = prefetcher.take(step.micro_batches, 1)
    assert int(moved.seed_B) == 1 and computed.query(), "what is computed next waits for both"


@pytest.mark.gpu
def test_an_unreadable_step_is_an_error_in_its_turn():
    def failing():
        yield from steps_of(1, 1)
        raise ShardError("k7: cannot be read")

    ahead = LookAhead(failing(), DevicePrefetcher(torch.device("cuda")))
    next(ahead)
    ahead.look_ahead()
    with pytest.raises(ShardError, match="k7"):
        next(ahead)


@pytest.mark.gpu
def test_an_idle_device_is_counted_as_waiting():
    def slow():
        for step in steps_of(2, 1):
            time.sleep(0.2 * step.step)
            yield step

    ahead = LookAhead(slow(), DevicePrefetcher(torch.device("cuda")))
    next(ahead)
    ahead.look_ahead()
    assert ahead.idle_seconds >= 0.2
