"""The pretraining network: what flows where, and that clips never meet."""

from pathlib import Path

import pytest
import torch

from avff.config import load_config
from avff.models import build_critics, build_pretrain_model
from avff.models.patches import patchify_audio, patchify_video

CONFIGS = Path(__file__).parents[2] / "configs"

MODES = [{"mask_input": False}, {"mask_input": True, "contrastive_level": "clip"}]


def tensors(output) -> dict[str, torch.Tensor]:
    named = {name: value for name, value in output._asdict().items() if torch.is_tensor(value)}
    return {**named, **output.masks._asdict()}


@pytest.mark.parametrize("mode", MODES)
def test_shapes(odd_config, inputs, mode) -> None:
    config = odd_config(pretrain=mode)
    output = build_pretrain_model(config)(*inputs(config))
    contrasted = 1 if mode["mask_input"] else 6
    assert output.video_BKP.shape == (3, 3 * 9, 1536) and output.audio_BKP.shape == (3, 3 * 8, 256)
    assert output.video_BSD.shape == output.audio_BSD.shape == (3, contrasted, 96)
    assert output.video_BSD.dtype == torch.float32 and output.temperature.shape == (1,)
    assert (output.a2v_cosine_B is None) == mode["mask_input"]


@pytest.mark.parametrize("mode", MODES)
def test_a_clip_does_not_see_its_batch(odd_config, inputs, mode) -> None:
    config = odd_config(pretrain=mode)
    model = build_pretrain_model(config)
    video, mel, seeds = inputs(config)
    before = tensors(model(video, mel, seeds))
    video[1], mel[1], seeds[1] = video[1] + 1, mel[1] - 1, seeds[1] + 1
    after = tensors(model(video, mel, seeds))
    alone = tensors(model(video[2:], mel[2:], seeds[2:]))
    for name, old in before.items():
        if name != "temperature":
            torch.testing.assert_close(old[[0, 2]], after[name][[0, 2]], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(old[2:], alone[name], atol=1e-5, rtol=1e-5)
            assert name.endswith("visible_BS") or not torch.allclose(old[1], after[name][1])


def hide(video, mel, masks, config):
    """Overwrites what the masks hide."""
    frames, mel_frames = config.clip.num_frames // 6, config.clip.num_mel_frames // 6
    video, mel = video.clone(), mel.clone()
    for clip in range(len(video)):
        for k in masks.audio_visible_BS[clip].tolist():
            video[clip, k * frames : (k + 1) * frames] = 9
        for k in masks.video_visible_BS[clip].tolist():
            mel[clip, k * mel_frames : (k + 1) * mel_frames] = 9
    return video, mel


def test_mask_input_keeps_hidden_slices_out_and_the_paper_mode_does_not(odd_config, inputs) -> None:
    for mode in MODES:
        config = odd_config(pretrain=mode)
        model = build_pretrain_model(config)
        video, mel, seeds = inputs(config)
        before = model(video, mel, seeds)
        after = model(*hide(video, mel, before.masks, config), seeds)
        same = torch.allclose(before.video_BKP, after.video_BKP) and torch.allclose(before.audio_BKP, after.audio_BKP)
        assert same == mode["mask_input"]


def test_hidden_video_is_predicted_from_the_sound_of_its_own_slice(odd_config, inputs) -> None:
    """Without decoder blocks and final norms nothing mixes slices, so one slice of sound moves one of picture."""
    config = odd_config(pretrain=MODES[1])
    model = build_pretrain_model(config)
    for part in (model.audio_encoder, model.video_decoder):
        part.stack.blocks = torch.nn.ModuleList()
    video, mel, seeds = inputs(config)
    before = model(video, mel, seeds)
    for place, k in enumerate(before.masks.audio_visible_BS[0].tolist()):
        changed = mel.clone()
        changed[:, k * 64 + 30] += 3
        moved = (model(video, changed, seeds).video_BKP - before.video_BKP)[0].abs().amax(dim=1).view(3, 9).amax(dim=1)
        assert (moved > 1e-6).nonzero().flatten().tolist() == [place]


def test_every_parameter_learns_and_none_is_0_dimensional(odd_config, inputs) -> None:
    config = odd_config()
    model = build_pretrain_model(config)
    output = model(*inputs(config))
    total = sum(x.square().mean() for x in (output.video_BKP, output.audio_BKP, output.temperature))
    total.backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert unused == []
    assert all(p.ndim > 0 for p in [*model.parameters(), *build_critics(config).parameters()])


def test_bfloat16_weights_take_float32_inputs(odd_config, inputs) -> None:
    config = odd_config()
    output = build_pretrain_model(config).to(torch.bfloat16)(*inputs(config))
    assert output.video_BKP.dtype == torch.bfloat16 and output.video_BKP.isfinite().all()
    assert output.video_BSD.dtype == output.temperature.dtype == torch.float32


def test_initial_weights_follow_the_seed_alone(odd_config) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = build_pretrain_model(odd_config())
    assert torch.equal(state, torch.get_rng_state()), "building draws from no one else's generator"
    torch.manual_seed(2)
    second, other = build_pretrain_model(odd_config()), build_pretrain_model(odd_config(seed=1))
    weights = [model.video_encoder.patch_embed.weight for model in (first, second, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_temperature_starts_as_configured_and_keeps_its_floor(odd_config) -> None:
    temperature = build_pretrain_model(odd_config(pretrain={"temperature": 0.2, "temperature_min": 0.05})).temperature
    torch.testing.assert_close(temperature(), torch.tensor([0.2]))
    with torch.no_grad():
        temperature.log_excess.fill_(-10)
    torch.testing.assert_close(temperature(), torch.tensor([0.05]), atol=1e-4, rtol=0)
    temperature().sum().backward()
    assert temperature.log_excess.grad.item() > 0, "at the floor it could never rise again"


def test_base_has_the_papers_size_on_the_meta_device() -> None:
    """The sizes of Open-AVFF, plus what ours adds: qkv biases, the modality embedding, per-slice A2V/V2A."""
    config = load_config(CONFIGS / "stage1_kinetics.yaml")
    with torch.device("meta"):
        model = build_pretrain_model(config)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    qkv_biases = 12 * 3 * 768
    assert counts["video_encoder"] == 87_412_992 + qkv_biases + 768
    assert counts["audio_encoder"] == 85_619_712 + qkv_biases
    assert counts["video_decoder"] == 8_583_168 + 4 * 3 * 384 - 384
    assert counts["audio_decoder"] == 7_684_864 + 4 * 3 * 384 - 384
    assert all(p.is_meta for p in model.parameters())


def test_patches_of_the_config_fit_the_embeddings(odd_config, inputs) -> None:
    config = odd_config(model={"patch_size": 8, "mel_patch_bins": 8, "mel_patch_frames": 32})
    video, mel, seeds = inputs(config)
    output = build_pretrain_model(config)(video, mel, seeds)
    assert output.video_BKP.shape[-1] == patchify_video(video, config.model).shape[-1] == 3 * 2 * 64
    assert output.audio_BKP.shape[-1] == patchify_audio(mel, config.model).shape[-1] == 256
