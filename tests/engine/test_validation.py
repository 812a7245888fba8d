"""What validation scores: the inputs that training sees, and clips by their own labels."""

import pytest
import torch

from avff.data.selection import evaluation_samples
from avff.data.stream import evaluation_loader
from avff.data.views import AVView
from avff.engine.validation import Validator
from avff.preprocess import Preprocess
from avff.schema import FakeSegments


@pytest.fixture
def validate(tiny_config):
    """Validates a fresh network: `validate(stage, directory, precision)` gives the result and every picture it saw."""

    def run(stage, directory, precision="fp32"):
        config = tiny_config(stage, engine={"precision": precision})
        preprocess = Preprocess(config.clip, config.data.augment)
        validator = Validator(config, preprocess, torch.device("cpu"))
        seen = []
        validator.network.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[:2]))
        samples = evaluation_samples([directory], split="val", labels=config.data.labels)
        loader = evaluation_loader(
            samples, AVView(config.clip), rank=0, world_size=1, micro_batch_size=4, num_workers=0, timeout_seconds=60
        )
        batches = list(loader)
        validation = validator.run(batches, samples)
        return validation, seen, [preprocess(batch, training=False) for batch in batches]

    return run


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_bf16_is_the_networks_precision_and_not_its_inputs(validate, shard_directory, stage):
    _, seen, expected = validate(stage, shard_directory, precision="bf16")
    for (video_BTCHW, mel_BMF), inputs in zip(seen, expected, strict=True):
        assert torch.equal(video_BTCHW, inputs.video_BTCHW)
        assert torch.equal(mel_BMF, inputs.mel_BMF)


def test_a_clip_forged_at_its_start_only_is_a_fake_clip(validate, make_sample, write_directory, tmp_path):
    stretch = FakeSegments(video=[[0.0, 0.5]])
    samples = [
        make_sample("real", split="val"),
        make_sample("part", split="val", is_fake=1, video_is_fake=1, audio_is_fake=0, fake_segments_seconds=stretch),
    ]
    validation, _, _ = validate("finetune", write_directory(tmp_path / "shards", samples))
    assert validation.value in (0.0, 1.0), "one real and one fake clip are ranked"
    assert validation.numbers["validation/audio_auc"] is None, "both have real sound"
