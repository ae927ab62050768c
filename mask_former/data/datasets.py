"""The published data sets under their published names: one table, registered by `register_all`.

Classes come from `classes/*.json`; COCO's and Cityscapes' from Detectron2.
Only those JSON files are read before `DatasetCatalog.get` is called. The layout of each folder is in
datasets/README.md; `own_data.py` registers a user's own data sets.
"""

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.data.datasets import load_sem_seg
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES, COCO_CATEGORIES
from detectron2.data.datasets.cityscapes import load_cityscapes_semantic
from detectron2.data.datasets.cityscapes_panoptic import load_cityscapes_panoptic

from mask_former.formats import load_classes

from .coco import Entry, instance_metadata, load_instances, load_panoptic, panoptic_metadata
from .registration import datasets_root, register_published


class Source(NamedTuple):
    """The splits of one data set.

    name: registered name, with {split} in it.
    splits: split -> name of its folder, for {split} and {folder} in `paths`.
    paths: metadata key -> path under the root of the data sets.
    metadata: returns the rest of the metadata: classes, colours, id maps.
    load: (name, metadata) -> samples.
    advice: what to do when one of `paths` does not exist.
    optional: keys of `paths` that loading does not need.
    """

    name: str
    splits: dict[str, str]
    paths: dict[str, str]
    evaluator_type: str
    ignore_label: int | None
    metadata: Callable[[], dict[str, Any]]
    load: Callable[[str, dict[str, Any]], list[Entry]]
    advice: str
    optional: tuple[str, ...] = ()


def register_all(root: str | Path | None = None) -> None:
    """Register every published split under `root` (default: `datasets_root()`), see `register_published`.

    Splits that Detectron2 registers itself are replaced: its loaders neither expand `~` nor say what to do
    when files are missing. Calling it again moves all to another root.
    """
    root = str(datasets_root()) if root is None else os.path.expanduser(root)
    for source in SOURCES:
        for split, folder in source.splits.items():
            name = source.name.format(split=split)
            paths = {
                key: os.path.join(root, path.format(split=split, folder=folder))
                for key, path in source.paths.items()
            }
            metadata = {
                **paths,
                "evaluator_type": source.evaluator_type,
                **source.metadata(),
            }
            if source.ignore_label is not None:
                metadata["ignore_label"] = source.ignore_label
            register_published(name, partial(_load, name, source, metadata), metadata)


def _load(name: str, source: Source, metadata: dict[str, Any]) -> list[Entry]:
    needed = [metadata[key] for key in source.paths if key not in source.optional]
    missing = [path for path in needed if not os.path.exists(path)]
    if missing:
        raise FileNotFoundError(
            f"Data set {name} is missing: {missing[0]} does not exist. {source.advice} "
            "See datasets/README.md; $DETECTRON2_DATASETS names the folder that holds all data sets."
        )
    try:
        samples = source.load(name, metadata)
    except AssertionError as error:  # how Detectron2's loaders report missing files
        raise FileNotFoundError(f"Data set {name} is not complete: {error}. {source.advice}") from error
    return samples


def _load_label_maps(extension: str, name: str, metadata: Mapping[str, Any]) -> list[Entry]:
    return load_sem_seg(metadata["sem_seg_root"], metadata["image_root"], gt_ext=extension, image_ext="jpg")


def _load_cityscapes(name: str, metadata: Mapping[str, Any]) -> list[Entry]:
    return load_cityscapes_semantic(metadata["image_dir"], metadata["gt_dir"])


def _load_cityscapes_panoptic(name: str, metadata: Mapping[str, Any]) -> list[Entry]:
    paths = (metadata[key] for key in ("image_root", "panoptic_root", "panoptic_json"))
    samples = load_cityscapes_panoptic(*paths, metadata)
    things = set(metadata["thing_dataset_id_to_contiguous_id"].values())
    for segment in (segment for sample in samples for segment in sample["segments_info"]):
        segment["isthing"] = segment["category_id"] in things  # as in every other panoptic set
    return samples


def _semantic(table: str, count: int, colors: bool = False, id_map: bool = False) -> dict[str, Any]:
    classes = load_classes(table)[:count]
    metadata: dict[str, Any] = {"stuff_classes": [entry["name"] for entry in classes]}
    if colors:
        metadata["stuff_colors"] = [entry["color"] for entry in classes]
    if id_map:
        metadata["stuff_dataset_id_to_contiguous_id"] = {entry["id"]: i for i, entry in enumerate(classes)}
    return metadata


def _ade20k_panoptic() -> dict[str, Any]:
    metadata = panoptic_metadata(load_classes("ade20k_150"))
    # As published: all 150 ids, because the semantic labels hold things and stuff alike. Only the thing map
    # says whether a class is a thing.
    metadata["stuff_dataset_id_to_contiguous_id"] = {i: i for i in range(150)}
    return {**metadata, "json_file": None}


def _cityscapes() -> dict[str, Any]:
    return {
        "thing_classes": [category["name"] for category in CITYSCAPES_CATEGORIES if category["isthing"]],
        "stuff_classes": [category["name"] for category in CITYSCAPES_CATEGORIES],
        "stuff_colors": [category["color"] for category in CITYSCAPES_CATEGORIES],
    }


_ADE20K = "ADEChallengeData2016"
_ADE20K_FULL = "ADE20K_2021_17_01"
_COCO_STUFF = "coco/coco_stuff_10k"
_CITYSCAPES_TOOL = "Run: pip install cityscapesscripts; CITYSCAPES_DATASET=<root>/cityscapes "
_TRAIN_VAL = {"train": "training", "val": "validation"}

