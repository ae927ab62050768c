"""Mask probabilities at the output size in strips, some rows of all queries at a time.

Values are those of the published order of operations on whole maps, without a full-size map of every query.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mask_former.inference.resizing import Sizes, finite, neighbours, source_rows

# Elements (queries x rows x columns) of one strip: on a CPU it fits into the caches, on other devices it is
# large enough to occupy them.
_STRIP_NUMBERS = {"cpu": 1 << 20}
_STRIP_NUMBERS_ELSEWHERE = 1 << 26


def strip_numbers(device: torch.device) -> int:
    """Return the maximum number of elements in a strip on `device`."""
    return _STRIP_NUMBERS.get(device.type, _STRIP_NUMBERS_ELSEWHERE)


def strips_of(mask_logits: Tensor, sizes: Sizes, rows: range | None = None) -> list[range]:
    """Return the rows of each strip of the output, or of some rows of it, top to bottom."""
    height, width = sizes.output
    # If the output is smaller than the image, each of its rows is computed from several.
    image_rows = max(1, -(-sizes.image[0] // height))
    elements_per_row = max(1, len(mask_logits)) * max(width, sizes.padded[1]) * image_rows
    strip_height = max(1, strip_numbers(mask_logits.device) // elements_per_row)
    rows = rows or range(height)
    return [rows[start : start + strip_height] for start in range(0, len(rows), strip_height)]


def mask_probs_at(mask_logits: Tensor, sizes: Sizes, rows: range, resize_logits: bool) -> Tensor:
    """Return rows of the mask probabilities at the output size, (N, rows, W) float32.

    If class scores are to be resized (`resize_logits` False), the probabilities are resized instead: scores
    are linear in them, so the result is the same, and its cost does not grow with the number of classes.
    """
    (padded_height, padded_width), (image_height, image_width), (height, width) = sizes
    # Rows of the cropped image that these output rows are interpolated from.
    image_rows = source_rows(rows, image_height, height)
    cells = mask_logits.shape[1]
    cell_rows = source_rows(image_rows, cells, padded_height)
    strip = finite(mask_logits[:, cell_rows.start : cell_rows.stop])
    strip = _resize_rows(strip, cell_rows, cells, padded_height, image_rows)
    if resize_logits:
        # Rows before columns, twice: the maps stay narrow longer.
        strip = _resize_rows(strip, image_rows, image_height, height, rows)
    strip = _resize_columns(strip, padded_width)[..., :image_width]
    if resize_logits:
        return _resize_columns(strip, width).sigmoid()
    strip = _resize_rows(strip.sigmoid(), image_rows, image_height, height, rows)
    return _resize_columns(strip, width)


def _resize_rows(strip: Tensor, held: range, source_height: int, height: int, rows: range) -> Tensor:
    """Return `rows` of (N, source_height, W) resized to `height`, given the rows `held` of the source."""
    if source_height == height:
        return strip[:, rows.start - held.start : rows.stop - held.start]
    entries = torch.arange(rows.start, rows.stop, device=strip.device)
    upper, lower, weight = neighbours(entries, source_height, height)
    return torch.lerp(
        strip.index_select(1, upper - held.start), strip.index_select(1, lower - held.start), weight[:, None]
    )


def _resize_columns(strip: Tensor, width: int) -> Tensor:
    """Return (N, rows, W') resized to (N, rows, width), bilinear."""
    if strip.shape[2] == width or len(strip) == 0:
        return strip if strip.shape[2] == width else strip.new_zeros(0, strip.shape[1], width)
    size = (strip.shape[1], width)
    return F.interpolate(strip[None], size=size, mode="bilinear", align_corners=False)[0]
