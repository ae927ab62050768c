"""Sampling positions of bilinear resizing: mask grid to padded image, crop, then image to output.

Positions are those of torch with align_corners False, computed in float32 as torch does.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Size = tuple[int, int]
Entries = int | np.ndarray[tuple[int, ...], np.dtype[np.int64]]

# Largest error of positions in float32, in entries of the source, for fewer than 10,000 entries.
POSITION_ERROR = 0.01

# The difference of two values of this magnitude is finite in float32.
LARGEST = torch.finfo(torch.float32).max / 2


class Sizes(NamedTuple):
    """The three sizes of one image, each (height, width) in pixels.

    padded: input of the network, covered by the mask grid.
    image: the upper left part of it, without padding.
    output: size of the results.
    """

    padded: Size
    image: Size
    output: Size


def finite(logits: Tensor) -> Tensor:
    """Return logits in float32, with infinite values replaced by finite ones that can be interpolated."""
    return logits.float().clamp(-LARGEST, LARGEST)


def neighbours(entries: Tensor, source_length: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two source entries that each entry is interpolated from, and the weight of the second."""
    if source_length == length:
        return entries, entries, torch.zeros_like(entries, dtype=torch.float32)
    position = ((entries.float() + 0.5) * (source_length / length) - 0.5).clamp_(min=0)
    first = position.long().clamp_(max=source_length - 1)
    second = (first + 1).clamp_(max=source_length - 1)
    return first, second, (position - first).clamp_(max=1)


def source_rows(rows: range, source_length: int, length: int) -> range:
    """Return the source rows that `rows` are interpolated from, with up to one extra row at either end."""
    first, _ = _source_span(rows.start, source_length, length)
    _, last = _source_span(rows.stop - 1, source_length, length)
    return range(int(first), int(last) + 1)


def _source_span(entries: Entries, source_length: int, length: int) -> tuple[Entries, Entries]:
    """Return the first and the last source entry that each entry may be interpolated from."""
    if source_length == length:
        return entries, entries
    position = (np.asarray(entries) + 0.5) * (source_length / length) - 0.5
    first = np.maximum(position - POSITION_ERROR, 0).astype(np.int64)
    last = np.maximum(position + POSITION_ERROR, 0).astype(np.int64) + 1
    return np.minimum(first, source_length - 1), np.minimum(last, source_length - 1)


class Windows(NamedTuple):
    """For each row (or column) of the output, the cells of the mask grid that it is interpolated from.

    first: (n,) int64, ascending, the first cell of each row.
    length: number of cells, the same for all rows.
    """

    first: Tensor
    length: int

    def cells(self, rows: range) -> range:
        """Return the cells that these rows are interpolated from."""
        return range(int(self.first[rows.start]), int(self.first[rows.stop - 1]) + self.length)


def windows(sizes: Sizes, axis: int, cells: int) -> Windows:
    """Return the windows along an axis, 0 or 1, of a mask grid with `cells` cells along it."""
    padded, image, output = (size[axis] for size in sizes)
    first, last = _source_span(np.arange(output), image, output)
    first, last = _source_span(first, cells, padded)[0], _source_span(last, cells, padded)[1]
    length = int(np.max(np.asarray(last) - first)) + 1
    return Windows(torch.from_numpy(np.minimum(first, cells - length)), length)


def values_at(
    maps: Tensor,
    corner: tuple[int, int],
    grid: Size,
    sizes: Sizes,
    pixels: tuple[Tensor, Tensor],
    on_image: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return the values (N, n) float32 of maps on the mask grid at some pixels of the output.

    Args:
        maps: (N, a, b), the part of the grid that these pixels are interpolated from.
        corner: row and column of the first cell of the part.
        grid: (h, w) of the whole grid.
        sizes: see `Sizes`.
        pixels: rows (n,) and columns (n,), int64.
        on_image: applied elementwise between the two resizings.
    """
    rows, columns = pixels

    def image_values(rows: Tensor, columns: Tensor) -> Tensor:
        values = _bilinear(maps, corner, grid, sizes.padded, rows, columns)
        return values if on_image is None else on_image(values)

    if sizes.image == sizes.output:
        return image_values(rows, columns)
    upper, lower, down = neighbours(rows, sizes.image[0], sizes.output[0])
    left, right, across = neighbours(columns, sizes.image[1], sizes.output[1])
    return torch.lerp(
        torch.lerp(image_values(upper, left), image_values(lower, left), down),
        torch.lerp(image_values(upper, right), image_values(lower, right), down),
        across,
    )


def _bilinear(
    maps: Tensor, corner: tuple[int, int], grid: Size, size: Size, rows: Tensor, columns: Tensor
) -> Tensor:
    """Return the values (N, n) of maps (N, a, b), a part of a grid, at pixels of the resized grid."""
    upper, lower, down = neighbours(rows, grid[0], size[0])
    left, right, across = neighbours(columns, grid[1], size[1])
    flat, width = maps.flatten(1), maps.shape[2]
    upper, lower = (upper - corner[0]) * width, (lower - corner[0]) * width
    left, right = left - corner[1], right - corner[1]
    return torch.lerp(
        torch.lerp(flat.index_select(1, upper + left), flat.index_select(1, lower + left), down),
        torch.lerp(flat.index_select(1, upper + right), flat.index_select(1, lower + right), down),
        across,
    )