SOURCES = (
    Source(
        name="ade20k_sem_seg_{split}",
        splits=_TRAIN_VAL,
        paths={
            "image_root": _ADE20K + "/images/{folder}",
            "sem_seg_root": _ADE20K + "/annotations_detectron2/{folder}",
        },
        evaluator_type="sem_seg",
        ignore_label=255,
        metadata=partial(_semantic, "ade20k_150", 150, colors=True),
        load=partial(_load_label_maps, "png"),
        advice="Run: python datasets/prepare_ade20k_sem_seg.py",
    ),
    Source(
        name="ade20k_panoptic_{split}",
        splits=_TRAIN_VAL,
        paths={
            "image_root": _ADE20K + "/images/{folder}",
            "sem_seg_root": _ADE20K + "/annotations_detectron2/{folder}",
            "panoptic_root": _ADE20K + "/ade20k_panoptic_{split}",
            "panoptic_json": _ADE20K + "/ade20k_panoptic_{split}.json",
        },
        evaluator_type="ade20k_panoptic_seg",
        ignore_label=255,
        metadata=_ade20k_panoptic,
        load=load_panoptic,
        advice="Run: python datasets/prepare_ade20k_sem_seg.py && python datasets/prepare_ade20k_pan_seg.py",
    ),
    Source(
        name="ade20k_full_sem_seg_{split}",
        splits=_TRAIN_VAL,
        paths={
            "image_root": _ADE20K_FULL + "/images_detectron2/{folder}",
            "sem_seg_root": _ADE20K_FULL + "/annotations_detectron2/{folder}",
        },
        evaluator_type="sem_seg",
        ignore_label=65535,
        metadata=partial(_semantic, "ade20k_full_847", 847),
        load=partial(_load_label_maps, "tif"),
        advice="Run: python datasets/prepare_ade20k_full_sem_seg.py",
    ),
    Source(
        name="coco_2017_{split}_stuff_10k_sem_seg",
        splits={"train": "train", "test": "test"},
        paths={
            "image_root": _COCO_STUFF + "/images_detectron2/{folder}",
            "sem_seg_root": _COCO_STUFF + "/annotations_detectron2/{folder}",
        },
        evaluator_type="sem_seg",
        ignore_label=255,
        metadata=partial(_semantic, "coco_stuff_171", 171, id_map=True),
        load=partial(_load_label_maps, "png"),
        advice="Run: python datasets/prepare_coco_stuff_10k_v1.0_sem_seg.py",
    ),
    Source(
        name="mapillary_vistas_sem_seg_{split}",
        splits=_TRAIN_VAL,
        paths={
            "image_root": "mapillary_vistas/{folder}/images",
            "sem_seg_root": "mapillary_vistas/{folder}/labels",
        },
        evaluator_type="sem_seg",
        # The 66th class, Unlabeled, is not evaluated.
        ignore_label=65,
        metadata=partial(_semantic, "mapillary_vistas_66", 65, colors=True),
        load=partial(_load_label_maps, "png"),
        advice="Unpack release v1.2 of Mapillary Vistas there; nothing is to be prepared.",
    ),
    Source(
        name="cityscapes_fine_sem_seg_{split}",
        splits={"train": "train", "val": "val", "test": "test"},
        paths={
            "image_dir": "cityscapes/leftImg8bit/{folder}/",
            "gt_dir": "cityscapes/gtFine/{folder}/",
        },
        evaluator_type="cityscapes_sem_seg",
        ignore_label=255,
        metadata=_cityscapes,
        load=_load_cityscapes,
        advice=_CITYSCAPES_TOOL + "csCreateTrainIdLabelImgs",
    ),
    Source(
        name="cityscapes_fine_panoptic_{split}",
        splits={"train": "train", "val": "val"},
        paths={
            "image_root": "cityscapes/leftImg8bit/{folder}",
            "panoptic_root": "cityscapes/gtFine/cityscapes_panoptic_{folder}",
            "panoptic_json": "cityscapes/gtFine/cityscapes_panoptic_{folder}.json",
            "gt_dir": "cityscapes/gtFine/{folder}",
        },
        evaluator_type="cityscapes_panoptic_seg",
        ignore_label=255,
        metadata=partial(panoptic_metadata, CITYSCAPES_CATEGORIES),
        load=_load_cityscapes_panoptic,
        advice=_CITYSCAPES_TOOL + "csCreateTrainIdLabelImgs, then csCreatePanopticImgs",
    ),
    Source(
        name="coco_2017_{split}_panoptic",
        splits={"train": "train2017", "val": "val2017"},
        paths={
            "image_root": "coco/{folder}",
            "panoptic_root": "coco/panoptic_{folder}",
            "panoptic_json": "coco/annotations/panoptic_{folder}.json",
            "json_file": "coco/annotations/instances_{folder}.json",
        },
        evaluator_type="coco_panoptic_seg",
        ignore_label=255,
        metadata=partial(panoptic_metadata, COCO_CATEGORIES),
        load=load_panoptic,
        advice="Unpack COCO 2017's pictures and panoptic labels there; nothing is to be prepared.",
        optional=("json_file",),
    ),
    Source(
        name="coco_2017_{split}",
        splits={"train": "train2017", "val": "val2017"},
        paths={
            "image_root": "coco/{folder}",
            "json_file": "coco/annotations/instances_{folder}.json",
        },
        evaluator_type="coco",
        ignore_label=None,
        metadata=partial(
            instance_metadata, [category for category in COCO_CATEGORIES if category["isthing"]]
        ),
        load=load_instances,
        advice="Unpack COCO 2017's pictures and instance labels there; nothing is to be prepared.",
    ),
)
