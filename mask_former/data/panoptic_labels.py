"""Panoptic labels in COCO's format: PNGs of segment ids, and a JSON file that says what the segments are."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mask_former.formats import distinct_colors

Sample = dict[str, Any]  # one picture in Detectron2's data set format


def read_json(path: str | Path, keys: Sequence[str]) -> dict[str, Any]:
    """Return the object in a JSON file, after checking that it has these keys."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); the file may be cut short: get it again.") from error
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise ValueError(
            f"{path} lacks {', '.join(map(repr, missing))}: it is not a label file of this kind."
        )
    return content


def load_panoptic(name: str, metadata: Mapping[str, Any]) -> list[Sample]:
    """Return the samples of panoptic labels in COCO's format.

    Unlike Detectron2's loader it takes image ids that are not numbers (ADE20K's are file stems) and pictures
    that are not JPEG.

    Args:
        name: of the data set, for messages.
        metadata: `image_root`, `panoptic_root`, `panoptic_json`, the two id maps; `sem_seg_root` optional.

    Returns:
        One dict a picture: `file_name`, `image_id`, `pan_seg_file_name`, `segments_info` (category ids
        are class ids, `isthing` is added); where there is a `sem_seg_root`, `sem_seg_file_name`; and where
        the file states them, `height` and `width`.
    """
    path = metadata["panoptic_json"]
    labels = read_json(path, keys=("annotations",))
    pictures = {image["id"]: image for image in labels.get("images", ())}
    samples: dict[Any, Sample] = {}
    for annotation in labels["annotations"]:
        sample = _sample(annotation, pictures, metadata)
        if sample["image_id"] in samples:
            raise ValueError(
                f"{path}: image id {sample['image_id']!r} has two annotations; keep one of them."
            )
        samples[sample["image_id"]] = sample
    if not samples:
        raise ValueError(f"{path}: the list 'annotations' is empty, so data set {name} has no picture.")
    first = next(iter(samples.values()))
    for key in ("file_name", "pan_seg_file_name", "sem_seg_file_name"):
        if key in first and not os.path.isfile(first[key]):
            raise FileNotFoundError(f"{first[key]} does not exist, but {path} names it.")
    return list(samples.values())


def _sample(annotation: Sample, pictures: Mapping[Any, Sample], metadata: Mapping[str, Any]) -> Sample:
    path = metadata["panoptic_json"]
    lacking = [key for key in ("image_id", "file_name", "segments_info") if key not in annotation]
    if lacking:
        raise ValueError(
            f"{path}: an annotation lacks {', '.join(map(repr, lacking))}; it has {list(annotation)}."
        )
    image_id = annotation["image_id"]
    stem = os.path.splitext(annotation["file_name"])[0]
    picture = pictures.get(image_id, {})
    sample = {
        "file_name": os.path.join(metadata["image_root"], picture.get("file_name", stem + ".jpg")),
        "image_id": image_id,
        "pan_seg_file_name": os.path.join(metadata["panoptic_root"], annotation["file_name"]),
        "segments_info": [_with_class_id(each, metadata, image_id) for each in annotation["segments_info"]],
    }
    sample.update({key: picture[key] for key in ("height", "width") if key in picture})
    if "sem_seg_root" in metadata:
        sample["sem_seg_file_name"] = os.path.join(metadata["sem_seg_root"], stem + ".png")
    return sample


def _with_class_id(segment: Sample, metadata: Mapping[str, Any], image_id: Any) -> Sample:
    category = segment["category_id"]
    things, stuff = (metadata[f"{kind}_dataset_id_to_contiguous_id"] for kind in ("thing", "stuff"))
    if category not in things and category not in stuff:
        raise ValueError(
            f"{metadata['panoptic_json']}: image {image_id!r} has category id {category}, which is not among "
            f"the data set's {len(things | stuff)} categories; correct the id or add the category."
        )
    # Things first: ADE20K's stuff map holds the things too.
    class_id = things[category] if category in things else stuff[category]
    return {**segment, "category_id": class_id, "isthing": category in things}


def panoptic_metadata(categories: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return Detectron2's panoptic metadata for categories whose class id is their place in the list.

    Both the thing and the stuff lists name every class, as Detectron2's drawing of panoptic results wants it;
    which class is a thing is told by the two id maps (data set id -> class id).

    Args:
        categories: `{"id", "name", "isthing"}` each, "color" ([R, G, B]) optional.
    """
    names = [category["name"] for category in categories]
    spare = distinct_colors(len(categories))
    colors = [list(category.get("color", spare[i])) for i, category in enumerate(categories)]
    things = {category["id"]: i for i, category in enumerate(categories) if category["isthing"]}
    stuff = {category["id"]: i for i, category in enumerate(categories) if not category["isthing"]}
    return {
        "thing_classes": names,
        "stuff_classes": list(names),
        "thing_colors": colors,
        "stuff_colors": list(colors),
        "thing_dataset_id_to_contiguous_id": things,
        "stuff_dataset_id_to_contiguous_id": stuff,
        "label_divisor": 1000,
    }
