"""Analytic work and sizes against figures worked out by hand and against torch's own counter."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from avff.config import load_config
from avff.models import build_critics, build_model
from avff.models.flops import activation_megabytes, critic_gflops, describe, forward_gflops, training_gflops

CONFIGS = Path(__file__).parents[2] / "configs"
EXPERIMENTS = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name != "clusters")


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("stage1_kinetics", [], 1567),
        ("stage2_faces", [], 1567),
        ("stage3_finetune", [], 1465),
        ("stage1_kinetics", ["pretrain.mask_input=true", "pretrain.contrastive_level=clip"], 805),
    ],
)
def test_base_needs_what_the_specification_says(name: str, overrides: list[str], expected: float) -> None:
    gflops = training_gflops(load_config(CONFIGS / f"{name}.yaml", overrides))
    assert gflops == pytest.approx(expected, rel=0.01)


def test_parts_of_base() -> None:
    config = load_config(CONFIGS / "stage1_kinetics.yaml")
    gflops = forward_gflops(config)
    assert gflops["video_encoder"] == pytest.approx(360.7, abs=0.1)
    assert gflops["audio_encoder"] == pytest.approx(96.8, abs=0.1)
    assert gflops["a2v"] + gflops["v2a"] == pytest.approx(15.4, abs=0.1)
    assert critic_gflops(config) == pytest.approx(3.9, abs=0.05)
    assert activation_megabytes(config) == pytest.approx(834, rel=0.01)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("mask_input", [False, True])
def test_formula_equals_torchs_counter(odd_config, inputs, stage: str, mask_input: bool) -> None:
    level = "clip" if mask_input else "slice"
    config = odd_config(stage, pretrain={"mask_input": mask_input, "contrastive_level": level})
    model = build_model(config)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(*inputs(config))
    assert counter.get_total_flops() / 3 / 1e9 == pytest.approx(sum(forward_gflops(config).values()), rel=1e-3)


CHOICES = [
    {},
    {"encoders": "freeze"},
    {"encoders": "freeze", "trained_blocks": 1},
    {"encoders": "freeze", "trained_blocks": 4},
    {"encoders": "lora", "lora_rank": 5},
]


@pytest.mark.parametrize(
    ("stage", "finetune"), [("pretrain", {}), *(("finetune", choice) for choice in CHOICES)], ids=str
)
def test_forward_and_backward_equal_torchs_counter(odd_config, inputs, stage: str, finetune: dict) -> None:
    config = odd_config(stage, finetune=finetune)
    model = build_model(config)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        outputs = model(*inputs(config))
        sum(output.sum() for output in outputs if torch.is_tensor(output) and output.requires_grad).backward()
    assert counter.get_total_flops() / 3 / 1e9 == pytest.approx(training_gflops(config), rel=1e-3)


def test_description_tells_what_learns_from_what_is_frozen() -> None:
    path = CONFIGS / "stage3_finetune.yaml"
    whole = describe(load_config(path))
    frozen = describe(load_config(path, ["finetune.encoders=freeze", "finetune.trained_blocks=2"]))
    assert "frozen" not in whole and "parameters" in whole
    block, norm = 12 * 768**2 + 13 * 768, 2 * 768
    trained = 2 * block + norm
    assert f"video_encoder {trained:>16,}{87_441_408 - trained:>14,}" in frozen


def test_critics_formula_equals_torchs_counter(odd_config) -> None:
    config = odd_config()
    critics = build_critics(config)
    with FlopCounterMode(display=False) as counter:
        critics(torch.randn(3, 27, 1536), torch.randn(3, 24, 256))
    assert counter.get_total_flops() / 3 / 1e9 == pytest.approx(critic_gflops(config), rel=1e-3)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_config_is_described(path: Path) -> None:
    config = load_config(path)
    text = describe(config)
    assert "GFLOP per clip" in text and "tokens: " in text
    assert ("critics " in text) == (config.stage == "pretrain" and config.pretrain.adversarial_weight > 0)
