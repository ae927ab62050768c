"""Label maps without computing all class scores at all pixels, with the same labels.

Bilinear resizing is a convex combination of a few cells of the mask grid, the same cells for every mask. This
bounds the probability of a mask at a pixel in two ways: it lies between the minimum and the maximum of these
cells, and it differs from the weighted mean of their probabilities by an amount that depends on the range of
their logits. Scores are sums over the masks, so both bounds carry over. From coarse to fine:

1. Blocks of cells: only classes that can exceed the leading class somewhere in the block remain candidates.
   A block with one candidate gets its label.
2. Windows, the few cells that a pixel is interpolated from: scores of the candidates are computed at the
   cells. A class that leads at all cells by more than the error bound is the label of all their pixels.
3. Remaining pixels: the scores of the cells are resized. Where the leading class is still uncertain, the
   masks that contribute most of the error are resized exactly, then all masks.

Where step 1 leaves most candidates, as with noisy masks, all scores of the candidates are computed instead.

Bounds are widened by `ROUNDING`, so classes can only change places where float32 rounding decides anyway.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mask_former.inference.label_blocks import (
    MANY_CLASSES,
    ROUNDING,
    MaskGrid,
    candidate_classes,
    divide_into_blocks,
)
from mask_former.inference.resizing import Size, Sizes, finite, values_at, windows
from mask_former.inference.strips import mask_probs_at, strip_numbers, strips_of
from mask_former.inference.tensor_ops import index_of_first, index_of_highest, product, side_by_side

# If x has the range r, f(mean of x) differs from the mean of f(x) by at most r^2 / 8 times the maximum of
# |f''|, which for the sigmoid is 1 / (6 sqrt 3).
MEAN_ERROR = 1 / (8 * 6 * 3**0.5)

# A row of blocks with more than this share of its candidates in an average block skips steps 2 and 3, unless
# the candidates are few: with noisy masks these steps decide little and cost more than they save.
UNDECIDED_SHARE = 0.6
FEW_CANDIDATES = 8

# Masks that together contribute at most this share of the error are not resized with the others.
ERROR_SHARE = 0.01


class _Part(NamedTuple):
    """A part of the mask grid with a x b cells and A x B windows, and its k candidate classes.

    corner: row and column of its first cell.
    class_probs: (k, Q).
    logits: (Q, a, b).
    mask_probs: (Q, a, b).
    mean_error: (Q, A, B), bound of the difference to the weighted mean of the mask probabilities.
    """

    corner: tuple[int, int]
    class_probs: Tensor
    logits: Tensor
    mask_probs: Tensor
    mean_error: Tensor


class _Candidates(NamedTuple):
    """The classes that can have the highest score in each window.

    leader: (A, B) int64 in 0..k-1.
    is_candidate: (k, A, B) bool, the leader and the classes that can exceed it somewhere in the window.
    rounding: (A, B), bound of the rounding error of score differences.
    """

    leader: Tensor
    is_candidate: Tensor
    rounding: Tensor


class _Pixels(NamedTuple):
    """Row, column and window index of n pixels, (n,) int64 each."""

    rows: Tensor
    columns: Tensor
    window: Tensor

    def select(self, indices: Tensor) -> "_Pixels":
        """Return the pixels with these indices (m,) int64."""
        return _Pixels(*(values.index_select(0, indices) for values in self))


@torch.no_grad()
def pruned_labels(
    class_probs: Tensor, mask_logits: Tensor, sizes: Sizes, *, resize_logits: bool = False
) -> Tensor:
    """Return the (H, W) int64 map of the class with the highest score at each pixel, the first in a tie.

    For tensors on the CPU.

    Args:
        class_probs: (Q, K) float32, without "no object".
        mask_logits: (Q, h, w) float.
        sizes: see `Sizes`.
        resize_logits: resize mask logits (True) or scores (False) to the output size.
    """
    rows, columns = (windows(sizes, axis, mask_logits.shape[1 + axis]) for axis in (0, 1))
    grid = MaskGrid(class_probs, mask_logits, sizes, resize_logits, rows, columns)
    blocks = divide_into_blocks(grid)
    labels = torch.empty(sizes.output, dtype=torch.int64, device=class_probs.device)

    def label(number: int) -> None:
        rows = blocks.rows[number]
        stripe = labels[rows.start : rows.stop]
        is_candidate = candidate_classes(grid, blocks, number)
        num_candidates = is_candidate.sum(0)
        classes = is_candidate.any(1).nonzero().squeeze(1)
        num_undecided = max(UNDECIDED_SHARE * len(classes), FEW_CANDIDATES)
        if float(num_candidates.float().mean()) > num_undecided:
            probs = class_probs[:, classes]
            stripe[:] = classes[labels_of_rows(probs, mask_logits, sizes, rows, resize_logits)]
            return
        for candidate, columns in zip(index_of_first(is_candidate).tolist(), blocks.columns, strict=True):
            stripe[:, columns.start : columns.stop] = candidate
        for first, last in _parts(num_candidates.tolist()):
            classes = is_candidate[:, first : last + 1].any(1).nonzero().squeeze(1)
            columns = range(blocks.columns[first].start, blocks.columns[last].stop)
            stripe[:, columns.start : columns.stop] = _part_labels(grid, rows, columns, classes)

    side_by_side(label, range(len(blocks.rows)), class_probs.device)
    return labels


def labels_of_rows(
    class_probs: Tensor, mask_logits: Tensor, sizes: Sizes, rows: range, resize_logits: bool
) -> Tensor:
    """Return the labels (rows, W) int64 of some rows from all scores, for few pixels at a time."""
    weights = class_probs.t().contiguous()
    chunk = max(1, strip_numbers(weights.device) // len(weights))
    labels = []
    for strip in strips_of(mask_logits, sizes, rows):
        mask_probs = mask_probs_at(mask_logits, sizes, strip, resize_logits).flatten(1)
        labels += [index_of_highest(product(weights, pixels)) for pixels in mask_probs.split(chunk, 1)]
    return torch.cat(labels).view(len(rows), -1)


def _parts(num_candidates: list[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and the last of adjacent blocks to process together, with some undecided ones.

    Blocks with very many candidates are separated from the others.
    """
    indices = range(len(num_candidates))
    for _, run in itertools.groupby(indices, lambda block: num_candidates[block] > MANY_CLASSES):
        open_blocks = [block for block in run if num_candidates[block] > 1]
        if open_blocks:
            yield open_blocks[0], open_blocks[-1]


