"""From a config to networks with reproducible initial weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from avff.config import Config, FinetuneConfig
from avff.models.classifier import Classifier
from avff.models.critics import Critics
from avff.models.freeze import freeze_encoder
from avff.models.lora import add_lora
from avff.models.patches import audio_grid, video_grid
from avff.models.pretrain import PretrainModel
from avff.models.transformer import init_linear
from avff.seeding import derive_seed

M = TypeVar("M", bound=nn.Module)


def build_pretrain_model(config: Config) -> PretrainModel:
    """Returns the network of stages 1 and 2, weights drawn from `config.seed`."""
    return _initialised(lambda: PretrainModel(config.clip, config.model, config.pretrain), config.seed, "model")


def build_critics(config: Config) -> Critics:
    """Returns the two critics, weights drawn from `config.seed`."""
    video, audio = video_grid(config.clip, config.model), audio_grid(config.clip, config.model)
    width = config.model.critic_width
    return _initialised(lambda: Critics(video.patch_values, audio.patch_values, width), config.seed, "critics")


def build_classifier(config: Config) -> Classifier:
    """Returns the network of stage 3, weights drawn from `config.seed`; what of it learns is `config.finetune`'s choice.

    That choice has no effect on what is drawn: with LoRA, or frozen, the network is at first the same function.
    """
    model = _initialised(
        lambda: Classifier(config.clip, config.model, config.pretrain, config.finetune), config.seed, "model"
    )
    with _drawing(config.seed, "lora"):
        _restrict_encoders(model, config.finetune)
    return model


def _restrict_encoders(model: Classifier, finetune: FinetuneConfig) -> None:
    for encoder in (model.video_encoder, model.audio_encoder):
        if finetune.encoders == "freeze":
            freeze_encoder(encoder, finetune.trained_blocks)
        elif finetune.encoders == "lora":
            add_lora(encoder, finetune.lora_rank, finetune.lora_alpha)


def build_model(config: Config) -> PretrainModel | Classifier:
    """Returns the network of the config's stage."""
    return build_pretrain_model(config) if config.stage == "pretrain" else build_classifier(config)


def _initialised(make: Callable[[], M], seed: int, name: str) -> M:
    with _drawing(seed, name):
        module = make()
        module.apply(init_linear)
    return module


@contextmanager
def _drawing(seed: int, name: str) -> Iterator[None]:
    """Runs the block under its own seed and leaves the caller's random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("init", name, seed))
        yield
