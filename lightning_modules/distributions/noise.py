"""Standard normal noise that belongs to a row of the data, not to a batch or a process."""

import math

import torch
from torch import Tensor

# Constants of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014), as int64.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical shift (torch's own keeps the sign)."""
    return (value >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _splitmix64(state: Tensor) -> Tensor:
    state = state + _GOLDEN  # the rest in place: it is bound by memory traffic
    state.bitwise_xor_(_shift_right(state, 30)).mul_(_MIX_1)
    state.bitwise_xor_(_shift_right(state, 27)).mul_(_MIX_2)
    return state.bitwise_xor_(_shift_right(state, 31))


def normal_by_row(rows: Tensor, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Independent standard normal numbers that depend on the row's number and the seed alone.

    An evaluation that draws its latent sample so gives the same figure for every batch size and every number of
    processes. They come from splitmix64 hashes of (seed, row, position), two from each by Box and Muller's method.

    Args:
        rows: [batch] int64, the row numbers.
        shape: shape of the noise of one row.
        seed: chooses another, independent set of numbers.

    Returns:
        [batch, *shape] float32 on the device of ``rows``.
    """
    if rows.dtype != torch.int64 or rows.ndim != 1:
        raise ValueError(f"rows must be a vector of int64, got {rows.dtype} of shape {tuple(rows.shape)}")
    size = int(torch.Size(shape).numel())
    # One hash of another: hashes that are combined alike would give row 3 of seed 7 the numbers of row 7 of seed 3.
    # Hashing before the position is added keeps the streams of neighbouring rows apart.
    stream = _splitmix64(_splitmix64(torch.full_like(rows, seed)) + rows)  # [batch]
    position = torch.arange((size + 1) // 2, device=rows.device)
    bits = _splitmix64(stream[:, None] + position * _GOLDEN)  # [batch, half the size]
    high, low = _shift_right(bits, 32), bits & 0xFFFFFFFF
    radius = high.float().add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()  # of a uniform number in (0, 1]
    angle = low.float().mul_(2 * math.pi * 2.0**-32)
    normal = torch.cat([angle.cos().mul_(radius), angle.sin_().mul_(radius)], dim=1)  # [batch, size, and 1 if odd]
    return normal[:, :size].reshape(len(rows), *shape)
