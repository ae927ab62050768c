"""Panoptic quality of predictions in COCO's panoptic form."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mask_former.formats import read_panoptic_map

from .panoptic_quality import count_picture, no_counts, panoptic_scores, segments_from_info, sum_counts
from .saved import Scores, load_json, require_all


def score_panoptic(
    predictions: Path, truth: Path, prediction_folder: Path | None = None, truth_folder: Path | None = None
) -> Scores:
    """Return panoptic quality of predictions in COCO's panoptic form: JSON and a folder of PNG files.

    Args:
        predictions: JSON with "annotations".
        truth: JSON with "annotations" and "categories".
        prediction_folder: PNG files of `predictions`; by default the folder beside it with its name, or its
            own folder.
        truth_folder: PNG files of `truth`; by default the folder with its name, beside it or one level up.
    """
    truths = _annotations(truth)
    guesses = _annotations(predictions)
    require_all(truths.keys(), guesses.keys(), predictions)
    truth_folder = truth_folder or _folder_of(truth, truths, truth.parent.parent / truth.stem)
    prediction_folder = prediction_folder or _folder_of(predictions, guesses, predictions.parent)
    categories = load_json(truth).get("categories") or []
    if not categories:
        raise ValueError(
            f"{truth}: holds no 'categories'; they say which ids there are, and which are things."
        )
    class_of = {int(category["id"]): index for index, category in enumerate(categories)}
    counts = no_counts(len(categories))
    for image_id, annotation in tqdm(truths.items(), "panoptic quality", disable=None):
        path = truth_folder / annotation["file_name"]
        guess_path = prediction_folder / guesses[image_id]["file_name"]
        target = segments_from_info(annotation["segments_info"], class_of, f"{truth}, {path.name}")
        infos = guesses[image_id]["segments_info"]
        guess = segments_from_info(infos, class_of, f"{predictions}, {guess_path.name}")
        maps = (read_panoptic_map(path), read_panoptic_map(guess_path))
        picture = count_picture(maps[0], target, maps[1], guess, len(categories), str(guess_path))
        counts = sum_counts([counts, picture])
    is_thing = np.array([bool(category.get("isthing", 1)) for category in categories])
    return {"panoptic_seg": panoptic_scores(counts, [str(c["name"]) for c in categories], is_thing)}


def _annotations(path: Path) -> dict[Any, dict[str, Any]]:
    """Return the annotations of panoptic JSON by image id."""
    content = load_json(path)
    annotations = content.get("annotations") if isinstance(content, dict) else None
    if not annotations:
        raise ValueError(
            f"{path}: expected panoptic JSON with a list 'annotations', found none or an empty one."
        )
    by_id: dict[Any, dict[str, Any]] = {}
    for annotation in annotations:
        absent = {"image_id", "file_name", "segments_info"} - annotation.keys()
        if absent:
            raise ValueError(
                f"{path}: an annotation has no {', '.join(sorted(absent))}; found {list(annotation)}."
            )
        if annotation["image_id"] in by_id:
            raise ValueError(f"{path}: image id {annotation['image_id']} has two annotations.")
        by_id[annotation["image_id"]] = annotation
    return by_id


def _folder_of(json_file: Path, annotations: Mapping[Any, Mapping[str, Any]], other: Path) -> Path:
    """Return the folder that holds the first PNG file that a panoptic JSON file names."""
    name = next(iter(annotations.values()))["file_name"]
    candidates = [json_file.with_suffix(""), other]
    for folder in candidates:
        if (folder / name).is_file():
            return folder
    raise FileNotFoundError(
        f"{json_file}: {name} is neither in {candidates[0]} nor in {candidates[1]}; "
        "say where the PNG files are with --pred-folder or --gt-folder."
    )
