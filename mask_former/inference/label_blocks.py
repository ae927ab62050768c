"""The first step of `label_maps.py`: blocks of cells, and the classes that can be highest in each."""

from typing import NamedTuple

import torch
from torch import Tensor

from mask_former.inference.resizing import Size, Sizes, Windows
from mask_former.inference.strips import mask_probs_at
from mask_former.inference.tensor_ops import product

# Side of a block in cells, and minimum number of elements (queries or classes, times cells) in a row of
# blocks: with fewer, blocks are made higher, since many small operations take longer.
BLOCK = 12
ROW_NUMBERS = 1 << 18

# With more candidate classes in a block, the number of candidates is reduced first.
MANY_CLASSES = 48

# Number of queries that the lower bound of the highest score is computed from.
STRONG_QUERIES = 12

# Relative error of a score. Larger than the float32 rounding error of a sum of some hundred products in
# practice, where errors cancel; the worst case would be 2^-24 per product.
ROUNDING = 1e-5


class MaskGrid(NamedTuple):
    """The inputs of `label_maps.pruned_labels`, and the cells that output rows and columns depend on."""

    class_probs: Tensor
    mask_logits: Tensor
    sizes: Sizes
    resize_logits: bool
    rows: Windows
    columns: Windows

    @property
    def shape(self) -> Size:
        """Height and width in cells."""
        height, width = self.mask_logits.shape[1:]
        return height, width


class Blocks(NamedTuple):
    """An image divided into r x c blocks.

    rows: output rows of each row of blocks.
    columns: output columns of each column of blocks.
    max_probs: (Q, r, c), upper bounds of the mask probabilities.
    is_candidate: (K, r, c) bool, classes that can have the highest score somewhere in the block.
    max_scores: (K, r, c), upper bounds of the scores.
    """

    rows: list[range]
    columns: list[range]
    max_probs: Tensor
    is_candidate: Tensor
    max_scores: Tensor


def divide_into_blocks(grid: MaskGrid) -> Blocks:
    """Divide the image into blocks and compare the classes in each."""
    class_probs = grid.class_probs
    height = ROW_NUMBERS // (max(class_probs.shape) * grid.shape[1])
    rows, columns = _block_spans(grid, 0, max(BLOCK, height)), _block_spans(grid, 1, BLOCK)
    low, high = _extremes(
        grid.mask_logits,
        [grid.rows.cells(span) for span in rows],
        [grid.columns.cells(span) for span in columns],
    )
    low, high = low.flatten(1).sigmoid(), high.flatten(1).sigmoid()
    half = (high - low) / 2
    scores = product(class_probs.t(), low + half)
    highest, leader = scores.max(0)
    rounding = ROUNDING * product(class_probs.amax(1)[None], high)[0]
    is_candidate = torch.empty_like(scores, dtype=torch.bool)
    for leading_class in leader.unique().tolist():
        blocks = (leader == leading_class).nonzero().squeeze(1)
        # The deficit of each class at the middle of the bounds, and how much of it can vanish in the block.
        deficit = highest[blocks] - scores.index_select(1, blocks)
        difference = (class_probs - class_probs[:, leading_class : leading_class + 1]).abs_()
        variation = product(difference.t(), half.index_select(1, blocks)).add_(rounding[blocks])
        deficit[leading_class] = -1
        # Negated, so that classes with NaN remain candidates.
        is_candidate.index_copy_(1, blocks, (variation < deficit).logical_not_())
    shape = (len(rows), len(columns))
    max_scores = scores.add_(product(class_probs.t(), half)).mul_(1 + ROUNDING)
    return Blocks(rows, columns, *(x.unflatten(1, shape) for x in (high, is_candidate, max_scores)))


def _block_spans(grid: MaskGrid, axis: int, cells: int) -> list[range]:
    """Return the output rows (or columns) of blocks with `cells` cells along an axis."""
    padded, image, output = (size[axis] for size in grid.sizes)
    edge = max(1, round(cells * padded / grid.shape[axis] * output / image))
    return [range(start, min(start + edge, output)) for start in range(0, output, edge)]


def candidate_classes(grid: MaskGrid, blocks: Blocks, number: int) -> Tensor:
    """Return the candidates (K, c) bool of each block in row `number` of the blocks."""
    is_candidate = blocks.is_candidate[:, number]
    if int(is_candidate.sum(0).amax()) <= MANY_CLASSES:
        return is_candidate
    # The highest score of a pixel is at least what a single query contributes to its most probable class.
    weights = grid.class_probs.amax(1)
    max_contribution = weights * blocks.max_probs[:, number].amax(1)
    strong = max_contribution.topk(min(STRONG_QUERIES, len(weights))).indices
    rows, logits = blocks.rows[number], grid.mask_logits.index_select(0, strong)
    floor = mask_probs_at(logits, grid.sizes, rows, grid.resize_logits)
    floor = floor.mul_(weights[strong, None, None]).amax(0).amin(0)
    floor = torch.stack([floor[columns.start : columns.stop].amin() for columns in blocks.columns])
    return is_candidate & (blocks.max_scores[:, number] < floor).logical_not_()


def _extremes(maps: Tensor, rows: list[range], columns: list[range]) -> tuple[Tensor, Tensor]:
    """Return minimum and maximum (N, r, c) of (N, h, w) maps over each pair of row and column spans."""
    stripes = [maps[:, span.start : span.stop].float() for span in rows]
    low = torch.stack([stripe.amin(1) for stripe in stripes], 1)
    high = torch.stack([stripe.amax(1) for stripe in stripes], 1)
    return (
        torch.stack([low[..., span.start : span.stop].amin(2) for span in columns], 2),
        torch.stack([high[..., span.start : span.stop].amax(2) for span in columns], 2),
    )
