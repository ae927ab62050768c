"""Average precision of instances in a COCO results file."""

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .saved import Scores, load_json

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def score_instances(predictions: Path, truth: Path) -> Scores:
    """Return COCO's average precision in percent for the boxes and for the masks of a results file.

    Args:
        predictions: a list of objects with "image_id", "category_id", "score" and "bbox" or "segmentation".
        truth: COCO instance annotations.

    Returns:
        "bbox" and "segm", as far as predicted: `METRICS` and `AP-<class name>`; NaN where the ground truth
        has nothing of that size or class.
    """
    results = load_json(predictions)
    content = load_json(truth)
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= content.keys():
        raise ValueError(f"{truth}: expected COCO annotations with 'images', 'annotations' and 'categories'.")
    _check_results(results, content, predictions, truth)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        annotations = COCO(str(truth))
    keys = {"bbox": "bbox", "segm": "segmentation"}
    tasks = [task for task, key in keys.items() if results and all(key in result for result in results)]
    return {task: _average_precision(annotations, results, task) for task in tasks or ["segm"]}


def _check_results(results: Any, truth: dict[str, Any], predictions: Path, truth_path: Path) -> None:
    """Refuse results that cannot be of these annotations."""
    if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
        raise ValueError(f"{predictions}: expected a list of COCO results, found {type(results).__name__}.")
    image_ids = {image["id"] for image in truth["images"]}
    if len(image_ids) < len(truth["images"]):
        raise ValueError(f"{truth_path}: {len(truth['images']) - len(image_ids)} image ids are there twice.")
    category_ids = {category["id"] for category in truth["categories"]}
    for result in results:
        absent = {"image_id", "category_id", "score"} - result.keys()
        if absent or not {"bbox", "segmentation"} & result.keys():
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
        return dict.fromkeys((*METRICS, *(f"AP-{name}" for name in names.values())), 0.0)
    if task == "segm":
        # With boxes there, pycocotools would take the size of a mask from its box.
        results = [{key: value for key, value in result.items() if key != "bbox"} for result in results]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(annotations, annotations.loadRes(results), task)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    scores = {key: _percent(value) for key, value in zip(METRICS, evaluation.stats, strict=False)}
    # Axes: IoU threshold, recall, class, size (0: all), number of detections (-1: most). -1: no such class.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    for index, category_id in enumerate(evaluation.params.catIds):
        scores[f"AP-{names[category_id]}"] = _percent(np.mean(precision[:, :, index]))
    return scores


def _percent(value: float) -> float:
    return 100 * float(value) if value >= 0 else float("nan")
