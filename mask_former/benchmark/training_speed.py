"""A training step by part, and training samples per second: ours, and the same written plainly."""

import os
import random
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor

from mask_former.benchmark import plain
from mask_former.benchmark.measuring import (
    Run,
    Stopwatch,
    check_known,
    check_segments,
    random_model,
    register,
    write_labelled_picture,
)
from mask_former.config import recomputes_activations
from mask_former.data.loader import build_train_loader
from mask_former.data.mapper import TrainingMapper, build_train_mapper
from mask_former.modeling.build import recompute_activations
from mask_former.modeling.structures import Prediction, Target
from mask_former.solver import build_optimizer

COMPARED_STAGES = ("matching", "losses", "losses backward")
DATASET = "benchmark_training_pictures"
# In one timed run of a mapper.
SAMPLES = 20


def variants(arguments: Namespace) -> tuple[list[str], list[str]]:
    """Return which variants of ours, and which others, the command line asks for."""
    check_known(arguments, ["plain"])
    return ["ours"], list(arguments.compare)


def build_run(cfg: CfgNode, arguments: Namespace, variant: str, folder: Path) -> Run:
    """Return a function that takes one training step; files go to `folder`."""
    height, width = arguments.size
    num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    check_segments(arguments.segments, num_classes)
    # Pictures keep their size.
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (min(height, width),), max(height, width)
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.SIZE_DIVISIBILITY = False, 32
    model = random_model(cfg).train()
    if recomputes_activations(cfg):
        recompute_activations(model)
    optimizer = build_optimizer(cfg, model)
    mapper = TrainingMapper(cfg)
    entry = write_labelled_picture(folder, (height, width), arguments.segments, num_classes)

    def run() -> dict[str, float]:
        torch.manual_seed(0)
        watch = Stopwatch(model.device)
        with watch.stage("data"):
            batch = [mapper(entry) for _ in range(arguments.batch)]
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
    """Return the loss of a step, and compute its gradients with respect to the predictions.

    Args:
        variant: "ours", the criterion's code, or "plain".
        criterion: the model's `SetCriterion`.
        leaves: one prediction per supervised layer, whose tensors require gradients.
        targets: one per image.
        watch: records the time of matching, losses and their backward pass.
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


def measure_data(cfg: CfgNode, arguments: Namespace, folder: Path) -> dict[str, Any]:
    """Return samples per second of processor time by mapper and round, and of the loader by workers."""
    if cfg.INPUT.DATASET_MAPPER_NAME not in plain.LABELS:
        raise ValueError(
            f"INPUT.DATASET_MAPPER_NAME is {cfg.INPUT.DATASET_MAPPER_NAME}; mode data measures "
            f"{' and '.join(plain.LABELS)}: choose one by --opts, or another --config-file."
        )
    num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    check_segments(arguments.segments, num_classes)
    size = (arguments.size[0], arguments.size[1])
    entry = write_labelled_picture(folder, size, arguments.segments, num_classes, panoptic=True)
    mappers = {"ours": build_train_mapper(cfg), "plain": plain.mapper(cfg)}
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for mapper in mappers.values():
            mapper(entry)
        rates: dict[str, list[float]] = {name: [] for name in mappers}
        for _ in range(arguments.rounds):
            for name, mapper in mappers.items():
                rates[name].append(_samples_per_second(mapper, entry))
    finally:
        torch.set_num_threads(torch_threads)
    return {"mapper": rates, "loader": dict(_loader_rates(cfg, entry))}


def _samples_per_second(mapper: Callable[[dict[str, Any]], Any], entry: dict[str, Any]) -> float:
    # The same crops and colours for both mappers.
    np.random.seed(0)
    random.seed(0)
    start = time.process_time()
    for _ in range(SAMPLES):
        mapper(entry)
    return SAMPLES / (time.process_time() - start)


def _loader_rates(cfg: CfgNode, entry: dict[str, Any]) -> Iterator[tuple[int, float]]:
    """Yield numbers of workers, and the samples per second of wall time of a loader with them."""
    cfg.DATASETS.TRAIN, cfg.SOLVER.IMS_PER_BATCH = (DATASET,), 2
    register(DATASET, [{**entry, "image_id": number} for number in range(SAMPLES)])
    for workers in (0, os.cpu_count() or 1):
        cfg.DATALOADER.NUM_WORKERS = workers
        batches = iter(build_train_loader(cfg, seed=0))
        next(batches)  # starts the workers
        start = time.perf_counter()
        count = sum(len(batch) for batch in islice(batches, 2 * SAMPLES))
        yield workers, count / (time.perf_counter() - start)
        del batches
