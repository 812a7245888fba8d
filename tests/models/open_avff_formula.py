"""Weights and inputs made by a formula, so that reference outputs need no weight file (tests/models/data)."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

DATA = Path(__file__).parent / "data"
WEIGHT_SCALE, INPUT_SCALE = 0.05, 2.0
NUM_SAMPLED = 24


def read_json(name: str) -> Any:
    return json.loads((DATA / name).read_text())


def formula_tensor(key: str, shape: tuple[int, ...], scale: float) -> Tensor:
    """Returns numbers in [-scale, scale) that depend on the key and their place; the order of operations matters."""
    phase = zlib.crc32(key.encode()) % 100003
    index = np.arange(np.prod(shape), dtype=np.float64)
    wave = np.sin(12.9898 * (index + 1) + phase) * 43758.5453
    return torch.from_numpy((scale * ((wave - np.floor(wave)) * 2 - 1)).astype(np.float32).reshape(shape))


def formula_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Returns weights for every key; those of norms lie around 1."""
    made = {name: formula_tensor(name, shape, WEIGHT_SCALE) for name, shape in shapes.items()}
    return {name: t + 1 if "norm" in name and name.endswith("weight") else t for name, t in made.items()}


def fill(network: nn.Module) -> nn.Module:
    """Fills a network that was built on the meta device, and returns it in evaluation mode."""
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    network.load_state_dict(formula_weights(shapes), assign=True)
    return network.eval()


def formula_inputs(batch: int) -> tuple[Tensor, Tensor]:
    """Returns a spectrogram (B, 1024, 128) and a video (B, 3, 16, 224, 224)."""
    mel = formula_tensor(f"input.audio.{batch}", (batch, 1024, 128), INPUT_SCALE)
    return mel, formula_tensor(f"input.video.{batch}", (batch, 3, 16, 224, 224), INPUT_SCALE)


def summary_of(tensor: Tensor) -> dict[str, Any]:
    """Returns what the reference keeps of a tensor: shape, mean, unbiased deviation and samples spread over it."""
    flat = tensor.detach().double().flatten()
    index = [(j * 2654435761) % flat.numel() for j in range(NUM_SAMPLED)]
    return {
        "shape": list(tensor.shape),
        "mean": flat.mean().item(),
        "std": flat.std().item(),
        "samples": flat[index].tolist(),
    }
