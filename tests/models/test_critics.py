"""The critics' closed-form slope against autograd."""

import torch

from avff.models.critics import Critics


def test_slope_is_the_length_of_the_input_gradient() -> None:
    critics = Critics(video_patch_values=12, audio_patch_values=5, width=7)
    video, audio = torch.randn(3, 4, 12, requires_grad=True), torch.randn(3, 2, 5, requires_grad=True)
    for output, patches in zip(critics(video, audio, num_slopes=3), (video, audio), strict=True):
        assert output.score_BK.shape == output.slope_BK.shape == patches.shape[:2]
        (gradient,) = torch.autograd.grad(output.score_BK.sum(), patches, retain_graph=True)
        torch.testing.assert_close(output.slope_BK, gradient.norm(dim=-1))


def test_penalty_gradient_equals_double_backward() -> None:
    critic, patches = Critics(12, 5, 7).video, torch.randn(3, 4, 12, requires_grad=True)
    (gradient,) = torch.autograd.grad(critic(patches, 0).score_BK.sum(), patches, create_graph=True)
    weights = (critic.hidden_weight, critic.score_weight)
    expected = torch.autograd.grad((gradient.norm(dim=-1) - 1).square().mean(), weights)
    ours = torch.autograd.grad((critic(patches, 3).slope_BK - 1).square().mean(), weights)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_slopes_of_leading_clips_only() -> None:
    critics = Critics(12, 5, 7)
    video, _ = critics(torch.randn(3, 4, 12), torch.randn(3, 2, 5), 2)
    assert video.score_BK.shape == (3, 4) and video.slope_BK.shape == (2, 4)
    assert critics(torch.randn(3, 4, 12), torch.randn(3, 2, 5))[0].slope_BK.shape == (0, 4)