def _part_labels(grid: MaskGrid, rows: range, columns: range, classes: Tensor) -> Tensor:
    """Return the labels (rows, columns) of a part of the output, given its candidate classes."""
    part = _part(grid, rows, columns, classes)
    candidates = _candidates(part, (grid.rows.length, grid.columns.length))
    window_rows = grid.rows.first[rows.start : rows.stop] - part.corner[0]
    window_columns = grid.columns.first[columns.start : columns.stop] - part.corner[1]
    labels = classes[candidates.leader].index_select(0, window_rows).index_select(1, window_columns)
    is_open = candidates.is_candidate.sum(0) > 1
    row, column = is_open.index_select(0, window_rows).index_select(1, window_columns).nonzero().unbind(1)
    if len(row) == 0:
        return labels
    window = window_rows.index_select(0, row) * is_open.shape[1] + window_columns.index_select(0, column)
    remaining = (candidates.is_candidate & is_open).flatten(1).any(1).nonzero().squeeze(1)
    pixels = _Pixels(row + rows.start, column + columns.start, window)
    pixel_labels = _pixel_labels(grid, part, remaining, candidates.rounding, pixels)
    labels.view(-1).index_copy_(0, row * len(columns) + column, classes[remaining[pixel_labels]])
    return labels


def _part(grid: MaskGrid, rows: range, columns: range, classes: Tensor) -> _Part:
    cell_rows, cell_columns = grid.rows.cells(rows), grid.columns.cells(columns)
    logits = grid.mask_logits[:, cell_rows.start : cell_rows.stop, cell_columns.start : cell_columns.stop]
    logits = finite(logits).contiguous()
    size = (grid.rows.length, grid.columns.length)
    low, high = _in_windows(logits, size, torch.minimum), _in_windows(logits, size, torch.maximum)
    mean_error = torch.minimum((high - low).square_().mul_(MEAN_ERROR), high.sigmoid() - low.sigmoid())
    class_probs = grid.class_probs[:, classes].t().contiguous()
    return _Part((cell_rows.start, cell_columns.start), class_probs, logits, logits.sigmoid(), mean_error)


def _candidates(part: _Part, size: Size) -> _Candidates:
    """Compare the classes in all windows of `size` cells."""
    scores = _weighted_sums(part.class_probs, part.mask_probs)
    error = _score_error(part.class_probs, part.mean_error)
    leader = index_of_highest(_in_windows(scores, size, torch.minimum))[None]
    advantage, highest = torch.full_like(error, -torch.inf), torch.zeros_like(error[:1])
    for cell_scores in _shifted(scores, size):
        torch.maximum(advantage, cell_scores - cell_scores.gather(0, leader), out=advantage)
        torch.maximum(highest, cell_scores.amax(0, keepdim=True), out=highest)
    rounding = highest.mul_(2 * ROUNDING)
    # Negated, so that classes with NaN remain candidates. The leader always does: its advantage is 0.
    is_candidate = (advantage + error < -(error.gather(0, leader) + rounding)).logical_not_()
    return _Candidates(leader[0], is_candidate, rounding[0])


