"""The pretraining step: what is counted, what is shown, and that it learns."""

import math

import pytest
import torch

from avff.config import Config
from avff.models.patches import join_slices, patchify_audio, patchify_video, split_slices
from avff.objectives import PretrainObjective, build_objective


@pytest.fixture
def config(tiny_config) -> Config:
    return tiny_config(engine={"global_batch_size": 4, "micro_batch_size": 4})


def losses(objective, inputs):
    return objective.model_losses(objective.model, objective.critics, inputs)


def test_total_is_the_weighted_sum_of_its_terms(config, make_inputs) -> None:
    objective = build_objective(config)
    step = losses(objective, make_inputs(config))
    weights, terms = config.pretrain, step.terms
    expected = (
        weights.reconstruction_weight * (terms["reconstruction_video"] + terms["reconstruction_audio"])
        + weights.contrastive_weight * terms["contrastive"]
        + weights.adversarial_weight * terms["adversarial"]
    )
    torch.testing.assert_close(step.total.detach(), expected)
    assert step.total.dtype == torch.float32 and not any(term.requires_grad for term in terms.values())
    assert {"loss", "temperature", "a2v_cosine", "v2a_cosine"} <= terms.keys()


def test_targets_are_the_hidden_patches(config, make_inputs) -> None:
    """Cut out of the clip as whole frames, they are those of the whole clip's patches."""
    objective, inputs, net = build_objective(config), make_inputs(config), config.model
    output = objective.model(inputs.video_BTCHW, inputs.mel_BMF, inputs.seed_B)
    hidden, slices = objective._hidden_patches(inputs, output), config.clip.num_slices
    video_BSLP = split_slices(patchify_video(inputs.video_BTCHW, net), slices)
    audio_BSLP = split_slices(patchify_audio(inputs.mel_BMF, net), slices)
    for clip, (video_S, audio_S) in enumerate(zip(*output.masks, strict=True)):
        assert torch.equal(hidden.video_BKP[clip], video_BSLP[clip, audio_S].flatten(0, 1))
        assert torch.equal(hidden.audio_BKP[clip], audio_BSLP[clip, video_S].flatten(0, 1))


def test_what_has_no_weight_is_neither_built_nor_counted(tiny_config, make_inputs) -> None:
    config = tiny_config(pretrain={"adversarial_weight": 0, "contrastive_weight": 0})
    objective = build_objective(config)
    step = losses(objective, make_inputs(config))
    assert objective.critics is None and step.critic_inputs is None
    assert "contrastive" not in step.terms and "adversarial" not in step.terms


def test_mask_input_trains_with_clip_level_contrast(tiny_config, make_inputs) -> None:
    config = tiny_config(pretrain={"mask_input": True, "contrastive_level": "clip"})
    objective = build_objective(config)
    step = losses(objective, make_inputs(config))
    step.total.backward()
    assert step.total.isfinite() and "a2v_cosine" not in step.terms
    assert all(p.grad is not None for p in objective.model.parameters())


def replace_slices(inputs, slices_BS, config, modality):
    """Adds noise to whole slices of one modality."""
    name = {"video": "video_BTCHW", "audio": "mel_BMF"}[modality]
    old = getattr(inputs, name)
    runs = split_slices(old.flatten(2), config.clip.num_slices).clone()
    clip = torch.arange(len(runs))[:, None]
    runs[clip, slices_BS] += torch.randn(runs[clip, slices_BS].shape)
    return inputs._replace(**{name: join_slices(runs).view_as(old)})


def test_only_hidden_patches_are_targets(config, make_inputs) -> None:
    """The same output is scored against changed clips, so that only the target can matter."""
    objective = build_objective(config)
    inputs = make_inputs(config)
    output = objective.model(inputs.video_BTCHW, inputs.mel_BMF, inputs.seed_B)

    def frozen_model(*_):
        return output

    before = objective.clip_losses(frozen_model, inputs)
    for modality, visible, hidden in (
        ("video", output.masks.video_visible_BS, output.masks.audio_visible_BS),
        ("audio", output.masks.audio_visible_BS, output.masks.video_visible_BS),
    ):
        name = f"reconstruction_{modality}"
        seen = objective.clip_losses(frozen_model, replace_slices(inputs, visible, config, modality))
        assert torch.equal(seen[name], before[name])
        unseen = objective.clip_losses(frozen_model, replace_slices(inputs, hidden, config, modality))
        assert (unseen[name] != before[name]).all()


def test_validation_values_do_not_depend_on_the_batch(config, make_inputs) -> None:
    objective = build_objective(config)
    inputs = make_inputs(config)
    together = objective.clip_losses(objective.model, inputs)
    alone = objective.clip_losses(objective.model, type(inputs)(*(field[1:2] for field in inputs)))
    for name, values in together.items():
        assert values.shape == (4,) and not values.requires_grad
        torch.testing.assert_close(values[1:2], alone[name], atol=1e-5, rtol=1e-5)


