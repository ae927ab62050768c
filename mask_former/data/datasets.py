"""The published data sets under their published names, listed in `published.json`.

Classes come from `classes/*.json`; COCO's and Cityscapes' from Detectron2. Only JSON files of the package
are read before `DatasetCatalog.get` is called. The layout of each folder is in datasets/README.md;
`own_data.py` registers a user's own data sets.
"""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import builtin, load_sem_seg
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES, COCO_CATEGORIES
from detectron2.data.datasets.cityscapes import load_cityscapes_semantic
from detectron2.data.datasets.cityscapes_panoptic import load_cityscapes_panoptic

from mask_former.formats import load_classes

from .coco import Entry, instance_metadata, load_instances, load_panoptic, panoptic_metadata

logger = logging.getLogger(__name__)

Categories = Sequence[Mapping[str, Any]]
Load = Callable[[], list[Entry]]
_registered: dict[str, Load] = {}  # what this package registered


class Source(NamedTuple):
    """The splits of one data set."""

    name: str  # registered, with {split} in it
    kind: str  # of the labels, a key of `KINDS`
    classes: str  # "coco", "cityscapes" or a class table
    splits: dict[str, str]  # split -> name of its folder, for {split} and {folder} in `paths`
    paths: dict[str, str]  # metadata key -> path under the root of the data sets
    evaluator_type: str
    ignore_label: int | None
    advice: str  # what to do when one of `paths` does not exist


SOURCES = [Source(**row) for row in json.loads(Path(__file__).with_name("published.json").read_text())]


def datasets_root() -> Path:
    """Return the folder that holds all data sets: $DETECTRON2_DATASETS, `~` allowed, or "datasets"."""
    return Path(os.environ.get("DETECTRON2_DATASETS") or "datasets").expanduser()


def register_all(root: str | Path | None = None) -> None:
    """Register every published split under `root` (default: `datasets_root()`), see `register_published`.

    Splits that Detectron2 registers itself are replaced: its loaders neither expand `~` nor say what to do
    when files are missing. Calling it again moves all to another root.
    """
    root = str(datasets_root()) if root is None else os.path.expanduser(root)
    for source in SOURCES:
        classes = _CLASSES.get(source.classes) or load_classes(source.classes)
        if source.ignore_label is not None:  # Mapillary's 66th class, Unlabeled, is its ignore label
            classes = classes[: source.ignore_label]
        for split, folder in source.splits.items():
            name = source.name.format(split=split)
            metadata: dict[str, Any] = {
                key: os.path.join(root, path.format(split=split, folder=folder))
                for key, path in source.paths.items()
            }
            metadata |= {"evaluator_type": source.evaluator_type, **KINDS[source.kind][0](classes)}
            if source.ignore_label is not None:
                metadata["ignore_label"] = source.ignore_label
            register_published(name, partial(_load, name, source, metadata), metadata)


def register_published(name: str, load: Load, metadata: Mapping[str, Any]) -> None:
    """Register a set of this package in place of Detectron2's own or of an earlier registration by this one.

    A set that the user registered under the same name stays. The metadata object of a replaced set stays
    too, with new content, since others may hold it.
    """
    if name in DatasetCatalog and not (
        DatasetCatalog.data[name] is _registered.get(name) or _is_detectron2s(name)
    ):
        logger.info("Data set %s is registered already, not by this package: it stays as it is.", name)
        return
    DatasetCatalog.pop(name, None)
    DatasetCatalog.register(name, load)
    _registered[name] = load
    entry = MetadataCatalog.get(name)
    for key in set(entry.as_dict()) - {"name"}:
        delattr(entry, key)
    entry.set(**metadata)


def _is_detectron2s(name: str) -> bool:
    """Tell whether Detectron2's import registered a set; a user may use its functions with other folders."""
    if not DatasetCatalog.data[name].__module__.startswith("detectron2.data.datasets."):
        return False
    metadata = MetadataCatalog.get(name).as_dict()
    folder = metadata.get("image_root") or metadata.get("image_dir") or ""
    return folder.startswith(os.path.join(builtin._root, ""))


