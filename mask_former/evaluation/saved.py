"""Scores of predictions in files, against ground truth in files or of a registered data set."""

import contextlib
import functools
import io
import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tqdm import tqdm

from mask_former.formats import (
    LABEL_SUFFIXES,
    decode_mask,
    panoptic_annotations,
    read_json,
    read_label_map,
    read_panoptic_map,
)

from .ground_truth import Entry, SemanticClasses, metadata_value, semantic_target
from .panoptic_quality import count_picture, no_counts, panoptic_scores, segments_from_info, sum_counts
from .semantic_quality import SemanticCounts, to_classes

logger = logging.getLogger(__name__)

Scores = dict[str, dict[str, float]]  # task -> metric -> value in percent
ReadClasses = Callable[[], NDArray[np.int64]]  # gives the predicted classes (H, W) of one picture
COCO_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def task_of_predictions(path: Path) -> str:
    """Return "semantic" for a folder, and for JSON "panoptic", "instance" or "semantic", by its content."""
    if path.is_dir():
        return "semantic"
    content = read_json(path)
    if isinstance(content, dict) and "annotations" in content:
        return "panoptic"
    first = content[0] if isinstance(content, list) and content else None
    if isinstance(first, dict) and "score" in first:
        return "instance"
    if isinstance(first, dict) and {"file_name", "category_id", "segmentation"} <= first.keys():
        return "semantic"
    raise ValueError(
        f"{path}: expected panoptic predictions (an object with 'annotations'), COCO results (a list of "
        "objects with 'score') or sem_seg_predictions.json (a list of objects with 'file_name', "
        "'category_id' and 'segmentation'); name the kind with --task if it is one of them without entries."
    )


def dataset_file(dataset_name: str, key: str) -> Path:
    """Return a file or folder that the metadata of a data set name."""
    return Path(metadata_value(MetadataCatalog.get(dataset_name), key, "needed for this task"))


def score_panoptic(
    predictions: Path, truth: Path, prediction_folder: Path | None = None, truth_folder: Path | None = None
) -> Scores:
    """Return the panoptic quality of predictions in COCO's panoptic form: JSON and a folder of PNG files.

    Args:
        predictions: JSON with "annotations".
        truth: JSON with "annotations" and "categories".
        prediction_folder: PNG files of `predictions`; by default the folder beside it with its name, or its
            own folder.
        truth_folder: PNG files of `truth`; by default the folder with its name, beside it or one level up.
    """
    content = read_json(truth, keys=("annotations", "categories"))
    targets = panoptic_annotations(content, truth)
    results = panoptic_annotations(read_json(predictions, keys=("annotations",)), predictions)
    _require_all(targets, results, predictions)
    truth_folder = truth_folder or _folder_of(truth, targets, truth.parent.parent / truth.stem)
    prediction_folder = prediction_folder or _folder_of(predictions, results, predictions.parent)
    categories = content["categories"]
    if not categories:
        raise ValueError(f"{truth}: the list 'categories' is empty; expected ids and which are things.")
    class_of = {int(category["id"]): index for index, category in enumerate(categories)}

    def read(path: Path, annotation: Mapping[str, Any], source: Path) -> tuple[NDArray, Any]:
        infos = annotation["segments_info"]
        return read_panoptic_map(path), segments_from_info(infos, class_of, f"{source}, {path.name}")

    counts = no_counts(len(categories))
    for image_id, target in tqdm(targets.items(), "panoptic quality", disable=None):
        path = prediction_folder / results[image_id]["file_name"]
        target_pair = read(truth_folder / target["file_name"], target, truth)
        result_pair = read(path, results[image_id], predictions)
        picture = count_picture(*target_pair, *result_pair, len(categories), str(path))
        counts = sum_counts([counts, picture])
    is_thing = np.array([bool(category.get("isthing", 1)) for category in categories])
    return {"panoptic_seg": panoptic_scores(counts, [str(c["name"]) for c in categories], is_thing)}


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
    predictions: Path, entries: Mapping[str, Entry], classes: SemanticClasses, void_is_background: bool
) -> Scores:
    """Return mIoU, fwIoU, mACC, pACC, and PQ with each class of a picture as one segment.

    Args:
        predictions: a folder of label files, or `sem_seg_predictions.json`.
        entries: of the ground truth by stem, as from `label_files` or `entries_by_stem`.
        classes: of the ground truth; its dataset_ids are the category ids of the JSON file.
        void_is_background: see `semantic_quality`.
    """
    read = _label_predictions if predictions.is_dir() else _run_length_predictions
    results = read(predictions, classes)
    _require_all(entries, results, predictions)
    counts = SemanticCounts(len(classes.names))
    for stem, entry in tqdm(entries.items(), "semantic segmentation", disable=None):
        target = semantic_target(entry, len(classes.names), classes.ignore_label)
        counts.add(target, results[stem](), f"{predictions}, {stem}")
    return {"sem_seg": counts.scores(classes.names, void_is_background, segment_quality=True)}


def label_files(folder: Path) -> dict[str, Entry]:
    """Return an entry for each label file in a folder and below, by stem."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in LABEL_SUFFIXES)
    if not paths:
        raise ValueError(f"{folder}: holds no label files ({', '.join(sorted(LABEL_SUFFIXES))}).")
    return entries_by_stem({str(path): {"sem_seg_file_name": str(path)} for path in paths})


def entries_by_stem(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Return entries by the stem of their file name; two with the same stem are an error."""
    by_stem: dict[str, Entry] = {}
    for name, entry in entries.items():
        stem = Path(name).stem
        if stem in by_stem:
            raise ValueError(f"{name}: there is another file {stem}.*; predictions are found by that name.")
        by_stem[stem] = {"file_name": name, **entry}
    return by_stem


