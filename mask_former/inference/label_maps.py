"""Label maps of semantic results in less work than all classes at all pixels, with the same labels.

Resizing takes weighted means of cells of the mask grid, the same ones for every mask. Two bounds follow on
what a mask's probability can be at a pixel: it lies between the lowest and the highest of its cells, and it
is close to the weighted mean of the probabilities of its cells, the closer the less its logits differ.
Scores are sums over the masks. So, coarse to fine:

1. Blocks of cells: the class with the highest score in the middle of the bounds is the favourite. Only
   classes that can reach it somewhere in the block are its rivals. Without any, the block is labelled.
2. Windows, the few cells that a pixel is made of: scores are computed at the cells, for the classes that are
   left. A favourite that leads in all cells by more than means may be off is the label of all pixels.
3. Other pixels: the scores of the cells are resized. Where the best does not lead by more than they may be
   off, those masks are resized themselves that cause nearly all of the doubt; where it still does not, all.

Bounds are widened by `ROUNDING`, so two classes can change places only where rounding decides anyway.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mask_former.inference.label_blocks import MANY_CLASSES, ROUNDING, Picture, competitors, cut_into_blocks
from mask_former.inference.parallel_items import side_by_side
from mask_former.inference.products import index_of_first, index_of_highest, product
from mask_former.inference.resizing import Size, Sizes, finite, values_at, windows
from mask_former.inference.strips import strip_numbers

# A function of values that lie in a range r, at their mean, differs from its mean by at most r^2 / 8 times
# its highest second derivative, which for the sigmoid is 1 / (6 sqrt 3).
BENDING = 1 / (8 * 6 * 3**0.5)

# Masks that together cause no more than this share of the doubt are not resized with the others.
SHARE_OF_DOUBT = 0.01


class _Part(NamedTuple):
    """A part of the picture on the mask grid, with the classes that are left there.

    corner: row and column of its first cell.
    class_probs: (k, Q).
    logits: (Q, a, b).
    mask_probs: (Q, a, b).
    gap: (Q, A, B), in each window, by how much a mask may be off from the weighted mean of its probabilities.
    """

    corner: tuple[int, int]
    class_probs: Tensor
    logits: Tensor
    mask_probs: Tensor
    gap: Tensor


class _Contest(NamedTuple):
    """Who competes in each window.

    favourite: (A, B) int64, of 0..k-1.
    competes: (k, A, B) bool, the favourite and the classes that may be better somewhere in the window.
    rounding: (A, B), what differences of scores may be off by.
    """

    favourite: Tensor
    competes: Tensor
    rounding: Tensor


class _Pixels(NamedTuple):
    """Row, column and number of the window of some pixels, (n,) int64 each."""

    rows: Tensor
    columns: Tensor
    window: Tensor

    def some(self, chosen: Tensor) -> "_Pixels":
        """Return the chosen ones, given by their numbers (m,) int64."""
        return _Pixels(*(values.index_select(0, chosen) for values in self))


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
        resize_logits: bring mask logits (True) or scores (False) to the output size.
    """
    rows, columns = (windows(sizes, axis, mask_logits.shape[1 + axis]) for axis in (0, 1))
    picture = Picture(class_probs, mask_logits, sizes, resize_logits, rows, columns)
    blocks = cut_into_blocks(picture)
    labels = torch.empty(sizes.output, dtype=torch.int64, device=class_probs.device)

    def label(number: int) -> None:
        rows = blocks.rows[number]
        stripe = labels[rows.start : rows.stop]
        competes = competitors(picture, blocks, number)
        for favourite, columns in zip(index_of_first(competes).tolist(), blocks.columns, strict=True):
            stripe[:, columns.start : columns.stop] = favourite
        for first, last in _parts(competes.sum(0).tolist()):
            classes = competes[:, first : last + 1].any(1).nonzero().squeeze(1)
            columns = range(blocks.columns[first].start, blocks.columns[last].stop)
            stripe[:, columns.start : columns.stop] = _part_labels(picture, rows, columns, classes)

    side_by_side(label, range(len(blocks.rows)), class_probs.device)
    return labels