def _weighted_sums(weights: Tensor, maps: Tensor) -> Tensor:
    """Return the sums (k, a, b) of maps (Q, a, b) weighted by (k, Q)."""
    return product(weights, maps.flatten(1)).unflatten(1, maps.shape[1:])


def _score_error(class_probs: Tensor, mean_error: Tensor) -> Tensor:
    """Return error bounds (k, A, B) of the scores; two of them add up to that of a difference."""
    # A contribution that all classes share does not change differences.
    return _weighted_sums(class_probs - class_probs.amin(0), mean_error)


def _shifted(maps: Tensor, size: Size) -> Iterator[Tensor]:
    """Yield, for each cell of a window, the values (N, A, B) of maps (N, a, b) there, for all windows."""
    height, width = (length - side + 1 for length, side in zip(maps.shape[1:], size, strict=True))
    for top, left in itertools.product(*map(range, size)):
        yield maps[:, top : top + height, left : left + width]


def _in_windows(maps: Tensor, size: Size, extreme: Callable[..., Tensor]) -> Tensor:
    """Return the extreme value (N, A, B) of (N, a, b) maps in each window."""
    # One axis after the other, which takes fewer operations.
    for side in ((size[0], 1), (1, size[1])):
        maps = functools.reduce(extreme, _shifted(maps, side))
    return maps


def _pixel_labels(
    grid: MaskGrid, part: _Part, candidates: Tensor, rounding: Tensor, pixels: _Pixels
) -> Tensor:
    """Return the labels (n,) of pixels, as indices of `candidates`.

    Args:
        grid: the whole mask grid.
        part: the part that contains the pixels.
        candidates: (l,) int64, the candidate classes among those of the part.
        rounding: (A, B), see `_Candidates`.
        pixels: n of them.
    """
    class_probs = part.class_probs.index_select(0, candidates)
    rounding = rounding.flatten()
    labels = torch.empty_like(pixels.rows)
    undecided = torch.arange(len(labels), device=labels.device)
    for resized in _queries_to_resize(class_probs, part.mean_error):
        other_probs = class_probs * resized.logical_not()
        means = _weighted_sums(other_probs, part.mask_probs)
        errors = _score_error(other_probs, part.mean_error).flatten(1)
        chunk_size = strip_numbers(labels.device) // max(len(candidates), int(resized.sum()))
        still_undecided = []
        for chunk in undecided.split(max(1, chunk_size)):
            selected = pixels.select(chunk)
            scores = _values_at(means, grid, part, selected)
            if resized.any():
                mask_probs = _mask_probs(grid, part, resized, selected)
                scores += product(class_probs[:, resized], mask_probs)
            error = errors.index_select(1, selected.window)
            leader = index_of_highest(scores)[None]
            bound = (scores - error).gather(0, leader) - rounding.index_select(0, selected.window)
            labels.index_copy_(0, chunk, leader[0])
            # Negated, so that NaN counts as close.
            is_close = (scores + error < bound).logical_not_()
            still_undecided.append(chunk[is_close.sum(0) > 1])
        undecided = torch.cat(still_undecided)
        if len(undecided) == 0:
            break
    return labels


def _queries_to_resize(class_probs: Tensor, mean_error: Tensor) -> Iterator[Tensor]:
    """Yield which queries (Q,) bool to resize: none, then those with most of the error, then all."""
    none = torch.zeros(len(mean_error), dtype=torch.bool, device=mean_error.device)
    yield none
    error, order = ((class_probs.amax(0) - class_probs.amin(0)) * mean_error.mean((1, 2))).sort()
    num_omitted = int((error.cumsum(0) <= ERROR_SHARE * error.sum()).sum())
    yield none.index_fill(0, order[num_omitted:], True)
    if num_omitted:
        yield ~none


def _mask_probs(grid: MaskGrid, part: _Part, queries: Tensor, pixels: _Pixels) -> Tensor:
    """Return the mask probabilities (N, n) of the chosen `queries`, (Q,) bool, at n pixels."""
    if grid.resize_logits:
        return _values_at(part.logits[queries], grid, part, pixels).sigmoid_()
    return _values_at(part.logits[queries], grid, part, pixels, torch.sigmoid)


def _values_at(
    maps: Tensor,
    grid: MaskGrid,
    part: _Part,
    pixels: _Pixels,
    on_image: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    return values_at(maps, part.corner, grid.shape, grid.sizes, (pixels.rows, pixels.columns), on_image)
