"""What an evaluation will need, looked for before a training starts instead of at its end."""

import json
import logging
import os
from collections.abc import Mapping, Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from .build import CITYSCAPES, evaluators_of
from .cityscapes import require_cityscapesscripts
from .ground_truth import (
    Entry,
    entries_by_file,
    panoptic_classes,
    panoptic_target,
    semantic_classes,
    semantic_target,
)
from .panoptic_quality import segment_index

logger = logging.getLogger(__name__)

FILE_KEYS = ("file_name", "sem_seg_file_name", "pan_seg_file_name")


def check_ground_truth(cfg: CfgNode, dataset_names: Sequence[str], sample: int = 8) -> None:
    """Raise at once what would stop an evaluation of these data sets later.

    Looks whether needed packages are installed, all files exist, JSON files load, and in a sample of
    pictures, spread over each set, whether labels can be read and are classes of the data set.

    Args:
        cfg: configuration; MODEL.MASK_FORMER.TEST.{SEMANTIC,PANOPTIC,INSTANCE}_ON are read.
        dataset_names: what will be evaluated, as in DATASETS.TEST.
        sample: pictures to read of each set.

    Raises:
        ImportError: a package is missing.
        FileNotFoundError: a file is missing.
        ValueError, KeyError: labels, classes or annotations are not as they must be.
    """
    for dataset_name in dataset_names:
        wanted = evaluators_of(cfg, dataset_name)
        if any(make in CITYSCAPES for make in wanted.values()):
            require_cityscapesscripts(dataset_name)
        pictures = entries_by_file(dataset_name)
        if not pictures:
            raise ValueError(f"Data set {dataset_name} has no pictures to evaluate.")
        _check_files(pictures, dataset_name)
        chosen = list(pictures.values())[:: max(1, len(pictures) // max(1, sample))][:sample]
        if "PANOPTIC_ON" in wanted:
            _check_panoptic(chosen, dataset_name)
        if "SEMANTIC_ON" in wanted and wanted["SEMANTIC_ON"] not in CITYSCAPES:
            _check_semantic(chosen, dataset_name)
        if "INSTANCE_ON" in wanted and wanted["INSTANCE_ON"] not in CITYSCAPES:
            _check_instances(pictures, dataset_name)
        logger.info(
            "Ground truth of %s: %d pictures, all files there, %d read.",
            dataset_name,
            len(pictures),
            len(chosen),
        )


def _check_files(pictures: Mapping[str, Entry], dataset_name: str) -> None:
    """Look for every file of every picture; it costs microseconds each."""
    names = [picture[key] for picture in pictures.values() for key in FILE_KEYS if key in picture]
    missing = [name for name in names if not os.path.isfile(name)]
    if missing:
        raise FileNotFoundError(
            f"Data set {dataset_name}: {len(missing)} of {len(names)} files are missing, the first "
            f"{missing[0]}; see datasets/README.md for the expected layout."
        )


def _check_panoptic(pictures: Sequence[Entry], dataset_name: str) -> None:
    num_classes = len(panoptic_classes(dataset_name).names)
    for picture in pictures:
        panoptic_map, segments = panoptic_target(picture, num_classes)
        segment_index(panoptic_map, segments.ids, picture["pan_seg_file_name"])


def _check_semantic(pictures: Sequence[Entry], dataset_name: str) -> None:
    from_panoptic = not any("sem_seg_file_name" in picture for picture in pictures)
    classes = semantic_classes(dataset_name, from_panoptic)
    for picture in pictures:
        semantic_target(picture, len(classes.names), classes.ignore_label)


def _check_instances(pictures: Mapping[str, Entry], dataset_name: str) -> None:
    """Look whether the annotation file loads and is of the same pictures."""
    path = MetadataCatalog.get(dataset_name).json_file
    if not os.path.isfile(path):
        raise FileNotFoundError(f"Data set {dataset_name}: the instance annotations {path} are missing.")
    try:
        with open(path) as file:
            truth = json.load(file)
        image_ids = {image["id"] for image in truth["images"]}
        num_annotations = len(truth["annotations"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected COCO instance annotations with 'images', 'annotations' and 'categories' "
            f"({error})."
        ) from error
    strangers = [name for name, picture in pictures.items() if picture.get("image_id") not in image_ids]
    if strangers:
        raise ValueError(
            f"{path}: lists no image with the id of {len(strangers)} of the {len(pictures)} pictures of "
            f"{dataset_name}, the first {strangers[0]}; is it the file of another split?"
        )
    if num_annotations == 0:
        logger.warning("%s has no annotations; AP will be undefined.", path)
