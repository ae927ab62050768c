"""Data sets in COCO's formats: the entries of their pictures, and the metadata of their classes."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.data.datasets import load_coco_json

from mask_former.formats import distinct_colors, panoptic_annotations, read_json

Entry = dict[str, Any]  # one picture in Detectron2's data set format


def load_panoptic(name: str, metadata: Mapping[str, Any]) -> list[Entry]:
    """Return the entries of panoptic labels in COCO's format.

    Unlike Detectron2's loader it accepts image ids that are not numbers (ADE20K's are file stems), and
    pictures that are not JPEG. Category ids become class ids.

    Args:
        name: of the data set; not needed here.
        metadata: `image_root`, `panoptic_root`, `panoptic_json`, the two id maps; `sem_seg_root` optional.
    """
    path = metadata["panoptic_json"]
    content = read_json(path, keys=("annotations",))
    pictures = {image["id"]: image for image in content.get("images", ())}
    annotations = panoptic_annotations(content, path).values()
    entries = [_entry(annotation, pictures, metadata) for annotation in annotations]
    first = entries[0]
    for key in ("file_name", "pan_seg_file_name", "sem_seg_file_name"):
        if key in first and not os.path.isfile(first[key]):
            raise FileNotFoundError(f"{first[key]} does not exist, but {path} names it.")
    return entries


def _entry(annotation: Entry, pictures: Mapping[Any, Entry], metadata: Mapping[str, Any]) -> Entry:
    image_id = annotation["image_id"]
    stem = os.path.splitext(annotation["file_name"])[0]
    picture = pictures.get(image_id, {})
    entry = {
        "file_name": os.path.join(metadata["image_root"], picture.get("file_name", stem + ".jpg")),
        "image_id": image_id,
        "pan_seg_file_name": os.path.join(metadata["panoptic_root"], annotation["file_name"]),
        "segments_info": [_with_class_id(each, metadata, image_id) for each in annotation["segments_info"]],
    }
    entry |= {key: picture[key] for key in ("height", "width") if key in picture}
    if "sem_seg_root" in metadata:
        entry["sem_seg_file_name"] = os.path.join(metadata["sem_seg_root"], stem + ".png")
    return entry


def _with_class_id(segment: Entry, metadata: Mapping[str, Any], image_id: Any) -> Entry:
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


def load_instances(name: str, metadata: Mapping[str, Any]) -> list[Entry]:
    """Return the entries of instance labels in COCO's format, read by Detectron2."""
    return load_coco_json(metadata["json_file"], metadata["image_root"], name)


def instance_metadata(categories: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return Detectron2's metadata of instance labels; a category's class id is its place in the list.

    Args:
        categories: `{"id", "name"}` each, "color" ([R, G, B]) optional.
    """
    spare = distinct_colors(len(categories))
    return {
        "thing_classes": [category["name"] for category in categories],
        "thing_colors": [list(c.get("color", color)) for c, color in zip(categories, spare, strict=True)],
        "thing_dataset_id_to_contiguous_id": {category["id"]: i for i, category in enumerate(categories)},
    }


def panoptic_metadata(categories: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return Detectron2's panoptic metadata for categories with "isthing" too.

    Both the thing and the stuff lists name every class, as Detectron2's drawing of panoptic results expects;
    the two id maps (data set id -> class id) say which class is a thing.
    """
    every = instance_metadata(categories)
    id_map = every["thing_dataset_id_to_contiguous_id"]
    things = {category["id"] for category in categories if category["isthing"]}
    return {
        **every,
        "stuff_classes": list(every["thing_classes"]),
        "stuff_colors": list(every["thing_colors"]),
        "thing_dataset_id_to_contiguous_id": {i: c for i, c in id_map.items() if i in things},
        "stuff_dataset_id_to_contiguous_id": {i: c for i, c in id_map.items() if i not in things},
        "label_divisor": 1000,
    }
