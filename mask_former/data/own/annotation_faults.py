"""Faults of one instance's polygons, run lengths and box, against the size of its picture."""

from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mask_former.formats import box_of_mask, coco_box, decode_mask, draw_polygons

from .report import Fault

# Pixels by which polygons and boxes may reach beyond the picture or differ: tools round differently.
SLACK = 2.0
FAR = 100  # times the size of a picture


def annotation_faults(annotation: Mapping[str, Any], where: str, size: tuple[int, int]) -> list[Fault]:
    """Return the faults of an annotation in COCO's format.

    Args:
        annotation: with "segmentation", and perhaps "bbox" (x, y, width, height) and "iscrowd".
        where: what to call it in messages.
        size: width and height of its picture.
    """
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, Mapping):
        faults = list(_run_length_faults(segmentation, where, size))
    elif isinstance(segmentation, list) and segmentation:
        polygons = [segmentation] if isinstance(segmentation[0], Real) else segmentation
        faults = [fault for polygon in polygons for fault in polygon_faults(polygon, where, size)]
        if polygons is not segmentation:
            remedy = "Expected a list of polygons: write [[x1, y1, ...]]."
            faults.append(Fault("polygons without their list", where, "one flat list of numbers", remedy))
    else:
        found = f"'segmentation' is {segmentation!r}" if "segmentation" in annotation else "no 'segmentation'"
        remedy = "Boxes alone train no masks: export polygons or run lengths."
        return [Fault("annotations without a mask", where, found, remedy)]
    return faults or _box_faults(annotation, where, size)


def polygon_faults(polygon: Any, where: str, size: tuple[int, int], in_pixels: bool = True) -> list[Fault]:
    """Return the fault, if any, of a polygon x1, y1, x2, y2, ... in a picture of size (width, height)."""
    numbers = polygon if isinstance(polygon, Sequence) and not isinstance(polygon, str) else [polygon]
    if not all(isinstance(x, Real) and np.isfinite(float(x)) for x in numbers):
        bad = next(x for x in numbers if not (isinstance(x, Real) and np.isfinite(float(x))))
        return [Fault("polygons that are not numbers", where, f"a coordinate is {bad!r}", "Draw it again.")]
    if len(numbers) % 2:
        found = f"a polygon of {len(numbers)} numbers"
        return [Fault("polygons with half a point", where, found, "Expected x1, y1, x2, y2, ... in pairs.")]
    if len(numbers) < 6:
        found = f"a polygon of {len(numbers) // 2} points"
        remedy = "Expected three or more: draw it again, or delete it."
        return [Fault("polygons of fewer than 3 points", where, found, remedy)]
    points = np.asarray(numbers, dtype=np.float64).reshape(-1, 2)
    (width, height), (low, high) = size, (points.min(axis=0), points.max(axis=0))
    span = f"x {low[0]:g} to {high[0]:g}, y {low[1]:g} to {high[1]:g} in a picture of {width}x{height}"
    # One pixel in the corner has whole numbers.
    if in_pixels and points.min() >= 0 and points.max() <= 1 < min(size) and (points % 1).any():
        remedy = "Expected pixels: multiply x by the width and y by the height."
        return [Fault("normalised polygons", where, span, remedy)]
    if (low < -SLACK).any() or high[0] > width + SLACK or high[1] > height + SLACK:
        turned = high[0] <= height + SLACK and high[1] <= width + SLACK and (low >= -SLACK).all()
        hint = "x and y may be swapped" if turned else "the picture may have been resized since"
        remedy = f"Expected points inside the picture; {hint}: label this picture, or scale the points."
        return [Fault("polygons outside the picture", where, span, remedy)]
    shifted = np.roll(points, 1, axis=0)
    if abs((points[:, 0] * shifted[:, 1] - points[:, 1] * shifted[:, 0]).sum()) < 1e-6:
        found = f"a polygon of {len(points)} points covers no area"
        return [Fault("polygons without area", where, found, "It trains nothing.", stops=False)]
    return []


def _run_length_faults(segmentation: Mapping[str, Any], where: str, size: tuple[int, int]) -> Iterator[Fault]:
    width, height = size
    stated, counts = segmentation.get("size"), segmentation.get("counts")
    if counts is None or not isinstance(stated, Sequence) or len(stated) != 2:
        found = f"run lengths with the keys {', '.join(segmentation) or 'none'}"
        yield Fault("broken run lengths", where, found, "Expected 'size' [height, width] and 'counts'.")
    elif tuple(stated) != (height, width):
        found = f"run lengths of size {list(stated)}, in a picture of [{height}, {width}] (height, width)"
        if tuple(stated) == (width, height):
            remedy = "The size is swapped: COCO writes [height, width] and counts down the columns."
            yield Fault("run lengths of swapped size", where, found, remedy)
        else:
            yield Fault("run lengths of another size", where, found, "Encode the mask at the picture's size.")
    elif isinstance(counts, list) and sum(counts) != width * height:
        found = f"the counts add up to {sum(counts)} pixels, the picture has {width * height}"
        yield Fault("broken run lengths", where, found, "Encode the mask again.")
    elif mask_of(segmentation, size) is None:
        yield Fault("broken run lengths", where, "the counts cannot be decoded", "Encode the mask again.")


def _box_faults(annotation: Mapping[str, Any], where: str, size: tuple[int, int]) -> list[Fault]:
    """Return the fault of a box that does not lie around its mask. Masks decide, boxes follow."""
    box = annotation.get("bbox")
    if box is None:
        return []
    mask = mask_of(annotation["segmentation"], size)
    if mask is None or not mask.any() or is_box_of(mask, box):
        return []
    x0, y0, x1, y1 = box_of_mask(mask)
    found = f"the box is {box}, around the mask lies {coco_box((x0, y0, x1, y1))} (x, y, width, height)"
    kind = "boxes that contradict their mask"
    if len(box) == 4 and _near(box, (x0, y0, x1, y1), size):
        kind, found = "boxes of two corners", f"{found}: the box holds x0, y0, x1, y1"
    remedy = "Expected x, y, width, height; it is taken from the mask."
    return [Fault(kind, where, found, remedy, stops=False, mended=True)]


def is_box_of(mask: NDArray[np.bool_], box: Sequence[float] | None) -> bool:
    """Return whether a box x, y, width, height lies around a mask (H, W), as tools round it."""
    return box is not None and len(box) == 4 and _near(box, coco_box(box_of_mask(mask)), mask.shape)


def _near(box: Sequence[float], other: Sequence[float], size: Sequence[int]) -> bool:
    return bool(np.abs(np.subtract(box, other)).max() <= SLACK + 0.02 * max(size))


def mask_of(segmentation: Any, size: tuple[int, int]) -> NDArray[np.bool_] | None:
    """Return the mask (H, W) of polygons or run lengths, or None if they do not give one of this size."""
    width, height = size
    try:
        if isinstance(segmentation, Mapping):
            same_size = tuple(segmentation["size"]) == (height, width)
            return decode_mask(segmentation) if same_size else None
        polygons = [np.asarray(polygon, dtype=np.float64) for polygon in segmentation if len(polygon) >= 6]
        # pycocotools walks along the edges: far corners, and those that are no number, take all memory.
        if not all(np.abs(polygon).max() < FAR * max(size) for polygon in polygons):
            return None
        return draw_polygons(polygons, height, width)
    except Exception:  # pycocotools raises anything at broken input
        return None
