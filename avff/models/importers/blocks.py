"""What most importers share: transformer blocks and their biases, norms, input normalisation, what is left out."""

import torch
from torch import Tensor

from avff.config import IMAGENET_MEAN, IMAGENET_STD, MODEL_SIZES, Config, TransformerSize
from avff.errors import CheckpointError
from avff.models.build import build_model
from avff.models.importers.source import Conversion, SourceKeys
from avff.models.transformer import MLP_RATIO


def encoder_size(width: int, depth: int, where: str) -> TransformerSize:
    """Returns the named size of an encoder's width and depth.

    Raises:
        CheckpointError: no encoder of ours is so wide and deep.
    """
    for size, _ in MODEL_SIZES.values():
        if (size.width, size.depth) == (width, depth):
            return size
    known = ", ".join(f"{name} {size.width} x {size.depth}" for name, (size, _) in MODEL_SIZES.items())
    raise CheckpointError(
        f"{where}: its encoder is {width} wide and {depth} blocks deep, which is no size of ours ({known})"
    )


def qkv_bias(keys: SourceKeys, prefix: str, width: int, wanted: str = "") -> tuple[Tensor, str, bool]:
    """Returns the bias of a fused qkv layer in whatever form the source keeps it.

    A key's bias cancels in the softmax, so that none, or zeros, mean the same.

    Args:
        prefix: of the attention, ending in a dot.
        wanted: the form that it has to have, `q_bias` or `qkv.bias`; empty: whichever is there.

    Returns:
        the bias, the keys it was made of, and whether the source has one at all.
    """
    if wanted == "q_bias" or f"{prefix}q_bias" in keys:
        q, v = keys.take(f"{prefix}q_bias", width), keys.take(f"{prefix}v_bias", width)
        return torch.cat([q, torch.zeros_like(q), v]), f"{prefix}q_bias, 0, {prefix}v_bias", True
    if wanted == "qkv.bias" or f"{prefix}qkv.bias" in keys:
        return keys.take(f"{prefix}qkv.bias", 3 * width), f"{prefix}qkv.bias", True
    return torch.zeros(3 * width), "", False


def put_block(
    keys: SourceKeys,
    conversion: Conversion,
    ours: str,
    theirs: str,
    width: int,
    *,
    bias: str = "",
    norm1: str = "norm1",
    norm2: str = "norm2",
    fc1: str = "mlp.fc1",
    fc2: str = "mlp.fc2",
) -> None:
    """Maps one pre-norm block.

    Args:
        ours, theirs: beginnings of the block's keys, each ending in a dot.
        bias: the form of the attention's bias, as `qkv_bias` wants it.
        norm1, norm2, fc1, fc2: what the source calls them.
    """
    plain = {"norm1": norm1, "norm2": norm2, "attn.proj": "attn.proj", "mlp.fc1": fc1, "mlp.fc2": fc2}
    for own, their in plain.items():
        put_layer(keys, conversion, f"{ours}{own}", f"{theirs}{their}", *layer_shape(own, width))
    name = f"{theirs}attn.qkv.weight"
    conversion.put(f"{ours}attn.qkv.weight", keys.take(name, 3 * width, width), name)
    values, made_of, has_bias = qkv_bias(keys, f"{theirs}attn.", width, bias)
    if has_bias:
        conversion.put(f"{ours}attn.qkv.bias", values, made_of)
    else:
        conversion.fill(f"{ours}attn.qkv.bias", values, "0: its attention has no bias")


def layer_shape(name: str, width: int) -> tuple[int, ...]:
    """Returns the shape of the weight of one layer of a block of ours, such as `mlp.fc1`."""
    hidden = MLP_RATIO * width
    shapes = {"attn.proj": (width, width), "mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
    return shapes.get(name, (width,))


def put_biased_block(
    keys: SourceKeys, conversion: Conversion, ours: str, theirs: str, width: int, *, bias: str = "q_bias", **names: str
) -> None:
    """Maps one block whose attention has to have a bias: all published files do, so that none is a broken file.

    Args:
        bias: what the attention calls it, or the first of its parts.
        names: as those of `put_block`.
    """
    put_block(keys, conversion, ours, theirs, width, bias=bias, **names)


def put_layer(keys: SourceKeys, conversion: Conversion, ours: str, theirs: str, *shape: int) -> None:
    """Maps the weight, which has that shape, and the bias of a norm or a linear layer."""
    for kind, wanted in (("weight", shape), ("bias", shape[:1])):
        conversion.put(f"{ours}.{kind}", keys.take(f"{theirs}.{kind}", *wanted), f"{theirs}.{kind}")


def fill_token_norm(keys: SourceKeys, conversion: Conversion, encoder: str, pooled_norm: str, width: int) -> None:
    """Stands in for an encoder's last norm where a classifier was trained on the mean over tokens instead.

    Args:
        encoder: beginning of our keys, ending in a dot.
        pooled_norm: the layer that normalises that mean.
    """
    why = f"{pooled_norm} normalises the mean over all tokens; ours normalises each token"
    conversion.fill(f"{encoder}stack.norm.weight", torch.ones(width), f"1: {why}")
    conversion.fill(f"{encoder}stack.norm.bias", torch.zeros(width), f"0: {why}")
    keys.drop(conversion, f"{pooled_norm}.", "belongs to a classifier of the mean over tokens")
    conversion.notes.append("finetuned: tokens before the last norm are the source's; that norm is plain, not trained")


def leave_out(conversion: Conversion, config: Config, reasons: dict[str, str], otherwise: str) -> None:
    """Names every part of the target that the conversion does not fill."""
    with torch.device("meta"):
        names = build_model(config).state_dict()
    parts = dict.fromkeys(name.split(".")[0] + "." for name in names)
    held = {name.split(".")[0] + "." for name in conversion.tensors}
    conversion.left_out |= {part: reasons.get(part, otherwise) for part in parts if part not in held}


def fold_video_normalisation(weight_DP: Tensor, bias_D: Tensor, values_per_channel: int) -> tuple[Tensor, Tensor]:
    """Lets a patch embedding that was trained on RGB in [0, 1] read ImageNet-normalised frames, without loss.

    Args:
        weight_DP: with the colour as the slowest axis of a patch, as `patchify_video` orders it.
        values_per_channel: numbers of one colour in a patch.

    Source:
        u = alpha x + beta gives W' = W alpha, b' = b + sum(W beta).
    """
    alpha_P = torch.tensor(IMAGENET_STD).repeat_interleave(values_per_channel)
    beta_P = torch.tensor(IMAGENET_MEAN).repeat_interleave(values_per_channel)
    return weight_DP * alpha_P, bias_D + weight_DP @ beta_P