def _label_predictions(folder: Path, classes: SemanticClasses) -> dict[str, ReadClasses]:
    def read(path: str) -> NDArray[np.int64]:
        labels, ignore_label = read_label_map(path), classes.ignore_label
        if labels.dtype == np.uint8 and ignore_label is not None and ignore_label > 255:
            ignore_label = 255  # where a file of 8 bits cannot hold it, see `ClassTable.void_label`
        return to_classes(labels, len(classes.names), ignore_label, path)

    return {
        stem: functools.partial(read, entry["sem_seg_file_name"])
        for stem, entry in label_files(folder).items()
    }


def _run_length_predictions(path: Path, classes: SemanticClasses) -> dict[str, ReadClasses]:
    class_of = {dataset_id: index for index, dataset_id in enumerate(classes.dataset_ids)}
    results: dict[str, list[dict[str, Any]]] = {}
    for result in read_json(path):
        if result["category_id"] not in class_of:
            raise ValueError(
                f"{path}: {result['file_name']} has category id {result['category_id']}, which is none of "
                f"the {len(class_of)} of the ground truth; if ids are not class indices, give --dataset."
            )
        results.setdefault(Path(result["file_name"]).stem, []).append(result)

    def reader(masks: list[dict[str, Any]]) -> ReadClasses:
        return lambda: _paint(masks, class_of, str(path))

    return {stem: reader(masks) for stem, masks in results.items()}


def _paint(masks: list[dict[str, Any]], class_of: Mapping[int, int], source: str) -> NDArray[np.int64]:
    """Return (H, W) classes in 0..K from the run lengths of one picture."""
    sizes = {tuple(mask["segmentation"]["size"]) for mask in masks}
    if len(sizes) > 1:
        raise ValueError(f"{source}: {masks[0]['file_name']} has masks of sizes {sorted(sizes)}.")
    painted = np.full(sizes.pop(), len(class_of), np.int64)
    for mask in masks:
        painted[decode_mask(mask["segmentation"])] = class_of[mask["category_id"]]
    return painted


def score_instances(predictions: Path, truth: Path) -> Scores:
    """Return COCO's average precision in percent for the boxes and for the masks of a results file.

    Args:
        predictions: a list of objects with "image_id", "category_id", "score" and "bbox" or "segmentation".
        truth: COCO instance annotations.

    Returns:
        "bbox" and "segm", as far as predicted: `COCO_METRICS` and `AP-<class name>`; NaN where the ground
        truth has nothing of that size or class.
    """
    results = read_json(predictions)
    content = read_json(truth, keys=("images", "annotations", "categories"))
    _check_results(results, content, predictions, truth)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        annotations = COCO(str(truth))
    keys = {"bbox": "bbox", "segm": "segmentation"}
    tasks = [task for task, key in keys.items() if results and all(key in result for result in results)]
    return {task: _average_precision(annotations, results, task) for task in tasks or ["segm"]}


def _check_results(results: Any, truth: dict[str, Any], predictions: Path, truth_path: Path) -> None:
    """Raise ValueError if results cannot be of these annotations."""
    if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
        raise ValueError(f"{predictions}: expected a list of COCO results, found {type(results).__name__}.")
    image_ids = {image["id"] for image in truth["images"]}
    if len(image_ids) < len(truth["images"]):
        raise ValueError(f"{truth_path}: {len(truth['images']) - len(image_ids)} image ids are there twice.")
    category_ids = {category["id"] for category in truth["categories"]}
    for result in results:
        missing = {"image_id", "category_id", "score"} - result.keys()
        if missing or not {"bbox", "segmentation"} & result.keys():
            raise ValueError(
                f"{predictions}: a result needs 'image_id', 'category_id', 'score' and 'bbox' or "
                f"'segmentation'; found {sorted(result)}."
            )
        if result["image_id"] not in image_ids or result["category_id"] not in category_ids:
            raise ValueError(
                f"{predictions}: image id {result['image_id']} with category id {result['category_id']} is "
                f"not in {truth_path}; is it the annotation file of another data set or split?"
            )


def _average_precision(annotations: COCO, results: list[dict[str, Any]], task: str) -> dict[str, float]:
    names = {category["id"]: category["name"] for category in annotations.loadCats(annotations.getCatIds())}
    if not results:
        return dict.fromkeys((*COCO_METRICS, *(f"AP-{name}" for name in names.values())), 0.0)
    if task == "segm":
        # With boxes there, pycocotools would take the size of a mask from its box.
        results = [{key: value for key, value in result.items() if key != "bbox"} for result in results]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(annotations, annotations.loadRes(results), task)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    scores = {key: _percent(value) for key, value in zip(COCO_METRICS, evaluation.stats, strict=False)}
    # Axes: IoU threshold, recall, class, size (0: all), number of detections (-1: most). -1: no such class.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    for index, category_id in enumerate(evaluation.params.catIds):
        scores[f"AP-{names[category_id]}"] = _percent(np.mean(precision[:, :, index]))
    return scores


def _percent(value: float) -> float:
    return 100 * float(value) if value >= 0 else float("nan")


def _require_all(targets: Collection[Any], results: Collection[Any], predictions: Path) -> None:
    """Raise ValueError if a picture has no prediction; warn of predictions without ground truth."""
    missing = [key for key in targets if key not in results]
    if missing:
        raise ValueError(
            f"{predictions}: {len(missing)} of {len(targets)} true pictures have no prediction, "
            f"the first {missing[0]}; is it the ground truth of another split?"
        )
    if len(results) > len(targets):
        logger.warning(
            "%s: %d predictions are of pictures without ground truth and do not count.",
            predictions,
            len(results) - len(targets),
        )
