"""Time by part of a training step: our matching and losses, and the same formulas written plainly."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from PIL import Image
from torch import Tensor

from mask_former.benchmark import plain
from mask_former.benchmark.subjects import IGNORE_LABEL, check_segments, random_model, synthetic_picture
from mask_former.benchmark.timing import Run, Stopwatch
from mask_former.config import recomputes_activations
from mask_former.data.mapper import TrainingMapper
from mask_former.modeling.recomputing import recompute_activations
from mask_former.modeling.structures import Prediction, Target
from mask_former.solver import build_optimizer

VARIANTS = ("ours", "plain")
COMPARED_STAGES = ("matching", "losses", "losses backward")


class Setting(NamedTuple):
    """What is measured: `size` is that of each picture, height and width."""

    cfg: CfgNode
    size: tuple[int, int]
    batch: int
    segments: int


def write_labelled_picture(
    folder: Path, size: tuple[int, int], segments: int, classes: int
) -> dict[str, Any]:
    """Write a picture and labels that cut it into that many cells, and return their data set entry."""
    files = {"file_name": folder / "training.jpg", "sem_seg_file_name": folder / "training.png"}
    height, width = size
    Image.fromarray(synthetic_picture(height, width)).save(files["file_name"], quality=95)
    rows = max(1, int(segments**0.5))
    columns = -(-segments // rows)
    row, column = np.arange(height) * rows // height, np.arange(width) * columns // width
    labels = np.minimum(row[:, None] * columns + column[None], segments - 1) % classes
    Image.fromarray(labels.astype(np.uint8)).save(files["sem_seg_file_name"])
    names = {key: str(file) for key, file in files.items()}
    return {**names, "height": height, "width": width, "ignore_label": IGNORE_LABEL}


def training_config(setting: Setting) -> CfgNode:
    """Return the configuration for crops of the picture's own size, without a change of scale."""
    cfg = setting.cfg.clone()
    cfg.defrost()
    height, width = setting.size
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (min(height, width),), max(height, width)
    cfg.INPUT.CROP.ENABLED = False
    cfg.INPUT.SIZE_DIVISIBILITY = 32
    return cfg


def build_run(setting: Setting, variant: str, folder: Path) -> Run:
    """Return what takes one training step and gives seconds by part; files go to `folder`."""
    cfg = training_config(setting)
    num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    check_segments(setting.segments, num_classes)
    model = random_model(cfg).train()
    if recomputes_activations(cfg):
        recompute_activations(model)
    optimizer = build_optimizer(cfg, model)
    mapper = TrainingMapper(cfg)
    entry = write_labelled_picture(folder, setting.size, setting.segments, num_classes)

    def run() -> dict[str, float]:
        torch.manual_seed(0)
        watch = Stopwatch(model.device)
        with watch.stage("data"):
            batch = [mapper(entry) for _ in range(setting.batch)]
        with watch.stage("forward"):
            images = model.prepare_images([picture["image"] for picture in batch])
            targets = model.prepare_targets(batch, images)
            predictions = model.predict(images.tensor)
        leaves = [
            Prediction(*(logits.detach().requires_grad_() for logits in layer)) for layer in predictions
        ]
        backpropagated_loss(variant, model.criterion, leaves, targets, watch)
        with watch.stage("backward"):
            outputs = [logits for layer in predictions for logits in layer]
            gradients = [logits.grad for layer in leaves for logits in layer]
            torch.autograd.backward(outputs, gradients)
        with watch.stage("optimiser"):
            optimizer.step()
            optimizer.zero_grad()
        return watch.seconds

    return run


def backpropagated_loss(
    variant: str, criterion: Any, leaves: Sequence[Prediction], targets: Sequence[Target], watch: Stopwatch
) -> Tensor:
    """Return the loss of a step after its gradient has gone to the predictions, the leaves.

    Args:
        variant: "ours", the criterion's own way, or "plain".
        criterion: the model's `SetCriterion`.
        leaves: one prediction a supervised layer, whose tensors take gradients.
        targets: one an image.
        watch: told how long matching, losses and their backward pass take.
    """
    weights = (criterion.class_weight, criterion.mask_weight, criterion.dice_weight)
    with watch.stage("matching"):
        if variant == "ours":
            pairs = criterion.matcher(leaves, targets)
        else:
            pairs = plain.matching(leaves, targets, weights)
    with watch.stage("losses"):
        if variant == "ours":
            matcher, criterion.matcher = criterion.matcher, lambda *_: pairs
            try:
                loss = torch.stack(list(criterion(leaves, targets).values())).sum()
            finally:
                criterion.matcher = matcher
        else:
            loss = plain.losses(leaves, targets, pairs, criterion.empty_weight, weights)
    with watch.stage("losses backward"):
        loss.backward()
    return loss.detach()
