"""The classifier: three logits per clip, keyed dropout, pooling against a plain formula."""

import torch
import torch.nn.functional as F

from avff.models import build_classifier, build_pretrain_model
from avff.models.classifier import AttentivePool, slice_agreement


def test_three_float32_logits_per_clip(odd_config, inputs) -> None:
    config = odd_config("finetune")
    logits = build_classifier(config)(*inputs(config))
    assert logits._fields == ("overall_B", "video_B", "audio_B")
    assert all(logit.shape == (3,) and logit.dtype == torch.float32 for logit in logits)


def test_a_clip_does_not_see_its_batch(odd_config, inputs) -> None:
    config = odd_config("finetune")
    model = build_classifier(config).eval()
    video, mel, seeds = inputs(config)
    together = torch.stack(model(video, mel, seeds))
    alone = torch.stack(model(video[1:2], mel[1:2], seeds[1:2]))
    torch.testing.assert_close(together[:, 1:2], alone, atol=1e-5, rtol=1e-5)
    video[0], mel[2] = 0, 0
    changed = torch.stack(model(video, mel, seeds))
    torch.testing.assert_close(together[:, 1], changed[:, 1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together[:, 0], changed[:, 0]) and not torch.allclose(together[:, 2], changed[:, 2])


def test_seeds_matter_in_training_only(odd_config, inputs) -> None:
    config = odd_config("finetune", finetune={"head_dropout": 0.5}, model={"drop_path": 0.5})
    model = build_classifier(config)
    video, mel, seeds = inputs(config)
    trained = torch.stack(model(video, mel, seeds))
    assert torch.equal(trained, torch.stack(model(video, mel, seeds)))
    assert not torch.allclose(trained, torch.stack(model(video, mel, seeds + 1)))
    model.eval()
    assert torch.equal(torch.stack(model(video, mel, seeds)), torch.stack(model(video, mel, seeds + 1)))


def test_modality_dropout_blinds_the_overall_head_to_one_modality(odd_config, inputs) -> None:
    config = odd_config("finetune", finetune={"modality_dropout": 0.999})
    model = build_classifier(config)
    width = config.model.decoder.width
    seen = []
    model.overall_head.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].detach()))
    video, mel, _ = inputs(config, 1)
    model(video.expand(40, -1, -1, -1, -1), mel.expand(40, -1, -1), torch.arange(40))
    no_video, no_audio = (seen[0][:, :width] == 0).all(dim=1), (seen[0][:, width : 2 * width] == 0).all(dim=1)
    assert (no_video ^ no_audio).all(), "exactly one modality is hidden"
    assert 8 < no_video.sum() < 32
    assert (seen[0][:, 2 * width :] == 0).all(), "agreement would tell of the hidden one"


def test_pool_is_attention_of_one_query_per_head(odd_config) -> None:
    config = odd_config("finetune")
    pool = AttentivePool(config.model)
    own, predicted = torch.randn(3, 6, 4, 96), torch.randn(3, 6, 4, 96)
    features = F.gelu(pool.compare(torch.cat([own, predicted], dim=-1).flatten(1, 2)))
    heads = features.chunk(pool.heads, dim=-1)
    weights = pool.query(features).softmax(dim=1)
    expected = [(weights[..., n : n + 1] * head).sum(dim=1) for n, head in enumerate(heads)]
    torch.testing.assert_close(pool(own, predicted), pool.norm(torch.cat(expected, dim=-1)))


def test_agreement_is_the_sorted_cosine_of_each_slice() -> None:
    video, sound = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
    expected = F.cosine_similarity(video, sound, dim=-1).sort(dim=1).values
    torch.testing.assert_close(slice_agreement(video, sound), expected)
    torch.testing.assert_close(slice_agreement(video, 3 * video), torch.ones(2, 5))
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(slice_agreement(video[:, order], sound[:, order]), expected)
    tokens = torch.randn(2, 5, 3, 7)
    torch.testing.assert_close(slice_agreement(tokens, tokens), torch.ones(2, 5))


def test_every_parameter_learns(odd_config, inputs) -> None:
    config = odd_config("finetune")
    model = build_classifier(config)
    torch.stack(model(*inputs(config))).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_encoders_and_cross_modal_networks_are_the_pretrained_ones(odd_config) -> None:
    """Same names and shapes, so that all of A2V and V2A carries over."""
    pretrained = build_pretrain_model(odd_config()).state_dict()
    classifier = build_classifier(odd_config("finetune")).state_dict()
    shared = {name for name in pretrained if "decoder" not in name}
    assert shared == {
        name for name in classifier if not name.startswith(("video_pool", "audio_pool")) and "_head." not in name
    }
    assert all(pretrained[name].shape == classifier[name].shape for name in shared)
