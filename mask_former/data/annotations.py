"""Instance annotations in COCO's form, polygons or run lengths, as masks of an augmented picture."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from fvcore.transforms.transform import Transform

from mask_former.formats import decode_mask, draw_polygons

from .labels import check_classes
from .segment_maps import Segments

Annotation = Mapping[str, Any]


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
        read_shape: height and width of the picture as read.
        shape: height and width after the augmentation.
        padded_shape: height and width (H, W) of the masks: `shape`, and what is padded right and below.
        num_classes: K.
    """
    check_classes(file_name, [a["category_id"] for a in annotations], num_classes)
    masks = np.zeros((len(annotations), *padded_shape), dtype=bool)
    height, width = shape
    is_polygon = np.array([isinstance(a.get("segmentation"), list) for a in annotations], dtype=bool)
    polygons = [a for a in annotations if isinstance(a.get("segmentation"), list)]
    bitmaps = [a for a in annotations if not isinstance(a.get("segmentation"), list)]
    if polygons:
        masks[is_polygon, :height, :width] = _draw_polygons(polygons, transform, shape, file_name)
    if bitmaps:
        masks[~is_polygon, :height, :width] = _transform_bitmaps(bitmaps, transform, read_shape, file_name)

    is_crowd = np.array([bool(a.get("iscrowd", 0)) for a in annotations], dtype=bool)
    classes = np.array([a["category_id"] for a in annotations], dtype=np.int64)
    kept = ~is_crowd & masks.any(axis=(1, 2))
    valid = np.zeros(padded_shape, dtype=bool)
    valid[:height, :width] = True
    if is_crowd.any():
        valid &= ~masks[is_crowd].any(axis=0) | masks[kept].any(axis=0)
    return Segments(classes[kept], masks[kept], valid)


def _draw_polygons(
    annotations: Sequence[Annotation], transform: Transform, shape: tuple[int, int], file_name: str
) -> np.ndarray:
    """Return (M, height, width) masks, drawn after the transform of the corners, so exact at any scale."""
    masks = []
    for annotation in annotations:
        corners = [np.array(polygon, dtype=np.float64) for polygon in annotation["segmentation"]]
        if not corners or any(c.ndim != 1 or c.size < 6 or c.size % 2 for c in corners):
            raise ValueError(
                f"{file_name} has an instance whose polygons have {[c.size for c in corners]} numbers; "
                "expected polygons x1, y1, x2, y2, ... of three corners or more. Correct the annotation."
            )
        moved = [transform.apply_coords(c.reshape(-1, 2)).reshape(-1) for c in corners]
        masks.append(draw_polygons(moved, *shape))
    return np.stack(masks)


def _transform_bitmaps(
    annotations: Sequence[Annotation], transform: Transform, read_shape: tuple[int, int], file_name: str
) -> np.ndarray:
    """Return (M, height, width) masks, transformed eight at a time as the bits of one eight-bit map."""
    bitmaps = np.stack([_bitmap(a.get("segmentation"), read_shape, file_name) for a in annotations])
    planes = [transform.apply_segmentation(plane) for plane in np.packbits(bitmaps, axis=0)]
    return np.unpackbits(np.stack(planes), axis=0, count=len(bitmaps)).astype(bool)


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
