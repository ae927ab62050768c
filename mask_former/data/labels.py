"""Label maps in which a pixel belongs to one segment at most: checked when read, split into masks when cut.

Between the two a map travels through the augmentations as one small number per pixel, not as one mask per
segment. Eight bits do for up to 255 segments, and eight-bit maps are what Detectron2 resizes with Pillow, by
the same rule for where a pixel's centre lies as the picture itself; maps of other types it does not.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from fvcore.transforms.transform import Transform

from mask_former.formats import read_label_map, read_panoptic_map

VOID = 0  # The index of a pixel that belongs to no segment. Segment i has the index i + 1.


class SegmentMap(NamedTuple):
    """Which segment each pixel belongs to.

    pixels: (H, W) uint8, or uint16 beyond 255 segments; `VOID`, or 1 + the number of the segment.
    classes: (N,) int64, the class of each segment.
    """

    pixels: np.ndarray
    classes: np.ndarray


class Segments(NamedTuple):
    """The segments that are left in a cut picture.

    classes: (M,) int64.
    masks: (M, H, W) bool, none of them empty; M may be 0.
    valid: (H, W) bool, False where a pixel is void or padding.
    """

    classes: np.ndarray
    masks: np.ndarray
    valid: np.ndarray


def read_semantic(file_name: str, num_classes: int, ignore_label: int) -> SegmentMap:
    """Read a semantic label: one segment for each class present, in order of classes.

    Raises:
        ValueError: a value is neither `ignore_label` nor below `num_classes`.
    """
    values = read_label_map(file_name)
    found, runs = _distinct(values)
    is_class = (found >= 0) & (found < num_classes) & (found != ignore_label)
    if not np.all(is_class | (found == ignore_label)):
        raise ValueError(_wrong_values(file_name, found, num_classes, ignore_label))
    return SegmentMap(runs.number(is_class), found[is_class])


def read_panoptic(file_name: str, segments_info: Sequence[Mapping[str, Any]], num_classes: int) -> SegmentMap:
    """Read a panoptic label: one segment for each entry of `segments_info` that has pixels and is no crowd.

    Args:
        file_name: RGB PNG.
        segments_info: entries with "id", "category_id" (0 to num_classes - 1) and perhaps "iscrowd".
        num_classes: K.

    Raises:
        ValueError: the file has an id, other than 0 (void), that no entry has; or a class is out of range.
    """
    found, runs = _distinct(read_panoptic_map(file_name))
    listed = {int(segment["id"]): segment for segment in segments_info}
    missing = [int(i) for i in found if int(i) not in listed and i != 0]
    if missing:
        raise ValueError(
            f"{file_name} has segment ids that its entry in the panoptic JSON does not list: "
            f"{abbreviated(missing)}; listed are: {abbreviated(sorted(listed))}. JSON and PNG files must "
            "come from the same release."
        )
    check_classes(file_name, [segment["category_id"] for segment in segments_info], num_classes)
    taught = {i for i, segment in listed.items() if not segment.get("iscrowd", 0)}
    is_taught = np.array([int(i) in taught for i in found], dtype=bool)
    classes = np.array([listed[int(i)]["category_id"] for i in found[is_taught]], dtype=np.int64)
    return SegmentMap(runs.number(is_taught), classes)


def move(transform: Transform, pixels: np.ndarray) -> np.ndarray:
    """Return a map, (H, W) uint8 or uint16, after the geometry of a transform, with its dtype."""
    if pixels.dtype == np.uint8:
        return transform.apply_segmentation(pixels)
    low = transform.apply_segmentation((pixels & 255).astype(np.uint8))
    high = transform.apply_segmentation((pixels >> 8).astype(np.uint8))
    return low | (high.astype(np.uint16) << 8)


def split(segment_map: SegmentMap) -> Segments:
    """Return a mask for each segment that has pixels."""
    # A flipped map is a view that runs backwards, over which comparisons are several times slower.
    pixels, classes = np.ascontiguousarray(segment_map.pixels), segment_map.classes
    numbers = np.arange(1, len(classes) + 1, dtype=pixels.dtype)
    masks = pixels == numbers[:, None, None]
    present = masks.reshape(len(masks), pixels.size).any(axis=1)
    if not present.all():
        classes, masks = classes[present], masks[present]
    return Segments(classes, masks, pixels != VOID)


def check_classes(file_name: str, classes: Sequence[int], num_classes: int) -> None:
    """Raise ValueError unless every class lies in 0..num_classes - 1."""
    wrong = sorted({int(c) for c in classes if not 0 <= c < num_classes})
    if wrong:
        raise ValueError(
            f"{file_name} has segments of class {abbreviated(wrong)}; allowed are 0 to {num_classes - 1}. "
            "Set MODEL.SEM_SEG_HEAD.NUM_CLASSES, or register the data set with a map from its ids to "
            "contiguous ids."
        )


def abbreviated(values: Sequence[int], most: int = 8) -> str:
    """Return sorted values for a message; of a long list the first ones, the last one and the number."""
    if len(values) <= most:
        return ", ".join(map(str, values))
    return f"{', '.join(map(str, values[: most - 1]))}, ..., {values[-1]} ({len(values)} values)"


class _Runs(NamedTuple):
    """A label map read row by row as runs of equal values, given by their places among the found."""

    places: np.ndarray
    lengths: np.ndarray
    shape: tuple[int, ...]

    def number(self, is_segment: np.ndarray) -> np.ndarray:
        """Return the map with 1, 2, ... for the values that are segments, in order, and `VOID` for others."""
        number = np.cumsum(is_segment) * is_segment
        dtype = np.uint8 if number.max(initial=0) < 256 else np.uint16
        return np.repeat(number.astype(dtype)[self.places], self.lengths).reshape(self.shape)


def _distinct(values: np.ndarray) -> tuple[np.ndarray, _Runs]:
    """Return the distinct values of a map, sorted, as (N,) int64; and the map as runs of these.

    Labels are made of areas, so a row has few runs: sorting the runs and not the pixels makes this fast.
    """
    flat = values.ravel()
    starts = np.flatnonzero(np.concatenate(([True], flat[1:] != flat[:-1])))
    found, places = np.unique(flat[starts], return_inverse=True)
    return found.astype(np.int64), _Runs(places, np.diff(starts, append=flat.size), values.shape)


def _wrong_values(file_name: str, found: np.ndarray, num_classes: int, ignore_label: int) -> str:
    wrong = [int(v) for v in found if not 0 <= v < num_classes and v != ignore_label]
    rest = [int(v) for v in found if v != ignore_label]
    if rest in ([255], [0, 255]):
        fix = "A mask of 0 and 255: write 1 in place of 255, or register 255 as the data set's ignore_label."
    elif wrong == [num_classes]:
        fix = (
            f"Off by one: if classes are counted from 1, subtract 1 (and write {ignore_label} for 0); if 0 "
            f"is a class of its own, set MODEL.SEM_SEG_HEAD.NUM_CLASSES to {num_classes + 1}."
        )
    elif wrong in ([255], [65535]):
        fix = f"If {wrong[0]} means void, register it as the ignore_label of the data set."
    else:
        fix = (
            "Set MODEL.SEM_SEG_HEAD.NUM_CLASSES, or map the values to classes first (datasets/prepare_*.py "
            "do so for the published sets); a coloured picture saved as grey or palette is no label map."
        )
    return (
        f"{file_name} has label values that are no class: {abbreviated(wrong)}. Found: "
        f"{abbreviated(found.tolist())}; allowed: 0 to {num_classes - 1}, and {ignore_label} for void. {fix}"
    )
