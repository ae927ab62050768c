"""Pictures for the page of a run: truth beside prediction, the worst, the best, and some between.

gallery/NAME_{picture,truth,prediction}.png
gallery/gallery.json    their scores and classes, and which classes are taken for which
"""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from demo import TASKS_OF_KIND, build_predictor
from mask_former.engine.own_data import register_folder
from mask_former.engine.sample_pictures import truth_of
from mask_former.evaluation.ground_truth import panoptic_target, semantic_target
from mask_former.evaluation.quality import (
    PanopticSegments,
    confusion_matrix,
    count_picture,
    panoptic_scores,
    semantic_quality,
)
from mask_former.prediction.predictor import Predictor
from mask_former.prediction.results import Result
from mask_former.prediction.writing import ResultWriter

# Pictures, spread over the set, that are scored.
MOST_SCORED = 96
# Classes, those with the most pixels, in the table of what is taken for what.
MOST_CLASSES = 16
# Small pictures are drawn larger, so that names can be read.
DRAWN_SIDE = 320


class Scored(NamedTuple):
    """An entry of the data set, the score of its prediction (NaN if it has none), and why it is shown."""

    entry: dict[str, Any]
    score: float
    group: str = ""


def write_gallery(folder: Path, weights: Path, cfg: CfgNode, count: int) -> None:
    """Predict on pictures of the test set, and write files of all kinds and the rows of the page."""
    if cfg.DATASETS.FOLDER:
        register_folder(cfg)
    gallery, name = folder / "gallery", cfg.DATASETS.TEST[0]
    for old in (gallery, folder / "predictions"):
        shutil.rmtree(old, ignore_errors=True)
    gallery.mkdir()
    predictor = build_predictor(weights=str(weights), kinds=TASKS_OF_KIND)
    ignore_label = MetadataCatalog.get(name).get("ignore_label")
    entries = [dict(entry) for entry in _spread(DatasetCatalog.get(name), MOST_SCORED)]
    task = _task(entries[0], predictor)
    scored, confusion = _score(entries, predictor, task, ignore_label)
    chosen = choose(scored, count)
    rows = []
    kinds = [kind for kind, tasks in TASKS_OF_KIND.items() if {*tasks} & {*predictor.rules.tasks}]
    with ResultWriter(folder / "predictions", kinds, predictor.classes) as writer:
        results = predictor.stream([picture.entry["file_name"] for picture in chosen])
        for number, (picture, result) in enumerate(zip(chosen, results, strict=True)):
            writer.write(result)
            truth = truth_of(picture.entry, result, task, ignore_label)
            row = f"{number:02d}_{Path(result.image_name).stem}"
            _draw(gallery / row, result, truth, task)
            classes = sorted({segment.name for segment in [*truth, *result]})
            score = None if math.isnan(picture.score) else picture.score
            title, group = Path(result.image_name).name, picture.group
            rows.append({"file": row, "title": title, "group": group, "score": score, "classes": classes})
    metric = "PQ" if task == "panoptic" else "mIoU"
    content = {"scored": len(entries), "metric": metric, "rows": rows, **confusion}
    (gallery / "gallery.json").write_text(json.dumps(content))


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """Return at most `count` items at even distances."""
    return [items[index * len(items) // count] for index in range(count)] if len(items) > count else [*items]


def _task(entry: Mapping[str, Any], predictor: Predictor) -> str:
    """Return the task of which there is both a truth and a prediction."""
    labels = {"panoptic": "pan_seg_file_name", "instance": "annotations"}
    tasks = [task for task, key in labels.items() if key in entry and task in predictor.rules.tasks]
    return tasks[0] if tasks else "semantic"


def _score(
    entries: Sequence[dict[str, Any]], predictor: Predictor, task: str, ignore_label: int | None
) -> tuple[list[Scored], dict[str, Any]]:
    """Return the pictures with their scores, and which classes are taken for which."""
    if task == "instance":
        return [Scored(entry, math.nan) for entry in entries], {}
    names, scored = predictor.classes.names, []
    pixels = np.zeros((len(names) + 1, len(names) + 1), np.int64)
    results = predictor.stream([entry["file_name"] for entry in entries], batch_size=4)
    for entry, result in zip(entries, results, strict=True):
        labels = result.labels()
        assert labels is not None
        labels = np.minimum(labels, len(names)).astype(np.int64)
        target = semantic_target(entry, len(names), ignore_label)
        confusion = confusion_matrix(target, labels, len(names), result.image_name)
        pixels += confusion
        score = semantic_quality(confusion, names)["mIoU"]
        if result.panoptic is not None and task == "panoptic":
            columns = [(segment.id, segment.category_id) for segment in result.segments]
            ids, classes = np.array(columns, np.int64).reshape(-1, 2).T
            predicted = PanopticSegments(ids, classes, np.zeros(len(ids), np.bool_))
            pair = (*panoptic_target(entry, len(names)), result.panoptic, predicted)
            score = panoptic_scores(count_picture(*pair, len(names)), names)["PQ"]
        scored.append(Scored(entry, score))
    pixels = pixels[: len(names)]
    shown = np.sort(np.argsort(-pixels.sum(1), kind="stable")[:MOST_CLASSES])
    shown = shown[pixels[shown].sum(1) > 0]
    shares = 100 * pixels[np.ix_(shown, shown)] / pixels[shown].sum(1, keepdims=True)
    return scored, {"names": [names[index] for index in shown], "confusion": shares.round(1).tolist()}


def choose(scored: Sequence[Scored], count: int) -> list[Scored]:
    """Return `count` pictures: a third the worst, a third the best, the others spread over the rest."""
    order = [index for index, picture in enumerate(scored) if not math.isnan(picture.score)]
    order.sort(key=lambda index: scored[index].score)
    third = min(count, len(order)) // 3
    groups = {"worst": order[:third], "best": order[len(order) - third :][::-1]}
    taken = {index for group in groups.values() for index in group}
    groups["spread"] = _spread([i for i in range(len(scored)) if i not in taken], count - 2 * third)
    return [scored[i]._replace(group=group) for group, indices in groups.items() for i in indices]


def _draw(path: Path, result: Result, truth: Result, task: str) -> None:
    assert result.image is not None
    scale = max(1.0, DRAWN_SIDE / max(result.height, result.width))
    predicted = result.draw(task=task, scale=scale)
    panels = {
        "picture": np.asarray(Image.fromarray(result.image).resize(predicted.shape[1::-1])),
        "truth": truth.draw(result.image, task=task, scale=scale),
        "prediction": predicted,
    }
    for panel, pixels in panels.items():
        Image.fromarray(pixels).save(path.with_name(f"{path.name}_{panel}.png"))
