"""Labels as one mask per segment: semantic and panoptic files, and COCO's instance annotations.

A label file travels through the augmentations as a segment map, one small number per pixel, not as one mask
per segment. Eight bits are enough for 255 segments, and Detectron2 resizes eight-bit maps with Pillow, by
the same rule for the place of a pixel's centre as the picture; maps of other types it does not.
A value, id or class that is none of the data set is refused.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from fvcore.transforms.transform import Transform

from mask_former.formats import (
    decode_mask,
    draw_polygons,
    read_panoptic_map,
    read_semantic_label,
    semantic_label_files,
)

VOID = 0  # the number of a pixel that belongs to no segment; segment i has the number i + 1

Annotation = Mapping[str, Any]


class SegmentMap(NamedTuple):
    """Which segment each pixel belongs to; at most one."""

    pixels: np.ndarray  # (H, W) uint8, or uint16 beyond 255 segments; `VOID`, or 1 + number of the segment
    classes: np.ndarray  # (N,) int64, the class of each segment


class Segments(NamedTuple):
    """The segments of an augmented picture."""

    classes: np.ndarray  # (M,) int64
    masks: np.ndarray  # (M, H, W) bool, none of them empty; M may be 0
    valid: np.ndarray  # (H, W) bool, False where a pixel is void or padding


def read_semantic(entry: Mapping[str, Any], num_classes: int, ignore_label: int) -> SegmentMap:
    """Read the semantic label of an entry: one segment for each class present, in order of classes."""
    label = read_semantic_label(entry)
    values, *runs = _runs(label)
    is_class = (values >= 0) & (values < num_classes) & (values != ignore_label)
    if not np.all(is_class | (values == ignore_label)):
        raise ValueError(_wrong_values(semantic_label_files(entry)[0], values, num_classes, ignore_label))
    return SegmentMap(_numbered(is_class, runs, label.shape), values[is_class])


def read_panoptic(file_name: str, segments_info: Sequence[Annotation], num_classes: int) -> SegmentMap:
    """Read a panoptic label file: one segment for each entry that has pixels and is no crowd.

    Args:
        file_name: RGB PNG; id 0 is void.
        segments_info: entries with "id", "category_id" (0 to num_classes - 1) and perhaps "iscrowd".
        num_classes: K.
    """
    ids = read_panoptic_map(file_name)
    values, *runs = _runs(ids)
    listed = {int(segment["id"]): segment for segment in segments_info}
    missing = [int(i) for i in values if int(i) not in listed and i != 0]
    if missing:
        raise ValueError(
            f"{file_name} has segment ids that its entry in the panoptic JSON does not list: "
            f"{abbreviated(missing)}; listed are: {abbreviated(sorted(listed))}. JSON and PNG files must "
            "come from the same release."
        )
    _check_classes(file_name, segments_info, num_classes)
    non_crowd = {i for i, segment in listed.items() if not segment.get("iscrowd", 0)}
    is_segment = np.array([int(i) in non_crowd for i in values], dtype=bool)
    classes = np.array([listed[int(i)]["category_id"] for i in values[is_segment]], dtype=np.int64)
    return SegmentMap(_numbered(is_segment, runs, ids.shape), classes)


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
    masks = pixels == np.arange(1, len(classes) + 1, dtype=pixels.dtype)[:, None, None]
    present = masks.reshape(len(masks), pixels.size).any(axis=1)
    if not present.all():
        classes, masks = classes[present], masks[present]
    return Segments(classes, masks, pixels != VOID)


def instance_segments(
    annotations: Sequence[Annotation],
    transform: Transform,
    *,
    file_name: str,
    read_shape: tuple[int, int],
    shape: tuple[int, int],
    padded_shape: tuple[int, int],
    num_classes: int,
) -> Segments:
    """Return a mask of each instance that has pixels in an augmented picture; instances may overlap.

    Crowds are not instances; their pixels are invalid where no instance covers them.

    Args:
        annotations: entries with "segmentation", "category_id" (0 to num_classes - 1) and perhaps "iscrowd".
        transform: the augmentation of the picture.
        file_name: the picture, for messages.
        read_shape, shape, padded_shape: height and width of the picture as read, after the augmentation, and
            with what is padded right and below; the last is (H, W) of the masks.
        num_classes: K.
    """
    _check_classes(file_name, annotations, num_classes)
    height, width = shape
    masks = np.zeros((len(annotations), *padded_shape), dtype=bool)
    bitmaps: dict[int, np.ndarray] = {}
    for number, annotation in enumerate(annotations):
        segmentation = annotation.get("segmentation")
        if isinstance(segmentation, list):
            corners = _transformed_polygons(segmentation, transform, file_name)
            masks[number, :height, :width] = draw_polygons(corners, height, width)
        else:
            bitmaps[number] = _bitmap(segmentation, read_shape, file_name)
    if bitmaps:
        # Eight masks at a time are transformed, as the bits of one eight-bit map.
        bits = np.packbits(np.stack(list(bitmaps.values())), axis=0)
        planes = np.stack([transform.apply_segmentation(plane) for plane in bits])
        masks[list(bitmaps), :height, :width] = np.unpackbits(planes, axis=0, count=len(bitmaps))

    is_crowd = np.array([a.get("iscrowd", 0) for a in annotations], dtype=bool)
    classes = np.array([a["category_id"] for a in annotations], dtype=np.int64)
    kept = ~is_crowd & masks.any(axis=(1, 2))
    valid = np.zeros(padded_shape, dtype=bool)
    valid[:height, :width] = True
    if is_crowd.any():
        valid &= ~masks[is_crowd].any(axis=0) | masks[kept].any(axis=0)
    return Segments(classes[kept], masks[kept], valid)


def _transformed_polygons(polygons: Sequence, transform: Transform, file_name: str) -> list[np.ndarray]:
    """Return the polygons after the transform of their corners; drawn then, they are exact at any scale."""
    corners = [np.array(polygon, dtype=np.float64) for polygon in polygons]
    if not corners or any(c.ndim != 1 or c.size < 6 or c.size % 2 for c in corners):
        raise ValueError(
            f"{file_name} has an instance whose polygons have {[c.size for c in corners]} numbers; "
            "expected polygons x1, y1, x2, y2, ... of three corners or more. Correct the annotation."
        )
    return [transform.apply_coords(c.reshape(-1, 2)).reshape(-1) for c in corners]


def _bitmap(segmentation: Any, read_shape: tuple[int, int], file_name: str) -> np.ndarray:
    """Return one mask, (height, width) bool, from run lengths (plain or compressed) or from an array."""
    if isinstance(segmentation, Mapping):
        bitmap = decode_mask(segmentation)
    elif isinstance(segmentation, np.ndarray) and segmentation.ndim == 2:
        bitmap = segmentation != 0
    else:
        raise ValueError(
            f"{file_name} has an instance whose segmentation is {type(segmentation).__name__}; expected a "
            "list of polygons, run lengths with 'size' and 'counts', or a (height, width) array."
        )
    if bitmap.shape != read_shape:
        raise ValueError(
            f"{file_name} is {read_shape[1]}x{read_shape[0]}, but the mask of an instance is "
            f"{bitmap.shape[1]}x{bitmap.shape[0]} (width x height). They must have one size."
        )
    return bitmap


def _runs(label: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the sorted distinct values (N,) int64; of each run (R,), the index of its value and its length.

    Labels consist of areas, so a row has few runs, and sorting runs is faster than sorting pixels.
    """
    flat = label.ravel()
    starts = np.flatnonzero(np.concatenate(([True], flat[1:] != flat[:-1])))
    values, indices = np.unique(flat[starts], return_inverse=True)
    return values.astype(np.int64), indices, np.diff(starts, append=flat.size)


def _numbered(is_segment: np.ndarray, runs: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Return a map with 1, 2, ... for the values that are segments, in order, and `VOID` for others."""
    number = np.cumsum(is_segment) * is_segment
    number = number.astype(np.uint8 if number.max(initial=0) < 256 else np.uint16)
    indices, lengths = runs
    return number[indices].repeat(lengths).reshape(shape)


def _check_classes(file_name: str, annotations: Sequence[Annotation], num_classes: int) -> None:
    wrong = sorted({a["category_id"] for a in annotations if not 0 <= a["category_id"] < num_classes})
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


def _wrong_values(file_name: str, values: np.ndarray, num_classes: int, ignore_label: int) -> str:
    wrong = [int(v) for v in values if not 0 <= v < num_classes and v != ignore_label]
    if [int(v) for v in values if v != ignore_label] in ([255], [0, 255]):
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
        f"{abbreviated(values.tolist())}; allowed: 0 to {num_classes - 1}, and {ignore_label} for void. {fix}"
    )
