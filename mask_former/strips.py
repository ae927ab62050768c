"""Mask probabilities at the size of the result, strip by strip: some rows of all queries at a time.

Bilinear resizing from the mask grid to the padded picture, cropping, and resizing to the output, in the
published order and as exact as on whole maps, but a full-size map of every query never exists.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# Numbers (queries x rows x columns) that one strip may hold: on a CPU few enough for its caches, elsewhere
# enough to keep the device busy.
_STRIP_NUMBERS = {"cpu": 1 << 20}
_STRIP_NUMBERS_ELSEWHERE = 1 << 26

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
    height, width = sizes.output
    numbers_a_row = max(1, len(mask_logits)) * max(width, sizes.image[1])
    strip_height = max(1, strip_numbers(mask_logits.device) // numbers_a_row)
    mask_logits = mask_logits.float()
    for start in range(0, height, strip_height):
        rows = range(start, min(start + strip_height, height))
        yield slice(rows.start, rows.stop), _mask_probs(mask_logits, sizes, rows, resize_logits)


def _mask_probs(mask_logits: Tensor, sizes: Sizes, rows: range, resize_logits: bool) -> Tensor:
    """Return some rows of `mask_prob_strips`: grid to padded size, crop, then image to output size."""
    (padded_height, padded_width), (image_height, image_width), (height, width) = sizes
    # Rows of the cropped image that these rows of the output are made of.
    image_rows = _source_rows(rows, image_height, height)
    strip = _resize_rows(
        mask_logits, range(mask_logits.shape[1]), mask_logits.shape[1], padded_height, image_rows
    )
    if resize_logits:
        # Rows before columns, twice: the maps stay narrow for longer.
        strip = _resize_rows(strip, image_rows, image_height, height, rows)
        strip = _resize_columns(strip, padded_width)[..., :image_width]
        return _resize_columns(strip, width).sigmoid()
    strip = _resize_columns(strip, padded_width)[..., :image_width].sigmoid()
    return _resize_columns(_resize_rows(strip, image_rows, image_height, height, rows), width)


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
    position = torch.arange(rows.start, rows.stop, dtype=torch.float32, device=strip.device)
    position = ((position + 0.5) * (source_height / height) - 0.5).clamp_(min=0)
    upper = position.long().clamp_(max=source_height - 1)
    lower = (upper + 1).clamp_(max=source_height - 1)
    weight = (position - upper).clamp_(max=1)[:, None]
    return torch.lerp(
        strip.index_select(1, upper - held.start), strip.index_select(1, lower - held.start), weight
    )


def _resize_columns(strip: Tensor, width: int) -> Tensor:
    """Return (N, rows, W') resized to (N, rows, width), bilinear."""
    if strip.shape[2] == width or len(strip) == 0:
        return strip if strip.shape[2] == width else strip.new_zeros(0, strip.shape[1], width)
    size = (strip.shape[1], width)
    return F.interpolate(strip[None], size=size, mode="bilinear", align_corners=False)[0]
