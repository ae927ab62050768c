"""Label maps of semantic results in less work than all classes at all pixels, with the same labels.

The output is cut into tiles. In a tile each mask's probability is known to lie between two bounds, and so
does the difference between the scores of two classes:

1. The class with the highest score in the middle of the bounds is the tile's favourite. Only classes that can
   reach it somewhere in the tile are its rivals. Without a rival, the tile is labelled, and no mask resized.
2. The other pixels are scored strip by strip, for the favourites and rivals of the strip alone, and without
   the queries that say nearly the same of all of these classes, such as those that say "no object".
3. What those queries could change between two classes is bounded. Where the best class does not lead by more,
   the pixel is scored again with all queries.

Bounds are widened by `ROUNDING`, so two classes can change places only where rounding decides anyway.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mask_former.arithmetic import index_of_first, index_of_highest, product
from mask_former.strips import Sizes, Tiles, mask_probs_at, mask_tiles, strip_numbers
from mask_former.threads import side_by_side

# Of the highest score that is possible at a place: an upper bound on what float32 loses in a sum of some
# hundred products.
ROUNDING = 1e-5

# Queries are left out of a strip while together they can move a difference of scores by no more than this
# share of the lead that the favourite of its typical tile has. More would leave more pixels to score again.
SHARE_OF_LEAD = 0.02

# Pieces that a large picture is cut into at least, for threads to share.
BANDS = 16


class _Picture(NamedTuple):
    """What labels are made of; see `pruned_labels`."""

    class_probs: Tensor
    mask_logits: Tensor
    sizes: Sizes
    resize_logits: bool

    def mask_probs(self, rows: range, queries: Tensor | None, columns: Tensor | None) -> Tensor:
        """Return the mask probabilities (N, rows, n) of some queries and columns, or of all."""
        return mask_probs_at(
            self.mask_logits, self.sizes, rows, self.resize_logits, queries=queries, columns=columns
        )


class _Bounds(NamedTuple):
    """Bounds on the probability (Q, tile rows, tile columns) that each mask has anywhere in a tile."""

    low: Tensor
    high: Tensor

    def rows(self, rows: slice) -> "_Bounds":
        """Return those of some rows of tiles."""
        return _Bounds(self.low[:, rows], self.high[:, rows])


class _Contest(NamedTuple):
    """Which classes compete in each tile.

    competes: (K, tile rows, tile columns) bool, the favourite and its rivals; never none.
    leads: (tile rows, tile columns), by how much the favourite leads in the middle of the bounds.
    rounding: (tile rows, tile columns), what differences of scores may be off by.
    """

    competes: Tensor
    leads: Tensor
    rounding: Tensor

    def rows(self, rows: slice) -> "_Contest":
        """Return that of some rows of tiles."""
        return _Contest(self.competes[:, rows], self.leads[rows], self.rounding[rows])


@torch.no_grad()
def pruned_labels(
    class_probs: Tensor, mask_logits: Tensor, sizes: Sizes, *, resize_logits: bool = False
) -> Tensor:
    """Return the (H, W) int64 map of the class with the highest score at each pixel, the first in a tie.

    Args:
        class_probs: (Q, K) float32, without "no object".
        mask_logits: (Q, h, w) float.
        sizes: see `Sizes`.
        resize_logits: bring mask logits (True) or scores (False) to the output size.
    """
    picture = _Picture(class_probs, mask_logits, sizes, resize_logits)
    tiles = mask_tiles(picture.mask_logits, sizes)
    bounds = _Bounds(tiles.low.sigmoid(), tiles.high.sigmoid())
    labels = torch.empty(sizes.output, dtype=torch.int64, device=class_probs.device)
    tile_rows, tile_columns = tiles.low.shape[1:]
    # Rows of tiles judged together, and scored together: with as many numbers as a strip has.
    numbers = strip_numbers(class_probs.device)
    strip = max(1, numbers // (len(class_probs) * tiles.height * labels.shape[1]))
    band = max(1, numbers // (class_probs.shape[1] * tile_columns))
    band = min(band, max(strip, -(-tile_rows // BANDS)))

    def label(first: int) -> None:
        last = min(first + band, tile_rows)
        contest = _contest(class_probs, bounds.rows(slice(first, last)))
        for top in range(first, last, strip):
            bottom = min(top + strip, last)
            rows = range(top * tiles.height, min(bottom * tiles.height, len(labels)))
            labels[rows.start : rows.stop] = _strip_labels(
                picture,
                rows,
                tiles,
                contest.rows(slice(top - first, bottom - first)),
                bounds.rows(slice(top, bottom)),
            )

    side_by_side(label, range(0, tile_rows, band), class_probs.device)
    return labels


def _contest(class_probs: Tensor, bounds: _Bounds) -> _Contest:
    """Find the favourite of each tile and its rivals."""
    shape = bounds.low.shape[1:]
    low, high = bounds.low.flatten(1), bounds.high.flatten(1)
    half = (high - low) / 2
    scores = product(class_probs.t(), low + half)
    best, favourite = scores.max(0)
    rounding = ROUNDING * product(class_probs.amax(1)[None], high)[0]
    competes = torch.empty_like(scores, dtype=torch.bool)
    leads = torch.empty_like(best)
    for chosen in favourite.unique().tolist():
        tiles = (favourite == chosen).nonzero().squeeze(1)
        # How far behind a class is in the middle, and what it can make good somewhere in the tile.
        behind = best[tiles] - scores.index_select(1, tiles)
        difference = (class_probs - class_probs[:, chosen : chosen + 1]).abs_()
        reach = product(difference.t(), half.index_select(1, tiles)).add_(rounding[tiles])
        behind[chosen] = torch.inf
        leads[tiles] = behind.amin(0)
        behind[chosen] = -1
        # Said so that what is not a number competes.
        competes.index_copy_(1, tiles, (reach < behind).logical_not_())
    return _Contest(competes.unflatten(1, shape), leads.view(shape), rounding.view(shape))


def _strip_labels(picture: _Picture, rows: range, tiles: Tiles, contest: _Contest, bounds: _Bounds) -> Tensor:
    """Return the labels (rows, W) of some rows of tiles."""
    width = picture.sizes.output[1]
    labels = index_of_first(contest.competes)
    labels = labels.repeat_interleave(tiles.width, 1).repeat_interleave(tiles.height, 0)
    labels = labels[: len(rows), :width]
    # Columns of tiles are scored as a whole where one of their tiles has rivals.
    is_open = (contest.competes.sum(0) > 1).any(0)
    columns = is_open.repeat_interleave(tiles.width)[:width].nonzero().squeeze(1)
    if len(columns) == 0:
        return labels
    competing = contest.competes[..., is_open].flatten(1).any(1).nonzero().squeeze(1)
    open_picture = picture._replace(class_probs=picture.class_probs[:, competing])
    open_bounds = _Bounds(bounds.low[..., is_open].amin((1, 2)), bounds.high[..., is_open].amax((1, 2)))
    # Choosing columns one by one pays where they are few.
    is_few = 2 * len(columns) < width
    found = _scored_labels(
        open_picture,
        rows,
        columns if is_few else None,
        open_bounds,
        tolerance=SHARE_OF_LEAD * contest.leads[:, is_open].median(),
        rounding=contest.rounding[:, is_open].amax(),
    )
    labels[:, columns] = competing[found if is_few else found[:, columns]]
    return labels


def _scored_labels(
    picture: _Picture,
    rows: range,
    columns: Tensor | None,
    bounds: _Bounds,
    *,
    tolerance: Tensor,
    rounding: Tensor,
) -> Tensor:
    """Return the best class (rows, n) of those that the picture is reduced to, at some columns or all.

    Args:
        picture: with the probabilities of classes that may be best.
        rows: of the output.
        columns: (n,) int64, or None for all.
        bounds: (Q,) each, which hold at all of these pixels.
        tolerance: queries are left out while all together move differences of scores by no more.
        rounding: what differences of scores may be off by.
    """
    half = (bounds.high - bounds.low) / 2
    spread = picture.class_probs.amax(1) - picture.class_probs.amin(1)
    # How far a query can move the difference of two classes from where its middle puts it.
    influence, order = (spread * half).sort()
    few = int((influence.cumsum(0) <= tolerance).sum())
    left_out, kept = order[:few], order[few:].sort().values
    if few == 0:
        masks = picture.mask_probs(rows, None, columns)
        return _best(picture.class_probs, masks)
    offset = product(picture.class_probs[left_out].t(), (bounds.low + half)[left_out, None])
    doubt = influence[:few].sum() + rounding
    masks = picture.mask_probs(rows, kept, columns)
    labels, is_sure = _best_and_sure(picture.class_probs[kept], masks, offset, doubt)
    unsure = is_sure.logical_not_().any(0).nonzero().squeeze(1)
    if len(unsure):
        masks = picture.mask_probs(rows, None, unsure if columns is None else columns[unsure])
        labels[:, unsure] = _best(picture.class_probs, masks)
    return labels


def _best(class_probs: Tensor, masks: Tensor) -> Tensor:
    """Return the class (rows, n) of the highest score, from (Q, K) and (Q, rows, n)."""
    chunk = max(1, strip_numbers(masks.device) // class_probs.shape[1])
    weights = class_probs.t().contiguous()
    best = [index_of_highest(product(weights, some)) for some in masks.flatten(1).split(chunk, dim=1)]
    return torch.cat(best).view(masks.shape[1:])


def _best_and_sure(
    class_probs: Tensor, masks: Tensor, offset: Tensor, doubt: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the best class, with `offset` (K, 1) added to the scores, and whether it leads by `doubt`."""
    chunk = max(1, strip_numbers(masks.device) // class_probs.shape[1])
    weights = class_probs.t().contiguous()
    best, sure = [], []
    for some in masks.flatten(1).split(chunk, dim=1):
        scores = product(weights, some).add_(offset)
        is_close = scores >= scores.amax(0) - doubt
        best.append(index_of_first(is_close))
        sure.append(is_close.sum(0) == 1)
    return torch.cat(best).view(masks.shape[1:]), torch.cat(sure).view(masks.shape[1:])