def _parts(competitors: list[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and the last of blocks to be treated together, given how many classes compete in each.

    Blocks with very many are kept apart, and settled blocks left out where they are not between others.
    """
    for _, run in itertools.groupby(range(len(competitors)), lambda block: competitors[block] > MANY_CLASSES):
        open_blocks = [block for block in run if competitors[block] > 1]
        if open_blocks:
            yield open_blocks[0], open_blocks[-1]


def _part_labels(picture: Picture, rows: range, columns: range, classes: Tensor) -> Tensor:
    """Return the labels (rows, columns) of a part of the picture, given the classes that are left there."""
    part = _part(picture, rows, columns, classes)
    contest = _contest(part, (picture.rows.length, picture.columns.length))
    window_rows = picture.rows.first[rows.start : rows.stop] - part.corner[0]
    window_columns = picture.columns.first[columns.start : columns.stop] - part.corner[1]
    labels = classes[contest.favourite].index_select(0, window_rows).index_select(1, window_columns)
    is_open = contest.competes.sum(0) > 1
    row, column = is_open.index_select(0, window_rows).index_select(1, window_columns).nonzero().unbind(1)
    if len(row) == 0:
        return labels
    window = window_rows.index_select(0, row) * is_open.shape[1] + window_columns.index_select(0, column)
    left = (contest.competes & is_open).flatten(1).any(1).nonzero().squeeze(1)
    pixels = _Pixels(row + rows.start, column + columns.start, window)
    found = _pixel_labels(picture, part, left, contest.rounding, pixels)
    labels.view(-1).index_copy_(0, row * len(columns) + column, classes[left[found]])
    return labels


def _part(picture: Picture, rows: range, columns: range, classes: Tensor) -> _Part:
    cell_rows, cell_columns = picture.rows.cells(rows), picture.columns.cells(columns)
    logits = picture.mask_logits[:, cell_rows.start : cell_rows.stop, cell_columns.start : cell_columns.stop]
    logits = finite(logits).contiguous()
    size = (picture.rows.length, picture.columns.length)
    low, high = _in_windows(logits, size, torch.minimum), _in_windows(logits, size, torch.maximum)
    gap = torch.minimum((high - low).square_().mul_(BENDING), high.sigmoid() - low.sigmoid())
    class_probs = picture.class_probs[:, classes].t().contiguous()
    return _Part((cell_rows.start, cell_columns.start), class_probs, logits, logits.sigmoid(), gap)


def _contest(part: _Part, size: Size) -> _Contest:
    """Compare the classes in all windows of so many cells."""
    scores, slack = _weighted_sums(part.class_probs, part.mask_probs), _slack(part.class_probs, part.gap)
    favourite = index_of_highest(_in_windows(scores, size, torch.minimum))[None]
    behind, best = torch.full_like(slack, -torch.inf), torch.zeros_like(slack[:1])
    for at_cell in _shifted(scores, size):
        favourite_score = at_cell.gather(0, favourite)
        torch.maximum(behind, at_cell - favourite_score, out=behind)
        torch.maximum(best, at_cell.amax(0, keepdim=True), out=best)
    rounding = best.mul_(2 * ROUNDING)
    # Said so that what is not a number competes; the favourite does, for it is behind by nothing.
    competes = (behind + slack < -(slack.gather(0, favourite) + rounding)).logical_not_()
    return _Contest(favourite[0], competes, rounding[0])


def _weighted_sums(weights: Tensor, maps: Tensor) -> Tensor:
    """Return the sums (k, a, b) of maps (Q, a, b) weighted by (k, Q)."""
    return product(weights, maps.flatten(1)).unflatten(1, maps.shape[1:])


def _slack(class_probs: Tensor, gap: Tensor) -> Tensor:
    """Return (k, A, B), so that the difference of two scores is off by no more than the sum of theirs."""
    # What all classes have in common does not change their differences.
    return _weighted_sums(class_probs - class_probs.amin(0), gap)


def _shifted(maps: Tensor, size: Size) -> Iterator[Tensor]:
    """Yield, for each cell of a window of some size, what (N, a, b) maps are at that cell of all windows."""
    height, width = (length - side + 1 for length, side in zip(maps.shape[1:], size, strict=True))
    for top, left in itertools.product(*map(range, size)):
        yield maps[:, top : top + height, left : left + width]


def _in_windows(maps: Tensor, size: Size, extreme: Callable[..., Tensor]) -> Tensor:
    """Return the extreme of (N, a, b) maps in each window (N, A, B) of some size."""
    # One axis after the other, which is fewer steps.
    for side in ((size[0], 1), (1, size[1])):
        maps = functools.reduce(extreme, _shifted(maps, side))
    return maps


def _pixel_labels(picture: Picture, part: _Part, left: Tensor, rounding: Tensor, pixels: _Pixels) -> Tensor:
    """Return the labels (n,) of pixels, as indices of `left`.

    Args:
        picture: see `pruned_labels`.
        part: that of the pixels.
        left: (l,) int64, the classes of the part that compete somewhere.
        rounding: (A, B), see `_Contest`.
        pixels: n of them.
    """
    class_probs = part.class_probs.index_select(0, left)
    rounding = rounding.flatten()
    labels = torch.empty_like(pixels.rows)
    unsure = torch.arange(len(labels), device=labels.device)
    for resized in _queries_to_resize(class_probs, part.gap):
        of_others = class_probs * resized.logical_not()
        means = _weighted_sums(of_others, part.mask_probs)
        slack = _slack(of_others, part.gap).flatten(1)
        # As many numbers as a strip has.
        chunks = unsure.split(max(1, strip_numbers(labels.device) // max(len(left), int(resized.sum()))))
        still_unsure = []
        for chunk in chunks:
            there = pixels.some(chunk)
            scores = _values_at(means, picture, part, there)
            if resized.any():
                mask_probs = _mask_probs(picture, part, resized, there)
                scores += product(class_probs[:, resized], mask_probs)
            doubt = slack.index_select(1, there.window)
            favourite = index_of_highest(scores)[None]
            needed = (scores - doubt).gather(0, favourite) - rounding.index_select(0, there.window)
            labels.index_copy_(0, chunk, favourite[0])
            # Said so that what is not a number is close.
            is_close = (scores + doubt < needed).logical_not_()
            still_unsure.append(chunk[is_close.sum(0) > 1])
        unsure = torch.cat(still_unsure)
        if len(unsure) == 0:
            break
    return labels


def _queries_to_resize(class_probs: Tensor, gap: Tensor) -> Iterator[Tensor]:
    """Yield which queries (Q,) bool to resize: none, then those that cause most of the doubt, then all."""
    none = torch.zeros(len(gap), dtype=torch.bool, device=gap.device)
    yield none
    doubt, order = ((class_probs.amax(0) - class_probs.amin(0)) * gap.mean((1, 2))).sort()
    few = int((doubt.cumsum(0) <= SHARE_OF_DOUBT * doubt.sum()).sum())
    yield none.index_fill(0, order[few:], True)
    if few:
        yield ~none


def _mask_probs(picture: Picture, part: _Part, queries: Tensor, pixels: _Pixels) -> Tensor:
    """Return the mask probabilities (N, n) of some queries, (Q,) bool, at some pixels."""
    if picture.resize_logits:
        return _values_at(part.logits[queries], picture, part, pixels).sigmoid_()
    return _values_at(part.logits[queries], picture, part, pixels, torch.sigmoid)


def _values_at(
    maps: Tensor,
    picture: Picture,
    part: _Part,
    pixels: _Pixels,
    on_image: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return `values_at` some pixels of maps (N, a, b) of a part."""
    return values_at(maps, part.corner, picture.grid, picture.sizes, (pixels.rows, pixels.columns), on_image)
