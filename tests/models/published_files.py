"""Seeded stand-ins of published files, as they lie on disk: MARLIN's bare table, AudioMAE's beside its arguments."""

import argparse
from pathlib import Path

import audio_visual_sources as sound
import published_video as picture
import torch
from torch import Tensor


def marlin_weights(size: picture.Size, decoder: picture.Size | None = None) -> dict[str, Tensor]:
    weights = picture.seeded(picture.marlin_layout(size, decoder), seed=1)
    weights["encoder.pos_embedding.emb"] = picture.counting_table(picture.NUM_TOKENS, size.width)
    if decoder:
        weights["decoder.pos_embedding.emb"] = picture.counting_table(picture.NUM_TOKENS, decoder.width)
    return weights


def save_marlin(path: Path, size: picture.Size, decoder: picture.Size | None = None) -> Path:
    torch.save(marlin_weights(size, decoder), path)
    return path


def audiomae_weights(size: picture.Size) -> dict[str, Tensor]:
    return sound.seeded(sound.audiomae_layout(size.width, size.depth), seed=2)


def save_audiomae(path: Path, size: picture.Size) -> Path:
    """Writes what main_pretrain.py saves, the optimizer aside: weights, arguments, epoch."""
    arguments = argparse.Namespace(model="mae_vit_base_patch16", mask_ratio=0.8, epochs=33, device="cuda")
    torch.save({"model": audiomae_weights(size), "args": arguments, "epoch": 32}, path)
    return path
