"""What the catalog says about a data set's classes and pictures, and the truth of one picture."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from numpy.typing import NDArray

from mask_former.formats import read_label_map, read_panoptic_map

from .panoptic_quality import PanopticSegments, segment_index, segments_from_info
from .semantic_quality import to_classes

Entry = Mapping[str, Any]  # one picture of a data set, in Detectron2's format


class PanopticClasses(NamedTuple):
    """The K classes of a panoptic data set; dataset_ids are those of its files."""

    names: list[str]
    is_thing: NDArray[np.bool_]
    dataset_ids: list[int]


class SemanticClasses(NamedTuple):
    """The K classes of a semantic data set, and the label that is none of them."""

    names: list[str]
    ignore_label: int | None
    dataset_ids: list[int]


def metadata_value(metadata: Metadata, key: str, meaning: str) -> Any:
    """Return a value of the catalog, or raise a KeyError that says what to set."""
    if getattr(metadata, key, None) is None:
        raise KeyError(
            f"Data set {metadata.name} has no metadata '{key}' ({meaning}); "
            f"set it with MetadataCatalog.get('{metadata.name}').set({key}=...)."
        )
    return getattr(metadata, key)


def panoptic_classes(dataset_name: str) -> PanopticClasses:
    """Return the classes of a panoptic data set by its maps from dataset ids to contiguous ids.

    Things are what the thing map holds; the stuff map may hold them too, as that of ADE20K does.
    """
    metadata = MetadataCatalog.get(dataset_name)
    meaning = "dataset category id -> class index"
    things = metadata_value(metadata, "thing_dataset_id_to_contiguous_id", meaning)
    stuff = metadata_value(metadata, "stuff_dataset_id_to_contiguous_id", meaning)
    dataset_id_of = {index: dataset_id for dataset_id, index in [*stuff.items(), *things.items()]}
    thing_indices = set(things.values())
    clash = [i for dataset_id, i in stuff.items() if i in thing_indices and things.get(dataset_id) != i]
    if clash or sorted(dataset_id_of) != list(range(len(dataset_id_of))):
        raise ValueError(
            f"Data set {dataset_name}: the class indices of things and stuff must be 0..K-1 together, each "
            f"with one dataset id; found {sorted(dataset_id_of)}"
            + (f", shared {sorted(clash)}." if clash else ".")
        )
    names = [
        class_name(metadata, "thing_classes" if index in thing_indices else "stuff_classes", index)
        for index in range(len(dataset_id_of))
    ]
    is_thing = np.array([index in thing_indices for index in range(len(names))], np.bool_)
    return PanopticClasses(names, is_thing, [dataset_id_of[index] for index in range(len(names))])


def class_name(metadata: Metadata, key: str, index: int) -> str:
    """Return the name of a class from `thing_classes` or `stuff_classes`, or its number where it has none."""
    names = metadata_value(metadata, key, "class names by class index")
    return str(names[index]) if index < len(names) else f"class {index}"


def semantic_classes(dataset_name: str, from_panoptic: bool = False) -> SemanticClasses:
    """Return the classes of a data set's semantic labels, or of labels taken `from_panoptic` truth."""
    if from_panoptic:
        classes = panoptic_classes(dataset_name)
        return SemanticClasses(classes.names, None, classes.dataset_ids)
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
    return SemanticClasses(names, getattr(metadata, "ignore_label", None), dataset_ids)


def entries_by_file(dataset_name: str) -> dict[str, Entry]:
    """Return the pictures of a data set by `file_name`; a name or image id that comes twice is an error."""
    pictures: dict[str, Entry] = {}
    image_ids = set()
    for picture in DatasetCatalog.get(dataset_name):
        name = picture["file_name"]
        if name in pictures or picture.get("image_id", name) in image_ids:
            raise ValueError(
                f"Data set {dataset_name} lists {name} (image id {picture.get('image_id')}) twice; "
                "each picture needs a file and an image id of its own."
            )
        pictures[name] = picture
        image_ids.add(picture.get("image_id", name))
    return pictures


def entry_of(pictures: Mapping[str, Entry], file_name: str, dataset_name: str) -> Entry:
    """Return the data set's entry of a picture that was evaluated."""
    if file_name not in pictures:
        raise KeyError(f"{file_name} was evaluated, but is none of the {len(pictures)} of {dataset_name}.")
    return pictures[file_name]


def panoptic_target(entry: Entry, num_classes: int) -> tuple[NDArray[np.int32], PanopticSegments]:
    """Return the true panoptic map (H, W) of a picture, and its segments."""
    if "pan_seg_file_name" not in entry:
        raise KeyError(f"{entry['file_name']}: the data set gives no panoptic truth ('pan_seg_file_name').")
    source = entry["pan_seg_file_name"]
    infos = entry.get("segments_info", [])
    segments = segments_from_info(infos, {index: index for index in range(num_classes)}, source)
    return read_panoptic_map(source), segments


def semantic_target(entry: Entry, num_classes: int, ignore_label: int | None) -> NDArray[np.int64]:
    """Return the true classes (H, W) of a picture in 0..K-1, void as K.

    A picture without semantic labels has those of its panoptic truth, crowds included.
    """
    if "sem_seg_file_name" in entry:
        source = entry["sem_seg_file_name"]
        return to_classes(read_label_map(source), num_classes, ignore_label, source)
    if "pan_seg_file_name" not in entry:
        raise KeyError(
            f"{entry['file_name']}: the data set gives no semantic truth "
            "('sem_seg_file_name' or 'pan_seg_file_name')."
        )
    panoptic_map, segments = panoptic_target(entry, num_classes)
    class_of_segment = np.concatenate([[num_classes], segments.classes])
    return class_of_segment[segment_index(panoptic_map, segments.ids, entry["pan_seg_file_name"])]
