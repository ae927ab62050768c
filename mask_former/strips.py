"""Mask probabilities at the size of the result, strip by strip: some rows of all queries at a time.

Bilinear resizing from the mask grid to the padded picture, cropping, and resizing to the output, in the
published order and as exact as on whole maps, but a full-size map of every query never exists.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mask_former.threads import side_by_side

# Numbers (queries x rows x columns) that one strip may hold: on a CPU few enough for its caches, elsewhere
# enough to keep the device busy.
_STRIP_NUMBERS = {"cpu": 1 << 20}
_STRIP_NUMBERS_ELSEWHERE = 1 << 26

# Pieces that the masks of one picture are cut into, for threads to share.
PIECES = 8

Size = tuple[int, int]


class Sizes(NamedTuple):
    """The three sizes of one picture, each (height, width) in pixels.

    padded: what the network saw; the mask grid covers all of it.
    image: the part of it, from the upper left corner, that is picture and not padding.
    output: the size that results shall have.
    """

    padded: Size
    image: Size
    output: Size


def strip_numbers(device: torch.device) -> int:
    """Return how many numbers a strip should have at most to be fast on `device`."""
    return _STRIP_NUMBERS.get(device.type, _STRIP_NUMBERS_ELSEWHERE)


def mask_prob_strips(
    mask_logits: Tensor, sizes: Sizes, resize_logits: bool
) -> Iterator[tuple[slice, Tensor]]:
    """Yield the mask probabilities at the output size as (rows, (N, rows, W) float32), top to bottom.

    Where the published order resizes class scores (`resize_logits` False), the probabilities are resized
    instead: scores are linear in them, so the result is the same and does not grow with the classes.
    """
    for rows in strips_of(mask_logits, sizes):
        yield slice(rows.start, rows.stop), mask_probs_at(mask_logits, sizes, rows, resize_logits)


def strips_of(mask_logits: Tensor, sizes: Sizes) -> list[range]:
    """Return the rows of each strip of `mask_prob_strips`."""
    height, width = sizes.output
    numbers_a_row = max(1, len(mask_logits)) * max(width, sizes.image[1])
    strip_height = max(1, strip_numbers(mask_logits.device) // numbers_a_row)
    return [range(start, min(start + strip_height, height)) for start in range(0, height, strip_height)]


def mask_probs_at(
    mask_logits: Tensor,
    sizes: Sizes,
    rows: range,
    resize_logits: bool,
    *,
    queries: Tensor | None = None,
    columns: Tensor | None = None,
) -> Tensor:
    """Return rows of the mask probabilities at the output size, (N, rows, W) float32; see `mask_prob_strips`.

    Grid to padded size, crop, then image to output size. Where `queries` (N,) or ascending `columns` (n,),
    both int64, are given, the result has only those.
    """
    (padded_height, padded_width), (image_height, image_width), (height, width) = sizes
    # Rows of the cropped image that these rows of the output are made of.
    image_rows = _source_rows(rows, image_height, height)
    cells = mask_logits.shape[1]
    cell_rows = _source_rows(image_rows, cells, padded_height)
    strip = mask_logits[:, cell_rows.start : cell_rows.stop].float()
    if queries is not None:
        strip = strip.index_select(0, queries)
    strip = _resize_rows(strip, cell_rows, cells, padded_height, image_rows)
    if resize_logits:
        # Rows before columns, twice: the maps stay narrow for longer.
        strip = _resize_rows(strip, image_rows, image_height, height, rows)
    if image_width == width:
        # Nothing is left for the second resizing of columns to do.
        strip = _resize_columns(strip, padded_width, columns)[..., :image_width]
    else:
        strip = _resize_columns(strip, padded_width)[..., :image_width]
    if resize_logits:
        return (strip if image_width == width else _resize_columns(strip, width, columns)).sigmoid()
    strip = _resize_rows(strip.sigmoid(), image_rows, image_height, height, rows)
    return strip if image_width == width else _resize_columns(strip, width, columns)


class Tiles(NamedTuple):
    """The output cut into tiles, and what the mask logits can be in each.

    height, width: of a tile in pixels; those in the last row and column may be smaller.
    low, high: (N, tile rows, tile columns) float32, bounds on each mask's logits in the tile.
    """

    height: int
    width: int
    low: Tensor
    high: Tensor


def mask_tiles(mask_logits: Tensor, sizes: Sizes) -> Tiles:
    """Return tiles of about two by two cells of the mask grid with bounds on the logits (N, h, w) in them.

    Resizing takes weighted means, so that no pixel is outside the range of the cells it is made of. That
    holds for probabilities as well, since the sigmoid grows with the logit.
    """
    edges, spans = [], []
    for axis in (0, 1):
        cells = mask_logits.shape[1 + axis]
        padded, image, output = (size[axis] for size in sizes)
        edge = max(1, round(2 * padded / cells * output / image))
        axis_spans = [
            _source_rows(_source_rows(range(start, min(start + edge, output)), image, output), cells, padded)
            for start in range(0, output, edge)
        ]
        edges.append(edge)
        spans.append(axis_spans)

    def bounds(maps: Tensor) -> list[Tensor]:
        maps = maps.float()
        return [
            _extreme(_extreme(maps, spans[0], 1, extreme), spans[1], 2, extreme)
            for extreme in (torch.minimum, torch.maximum)
        ]

    pieces = mask_logits.split(max(1, -(-len(mask_logits) // PIECES)))
    low, high = zip(*side_by_side(bounds, pieces, mask_logits.device), strict=True)
    return Tiles(edges[0], edges[1], torch.cat(low), torch.cat(high))


def _extreme(maps: Tensor, spans: list[range], axis: int, extreme: Callable[..., Tensor]) -> Tensor:
    """Return the extreme value along an axis of (N, h, w) in each span."""
    offsets = range(max(len(span) for span in spans))
    # Shorter spans look at their last cell more than once.
    cells = [torch.tensor([span[min(offset, len(span) - 1)] for span in spans]) for offset in offsets]
    first, *others = (maps.index_select(axis, cell.to(maps.device)) for cell in cells)
    for other in others:
        extreme(first, other, out=first)
    return first


def _source_rows(rows: range, source_height: int, height: int) -> range:
    """Return the rows of the source that bilinear resizing needs for `rows` of the result."""
    if source_height == height:
        return rows
    scale = source_height / height
    # Float32 positions are off by less than this where pictures have less than 10,000 rows.
    slack = 0.01
    first = int(max(0, (rows.start + 0.5) * scale - 0.5 - slack))
    last = int(max(0, (rows.stop - 0.5) * scale - 0.5 + slack)) + 1
    return range(first, min(last + 1, source_height))


def _resize_rows(strip: Tensor, held: range, source_height: int, height: int, rows: range) -> Tensor:
    """Return `rows` of (N, source_height, W) resized to `height`, given the rows `held` of the source.

    Positions as torch's bilinear resizing has them (corners not aligned), in float32 like there.
    """
    if source_height == height:
        return strip[:, rows.start - held.start : rows.stop - held.start]
    wanted = torch.arange(rows.start, rows.stop, device=strip.device)
    upper, lower, weight = _neighbours(wanted, source_height, height)
    return torch.lerp(
        strip.index_select(1, upper - held.start), strip.index_select(1, lower - held.start), weight[:, None]
    )


def _neighbours(wanted: Tensor, source_length: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two entries of the source that each wanted one is made of, and the second one's weight."""
    position = ((wanted.float() + 0.5) * (source_length / length) - 0.5).clamp_(min=0)
    first = position.long().clamp_(max=source_length - 1)
    second = (first + 1).clamp_(max=source_length - 1)
    return first, second, (position - first).clamp_(max=1)


def _resize_columns(strip: Tensor, width: int, columns: Tensor | None = None) -> Tensor:
    """Return (N, rows, W') resized to (N, rows, width), bilinear; only `columns` of it where given."""
    if columns is None and (strip.shape[2] == width or len(strip) == 0):
        return strip if strip.shape[2] == width else strip.new_zeros(0, strip.shape[1], width)
    if columns is None:
        size = (strip.shape[1], width)
        return F.interpolate(strip[None], size=size, mode="bilinear", align_corners=False)[0]
    if strip.shape[2] == width:
        return strip.index_select(2, columns)
    left, right, weight = _neighbours(columns, strip.shape[2], width)
    return torch.lerp(strip.index_select(2, left), strip.index_select(2, right), weight)
