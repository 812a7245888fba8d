"""Runs with real weights of tiny networks, and the tool that takes them out."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import BUILD, VALIDATION
from made_checkpoints import add_weights

from avff.build_config import BuildConfig
from avff.config import Config
from avff.models import build_model
from avff.strict_yaml import to_dict

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import checkpoint as tool


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny networks run slower on several threads, the more so beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_run(tiny_config: Callable[..., Config]) -> Callable[..., Path]:
    """Writes a run: `make_run(stage="finetune", steps=(8,), build=BUILD, validation=VALIDATION, sidecar={}, **config)`.

    Weights are random, others at every step; biases and LoRA's zero factors are random as well, so that each counts.
    """

    def make(
        stage: str = "finetune",
        *,
        steps: tuple[int, ...] = (8,),
        build: BuildConfig | None = BUILD,
        validation: dict[str, Any] | None = VALIDATION,
        sidecar: dict[str, Any] | None = None,
        **values: Any,
    ) -> Path:
        config = tiny_config(stage, **values)
        plain_build = None if build is None else to_dict(build)
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            tensors = {
                name: tensor + 0.02 * torch.randn(tensor.shape, generator=generator)
                for name, tensor in build_model(config).state_dict().items()
            }
            add_weights(config, step, tensors, build=plain_build, validation=validation, **(sidecar or {}))
        return config.run_dir

    return make


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Calls tools/checkpoint.py: `code, stdout, stderr = run(arguments)`."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = tool.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call
