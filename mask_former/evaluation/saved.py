"""Scores of predictions in files, against ground truth in files or of a registered data set."""

import contextlib
import io
import logging
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from numpy.typing import NDArray
from tqdm import tqdm

from mask_former import formats

from . import quality
from .ground_truth import Classes, Entry, PanopticTarget, semantic_target

logger = logging.getLogger(__name__)

Scores = dict[str, dict[str, float]]  # task -> metric -> value in percent
ReadClasses = Callable[[], NDArray[np.int64]]  # gives the predicted classes (H, W) of one picture

COCO_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def task_of_predictions(path: Path) -> str:
    """Return "semantic" for a folder, and for JSON "panoptic", "instance" or "semantic", by its content."""
    if path.is_dir():
        return "semantic"
    content = formats.read_json(path)
    if isinstance(content, dict) and "annotations" in content:
        return "panoptic"
    first = content[0] if isinstance(content, list) and content else None
    if isinstance(first, dict) and "score" in first:
        return "instance"
    if isinstance(first, dict) and {"file_name", "category_id", "segmentation"} <= first.keys():
        return "semantic"
    raise ValueError(
        f"{path}: expected an object with 'annotations' (panoptic), or a list of objects with 'score' (COCO) "
        "or with 'file_name', 'category_id' and 'segmentation' (semantic); if it has no entries, give --task."
    )


def score_panoptic(
    predictions: Path, truth: Path, prediction_folder: Path | None = None, truth_folder: Path | None = None
) -> Scores:
    """Return the panoptic quality of predictions in COCO's panoptic form: JSON and a folder of PNG files.

    Args:
        predictions: JSON with "annotations".
        truth: JSON with "annotations" and "categories".
        prediction_folder: PNG files of `predictions`; by default the folder with its name beside it, or its
            own folder.
        truth_folder: PNG files of `truth`; by default the folder with its name, beside it or one level up.
    """
    content = formats.read_json(truth, keys=("annotations", "categories"))
    targets = formats.panoptic_annotations(content, truth)
    results = formats.panoptic_annotations(formats.read_json(predictions, keys=("annotations",)), predictions)
    _require_all(targets, results, predictions)
    truth_folder = truth_folder or _folder_of(truth, targets, truth.parent.parent / truth.stem)
    prediction_folder = prediction_folder or _folder_of(predictions, results, predictions.parent)
    categories = content["categories"]
    if not categories:
        raise ValueError(f"{truth}: the list 'categories' is empty; expected ids and which are things.")
    class_of = {int(category["id"]): index for index, category in enumerate(categories)}

    def read(folder: Path, annotation: Mapping[str, Any], source: Path) -> PanopticTarget:
        path = folder / annotation["file_name"]
        segments = quality.segments_from_info(annotation["segments_info"], class_of, f"{source}, {path.name}")
        return formats.read_panoptic_map(path), segments

    counts = quality.no_counts(len(categories))
    for image_id, annotation in tqdm(targets.items(), "panoptic quality", disable=None):
        target = read(truth_folder, annotation, truth)
        predicted = read(prediction_folder, results[image_id], predictions)
        name = str(prediction_folder / results[image_id]["file_name"])
        picture = quality.count_picture(*target, *predicted, len(categories), name)
        counts = quality.sum_counts([counts, picture])
    names = [str(category["name"]) for category in categories]
    is_thing = [bool(category.get("isthing", 1)) for category in categories]
    return {"panoptic_seg": quality.panoptic_scores(counts, names, is_thing)}


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


def score_semantic(
    predictions: Path, entries: Mapping[str, Entry], classes: Classes, void_is_background: bool
) -> Scores:
    """Return mIoU, fwIoU, mACC, pACC, and PQ with each class of a picture as one segment.

    Args:
        predictions: a folder of label files, or `sem_seg_predictions.json`.
        entries: of the ground truth by stem, see `by_stem`.
        classes: of the ground truth; its dataset_ids are the category ids of the JSON file.
        void_is_background: see `semantic_quality`.
    """
    read = _label_predictions if predictions.is_dir() else _run_length_predictions
    results = read(predictions, classes)
    _require_all(entries, results, predictions)
    names = classes.names
    total, segments = np.zeros((len(names) + 1, len(names) + 1), np.int64), quality.no_counts(len(names))
    for stem, entry in tqdm(entries.items(), "semantic segmentation", disable=None):
        target = semantic_target(entry, len(names), classes.ignore_label)
        picture = quality.confusion_matrix(target, results[stem](), len(names), f"{predictions}, {stem}")
        total += picture
        segments = quality.sum_counts([segments, quality.count_class_segments(picture)])
    semantic = quality.semantic_quality(total, names, void_is_background or None)
    return {"sem_seg": semantic | quality.panoptic_scores(segments, names)}


def label_files(folder: Path) -> dict[str, Entry]:
    """Return an entry for each label file in a folder and below, by stem."""
    paths = [str(path) for path in sorted(folder.rglob("*")) if path.suffix.lower() in formats.LABEL_SUFFIXES]
    if not paths:
        raise ValueError(f"{folder}: holds no label files ({', '.join(sorted(formats.LABEL_SUFFIXES))}).")
    return by_stem({path: {"sem_seg_file_name": path} for path in paths})


