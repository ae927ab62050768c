"""A result as entries of COCO's JSON files and rows of a table; category ids are those of the data set."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mask_former.formats import box_of_mask, coco_box, encode_mask
from mask_former.prediction.classes import ClassTable
from mask_former.prediction.values import PredictedValues

Entry = dict[str, Any]

CSV_COLUMNS = (
    *("image", "task", "segment_id", "category_id", "name", "is_thing", "score", "area"),
    *("x0", "y0", "x1", "y1"),
)


def categories(classes: ClassTable) -> list[Entry]:
    """Return the classes as COCO lists them."""
    columns = zip(classes.dataset_ids, classes.names, classes.is_thing, classes.colors, strict=True)
    return [
        {"id": dataset_id, "name": name, "isthing": int(is_thing), "color": list(color)}
        for dataset_id, name, is_thing, color in columns
    ]


def panoptic_entry(result: PredictedValues, image_id: int | str, file_name: str) -> Entry:
    """Return `annotation` and `image` of COCO's panoptic format, with scores."""
    segments = [
        {
            "id": segment.id,
            "category_id": result.classes.dataset_ids[segment.category_id],
            "isthing": int(segment.is_thing),
            "score": round(segment.score, 6),
            "area": segment.area,
            "bbox": coco_box(segment.box),
            "iscrowd": 0,
        }
        for segment in result.segments
    ]
    name = Path(result.image_name).name
    return {
        "annotation": {"image_id": image_id, "file_name": file_name, "segments_info": segments},
        "image": {"id": image_id, "file_name": name, "height": result.height, "width": result.width},
    }


def coco_entries(result: PredictedValues, image_id: int | str) -> list[Entry] | None:
    """Return entries of COCO's results format: instances, else thing segments; None without both."""
    if result.instances is None and result.panoptic is None:
        return None
    return [
        {
            "image_id": image_id,
            "category_id": result.classes.dataset_ids[category_id],
            "score": round(score, 6),
            "bbox": coco_box(box),
            "segmentation": encode_mask(mask),
        }
        for mask, category_id, score, box in _thing_masks(result)
    ]


def _thing_masks(result: PredictedValues) -> Iterator[tuple[Any, int, float, Any]]:
    """Yield mask, class, score and box of each instance, or of each thing segment."""
    instances = result.instances
    if instances is not None:
        classes, scores = instances.classes.tolist(), instances.scores.tolist()
        yield from zip(instances.masks, classes, scores, instances.boxes.tolist(), strict=True)
        return
    for segment in result.segments:
        if segment.is_thing:
            yield result.panoptic == segment.id, segment.category_id, segment.score, segment.box


def csv_rows(result: PredictedValues) -> list[Entry]:
    """Return the rows of an image: its panoptic segments, else its instances, else its semantic classes."""
    rows: Iterator[tuple[Any, ...]] = iter(())
    if result.panoptic is not None:
        rows = _panoptic_rows(result)
    elif result.instances is not None:
        rows = _instance_rows(result)
    elif result.semantic is not None:
        rows = _semantic_rows(result)
    dataset_ids, is_thing = result.classes.dataset_ids, result.classes.is_thing
    return [
        dict(
            zip(
                CSV_COLUMNS,
                (
                    *(result.image_name, task, segment_id, dataset_ids[label], result.classes.names[label]),
                    *(int(is_thing[label]), score, area, *box),
                ),
                strict=True,
            )
        )
        for task, segment_id, label, score, area, box in rows
    ]


def _panoptic_rows(result: PredictedValues) -> Iterator[tuple[Any, ...]]:
    for segment in result.segments:
        score = round(segment.score, 6)
        yield "panoptic", segment.id, segment.category_id, score, segment.area, segment.box


def _instance_rows(result: PredictedValues) -> Iterator[tuple[Any, ...]]:
    instances = result.instances
    assert instances is not None
    columns = (instances.classes, instances.scores, instances.areas, instances.boxes)
    for number, row in enumerate(zip(*(column.tolist() for column in columns), strict=True), 1):
        label, score, area, box = row
        yield "instance", number, label, round(score, 6), area, box


def _semantic_rows(result: PredictedValues) -> Iterator[tuple[Any, ...]]:
    assert result.semantic is not None
    for label in np.unique(result.semantic).tolist():
        if label < len(result.classes):
            mask = result.semantic == label
            yield "semantic", label, label, "", int(mask.sum()), box_of_mask(mask)