def test_micro_batches_average_to_the_whole_batch(tiny_config, make_inputs) -> None:
    """With whole groups in each micro batch, accumulation changes neither loss nor gradient."""
    config = tiny_config(pretrain={"contrastive_group_size": 2})
    whole, parts = build_objective(config), build_objective(config)
    inputs = make_inputs(config)
    total = losses(whole, inputs).total
    total.backward()
    halves = [losses(parts, type(inputs)(*(field[i : i + 2] for field in inputs))).total / 2 for i in (0, 2)]
    sum(halves).backward()
    torch.testing.assert_close(total, sum(halves))
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-3)


def test_neither_side_of_the_game_moves_the_other(config, make_inputs) -> None:
    objective = build_objective(config)
    step = losses(objective, make_inputs(config))
    step.total.backward()
    assert all(p.grad is None for p in objective.critics.parameters())
    objective.model.zero_grad()
    objective.critic_losses(objective.critics, step.critic_inputs).total.backward()
    assert all(p.grad is None for p in objective.model.parameters())
    assert all(p.grad is not None for p in objective.critics.parameters())


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        ("model", "video_encoder.stack.blocks.0.attn.qkv.weight"),
        # Few keys: the output of torch's attention on CPUs is 0 where a query is NaN, only its gradient is NaN.
        ("model", "a2v.block.attn.qkv.weight"),
        ("model", "audio_decoder.head.bias"),
        ("critics", "audio.hidden_weight"),
    ],
)
def test_a_bad_weight_shows_in_a_loss_or_in_the_gradient(config, make_inputs, owner, name, value) -> None:
    objective = build_objective(config)
    weight = getattr(objective, owner).get_parameter(name)
    weight.data.view(-1)[0] = value
    step = losses(objective, make_inputs(config))
    critics_step = objective.critic_losses(objective.critics, step.critic_inputs)
    (step.total + critics_step.total).backward()
    shown = [*step.terms.values(), *critics_step.terms.values(), weight.grad.norm()]
    assert not all(number.isfinite() for number in shown)


def test_panels_show_visible_slices_as_they_are(config, make_inputs) -> None:
    objective = build_objective(config)
    inputs = make_inputs(config)
    panel = objective.reconstruct(objective.model, inputs)
    clip = config.clip
    assert panel.video_BTCHW.min() >= 0 and panel.video_filled_BTCHW.max() <= 1
    assert panel.video_visible_BT.shape == (4, clip.num_frames) and panel.video_visible_BT.sum(dim=1).eq(4).all()
    assert panel.mel_visible_BM.sum(dim=1).eq(clip.num_mel_frames // 2).all()
    torch.testing.assert_close(panel.mel_BMF, inputs.mel_BMF * clip.mel_std + clip.mel_mean)
    same_BT = (panel.video_BTCHW == panel.video_filled_BTCHW).flatten(2).all(dim=2)
    same_BM = (panel.mel_BMF == panel.mel_filled_BMF).all(dim=2)
    assert torch.equal(same_BT, panel.video_visible_BT) and torch.equal(same_BM, panel.mel_visible_BM)
    in_slices = panel.mel_visible_BM.view(4, clip.num_slices, -1)[:, :, 0]
    assert torch.equal(in_slices, ~panel.video_visible_BT.view(4, clip.num_slices, -1)[:, :, 0])


def test_panels_put_predictions_on_the_scale_of_the_clip(config, make_inputs) -> None:
    """A perfect prediction has to give the clip back."""
    objective = build_objective(config)
    assert isinstance(objective, PretrainObjective)
    inputs = make_inputs(config)
    output = objective.model(inputs.video_BTCHW, inputs.mel_BMF, inputs.seed_B)
    target = objective._targets(inputs, output)
    perfect = output._replace(video_BKP=target.video_BKP, audio_BKP=target.audio_BKP)
    panel = objective.reconstruct(lambda *_: perfect, inputs)
    torch.testing.assert_close(panel.video_filled_BTCHW, panel.video_BTCHW, atol=1e-4, rtol=0)
    torch.testing.assert_close(panel.mel_filled_BMF, panel.mel_BMF, atol=1e-3, rtol=1e-4)


@pytest.mark.slow
def test_one_batch_is_learnt(tiny_config, make_inputs) -> None:
    config = tiny_config(pretrain={"contrastive_weight": 0.1, "adversarial_weight": 0})
    objective = build_objective(config)
    inputs = make_inputs(config)
    optimizer = torch.optim.AdamW(objective.model.parameters(), lr=2e-3)
    history = []
    for _ in range(60):
        optimizer.zero_grad()
        step = losses(objective, inputs)
        step.total.backward()
        optimizer.step()
        history.append(step.terms)
    # Noise can only be learnt by heart, from what is shown of each clip; predicting the mean scores 1.
    assert history[0]["reconstruction_video"] > 0.95 and history[-1]["reconstruction_video"] < 0.75
    assert history[-1]["reconstruction_audio"] < 0.75
    assert history[-1]["contrastive"] < 0.3 * history[0]["contrastive"]
