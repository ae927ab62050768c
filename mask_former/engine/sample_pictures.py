"""Images of a data set with ground truth and prediction side by side, drawn while a model trains."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.data.detection_utils import annotations_to_instances
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import nn

from mask_former.evaluation.ground_truth import semantic_classes, semantic_target
from mask_former.formats import read_panoptic_map
from mask_former.inference.ruled_model import unwrapped
from mask_former.prediction.classes import ClassTable, classes_of_dataset
from mask_former.prediction.predictor import Predictor
from mask_former.prediction.results import Result
from mask_former.prediction.values import InstanceResults, segments_of_map
from mask_former.prediction.writing import save_image

logger = logging.getLogger(__name__)

# Pixels between and above the drawings, and the width of each.
GAP, HEADER, WIDTH = 4, 16, 320
COLUMNS = ("picture", "truth", "prediction")


def draw_samples(model: nn.Module, cfg: CfgNode, dataset_name: str, count: int, file: str | Path) -> None:
    """Write a PNG with a row for each of the first `count` images: the image, its truth, the prediction.

    An error is logged as a warning: a drawing must not end a training.

    Args:
        model: in training or not, inside DistributedDataParallel or not; it is not changed.
        cfg: its configuration.
        dataset_name: a registered data set; of panoptic, semantic and instance results, the first that both
            it and the model have is drawn.
        count: images; with fewer in the set, all.
        file: its folder is made if need be.
    """
    model = unwrapped(model)
    try:
        with _evaluation_mode(model):
            rows = _rows(model, cfg, dataset_name, count)
        if rows:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            save_image(_sheet(rows), Path(file))
    except Exception as error:  # of any kind: unreadable files, a full disk, memory
        logger.warning(
            "Sample images of %s were not drawn: %s: %s", dataset_name, type(error).__name__, error
        )


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode and each of its modules back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def _rows(model: nn.Module, cfg: CfgNode, dataset_name: str, count: int) -> list[list[NDArray[np.uint8]]]:
    entries = list(islice(DatasetCatalog.get(dataset_name), count))
    classes = classes_of_dataset(cfg, dataset_name)
    predictor = Predictor(model, cfg, classes)
    results = predictor.stream(entry["file_name"] for entry in entries)
    return [
        _row(entry, result, dataset_name, predictor.rules.tasks)
        for entry, result in zip(entries, results, strict=True)
    ]


def _row(
    entry: dict[str, Any], result: Result, dataset_name: str, tasks: Sequence[str]
) -> list[NDArray[np.uint8]]:
    assert result.image is not None
    task = _shown_task(entry, tasks)
    scale = WIDTH / result.width
    height = max(1, round(result.height * scale))
    plain = np.asarray(Image.fromarray(result.image).resize((WIDTH, height)))
    if task is None:
        return [plain, plain, result.draw(scale=scale)]
    has_labels = task == "semantic" and "sem_seg_file_name" in entry
    truth = truth_of(entry, result, task, semantic_classes(dataset_name).ignore_label if has_labels else None)
    return [plain, truth.draw(result.image, task=task, scale=scale), result.draw(task=task, scale=scale)]


def _shown_task(entry: dict[str, Any], tasks: Sequence[str]) -> str | None:
    has_truth = {
        "panoptic": "pan_seg_file_name" in entry,
        "semantic": "sem_seg_file_name" in entry or "pan_seg_file_name" in entry,
        "instance": "annotations" in entry,
    }
    return next((task for task, is_there in has_truth.items() if is_there and task in tasks), None)


def truth_of(entry: dict[str, Any], result: Result, task: str, ignore_label: int | None = None) -> Result:
    """Return the ground truth of an entry of a data set as a `Result` with the size of `result`."""
    fields: dict[str, Any] = {}
    classes = result.classes
    if task == "panoptic":
        ids = read_panoptic_map(entry["pan_seg_file_name"])
        # Renumbered from 1, since ids in files can be in the millions.
        infos = [info for info in entry["segments_info"] if (ids == info["id"]).any()]
        renumbered = np.zeros(ids.shape, np.int32)
        for number, info in enumerate(infos, 1):
            renumbered[ids == info["id"]] = number
        infos = [{**info, "id": number} for number, info in enumerate(infos, 1)]
        fields = {"panoptic": renumbered, "segments": segments_of_map(renumbered, infos, classes)}
    elif task == "semantic":
        labels = semantic_target(entry, len(classes), ignore_label)
        fields = {"semantic": np.where(labels < len(classes), labels, classes.void_label)}
    else:
        fields = {"instances": _true_instances(entry, result, classes)}
    return Result(entry["file_name"], result.height, result.width, classes, **fields)


def _true_instances(entry: dict[str, Any], result: Result, classes: ClassTable) -> InstanceResults:
    annotations = [item for item in entry["annotations"] if not item.get("iscrowd", 0)]
    size = (result.height, result.width)
    instances = annotations_to_instances(annotations, size, mask_format="bitmask")
    masks = instances.gt_masks.tensor.numpy() if annotations else np.zeros((0, *size), np.bool_)
    labels = instances.gt_classes.numpy()
    return InstanceResults(
        masks=masks,
        boxes=instances.gt_boxes.tensor.numpy(),
        classes=labels,
        names=tuple(classes.name_of(int(label)) for label in labels),
        scores=np.ones(len(labels), np.float32),
        areas=np.count_nonzero(masks, axis=(1, 2)),
    )


def _sheet(rows: Sequence[Sequence[NDArray[np.uint8]]]) -> Image.Image:
    heights = [max(len(drawing) for drawing in row) for row in rows]
    width = len(COLUMNS) * (WIDTH + GAP) - GAP
    sheet = Image.new("RGB", (width, HEADER + sum(heights) + GAP * (len(rows) - 1)), "white")
    for column, title in enumerate(COLUMNS):
        ImageDraw.Draw(sheet).text((column * (WIDTH + GAP) + 2, 2), title, fill="black")
    top = HEADER
    for row, height in zip(rows, heights, strict=True):
        for column, drawing in enumerate(row):
            sheet.paste(Image.fromarray(drawing), (column * (WIDTH + GAP), top))
        top += height + GAP
    return sheet
