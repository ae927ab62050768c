"""Data sets in COCO's formats: the entries of their pictures, and the metadata of their classes."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pycocotools.mask
from detectron2.structures import BoxMode

from mask_former.formats import distinct_colors, panoptic_annotations, picture_size, read_json, run_lengths_of

from .own.classes import check_names, first_repeated

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
    """Return the entries of instance labels in COCO's format, in the order of their ids.

    Args:
        name: of the data set; not needed here.
        metadata: `image_root`, `json_file`, `thing_dataset_id_to_contiguous_id`.
    """
    path, class_of = metadata["json_file"], metadata["thing_dataset_id_to_contiguous_id"]
    content = read_json(path, keys=("images", "annotations", "categories"))
    unknown = sorted({str(a["category_id"]) for a in content["annotations"]} - set(map(str, class_of)))
    if unknown:
        raise ValueError(
            f"{path}: annotations have the category ids {', '.join(unknown[:8])}, which are none of the data "
            f"set's {len(class_of)} categories; correct the ids or add the categories."
        )
    return instance_entries(content, metadata["image_root"], class_of)


def instance_entries(
    content: Mapping[str, Any], image_root: str | Path, class_of: Mapping[Any, int]
) -> list[Entry]:
    """Return the entries of a JSON file in COCO's instance form, in the order of their ids.

    What the file leaves out follows: the size from the picture, boxes from masks. Polygons of fewer than
    three corners, instances without any other, and annotations of no image are left out.

    Args:
        content: of the file.
        image_root: folder of the pictures.
        class_of: category id -> class id; other categories get -1, which no mapper accepts.
    """
    annotations: dict[Any, list[Entry]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        annotations.get(annotation.get("image_id"), []).append(annotation)
    images = content["images"]
    if not any(isinstance(image["id"], str) for image in images):
        images = sorted(images, key=lambda image: image["id"])
    entries = []
    for image in images:
        entry = {
            "file_name": os.path.join(image_root, image["file_name"]),
            "height": image.get("height"),
            "width": image.get("width"),
            "image_id": image["id"],
        }
        if not (entry["height"] and entry["width"]) and os.path.isfile(entry["file_name"]):
            entry["width"], entry["height"] = picture_size(entry["file_name"])
        instances = (_instance(annotation, class_of) for annotation in annotations[image["id"]])
        entries.append({**entry, "annotations": [instance for instance in instances if instance]})
    return entries


def _instance(annotation: Entry, class_of: Mapping[Any, int]) -> Entry | None:
    """Return an annotation in Detectron2's form, or None if it has no polygon of three corners or more."""
    category, mask = annotation.get("category_id"), annotation.get("segmentation")
    if isinstance(category, str) and category not in class_of and category.isdigit():
        category = int(category)
    instance: Entry = {key: annotation[key] for key in ("id", "iscrowd", "area", "bbox") if key in annotation}
    instance |= {"category_id": class_of.get(category, -1), "bbox_mode": BoxMode.XYWH_ABS}
    if isinstance(mask, list) and mask and isinstance(mask[0], list):
        mask = [polygon for polygon in mask if len(polygon) >= 6 and len(polygon) % 2 == 0]
        if not mask:
            return None
        instance.setdefault("bbox", box_of_polygons(mask))
    elif isinstance(mask, dict):
        mask = run_lengths_of(mask, *mask["size"])
        if "bbox" not in instance:
            instance["bbox"] = pycocotools.mask.toBbox(mask).tolist()
    return {**instance, "segmentation": mask} if mask else instance


def box_of_polygons(polygons: Sequence[Sequence[float]]) -> list[float]:
    """Return the smallest box around polygons, as COCO's x, y, width, height."""
    xs = [x for polygon in polygons for x in polygon[::2]]
    ys = [y for polygon in polygons for y in polygon[1::2]]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def categories_of(content: Mapping[str, Any], path: str | Path, keys: Sequence[str]) -> list[Entry]:
    """Return the categories of a COCO file, sorted by id; one without these keys is an error."""
    categories = content["categories"]
    for category in categories:
        missing = [key for key in keys if key not in category]
        if missing:
            raise ValueError(f"{path}: category {category} lacks {', '.join(map(repr, missing))}; add it.")
    repeated = first_repeated(category["id"] for category in categories)
    if repeated is not None:
        raise ValueError(f"{path}: categories has id {repeated!r} more than once; ids must be unique.")
    is_text = any(isinstance(category["id"], str) for category in categories)
    categories = sorted(categories, key=lambda category: str(category["id"]) if is_text else category["id"])
    check_names([category["name"] for category in categories], path)
    return categories


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
