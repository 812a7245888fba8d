"""Our config becomes DeepSpeed's dict in one place."""

import dataclasses

import pytest

from avff.engine.deepspeed_config import critics_zero_stage, deepspeed_config
from avff.errors import ConfigError


def test_batch_sizes_fit_together_for_every_number_of_ranks(tiny_config):
    config = tiny_config(engine={"global_batch_size": 16, "micro_batch_size": 4})
    for world_size in (1, 2, 4):
        found = deepspeed_config(config, world_size=world_size, zero_stage=1)
        product = found["train_micro_batch_size_per_gpu"] * found["gradient_accumulation_steps"] * world_size
        assert product == found["train_batch_size"] == 16
    with pytest.raises(ConfigError, match="16 does not divide over 3 ranks"):
        deepspeed_config(config, world_size=3, zero_stage=1)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_stage_precision_and_clipping_are_passed_on(tiny_config, stage):
    config = tiny_config(
        engine={"zero_stage": stage, "precision": "bf16", "micro_batch_size": 4}, optim={"clip_gradient_norm": 0.7}
    )
    found = deepspeed_config(config, world_size=1, zero_stage=stage)
    assert found["zero_optimization"]["stage"] == stage
    assert found["torch_autocast"]["enabled"]
    assert found["gradient_clipping"] == 0.7
    assert critics_zero_stage(config) == min(stage, 1)
    fp32 = dataclasses.replace(config, engine=dataclasses.replace(config.engine, precision="fp32"))
    assert not deepspeed_config(fp32, world_size=1, zero_stage=stage)["torch_autocast"]["enabled"]
