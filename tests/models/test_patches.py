"""Token order: time-major in both modalities, so that slice k of tokens is slice k of time."""

import torch

from avff.models import build_pretrain_model
from avff.models.patches import (
    audio_grid,
    join_slices,
    patchify_audio,
    patchify_video,
    split_slices,
    take_slices,
    unpatchify_audio,
    unpatchify_video,
    video_grid,
)


def test_round_trips(odd_config, inputs) -> None:
    config = odd_config()
    video, mel, _ = inputs(config)
    video_patches, audio_patches = patchify_video(video, config.model), patchify_audio(mel, config.model)
    grids = video_grid(config.clip, config.model), audio_grid(config.clip, config.model)
    assert video_patches.shape == (3, grids[0].num_tokens, grids[0].patch_values) == (3, 54, 1536)
    assert audio_patches.shape == (3, grids[1].num_tokens, grids[1].patch_values) == (3, 48, 256)
    assert torch.equal(unpatchify_video(video_patches, grids[0], config.model), video)
    assert torch.equal(unpatchify_audio(audio_patches, grids[1], config.model), mel)


def test_tokens_stand_in_order_of_time_then_place(odd_config) -> None:
    config = odd_config()
    clip = config.clip
    time, row, column = torch.meshgrid(
        torch.arange(12) // 2, torch.arange(48) // 16, torch.arange(48) // 16, indexing="ij"
    )
    index = (time * 9 + row * 3 + column).float()
    patches = patchify_video(index[None, :, None].expand(1, -1, 3, -1, -1), config.model)
    assert torch.equal(patches[0], torch.arange(54.0)[:, None].expand(-1, 1536))
    moment, band = torch.meshgrid(torch.arange(clip.num_mel_frames) // 16, torch.arange(32) // 16, indexing="ij")
    patches = patchify_audio((moment * 2 + band).float()[None], config.model)
    assert torch.equal(patches[0], torch.arange(48.0)[:, None].expand(-1, 256))


def test_values_of_a_patch_are_ordered_as_a_conv3d_kernel(odd_config, inputs) -> None:
    config = odd_config()
    video, _, _ = inputs(config)
    conv = torch.nn.Conv3d(3, 7, kernel_size=(2, 16, 16), stride=(2, 16, 16))
    expected = conv(video.transpose(1, 2)).flatten(2).transpose(1, 2)
    ours = patchify_video(video, config.model) @ conv.weight.flatten(1).T + conv.bias
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_an_impulse_in_slice_k_changes_only_the_tokens_of_slice_k(odd_config, inputs) -> None:
    """In Open-AVFF a "time" slice of audio is a mel band over the whole clip."""
    config = odd_config()
    clip = config.clip
    model = build_pretrain_model(config)
    video, mel, _ = inputs(config)

    def embed(video, mel):
        video_tokens = model.video_encoder.patch_embed(patchify_video(video, config.model))
        audio_tokens = model.audio_encoder.patch_embed(patchify_audio(mel, config.model))
        return split_slices(video_tokens, clip.num_slices), split_slices(audio_tokens, clip.num_slices)

    before = embed(video, mel)
    for k in range(clip.num_slices):
        changed_video, changed_mel = video.clone(), mel.clone()
        changed_video[:, int((k + 0.5) * clip.num_frames / clip.num_slices), :, 20, 30] += 5
        changed_mel[:, int((k + 0.5) * clip.num_mel_frames / clip.num_slices), 3] += 5
        for old, new in zip(before, embed(changed_video, changed_mel), strict=True):
            assert (old != new).flatten(2).any(dim=2).all(dim=0).nonzero().flatten().tolist() == [k]
            assert torch.equal(old[:, :k], new[:, :k]) and torch.equal(old[:, k + 1 :], new[:, k + 1 :])


def test_slices_are_taken_per_clip_in_the_order_asked() -> None:
    tokens = torch.arange(2 * 4 * 3 * 5.0).view(2, 12, 5)
    slices = split_slices(tokens, 4)
    assert torch.equal(join_slices(slices), tokens)
    taken = take_slices(slices, torch.tensor([[3, 0], [1, 1]]))
    assert torch.equal(taken[0], slices[0, [3, 0]]) and torch.equal(taken[1], slices[1, [1, 1]])
