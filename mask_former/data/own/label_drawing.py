"""A picture of a data set with its label drawn over it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mask_former.formats import read_panoptic_map, read_picture, read_semantic_label

from .annotation_faults import mask_of
from .dataset import OwnDataset
from .picture_check import has_label

SIDE = 320  # of a drawing, in pixels


def draw_label(record: Mapping[str, Any], dataset: OwnDataset) -> Image.Image:
    """Return a small picture with its label over it: the colours of the classes, white edges of segments."""
    picture = Image.fromarray(read_picture(record["file_name"], "RGB"))
    scale = min(1.0, SIDE / max(picture.size))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    small = np.asarray(picture.resize(size), dtype=np.float32)
    if not has_label(record, dataset.task):
        return Image.fromarray(small.astype(np.uint8))
    segments, classes = _segment_map(record, dataset.task, picture.size)
    rows = (np.arange(size[1]) + 0.5) * segments.shape[0] / size[1]
    columns = (np.arange(size[0]) + 0.5) * segments.shape[1] / size[0]
    segments = segments[np.ix_(rows.astype(int), columns.astype(int))]
    number = len(dataset.classes)
    colors = np.array([*dataset.colors, (0, 0, 0)], dtype=np.float32)
    kinds = np.array([k if 0 <= k < number else number for k in classes])[segments]
    edges = np.zeros(segments.shape, dtype=bool)
    edges[:, 1:] |= segments[:, 1:] != segments[:, :-1]
    edges[1:] |= segments[1:] != segments[:-1]
    mixed = np.where((kinds < number)[..., None], 0.45 * small + 0.55 * colors[kinds], 0.6 * small)
    mixed[edges & (min(size) > 16)] = 255
    return Image.fromarray(mixed.astype(np.uint8))


def _segment_map(
    record: Mapping[str, Any], task: str, size: tuple[int, int]
) -> tuple[NDArray[np.integer], list[int]]:
    """Return the number of each pixel's segment (H, W), and the class of each number, -1 for none."""
    if task == "instance":
        numbers, classes = np.zeros(size[::-1], dtype=np.int64), [-1]
        for annotation in record["annotations"]:
            mask = mask_of(annotation.get("segmentation"), size)
            if mask is not None:
                numbers[mask] = len(classes)
                classes.append(annotation["category_id"])
        return numbers, classes
    is_panoptic = task == "panoptic"
    label = read_panoptic_map(record["pan_seg_file_name"]) if is_panoptic else read_semantic_label(record)
    values, numbers = np.unique(label, return_inverse=True)
    class_of = {segment["id"]: segment["category_id"] for segment in record.get("segments_info", ())}
    classes = [class_of.get(value, -1) if is_panoptic else value for value in values.tolist()]
    return numbers.reshape(label.shape), classes
