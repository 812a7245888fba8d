"""bf16 where it is fast, fp32 where it matters: dtypes inside real updates."""

import pytest
import torch
from step_numbers import CLIPS, make_updater, micro_batches
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.slow

aten = torch.ops.aten


class Dtypes(TorchDispatchMode):
    """Notes the dtypes in which some kinds of operation are computed."""

    KINDS = {  # noqa: RUF012
        "product": (aten.mm.default, aten.addmm.default),
        "attention": (aten._scaled_dot_product_flash_attention_for_cpu.default,),
        "norm": (aten.native_layer_norm.default,),
        "softmax": (aten._softmax.default, aten._log_softmax.default),
        "logarithm": (aten.log.default,),
        "binary cross-entropy": (aten.binary_cross_entropy_with_logits.default,),
        "optimizer": (aten._fused_adamw_.default, aten._foreach_lerp_.ScalarList),
    }

    def __init__(self):
        super().__init__()
        self.seen: dict[str, set[torch.dtype]] = {kind: set() for kind in self.KINDS}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for kind, functions in self.KINDS.items():
            if function in functions:
                first = args[0][0] if isinstance(args[0], (list, tuple)) else args[0]
                self.seen[kind].add(first.dtype)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_what_is_computed_in_which_precision(tiny_config, stage):
    engine = {"global_batch_size": CLIPS, "micro_batch_size": CLIPS, "precision": "bf16"}
    config = tiny_config(stage, engine=engine)
    updater = make_updater(config)
    with Dtypes() as dtypes:
        report = updater.update(0, micro_batches(config))
    assert report.applied
    full = {torch.float32}
    assert dtypes.seen["attention"] == {torch.bfloat16}
    assert torch.bfloat16 in dtypes.seen["product"]
    assert dtypes.seen["norm"] == dtypes.seen["logarithm"] == dtypes.seen["optimizer"] == full
    assert dtypes.seen["softmax"] == full  # contrast and stage 3's pools; attention keeps its own inside, in fp32
    if stage == "finetune":
        assert dtypes.seen["binary cross-entropy"] == full
    master = {fragment.tensors[key].dtype for fragment in updater.model.fragments() for key in fragment.tensors}
    assert master == full, "weights, moments and average"


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_losses_and_inputs_are_fp32(tiny_config, stage):
    config = tiny_config(stage, engine={"global_batch_size": CLIPS, "micro_batch_size": CLIPS, "precision": "bf16"})
    updater = make_updater(config)
    inputs = updater.preprocess(micro_batches(config)[0], training=True)
    assert inputs.video_BTCHW.dtype == inputs.mel_BMF.dtype == torch.float32
    losses = updater.objective.model_losses(updater.model, updater.critics, inputs)
    assert {term.dtype for term in (losses.total, *losses.terms.values())} == {torch.float32}
