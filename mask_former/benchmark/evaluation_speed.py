"""Time of an evaluation as a whole, from files to scores, beside that of the network alone."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from PIL import Image

from mask_former.benchmark.subjects import (
    random_model,
    register,
    settled_class_logits,
    synthetic_picture,
    without_gradients,
)
from mask_former.benchmark.timing import WARM_UP, Stopwatch
from mask_former.data.loader import build_test_loader
from mask_former.evaluation import build_evaluators
from mask_former.modeling.preparation import prepare_for_inference

NAME = "benchmark_pictures"


def register_pictures(folder: Path, count: int, size: tuple[int, int], classes: int) -> str:
    """Write `count` labelled pictures, register them as a semantic data set, and return its name."""
    height, width = size
    picture = synthetic_picture(height, width)
    # As 16-bit label files where a byte cannot hold the classes, like ADE20K's full set.
    ignore_label, kind, suffix = (255, np.uint8, "png") if classes < 255 else (65535, np.uint16, "tif")
    blocks = np.arange(-(-height // 64) * -(-width // 64)).reshape(-(-height // 64), -1) % classes
    labels = blocks.repeat(64, 0).repeat(64, 1)[:height, :width].astype(kind)
    entries = []
    for number in range(count):
        files = {"file_name": folder / f"{number}.jpg", "sem_seg_file_name": folder / f"{number}.{suffix}"}
        Image.fromarray(np.roll(picture, 8 * number, axis=1)).save(files["file_name"], quality=95)
        Image.fromarray(np.roll(labels, 8 * number, axis=1)).save(files["sem_seg_file_name"])
        entries.append({key: str(file) for key, file in files.items()} | {"height": height, "width": width})
    register(NAME, entries).set(
        evaluator_type="sem_seg",
        stuff_classes=[f"class {number}" for number in range(classes)],
        ignore_label=ignore_label,
    )
    return NAME


def measure(cfg: CfgNode, dataset_name: str, variant: str, predictions: str, folder: Path) -> dict[str, Any]:
    """Return the seconds of an evaluation, and of the network alone for the same pictures, and their ratio.

    Args:
        cfg: configuration; says how pictures are resized and which results are evaluated.
        dataset_name: registered, with an `evaluator_type`.
        variant: "plain network", as training evaluates, or the precision of a prepared one.
        predictions: "random" or "settled".
        folder: for what evaluators write.
    """
    model = without_gradients(random_model(cfg))
    model.rules = replace(model.rules, semantic_form="labels")
    if variant != "plain network":
        model = prepare_for_inference(model, variant, in_place=True)
    if predictions == "settled":
        model = _with_settled_classes(model)
    pictures = list(build_test_loader(cfg, dataset_name))
    before = _network_seconds(model, pictures)
    start = time.perf_counter()
    evaluator = build_evaluators(cfg, dataset_name, folder)
    evaluator.reset()
    with torch.inference_mode():
        for batch in build_test_loader(cfg, dataset_name):
            evaluator.process(batch, model(batch))
    evaluator.evaluate()
    whole = time.perf_counter() - start
    # Before and after, so that a machine that slows down in between slows both down.
    network = (before + _network_seconds(model, pictures)) / 2
    return {"pictures": len(pictures), "whole_s": whole, "network_s": network, "ratio": whole / network}


def _with_settled_classes(model: Any) -> Any:
    predict = model.predict

    def settled(images: torch.Tensor) -> Any:
        *earlier, answer = predict(images)
        queries, classes = answer.class_logits.shape[1:]
        logits = settled_class_logits(queries, classes - 1).to(answer.class_logits)
        return [*earlier, answer._replace(class_logits=logits.expand_as(answer.class_logits))]

    model.predict = settled
    return model


@torch.inference_mode()
def _network_seconds(model: Any, pictures: list[list[dict[str, Any]]]) -> float:
    """Return the time that the network takes for pictures in memory, after some first ones."""
    watch = Stopwatch(model.device)
    for number, batch in enumerate([*pictures[:WARM_UP], *pictures]):
        images = model.prepare_images([picture["image"] for picture in batch])
        with watch.stage("first" if number < min(WARM_UP, len(pictures)) else "network"):
            model.predict(images.tensor)
    return watch.seconds["network"]
