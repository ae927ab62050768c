"""Classes and pictures of a registered data set, and the ground truth of one picture."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from numpy.typing import NDArray

from mask_former.formats import coco_annotation, read_panoptic_map, read_semantic_label, semantic_label_files

from .quality import PanopticSegments, segment_index, segments_from_info, to_classes

Entry = Mapping[str, Any]  # one picture of a data set, in Detectron2's format
PanopticTarget = tuple[NDArray[np.int32], PanopticSegments]  # map (H, W) and its segments
SWITCHES = {"sem_seg": "SEMANTIC_ON", "panoptic_seg": "PANOPTIC_ON", "instances": "INSTANCE_ON"}


class Classes(NamedTuple):
    """The K classes of a data set.

    dataset_ids: the category ids in the files of the data set.
    is_thing: (K,); empty if the data set is not panoptic.
    ignore_label: label in semantic files that is no class.
    """

    names: list[str]
    dataset_ids: list[int]
    is_thing: Sequence[bool] = ()
    ignore_label: int | None = None


def metadata_value(metadata: Metadata, key: str, meaning: str) -> Any:
    """Return a value of the metadata, or raise a KeyError that says what to set."""
    if getattr(metadata, key, None) is None:
        raise KeyError(
            f"Data set {metadata.name} has no metadata '{key}' ({meaning}); "
            f"set it with MetadataCatalog.get('{metadata.name}').set({key}=...)."
        )
    return getattr(metadata, key)


def required_result(output: Mapping[str, Any], key: str) -> Any:
    """Return a result of the model, or raise a KeyError that names its configuration key."""
    if key not in output:
        raise KeyError(
            f"The model gave no '{key}' to evaluate; set MODEL.MASK_FORMER.TEST.{SWITCHES[key]} True."
        )
    return output[key]


def panoptic_classes(dataset_name: str) -> Classes:
    """Return the classes of a panoptic data set by its maps from dataset ids to contiguous ids.

    Things are the classes of the thing map; the stuff map may hold them too, as that of ADE20K does.
    """
    metadata = MetadataCatalog.get(dataset_name)
    meaning = "dataset category id -> class index"
    things = metadata_value(metadata, "thing_dataset_id_to_contiguous_id", meaning)
    stuff = metadata_value(metadata, "stuff_dataset_id_to_contiguous_id", meaning)
    dataset_id_of = {index: dataset_id for dataset_id, index in [*stuff.items(), *things.items()]}
    thing_indices = set(things.values())
    clash = [i for dataset_id, i in stuff.items() if i in thing_indices and things.get(dataset_id) != i]
    indices = range(len(dataset_id_of))
    if clash or sorted(dataset_id_of) != list(indices):
        raise ValueError(
            f"Data set {dataset_name}: the class indices of things and stuff must be 0..K-1 together, each "
            f"with one dataset id; found {sorted(dataset_id_of)}, with several ids: {sorted(clash)}."
        )
    is_thing = [index in thing_indices for index in indices]
    keys = ["thing_classes" if thing else "stuff_classes" for thing in is_thing]
    names = [class_name(metadata, key, index) for index, key in enumerate(keys)]
    return Classes(names, [dataset_id_of[index] for index in indices], is_thing)


def class_name(metadata: Metadata, key: str, index: int) -> str:
    """Return the name of a class from `thing_classes` or `stuff_classes`, or its number if it has none."""
    names = metadata_value(metadata, key, "class names by class index")
    return str(names[index]) if index < len(names) else f"class {index}"


def semantic_classes(dataset_name: str, entries: Mapping[str, Entry]) -> Classes:
    """Return the classes of a data set's semantic labels; if no entry has any, the panoptic classes."""
    if not any(map(semantic_label_files, entries.values())):
        return panoptic_classes(dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    names = [str(name) for name in metadata_value(metadata, "stuff_classes", "class names by class index")]
    ids = {
        index: dataset_id
        for key in ("thing_dataset_id_to_contiguous_id", "stuff_dataset_id_to_contiguous_id")
        for dataset_id, index in getattr(metadata, key, {}).items()
    }
    dataset_ids = [ids.get(index, index) for index in range(len(names))]
    if len(set(dataset_ids)) < len(names):
        dataset_ids = list(range(len(names)))
    return Classes(names, dataset_ids, ignore_label=getattr(metadata, "ignore_label", None))


def entries_by_file(dataset_name: str) -> dict[str, Entry]:
    """Return the pictures of a data set by `file_name`; a duplicate name or image id is an error."""
    entries: dict[str, Entry] = {}
    image_ids = set()
    for entry in DatasetCatalog.get(dataset_name):
        name = entry["file_name"]
        image_id = entry.get("image_id", name)
        if name in entries or image_id in image_ids:
            raise ValueError(
                f"Data set {dataset_name} lists {name} (image id {entry.get('image_id')}) twice; "
                "each picture needs a file and an image id of its own."
            )
        entries[name] = entry
        image_ids.add(image_id)
    return entries


def annotations_of_entries(dataset_name: str) -> dict[str, Any]:
    """Return the instances of a data set in the form of COCO's annotation files, from its entries."""
    metadata = MetadataCatalog.get(dataset_name)
    index_of = metadata_value(metadata, "thing_dataset_id_to_contiguous_id", "category id -> class index")
    names = metadata_value(metadata, "thing_classes", "class names by class index")
    category_of = {index: category for category, index in index_of.items()}
    images: list[Entry] = []
    annotations: list[Entry] = []
    for entry in entries_by_file(dataset_name).values():
        images.append({"id": entry["image_id"], "height": entry["height"], "width": entry["width"]})
        for instance in entry["annotations"]:
            ids = {"id": len(annotations) + 1, "image_id": entry["image_id"]}
            ids["category_id"] = category_of[instance["category_id"]]
            annotations.append({**ids, **coco_annotation(instance, entry["height"], entry["width"])})
    categories = [{"id": category, "name": names[index]} for category, index in index_of.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def panoptic_target(entry: Entry, num_classes: int) -> PanopticTarget:
    """Return the true panoptic map (H, W) of a picture, and its segments."""
    if "pan_seg_file_name" not in entry:
        raise KeyError(
            f"{entry['file_name']}: the data set gives no ground truth; expected 'pan_seg_file_name', or "
            "for semantic scores 'sem_seg_file_name'."
        )
    source = entry["pan_seg_file_name"]
    class_of = {index: index for index in range(num_classes)}
    return read_panoptic_map(source), segments_from_info(entry.get("segments_info", []), class_of, source)


def semantic_target(entry: Entry, num_classes: int, ignore_label: int | None) -> NDArray[np.int64]:
    """Return the true classes (H, W) of a picture in 0..K-1, void as K.

    Without semantic labels they are taken from the panoptic truth, crowds included.
    """
    files = semantic_label_files(entry)
    if files:
        return to_classes(read_semantic_label(entry), num_classes, ignore_label, files[0])
    panoptic_map, segments = panoptic_target(entry, num_classes)
    class_of_segment = np.concatenate([[num_classes], segments.classes])
    return class_of_segment[segment_index(panoptic_map, segments.ids, entry["pan_seg_file_name"])]
