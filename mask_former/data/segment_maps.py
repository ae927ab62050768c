"""Segment maps: one small number per pixel, in which a pixel belongs to at most one segment.

A label travels through the augmentations as such a map, not as one mask per segment. Eight bits are enough
for 255 segments, and Detectron2 resizes eight-bit maps with Pillow, by the same rule for the place of a
pixel's centre as the picture; maps of other types it does not.
"""

from typing import NamedTuple

import numpy as np
from fvcore.transforms.transform import Transform

VOID = 0  # the number of a pixel that belongs to no segment; segment i has the number i + 1


class SegmentMap(NamedTuple):
    """Which segment each pixel belongs to.

    pixels: (H, W) uint8, or uint16 beyond 255 segments; `VOID`, or 1 + the number of the segment.
    classes: (N,) int64, the class of each segment.
    """

    pixels: np.ndarray
    classes: np.ndarray


class Segments(NamedTuple):
    """The segments of an augmented picture.

    classes: (M,) int64.
    masks: (M, H, W) bool, none of them empty; M may be 0.
    valid: (H, W) bool, False where a pixel is void or padding.
    """

    classes: np.ndarray
    masks: np.ndarray
    valid: np.ndarray


def move(transform: Transform, pixels: np.ndarray) -> np.ndarray:
    """Return a map (H, W) uint8 or uint16 after a geometric transform, with the same dtype."""
    if pixels.dtype == np.uint8:
        return transform.apply_segmentation(pixels)
    low = transform.apply_segmentation((pixels & 255).astype(np.uint8))
    high = transform.apply_segmentation((pixels >> 8).astype(np.uint8))
    return low | (high.astype(np.uint16) << 8)


def split(segment_map: SegmentMap) -> Segments:
    """Return a mask for each segment that has pixels."""
    # A flipped map is a view with negative strides, on which comparisons are several times slower.
    pixels, classes = np.ascontiguousarray(segment_map.pixels), segment_map.classes
    numbers = np.arange(1, len(classes) + 1, dtype=pixels.dtype)
    masks = pixels == numbers[:, None, None]
    present = masks.reshape(len(masks), pixels.size).any(axis=1)
    if not present.all():
        classes, masks = classes[present], masks[present]
    return Segments(classes, masks, pixels != VOID)


class Runs(NamedTuple):
    """A label map as runs of equal values, row by row.

    values: (R,) the value of each run, as its index among the distinct values.
    lengths: (R,) pixels of each run.
    shape: (H, W).
    """

    values: np.ndarray
    lengths: np.ndarray
    shape: tuple[int, ...]

    def number(self, is_segment: np.ndarray) -> np.ndarray:
        """Return the map with 1, 2, ... for the values that are segments, in order, and `VOID` for others."""
        number = np.cumsum(is_segment) * is_segment
        dtype = np.uint8 if number.max(initial=0) < 256 else np.uint16
        return np.repeat(number.astype(dtype)[self.values], self.lengths).reshape(self.shape)


def segment_runs(values: np.ndarray) -> tuple[np.ndarray, Runs]:
    """Return the distinct values of a map, sorted, as (N,) int64; and the map as runs of these.

    Labels consist of areas, so a row has few runs, and sorting runs is faster than sorting pixels.
    """
    flat = values.ravel()
    starts = np.flatnonzero(np.concatenate(([True], flat[1:] != flat[:-1])))
    distinct, values_of_runs = np.unique(flat[starts], return_inverse=True)
    return distinct.astype(np.int64), Runs(values_of_runs, np.diff(starts, append=flat.size), values.shape)
