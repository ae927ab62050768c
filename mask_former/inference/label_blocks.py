"""The first step of `label_maps.py`: blocks of cells, and which classes may score highest in each."""

from typing import NamedTuple

import torch
from torch import Tensor

from mask_former.inference.products import product
from mask_former.inference.resizing import Size, Sizes, Windows
from mask_former.inference.strips import mask_probs_at

# Side of a block in cells, and the fewest values (queries or classes, times cells) of a row of blocks: small
# images have higher blocks, since many small steps would take longer.
BLOCK = 12
ROW_NUMBERS = 1 << 18

# From this number of competing classes on, a tighter bound is worth its time.
MANY_CLASSES = 48

# Queries that bound the highest score of a pixel from below.
STRONG_QUERIES = 12

# Relative to a score: a statistical bound on the rounding error of a float32 sum of some hundred products.
# The worst case would be 2^-24 for each product.
ROUNDING = 1e-5


class Picture(NamedTuple):
    """What labels are made of; see `label_maps.pruned_labels`.

    rows: of cells, that each row of the output is made of.
    columns: likewise.
    """

    class_probs: Tensor
    mask_logits: Tensor
    sizes: Sizes
    resize_logits: bool
    rows: Windows
    columns: Windows

    @property
    def grid(self) -> Size:
        """The size of the mask grid."""
        height, width = self.mask_logits.shape[1:]
        return height, width


class Blocks(NamedTuple):
    """The picture cut into r x c blocks.

    rows: of the output, in each row of blocks.
    columns: of the output, in each column of blocks.
    high: (Q, r, c), what the mask probabilities are at most.
    competes: (K, r, c) bool, the favourite of each block and its rivals; never none.
    most: (K, r, c), what the scores are at most.
    """

    rows: list[range]
    columns: list[range]
    high: Tensor
    competes: Tensor
    most: Tensor


def cut_into_blocks(picture: Picture) -> Blocks:
    """Cut the picture into blocks and compare the classes in each."""
    class_probs = picture.class_probs
    height = ROW_NUMBERS // (max(class_probs.shape) * picture.grid[1])
    rows, columns = _block_spans(picture, 0, max(BLOCK, height)), _block_spans(picture, 1, BLOCK)
    low, high = _extremes(
        picture.mask_logits,
        [picture.rows.cells(some) for some in rows],
        [picture.columns.cells(some) for some in columns],
    )
    low, high = low.flatten(1).sigmoid(), high.flatten(1).sigmoid()
    half = (high - low) / 2
    scores = product(class_probs.t(), low + half)
    best, favourite = scores.max(0)
    rounding = ROUNDING * product(class_probs.amax(1)[None], high)[0]
    competes = torch.empty_like(scores, dtype=torch.bool)
    for chosen in favourite.unique().tolist():
        blocks = (favourite == chosen).nonzero().squeeze(1)
        # The difference to the favourite at the middle, and how much smaller it can be in the block.
        behind = best[blocks] - scores.index_select(1, blocks)
        difference = (class_probs - class_probs[:, chosen : chosen + 1]).abs_()
        reach = product(difference.t(), half.index_select(1, blocks)).add_(rounding[blocks])
        behind[chosen] = -1
        # Negated so that NaN competes.
        competes.index_copy_(1, blocks, (reach < behind).logical_not_())
    shape = (len(rows), len(columns))
    most = scores.add_(product(class_probs.t(), half)).mul_(1 + ROUNDING)
    return Blocks(
        rows, columns, high.unflatten(1, shape), competes.unflatten(1, shape), most.unflatten(1, shape)
    )


def _block_spans(picture: Picture, axis: int, cells: int) -> list[range]:
    """Return the rows (or columns) of the output that blocks of so many cells along an axis have."""
    padded, image, output = (size[axis] for size in picture.sizes)
    edge = max(1, round(cells * padded / picture.grid[axis] * output / image))
    return [range(start, min(start + edge, output)) for start in range(0, output, edge)]


def competitors(picture: Picture, blocks: Blocks, number: int) -> Tensor:
    """Return which classes (K, block columns) may be best somewhere in each block of a row of them."""
    competes = blocks.competes[:, number]
    if int(competes.sum(0).amax()) <= MANY_CLASSES:
        return competes
    # One query alone bounds the highest score from below, by its most probable class.
    weights = picture.class_probs.amax(1)
    reach = weights * blocks.high[:, number].amax(1)
    strong = reach.topk(min(STRONG_QUERIES, len(reach))).indices
    rows, logits = blocks.rows[number], picture.mask_logits.index_select(0, strong)
    floor = mask_probs_at(logits, picture.sizes, rows, picture.resize_logits)
    floor = floor.mul_(weights[strong, None, None]).amax(0).amin(0)
    floor = torch.stack([floor[columns.start : columns.stop].amin() for columns in blocks.columns])
    return competes & (blocks.most[:, number] < floor).logical_not_()


def _extremes(maps: Tensor, rows: list[range], columns: list[range]) -> tuple[Tensor, Tensor]:
    """Return the lowest and the highest value (N, rows, columns) of (N, h, w) maps in each span of cells."""
    stripes = [maps[:, span.start : span.stop].float() for span in rows]
    low = torch.stack([stripe.amin(1) for stripe in stripes], 1)
    high = torch.stack([stripe.amax(1) for stripe in stripes], 1)
    return (
        torch.stack([low[..., span.start : span.stop].amin(2) for span in columns], 2),
        torch.stack([high[..., span.start : span.stop].amax(2) for span in columns], 2),
    )
