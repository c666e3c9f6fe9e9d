"""Bilinear up-sampling of single pixels, as weighted sums of the rows of a table: nothing of full size exists."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

_PIXELS_AT_ONCE = 32  # whose neighbours are converted from 16 bits, within a CPU's cache


def neighbours(position: Tensor, side: int, size: int) -> tuple[Tensor, Tensor]:
    """The two low-resolution places between which up-sampling interpolates (align_corners=False), and their weights.

    Args:
        position: [...] int64, in 0..size-1.
        side: of the map.
        size: of the image.

    Returns:
        Places int64 [..., 2], and weights float32 [..., 2].
    """
    place = ((position + 0.5) * (side / size) - 0.5).clamp(min=0)
    below = place.floor()
    upper = place - below
    below = below.long()
    places = torch.stack([below, (below + 1).clamp(max=side - 1)], dim=-1)
    return places, torch.stack([1 - upper, upper], dim=-1).float()


def corners(position: Tensor, sides: tuple[int, int], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The four places of a map between which up-sampling interpolates a pixel.

    Args:
        position: [...] int64, row * width + column of the pixel.
        sides: height and width of the map.
        size: of the image.

    Returns:
        Places as row * width + column of the map, int64 [..., 4], and their weights, float32 [..., 4].
    """
    rows, row_weight = neighbours(position // size[1], sides[0], size[0])  # [..., 2] each
    columns, column_weight = neighbours(position % size[1], sides[1], size[1])
    index = (rows[..., :, None] * sides[1] + columns[..., None, :]).flatten(-2)
    return index, (row_weight[..., :, None] * column_weight[..., None, :]).flatten(-2)


def all_corners(sides: Sequence[tuple[int, int]], size: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """`corners` of all pixels of an image, in maps whose places are numbered through: [pixel, 4 * map] each."""
    position = torch.arange(size[0] * size[1], device=device)
    index, weight = zip(*(corners(position, each, size) for each in sides), strict=True)
    starts = accumulate((height * width for height, width in sides[:-1]), initial=0)
    return torch.cat([each + start for each, start in zip(index, starts, strict=True)], 1), torch.cat(weight, 1)


def blend(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Weighted sums of rows of a table: [row, channel], [..., place] and [..., place] to float32 [..., channel]."""
    shape, index, weight = index.shape[:-1], index.flatten(0, -2), weight.flatten(0, -2)
    if table.dtype == torch.float32:
        return F.embedding_bag(index, table, per_sample_weights=weight, mode="sum").unflatten(0, shape)
    at_once = min(_PIXELS_AT_ONCE if table.device.type == "cpu" else len(index), len(index))
    kept = table.new_empty(at_once * index.shape[1], table.shape[1])
    converted = torch.empty_like(kept, dtype=torch.float32)
    blended = converted.new_empty(len(index), 1, table.shape[1])
    for start in range(0, len(index), at_once):
        chosen, share = index[start : start + at_once], weight[start : start + at_once, None]
        rows = slice(chosen.numel())
        torch.index_select(table, 0, chosen.flatten(), out=kept[rows])
        converted[rows] = kept[rows]
        torch.bmm(share, converted[rows].unflatten(0, chosen.shape), out=blended[start : start + at_once])
    return blended.squeeze(1).unflatten(0, shape)