def _load(name: str, source: Source, metadata: dict[str, Any]) -> list[Entry]:
    is_panoptic = "panoptic_json" in source.paths  # where COCO's instances file is for the evaluator alone
    needed = [metadata[key] for key in source.paths if not (is_panoptic and key == "json_file")]
    missing = [path for path in needed if not os.path.exists(path)]
    if missing:
        raise FileNotFoundError(
            f"Data set {name} is missing: {missing[0]} does not exist. {source.advice} "
            "See datasets/README.md; $DETECTRON2_DATASETS names the folder that holds all data sets."
        )
    try:
        return KINDS[source.kind][1](name, metadata)
    except AssertionError as error:  # how Detectron2's loaders report missing files
        raise FileNotFoundError(f"Data set {name} is not complete: {error}. {source.advice}") from error


def _load_semantic(name: str, metadata: Mapping[str, Any], extension: str = "png") -> list[Entry]:
    return load_sem_seg(metadata["sem_seg_root"], metadata["image_root"], gt_ext=extension, image_ext="jpg")


def _load_cityscapes(name: str, metadata: Mapping[str, Any]) -> list[Entry]:
    return load_cityscapes_semantic(metadata["image_dir"], metadata["gt_dir"])


def _load_cityscapes_panoptic(name: str, metadata: Mapping[str, Any]) -> list[Entry]:
    paths = (metadata[key] for key in ("image_root", "panoptic_root", "panoptic_json"))
    entries = load_cityscapes_panoptic(*paths, metadata)
    things = set(metadata["thing_dataset_id_to_contiguous_id"].values())
    for segment in (segment for entry in entries for segment in entry["segments_info"]):
        segment["isthing"] = segment["category_id"] in things  # as in every other panoptic set
    return entries


def _semantic_metadata(classes: Categories) -> dict[str, Any]:
    metadata: dict[str, Any] = {"stuff_classes": [entry["name"] for entry in classes]}
    if all("color" in entry for entry in classes):
        metadata["stuff_colors"] = [entry["color"] for entry in classes]
    id_map = {entry.get("id"): class_id for class_id, entry in enumerate(classes)}
    if None not in id_map and list(id_map) != list(range(len(classes))):
        metadata["stuff_dataset_id_to_contiguous_id"] = id_map
    return metadata


def _cityscapes_metadata(classes: Categories) -> dict[str, Any]:
    return {
        "thing_classes": [category["name"] for category in classes if category["isthing"]],
        "stuff_classes": [category["name"] for category in classes],
        "stuff_colors": [category["color"] for category in classes],
    }


def _ade20k_panoptic_metadata(classes: Categories) -> dict[str, Any]:
    # As published: all 150 ids, because the semantic labels hold things and stuff alike. Only the thing map
    # says whether a class is a thing.
    stuff_map = {class_id: class_id for class_id in range(len(classes))}
    own = {"stuff_dataset_id_to_contiguous_id": stuff_map, "json_file": None}
    return {**panoptic_metadata(classes), **own}


_CLASSES: dict[str, Categories] = {"coco": COCO_CATEGORIES, "cityscapes": CITYSCAPES_CATEGORIES}
# Kind of labels -> metadata of the classes, and the loader that takes the name and the whole metadata.
KINDS: dict[str, tuple[Callable[[Categories], dict[str, Any]], Callable[..., list[Entry]]]] = {
    "semantic": (_semantic_metadata, _load_semantic),
    "semantic_tif": (_semantic_metadata, partial(_load_semantic, extension="tif")),
    "panoptic": (panoptic_metadata, load_panoptic),
    "ade20k_panoptic": (_ade20k_panoptic_metadata, load_panoptic),
    "instance": (lambda classes: instance_metadata([c for c in classes if c["isthing"]]), load_instances),
    "cityscapes_semantic": (_cityscapes_metadata, _load_cityscapes),
    "cityscapes_panoptic": (panoptic_metadata, _load_cityscapes_panoptic),
}
