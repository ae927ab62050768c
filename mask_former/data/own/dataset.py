"""A user's data set as it was found in a folder, and its registration."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

from mask_former.data.coco import instance_metadata, panoptic_metadata

# Layout -> what it holds, in words.
LAYOUTS = {
    "label-maps": "semantic label maps",
    "binary-masks": "binary masks",
    "class-masks": "binary masks, a folder a class",
    "color-labels": "semantic labels in colours",
    "voc": "semantic label maps as Pascal VOC has them",
    "cityscapes": "semantic label maps as Cityscapes has them",
    "coco-instance": "COCO instances",
    "coco-panoptic": "COCO panoptic labels",
    "yolo": "YOLO segmentation",
    "labelme": "labelme polygons",
}
_registered: set[str] = set()  # what `register` registered


@dataclass(frozen=True)
class OwnDataset:
    """Classes and records of one folder; pictures and labels are read later, in place.

    Attributes:
        folder, layout: where it lies, and the name of its layout, a key of `LAYOUTS`.
        task: "semantic", "instance" or "panoptic".
        classes: K names in the order of the ids.
        thing_classes: ids of the classes whose segments are objects; empty for semantic labels.
        colors: K times (R, G, B).
        classes_from: the file or rule that named the classes, for messages.
        ignore_label: value of pixels without a class, in semantic labels.
        splits: "train", "val" and, if there is one, "test" -> Detectron2's dataset dicts. A picture without
            a label has a record without the label's key. Some layouts read the label file of a record when
            it is taken from the sequence, which may raise ValueError.
        category_ids: K ids of the classes in the files; the class ids where empty.
        json_files: split -> the file of its annotations, where the layout has such a file.
        stray_labels: label files that belong to no picture.
        notes: what was decided without being asked, such as the void value or the split, for messages.
    """

    folder: Path
    layout: str
    task: str
    classes: tuple[str, ...]
    thing_classes: frozenset[int]
    colors: tuple[tuple[int, int, int], ...]
    classes_from: str
    ignore_label: int
    splits: Mapping[str, Sequence[dict[str, Any]]]
    category_ids: tuple[int, ...] = ()
    json_files: Mapping[str, Path] = field(default_factory=dict)
    stray_labels: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


class Offer(NamedTuple):
    """What a layout lacks in a folder, "" where it fits, and how it is read, if that is possible at all."""

    lacks: str
    read: Callable[[], OwnDataset] | None = None


def summary(dataset: OwnDataset) -> str:
    """Return one line: layout, classes, numbers of pictures, and what was decided."""
    words = {"train": "training", "val": "validation", "test": "test"}
    *first, last = [f"{len(records)} {words[split]}" for split, records in dataset.splits.items()]
    pictures = f"{', '.join(first)} and {last}" if first else last
    classes = f"{len(dataset.classes)} class{'es' if len(dataset.classes) > 1 else ''}"
    parts = (LAYOUTS[dataset.layout], f"{classes} from {dataset.classes_from}", f"{pictures} pictures")
    return ", ".join((*parts, *dataset.notes))


def register(dataset: OwnDataset) -> dict[str, str]:
    """Register each split as `<folder name>_<split>`, and return these names by split.

    A set of the same name that an earlier call registered is replaced.
    """
    names = {split: f"{dataset.folder.resolve().name}_{split}" for split in dataset.splits}
    for split, name in names.items():
        if name in _registered:
            DatasetCatalog.pop(name, None)
            MetadataCatalog.pop(name, None)
        # Records that are read when they are taken are read once.
        register_split(name, metadata_of(dataset), cache(partial(list, dataset.splits[split])))
        _registered.add(name)
    return names


def register_split(name: str, metadata: Mapping[str, Any], load: Callable[[], Any]) -> Metadata:
    """Register one set of pictures under a name that is free."""
    if name in DatasetCatalog:
        raise ValueError(
            f"A data set {name} is registered already; choose another name, or remove that one first with "
            f"DatasetCatalog.remove({name!r}) and MetadataCatalog.remove({name!r})."
        )
    DatasetCatalog.register(name, load)
    return MetadataCatalog.get(name).set(**metadata)


def metadata_of(dataset: OwnDataset) -> dict[str, Any]:
    """Return Detectron2's metadata of a data set, the same for all its splits."""
    if dataset.task == "semantic":
        return semantic_metadata(dataset.classes, dataset.colors, dataset.ignore_label)
    ids = dataset.category_ids or range(len(dataset.classes))
    categories = [
        {"id": category_id, "name": name, "color": color, "isthing": number in dataset.thing_classes}
        for number, (category_id, name, color) in enumerate(
            zip(ids, dataset.classes, dataset.colors, strict=True)
        )
    ]
    if dataset.task == "instance":
        return {"evaluator_type": "coco", **instance_metadata(categories)}
    kind = {"evaluator_type": "coco_panoptic_seg", "json_file": None, "ignore_label": dataset.ignore_label}
    return {**kind, **panoptic_metadata(categories)}


def semantic_metadata(
    classes: Sequence[str], colors: Sequence[Sequence[int]], ignore_label: int
) -> dict[str, Any]:
    """Return Detectron2's metadata of semantic labels."""
    return {
        "evaluator_type": "sem_seg",
        "ignore_label": ignore_label,
        "stuff_classes": list(classes),
        "stuff_colors": [list(color) for color in colors],
    }
