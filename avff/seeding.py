"""Every random choice in avff, as a pure function of (seed, names, counters).

Nothing here has state, so a choice never depends on how many ranks or workers exist or on what was
drawn before. Two families:

- on the host: `derive_seed` folds any names and numbers into 63 bits; `generator` opens a NumPy
  generator on them; `permutation` shuffles by sorting hashes.
- on the device: `uniform` and `normal` hash one 64-bit seed per clip into as many numbers as asked,
  with integer arithmetic only, so CPU and GPU agree to the bit.
"""

import hashlib
import math
import zlib

import numpy as np
import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def derive_seed(*parts: int | str) -> int:
    """Returns 63 bits that depend on every part, its type and the order.

    Example: `derive_seed(seed, "window", epoch, key, occurrence)`.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(*parts: int | str) -> np.random.Generator:
    """Returns a fresh counter-based (Philox) generator keyed by the parts."""
    return np.random.Generator(np.random.Philox(key=derive_seed(*parts)))


def permutation(count: int, *parts: int | str) -> np.ndarray:
    """Returns a permutation of range(count), int64, by sorting hashes: the same on every NumPy version."""
    return np.argsort(hash_counters(np.arange(count, dtype=np.uint64), *parts), kind="stable")


def hash_counters(counters: np.ndarray, *parts: int | str) -> np.ndarray:
    """Returns one uint64 hash (splitmix64) per counter, keyed by the parts."""
    with np.errstate(over="ignore"):
        x = counters.astype(np.uint64) * np.uint64(_GOLDEN) + np.uint64(derive_seed(*parts))
        x = (x ^ (x >> np.uint64(30))) * np.uint64(_MIX_1)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(_MIX_2)
        return x ^ (x >> np.uint64(31))


def uniform(seed_B: Tensor, purpose: str, *shape: int) -> Tensor:
    """Draws stateless uniform numbers on the device of the seeds.

    Args:
        seed_B: one int64 seed per clip.
        purpose: names the draw ("mask", "crop", ...); different purposes are independent.
        *shape: numbers per clip; none gives one number per clip.

    Returns:
        (B, *shape) float32 in [0, 1), 24 bits each, equal on CPU and GPU.
    """
    count = math.prod(shape)
    counter = torch.arange(1, count + 1, device=seed_B.device, dtype=torch.int64)
    start_B = _mix(seed_B + _signed(zlib.crc32(purpose.encode()) * _GOLDEN))
    bits = _mix(start_B[:, None] + counter[None, :] * _signed(_GOLDEN))
    values = (_shift(bits, 40)).to(torch.float32) * 2.0**-24
    return values.reshape(len(seed_B), *shape)


def normal(seed_B: Tensor, purpose: str, *shape: int) -> Tensor:
    """Draws stateless standard normal numbers (Box-Muller), (B, *shape) float32."""
    radius = uniform(seed_B, purpose + "/radius", *shape).clamp_min(2.0**-25)
    angle = uniform(seed_B, purpose + "/angle", *shape)
    return torch.sqrt(-2.0 * torch.log(radius)) * torch.cos(2.0 * math.pi * angle)


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64, which torch only shifts arithmetically."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser on int64 with wrap-around."""
    x = (x ^ _shift(x, 30)) * _signed(_MIX_1)
    x = (x ^ _shift(x, 27)) * _signed(_MIX_2)
    return x ^ _shift(x, 31)
