"""Images of a data set with ground truth and prediction side by side, drawn while a model trains."""

import logging
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import annotations_to_instances
from detectron2.structures import Instances
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import nn

from mask_former.evaluation.ground_truth import panoptic_target, semantic_target
from mask_former.evaluation.quality import segment_index
from mask_former.inference.ruled_model import unwrapped
from mask_former.prediction.classes import classes_of_dataset
from mask_former.prediction.predictor import Predictor
from mask_former.prediction.results import Result
from mask_former.prediction.values import instance_results, segments_of_map
from mask_former.prediction.writing import save_image

logger = logging.getLogger(__name__)

# Pixels between and above the drawings, and the width of each.
GAP, HEADER, WIDTH = 4, 16, 320
COLUMNS = ("picture", "truth", "prediction")


def draw_samples(model: nn.Module, cfg: CfgNode, dataset_name: str, count: int, file: str | Path) -> None:
    """Write a PNG with the first `count` images of a data set, a row each: image, ground truth, prediction.

    The task drawn is the first of panoptic, semantic and instance that both data set and model have. Any
    error is only logged as a warning, so that it does not end a training. The model is not changed.
    """
    model = unwrapped(model)
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        entries = list(islice(DatasetCatalog.get(dataset_name), count))
        predictor = Predictor(model, cfg, classes_of_dataset(cfg, dataset_name))
        results = predictor.stream(entry["file_name"] for entry in entries)
        pairs = zip(entries, results, strict=True)
        rows = [_row(entry, result, dataset_name, predictor.rules.tasks) for entry, result in pairs]
        if rows:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            save_image(_sheet(rows), Path(file))
    except Exception as error:  # of any kind: unreadable files, a full disk, memory
        logger.warning(
            "Sample images of %s were not drawn: %s: %s", dataset_name, type(error).__name__, error
        )
    finally:
        for module, training in modes:
            module.training = training


def _row(
    entry: dict[str, Any], result: Result, dataset_name: str, tasks: Sequence[str]
) -> list[NDArray[np.uint8]]:
    assert result.image is not None
    keys = {
        "panoptic": {"pan_seg_file_name"},
        "semantic": {"sem_seg_file_name", "sem_seg_masks", "pan_seg_file_name"},
        "instance": {"annotations"},
    }
    task = next((task for task, any_of in keys.items() if task in tasks and any_of & entry.keys()), None)
    scale = WIDTH / result.width
    size = (WIDTH, max(1, round(result.height * scale)))
    plain = np.asarray(Image.fromarray(result.image).resize(size))
    truth = plain
    if task is not None:
        ignore_label = MetadataCatalog.get(dataset_name).get("ignore_label")
        truth = truth_of(entry, result, task, ignore_label).draw(result.image, task=task, scale=scale)
    return [plain, truth, result.draw(task=task, scale=scale)]


def truth_of(entry: Mapping[str, Any], result: Result, task: str, ignore_label: int | None = None) -> Result:
    """Return the ground truth of an entry of a data set as a `Result` with the size of `result`."""
    classes, size = result.classes, (result.height, result.width)
    fields: dict[str, Any] = {}
    if task == "panoptic":
        # Renumbered from 1, since ids in files can be in the millions.
        target, segments = panoptic_target(entry, len(classes))
        ids = segment_index(target, segments.ids, entry["file_name"]).astype(np.int32)
        present = np.unique(ids[ids > 0]).tolist()
        infos = [{**entry["segments_info"][number - 1], "id": number} for number in present]
        fields = {"panoptic": ids, "segments": segments_of_map(ids, infos, classes)}
    elif task == "semantic":
        labels = semantic_target(entry, len(classes), ignore_label)
        fields = {"semantic": np.where(labels < len(classes), labels, classes.void_label)}
    else:
        annotations = [item for item in entry["annotations"] if not item.get("iscrowd", 0)]
        target = annotations_to_instances(annotations, size, mask_format="bitmask")
        masks = target.gt_masks.tensor if annotations else torch.zeros(0, *size, dtype=torch.bool)
        boxes, labels = target.gt_boxes, target.gt_classes
        scores = torch.ones(len(labels))
        instances = Instances(size, pred_masks=masks, pred_boxes=boxes, pred_classes=labels, scores=scores)
        fields = {"instances": instance_results(instances, classes)}
    return Result(entry["file_name"], *size, classes, **fields)


def _sheet(rows: Sequence[Sequence[NDArray[np.uint8]]]) -> Image.Image:
    tops = np.cumsum([HEADER, *(max(map(len, row)) + GAP for row in rows)]).tolist()
    sheet = Image.new("RGB", (len(COLUMNS) * (WIDTH + GAP) - GAP, tops[-1] - GAP), "white")
    for column, title in enumerate(COLUMNS):
        left = column * (WIDTH + GAP)
        ImageDraw.Draw(sheet).text((left + 2, 2), title, fill="black")
        for top, row in zip(tops, rows, strict=False):
            sheet.paste(Image.fromarray(row[column]), (left, top))
    return sheet
