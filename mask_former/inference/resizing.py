"""Where torch's bilinear resizing looks: from the mask grid to the padded picture, crop, then to the output.

Positions are those of align_corners False, computed in float32 like torch's own.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Size = tuple[int, int]
Entries = int | np.ndarray[tuple[int, ...], np.dtype[np.int64]]

# By how much positions in float32 may be off, in entries of the source, with less than 10,000 of them.
SLACK = 0.01

# The difference of two values of this size is finite in float32.
LARGEST = torch.finfo(torch.float32).max / 2


class Sizes(NamedTuple):
    """The three sizes of one picture, each (height, width) in pixels.

    padded: what the network saw; the mask grid covers all of it.
    image: the part of it, from the upper left corner, that is picture and not padding.
    output: the size that results shall have.
    """

    padded: Size
    image: Size
    output: Size


def finite(logits: Tensor) -> Tensor:
    """Return logits in float32 with infinite ones made finite, so that they can be interpolated."""
    return logits.float().clamp(-LARGEST, LARGEST)


def neighbours(wanted: Tensor, source_length: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two entries of the source that each wanted one is made of, and the second one's weight."""
    if source_length == length:
        return wanted, wanted, torch.zeros_like(wanted, dtype=torch.float32)
    position = ((wanted.float() + 0.5) * (source_length / length) - 0.5).clamp_(min=0)
    first = position.long().clamp_(max=source_length - 1)
    second = (first + 1).clamp_(max=source_length - 1)
    return first, second, (position - first).clamp_(max=1)


def source_rows(rows: range, source_length: int, length: int) -> range:
    """Return the rows of the source that `rows` of the result are made of, perhaps one more at either end."""
    first, _ = _source_span(rows.start, source_length, length)
    _, last = _source_span(rows.stop - 1, source_length, length)
    return range(int(first), int(last) + 1)


def _source_span(entries: Entries, source_length: int, length: int) -> tuple[Entries, Entries]:
    """Return the first and the last entry of the source that each entry of the result may be made of."""
    if source_length == length:
        return entries, entries
    position = (np.asarray(entries) + 0.5) * (source_length / length) - 0.5
    first = np.maximum(position - SLACK, 0).astype(np.int64)
    last = np.maximum(position + SLACK, 0).astype(np.int64) + 1
    return np.minimum(first, source_length - 1), np.minimum(last, source_length - 1)


class Windows(NamedTuple):
    """The cells of the mask grid that rows (or columns) of the output are made of.

    first: (n,) int64, ascending: of each row, the first cell.
    length: how many cells from there on, the same for all.
    """

    first: Tensor
    length: int

    def cells(self, rows: range) -> range:
        """Return the cells that some rows are made of."""
        return range(int(self.first[rows.start]), int(self.first[rows.stop - 1]) + self.length)


def windows(sizes: Sizes, axis: int, cells: int) -> Windows:
    """Return the windows along an axis, 0 or 1, of a mask grid with so many cells there."""
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
    """Return the values (N, n) float32 at some pixels of the output of maps on the mask grid.

    Args:
        maps: (N, a, b), a part of the grid that all these pixels are made of.
        corner: row and column of the part's first cell.
        grid: (h, w) of the whole grid.
        sizes: see `Sizes`.
        pixels: rows (n,) and columns (n,), int64.
        on_image: applied, element by element, between the two resizings.
    """
    on_image = on_image or _unchanged
    rows, columns = pixels

    def image_values(rows: Tensor, columns: Tensor) -> Tensor:
        return on_image(_bilinear(maps, corner, grid, sizes.padded, rows, columns))

    if sizes.image == sizes.output:
        return image_values(rows, columns)
    upper, lower, down = neighbours(rows, sizes.image[0], sizes.output[0])
    left, right, across = neighbours(columns, sizes.image[1], sizes.output[1])
    return torch.lerp(
        torch.lerp(image_values(upper, left), image_values(lower, left), down),
        torch.lerp(image_values(upper, right), image_values(lower, right), down),
        across,
    )


def _unchanged(values: Tensor) -> Tensor:
    return values


def _bilinear(
    maps: Tensor, corner: tuple[int, int], grid: Size, size: Size, rows: Tensor, columns: Tensor
) -> Tensor:
    """Return what maps (N, a, b), a part of a grid, are at pixels of the grid resized to `size`."""
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