def by_stem(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Return entries by the stem of their file name; a duplicate is an error."""
    result: dict[str, Entry] = {}
    for name, entry in entries.items():
        stem = Path(name).stem
        if stem in result:
            raise ValueError(f"{name}: there is another file {stem}.*; predictions are found by that name.")
        result[stem] = {"file_name": name, **entry}
    return result


def _label_predictions(folder: Path, classes: Classes) -> dict[str, ReadClasses]:
    def read(path: str) -> NDArray[np.int64]:
        labels, ignore_label = formats.read_label_map(path), classes.ignore_label
        if labels.dtype == np.uint8 and ignore_label is not None and ignore_label > 255:
            ignore_label = 255  # where a file of 8 bits cannot hold it, see `ClassTable.void_label`
        return quality.to_classes(labels, len(classes.names), ignore_label, path)

    return {stem: partial(read, entry["sem_seg_file_name"]) for stem, entry in label_files(folder).items()}


def _run_length_predictions(path: Path, classes: Classes) -> dict[str, ReadClasses]:
    class_of = {dataset_id: index for index, dataset_id in enumerate(classes.dataset_ids)}
    results: dict[str, list[dict[str, Any]]] = {}
    for result in formats.read_json(path):
        if result["category_id"] not in class_of:
            raise ValueError(
                f"{path}: {result['file_name']} has category id {result['category_id']}, which is none of "
                f"the {len(class_of)} of the ground truth; if ids are not class indices, give --dataset."
            )
        results.setdefault(Path(result["file_name"]).stem, []).append(result)
    return {stem: partial(_paint, masks, class_of, str(path)) for stem, masks in results.items()}


def _paint(masks: list[dict[str, Any]], class_of: Mapping[int, int], source: str) -> NDArray[np.int64]:
    """Return (H, W) classes in 0..K from the run lengths of one picture."""
    sizes = {tuple(mask["segmentation"]["size"]) for mask in masks}
    if len(sizes) > 1:
        raise ValueError(f"{source}: {masks[0]['file_name']} has masks of sizes {sorted(sizes)}.")
    painted = np.full(sizes.pop(), len(class_of), np.int64)
    for mask in masks:
        painted[formats.decode_mask(mask["segmentation"])] = class_of[mask["category_id"]]
    return painted


def score_instances(predictions: Path, truth: Path) -> Scores:
    """Return COCO's average precision in percent for the boxes and for the masks of a results file.

    Args:
        predictions: a list of objects with "image_id", "category_id", "score" and "bbox" or "segmentation".
        truth: COCO instance annotations.

    Returns:
        "bbox" and "segm", as far as predicted: `COCO_METRICS` and `AP-<class name>`; NaN if the ground
        truth has nothing of that size or class.
    """
    results = formats.read_json(predictions)
    content = formats.read_json(truth, keys=("images", "annotations", "categories"))
    _check_results(results, content, predictions, truth)
    by_id = {category["id"]: str(category["name"]) for category in content["categories"]}
    names = [by_id[index] for index in sorted(by_id)]
    if not results:
        return {"segm": dict.fromkeys((*COCO_METRICS, *(f"AP-{name}" for name in names)), 0.0)}
    keys = {"bbox": "bbox", "segm": "segmentation"}
    tasks = [task for task, key in keys.items() if all(key in result for result in results)]
    MetadataCatalog.pop(str(truth), None)
    MetadataCatalog.get(str(truth)).set(json_file=str(truth), thing_classes=names)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        evaluator = COCOEvaluator(str(truth), tasks or ["segm"], distributed=False, use_fast_impl=False)
        evaluator._predictions = [{"instances": results}]
        scores = evaluator.evaluate()
    if len(names) == 1:  # Detectron2 gives no scores by class then
        scores = {task: values | {f"AP-{names[0]}": values["AP"]} for task, values in scores.items()}
    return dict(scores)


def _check_results(results: Any, truth: dict[str, Any], predictions: Path, truth_path: Path) -> None:
    """Raise ValueError if results cannot be of these annotations."""
    image_ids = {image["id"] for image in truth["images"]}
    category_ids = {category["id"] for category in truth["categories"]}
    if len(image_ids) < len(truth["images"]):
        raise ValueError(f"{truth_path}: {len(truth['images']) - len(image_ids)} image ids are there twice.")
    for result in results if isinstance(results, list) else [results]:
        keys = set(result) if isinstance(result, dict) else set()
        if not {"image_id", "category_id", "score"} <= keys or not {"bbox", "segmentation"} & keys:
            raise ValueError(
                f"{predictions}: expected a list of objects with 'image_id', 'category_id', 'score' and "
                f"'bbox' or 'segmentation'; found {type(result).__name__} with {sorted(keys)}."
            )
        if result["image_id"] not in image_ids or result["category_id"] not in category_ids:
            raise ValueError(
                f"{predictions}: image id {result['image_id']} with category id {result['category_id']} is "
                f"not in {truth_path}; is it the annotation file of another data set or split?"
            )


def _require_all(targets: Collection[Any], results: Collection[Any], predictions: Path) -> None:
    """Raise ValueError if a picture has no prediction; warn of predictions without ground truth."""
    missing = [key for key in targets if key not in results]
    if missing:
        raise ValueError(
            f"{predictions}: {len(missing)} of {len(targets)} true pictures have no prediction, "
            f"the first {missing[0]}; is it the ground truth of another split?"
        )
    extra = len(results) - len(targets)
    if extra:
        logger.warning(
            "%s: %d predictions are of pictures without ground truth and do not count.", predictions, extra
        )
