"""Forward and backward passes queue work for the device and wait for nothing."""

from functools import partial

import pytest
import torch
from step_numbers import CLIPS, make_updater, micro_batches
from torch.utils._python_dispatch import TorchDispatchMode

from avff.engine.prefetch import move

pytestmark = pytest.mark.slow

aten = torch.ops.aten
WAITS = {
    # Operations whose result, or whose result's shape, has to be known on the host.
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.bincount.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.repeat_interleave.Tensor,
    aten.lift_fresh.default,  # Python's numbers as a tensor: on a GPU a copy that is waited for
}
CASES = [
    ("pretrain", {"model": {"drop_path": 0.2}}),
    ("pretrain", {"pretrain": {"mask_input": True, "contrastive_level": "clip"}}),
    ("pretrain", {"engine": {"micro_batch_size": 2}}),
    ("pretrain", {"model": {"activation_checkpointing": "cheap"}, "data": {"augment": {"audio_noise_std": 0.1}}}),
    ("finetune", {"finetune": {"head_dropout": 0.1, "modality_dropout": 0.2, "label_smoothing": 0.1}}),
]


class NoWaiting(TorchDispatchMode):
    """Fails on an operation that would wait for the device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        by_mask = function in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default) and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if function in WAITS or by_mask:
            raise AssertionError(f"{function} waits for the device")
        return function(*args, **(kwargs or {}))


def config_of(tiny_config, stage, overrides):
    engine = {"global_batch_size": CLIPS, "micro_batch_size": CLIPS, "precision": "bf16"}
    return tiny_config(stage, **{**overrides, "engine": {**engine, **overrides.get("engine", {})}})


def without_waiting(updater, monkeypatch) -> list[str]:
    """Makes the forward and backward passes of every later update fail where they wait; returns what they ran."""
    ran: list[str] = []

    def guarded(name, function, *arguments):
        ran.append(name)
        with NoWaiting():
            return function(*arguments)

    for name in ("_forward_backward", "_cache_contrast"):
        monkeypatch.setattr(updater, name, partial(guarded, name, getattr(updater, name)))
    return ran


@pytest.mark.parametrize(("stage", "overrides"), CASES, ids=str)
def test_nothing_in_forward_and_backward_waits(tiny_config, monkeypatch, stage, overrides):
    config = config_of(tiny_config, stage, overrides)
    updater = make_updater(config)
    updater.update(0, micro_batches(config))  # tables go to the device on first use
    ran = without_waiting(updater, monkeypatch)
    assert updater.update(1, micro_batches(config)).applied
    assert ran.count("_forward_backward") == len(micro_batches(config))


@pytest.mark.parametrize(
    "wait", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: x.new_tensor([1.0, 2.0])]
)
def test_waiting_is_found(wait):
    x = torch.randn(3)
    with pytest.raises(AssertionError, match="waits for the device"), NoWaiting():
        wait(x)


@pytest.mark.gpu
@pytest.mark.parametrize(("stage", "overrides"), CASES, ids=str)
def test_cuda_sees_no_wait_in_forward_and_backward(tiny_config, monkeypatch, stage, overrides):
    config = config_of(tiny_config, stage, overrides)
    updater = make_updater(config)
    batches = [move(batch, updater.device) for batch in micro_batches(config)]
    updater.update(0, batches)
    passes = updater._forward_backward

    def watched(*arguments):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return passes(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(updater, "_forward_backward", watched)
    assert updater.update(1, batches).applied
