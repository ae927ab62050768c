"""Semantic scores of predicted label files, or of run lengths in JSON."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mask_former.formats import LABEL_SUFFIXES, decode_mask, read_label_map

from .ground_truth import Picture, SemanticClasses, semantic_target
from .saved import Scores, load_json, require_all
from .semantic_scores import SemanticCounts, to_classes

PredictedClasses = Callable[[], NDArray[np.int64]]


def score_semantic(
    predictions: Path, pictures: Mapping[str, Picture], classes: SemanticClasses, void_is_background: bool
) -> Scores:
    """Return mIoU and its kin, and PQ of each class as one segment.

    Args:
        predictions: a folder of label files, or `sem_seg_predictions.json`.
        pictures: the true pictures by stem, as from `label_files` or `pictures_by_stem`.
        classes: of the ground truth; its dataset_ids are the category ids of the JSON file.
        void_is_background: see `semantic_scores`.
    """
    read = _label_predictions if predictions.is_dir() else _run_length_predictions
    guesses = read(predictions, classes)
    require_all(pictures.keys(), guesses.keys(), predictions)
    counts = SemanticCounts(len(classes.names))
    for stem, picture in tqdm(pictures.items(), "semantic segmentation", disable=None):
        target = semantic_target(picture, len(classes.names), classes.ignore_label)
        counts.add(target, guesses[stem](), f"{predictions}, {stem}")
    return {"sem_seg": counts.scores(classes.names, void_is_background, segment_quality=True)}


def label_files(folder: Path) -> dict[str, Picture]:
    """Return the label files in a folder and below as pictures by stem."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in LABEL_SUFFIXES)
    if not paths:
        raise ValueError(f"{folder}: holds no label files ({', '.join(sorted(LABEL_SUFFIXES))}).")
    return pictures_by_stem({str(path): {"sem_seg_file_name": str(path)} for path in paths})


def pictures_by_stem(pictures: Mapping[str, Picture]) -> dict[str, Picture]:
    """Return pictures by the stem of their file name; two with the same stem are an error."""
    by_stem: dict[str, Picture] = {}
    for name, picture in pictures.items():
        stem = Path(name).stem
        if stem in by_stem:
            raise ValueError(f"{name}: there is another file {stem}.*; predictions are found by that name.")
        by_stem[stem] = {"file_name": name, **picture}
    return by_stem


def _label_predictions(folder: Path, classes: SemanticClasses) -> dict[str, PredictedClasses]:
    """Return, by stem, what reads a predicted label file."""

    def reader(path: str) -> PredictedClasses:
        return lambda: to_classes(read_label_map(path), len(classes.names), classes.ignore_label, path)

    return {stem: reader(picture["sem_seg_file_name"]) for stem, picture in label_files(folder).items()}


def _run_length_predictions(path: Path, classes: SemanticClasses) -> dict[str, PredictedClasses]:
    """Return, by stem, what decodes the run lengths of a picture."""
    class_of = {dataset_id: index for index, dataset_id in enumerate(classes.dataset_ids)}
    entries_of: dict[str, list[dict[str, Any]]] = {}
    for entry in load_json(path):
        if entry["category_id"] not in class_of:
            raise ValueError(
                f"{path}: {entry['file_name']} has category id {entry['category_id']}, which is none of the "
                f"{len(class_of)} of the ground truth; if ids are not class indices, give --dataset."
            )
        entries_of.setdefault(Path(entry["file_name"]).stem, []).append(entry)

    def reader(entries: list[dict[str, Any]]) -> PredictedClasses:
        return lambda: _paint(entries, class_of, str(path))

    return {stem: reader(entries) for stem, entries in entries_of.items()}


def _paint(entries: list[dict[str, Any]], class_of: Mapping[int, int], source: str) -> NDArray[np.int64]:
    """Return (H, W) classes in 0..K from the run lengths of one picture."""
    sizes = {tuple(entry["segmentation"]["size"]) for entry in entries}
    if len(sizes) > 1:
        raise ValueError(f"{source}: {entries[0]['file_name']} has masks of sizes {sorted(sizes)}.")
    painted = np.full(sizes.pop(), len(class_of), np.int64)
    for entry in entries:
        painted[decode_mask(entry["segmentation"])] = class_of[entry["category_id"]]
    return painted
