"""A result as entries of COCO's JSON files and rows of a table; category ids are those of the data set."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mask_former.formats import box_of_mask, coco_box, encode_mask
from mask_former.prediction.classes import ClassTable

if TYPE_CHECKING:
    from mask_former.prediction.results import Result

CSV_COLUMNS = (
    *("image", "task", "segment_id", "category_id", "name", "is_thing", "score", "area"),
    *("x0", "y0", "x1", "y1"),
)


def categories(classes: ClassTable) -> list[dict[str, Any]]:
    """Return the classes as COCO lists them, with the ids of the data set."""
    columns = zip(classes.dataset_ids, classes.names, classes.is_thing, classes.colors, strict=True)
    return [
        {"id": own, "name": name, "isthing": int(is_thing), "color": list(color)}
        for own, name, is_thing, color in columns
    ]


def panoptic_entries(result: "Result") -> list[dict[str, Any]]:
    """Return `segments_info` of COCO's panoptic form, with scores."""
    return [
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


def coco_entries(result: "Result", image_id: int | str) -> list[dict[str, Any]] | None:
    """Return entries of COCO's results form: instances, else thing segments; None where there are neither."""
    found = _coco_masks(result)
    if found is None:
        return None
    return [
        {
            "image_id": image_id,
            "category_id": result.classes.dataset_ids[category_id],
            "score": round(score, 6),
            "bbox": coco_box([float(edge) for edge in box]),
            "segmentation": encode_mask(mask),
        }
        for mask, category_id, score, box in found
    ]


def _coco_masks(result: "Result") -> list[tuple[NDArray[np.bool_], int, float, Any]] | None:
    """Return mask, class, score and box of each instance, or of each thing segment; None without both."""
    if result.instances is not None:
        found = result.instances
        rows = zip(found.masks, found.classes.tolist(), found.scores.tolist(), found.boxes, strict=True)
        return list(rows)
    if result.panoptic is None:
        return None
    return [
        (result.panoptic == segment.id, segment.category_id, segment.score, segment.box)
        for segment in result.segments
        if segment.is_thing
    ]


def segment_rows(result: "Result") -> list[tuple[Any, ...]]:
    """Return the rows of a picture after its name: of panoptic segments, else instances, else classes."""
    own_id, is_thing = result.classes.dataset_ids, result.classes.is_thing
    if result.panoptic is not None:
        return [
            (
                "panoptic",
                s.id,
                own_id[s.category_id],
                s.name,
                int(s.is_thing),
                round(s.score, 6),
                s.area,
                *s.box,
            )
            for s in result.segments
        ]
    if result.instances is not None:
        found = result.instances
        columns = (
            found.classes.tolist(),
            found.names,
            found.scores.tolist(),
            found.areas.tolist(),
            found.boxes,
        )
        return [
            ("instance", number, own_id[c], name, int(is_thing[c]), round(score, 6), area, *box.tolist())
            for number, (c, name, score, area, box) in enumerate(zip(*columns, strict=True), 1)
        ]
    if result.semantic is None:
        return []
    rows = []
    for label in np.unique(result.semantic).tolist():
        if label < len(result.classes):
            mask = result.semantic == label
            area, box = int(np.count_nonzero(mask)), map(float, box_of_mask(mask))
            name = result.classes.names[label]
            rows.append(("semantic", label, own_id[label], name, int(is_thing[label]), "", area, *box))
    return rows
