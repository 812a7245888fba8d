"""Where a run's weights may come from when parts of the model never learn."""

import pytest
import torch

from avff.engine.origin import start_from
from avff.errors import CheckpointError, ConfigError
from avff.models.build import build_model
from avff.models.weights import make_sidecar, save_weights

LORA = {"encoders": "lora", "lora_rank": 2}


@pytest.fixture
def plain_file(tiny_config, tmp_path):
    """Writes the weights of a plain classifier but for those that `new` begins with."""

    def write(new: str):
        config = tiny_config("finetune", seed=1)
        tensors = build_model(config).state_dict()
        kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(new)}
        path = tmp_path / "initial.safetensors"
        save_weights(path, kept, make_sidecar("a start", config, new=sorted(tensors.keys() - kept)))
        return path, kept

    return write


@pytest.mark.parametrize("encoders", ["freeze", "lora"])
def test_frozen_encoders_need_weights(tiny_config, encoders):
    config = tiny_config("finetune", finetune={"encoders": encoders})
    message = f"finetune.encoders is '{encoders}', but engine.init_weights names no file.*set finetune.encoders=train"
    with pytest.raises(ConfigError, match=message):
        start_from(config, build_model(config), [])


def test_whole_encoders_start_from_scratch(tiny_config):
    config = tiny_config("finetune")
    assert start_from(config, build_model(config), []).new_names == []


def test_what_is_frozen_is_not_left_random(tiny_config, plain_file):
    path, _ = plain_file(new="audio_encoder.stack.norm")
    config = tiny_config("finetune", finetune={"encoders": "freeze"}, engine={"init_weights": str(path)})
    message = (
        "leaves audio_encoder.stack.norm.bias, audio_encoder.stack.norm.weight to a random start, where finetune.enc"
    )
    with pytest.raises(CheckpointError, match=message):
        start_from(config, build_model(config), [])
    # The same norm learns along with the last block, so there it may be new.
    learning = tiny_config(
        "finetune", finetune={"encoders": "freeze", "trained_blocks": 1}, engine={"init_weights": str(path)}
    )
    assert start_from(learning, build_model(learning), []).new_names == [
        "audio_encoder.stack.norm.bias",
        "audio_encoder.stack.norm.weight",
    ]


def test_lora_is_new_to_a_plain_file(tiny_config, plain_file):
    path, kept = plain_file(new="overall_head.")
    config = tiny_config("finetune", finetune=LORA, engine={"init_weights": str(path)})
    model = build_model(config)
    new_names = start_from(config, model, []).new_names
    assert {name for name in new_names if "lora" not in name} == {
        name for name in model.state_dict() if name.startswith("overall_head.")
    }
    assert sum("lora" in name for name in new_names) == 2 * 4 * 2 * 2
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in kept.items())
