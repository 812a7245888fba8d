"""A file of the exact layout of Open-AVFF's stage 3, one block deep, with seeded weights."""

from pathlib import Path

import torch

from avff.models.detectors.open_avff import OpenAvffClassifier
from avff.models.detectors.open_avff_parts import OpenAvffSize

SIZE = OpenAvffSize(encoder_depth=1)


def write_stage_3(path: Path) -> Path:
    """Writes `module.`-prefixed weights under which different files score differently."""
    generator = torch.Generator().manual_seed(5)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in OpenAvffClassifier(SIZE).state_dict().items()}
    weights = {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name in weights:
        if "norm" in name:  # unit norms would leave nothing for a head that averages channels
            weights[name] = 10 * weights[name] + (1 if name.endswith("weight") else 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({f"module.{name}": tensor for name, tensor in weights.items()}, path)
    return path
