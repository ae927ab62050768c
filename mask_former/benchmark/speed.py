"""Timed runs: inference by stage, a training step by part, evaluation as a whole, training samples."""

import importlib
import os
import random
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.evaluation import inference_on_dataset
from PIL import Image
from torch import Tensor

from mask_former.benchmark import plain
from mask_former.benchmark.measuring import (
    WARM_UP,
    Run,
    Stopwatch,
    interleaved,
    random_model,
    ratios,
    register,
    settled_class_logits,
    sums,
    write_labelled_picture,
)
from mask_former.config import recomputes_activations
from mask_former.conversion.files import write_hugging_face
from mask_former.data.loader import build_test_loader, build_train_loader
from mask_former.data.mapper import TrainingMapper, build_train_mapper
from mask_former.evaluation import build_evaluators
from mask_former.formats import read_picture
from mask_former.inference.postprocess import form_results
from mask_former.inference.resizing import Sizes
from mask_former.modeling.build import recompute_activations
from mask_former.modeling.preparation import prepare_for_inference
from mask_former.modeling.structures import Prediction, Target
from mask_former.solver import build_optimizer

# Stages whose sum is compared between variants.
COMPARED_STAGES = {
    "inference": ("network", "post-processing"),
    "training": ("matching", "losses", "losses backward"),
}
PRECISIONS = ("plain network", "float32", "bfloat16")
OTHERS = {"inference": ("naive", "transformers"), "training": ("plain",)}
TASKS = ("semantic", "panoptic", "instance")
DATASET = "benchmark_pictures"
# In one timed run of a mapper.
SAMPLES = 20

Network = Callable[[Tensor], Prediction]
PostProcessing = Callable[[Tensor, Tensor, Sizes], Any]


def variants(arguments: Namespace) -> tuple[list[str], list[str]]:
    """Return which variants of ours, and which others, the command line asks for."""
    mode, others = arguments.mode, arguments.compare
    for name in set(others) - set(OTHERS[mode]):
        raise ValueError(f"--compare {name}: in mode {mode}, expected {' or '.join(OTHERS[mode])}.")
    if mode == "training":
        return ["ours"], others
    if others and arguments.task != "semantic":
        raise ValueError(f"--compare {' '.join(others)} makes label maps only: use it with --task semantic.")
    return arguments.precision, others


def build_run(cfg: CfgNode, arguments: Namespace, variant: str, folder: Path) -> Run:
    """Return a function that runs a variant once; files go to `folder`."""
    build = _training_run if arguments.mode == "training" else _inference_run
    return build(cfg, arguments, variant, folder)


def _inference_run(cfg: CfgNode, arguments: Namespace, variant: str, folder: Path) -> Run:
    size = tuple(arguments.size)
    picture_file = write_labelled_picture(folder, size, segments=1, classes=1)["file_name"]
    model = random_model(cfg).eval().requires_grad_(False)
    network, post_processing = _parts(cfg, arguments.task, variant, model)

    @torch.inference_mode()
    def run() -> dict[str, float]:
        watch = Stopwatch(model.device)
        with watch.stage("data"):
            picture = torch.from_numpy(read_picture(picture_file, cfg.INPUT.FORMAT).copy())
            images = model.prepare_images([picture.permute(2, 0, 1)])
        with watch.stage("network"):
            answer = network(images.tensor)
        if arguments.predictions == "settled":
            answer = _settled(answer)
        padded_height, padded_width = images.tensor.shape[-2:]
        sizes = Sizes((padded_height, padded_width), size, size)
        with watch.stage("post-processing"):
            result = post_processing(answer.class_logits[0], answer.mask_logits[0], sizes)
        with watch.stage("save"):
            labels = result if isinstance(result, Tensor) else result.get("sem_seg")
            if labels is not None:
                labels = labels.cpu().numpy().astype(np.uint8 if labels.max() < 256 else np.uint16)
                Image.fromarray(labels).save(folder / "result.png", compress_level=1)
        return watch.seconds

    return run


def _settled(answer: Prediction) -> Prediction:
    queries, classes = answer.class_logits.shape[1:]
    logits = settled_class_logits(queries, classes - 1).to(answer.class_logits)
    return answer._replace(class_logits=logits.expand_as(answer.class_logits))


def _parts(cfg: CfgNode, task: str, variant: str, model: Any) -> tuple[Network, PostProcessing]:
    """Return network and post-processing of a variant."""
    if variant == "transformers":
        return _hugging_face(cfg, model)
    if variant in PRECISIONS[1:]:
        model = prepare_for_inference(model, variant, in_place=True)
    rules = replace(model.rules, tasks=(task,), semantic_form="labels")

    def post_processing(class_logits: Tensor, mask_logits: Tensor, sizes: Sizes) -> Any:
        return form_results(class_logits, mask_logits, sizes, rules)

    form = plain.label_map if variant == "naive" else post_processing
    return lambda images: model.predict(images)[-1], form


def _hugging_face(cfg: CfgNode, model: Any) -> tuple[Network, PostProcessing]:
    """Return Hugging Face's model with the same weights, and its own computation of label maps."""
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise ValueError(f"transformers is not installed ({error}): leave it out of --compare.") from error
    names = [f"class {number}" for number in range(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)]
    with tempfile.TemporaryDirectory() as folder:
        write_hugging_face(model.state_dict(), cfg, names, 255, False, Path(folder))
        theirs = transformers.MaskFormerForInstanceSegmentation.from_pretrained(folder)
    theirs = theirs.to(model.device).eval().requires_grad_(False)
    # Our model prepares pictures, but must not hold weights beside theirs.
    model.backbone = model.sem_seg_head = None
    processor = transformers.MaskFormerImageProcessor()
    outputs: Any = None

    def network(images: Tensor) -> Prediction:
        nonlocal outputs
        outputs = theirs(pixel_values=images)
        return Prediction(outputs.class_queries_logits, outputs.masks_queries_logits)

    def post_processing(class_logits: Tensor, mask_logits: Tensor, sizes: Sizes) -> Any:
        outputs.class_queries_logits = class_logits[None]
        return processor.post_process_semantic_segmentation(outputs, [sizes.output])[0]

    return network, post_processing


def register_pictures(folder: Path, count: int, size: tuple[int, int], classes: int) -> str:
    """Write labelled pictures, register them as a semantic data set, and return its name."""
    segments = -(-size[0] // 64) * -(-size[1] // 64)
    entries = [write_labelled_picture(folder, size, segments, classes, number=n) for n in range(count)]
    register(DATASET, entries).set(
        evaluator_type="sem_seg",
        stuff_classes=[f"class {number}" for number in range(classes)],
        ignore_label=entries[0]["ignore_label"],
    )
    return DATASET


def measure_evaluation(cfg: CfgNode, arguments: Namespace, folder: Path) -> dict[str, Any]:
    """Return the seconds of an evaluation, and of the network alone on the same pictures, and their ratio."""
    if arguments.compare or arguments.memory or len(arguments.precision) > 1:
        raise ValueError("mode evaluation takes one --precision, and neither --compare nor --memory.")
    dataset_name = arguments.dataset
    if not dataset_name:
        # The pictures keep their size.
        cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = min(arguments.size), max(arguments.size)
        classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        dataset_name = register_pictures(folder, arguments.pictures, tuple(arguments.size), classes)
    model = random_model(cfg).eval().requires_grad_(False)
    model.rules = replace(model.rules, semantic_form="labels")
    if arguments.precision[0] != "plain network":
        model = prepare_for_inference(model, arguments.precision[0], in_place=True)
    if arguments.predictions == "settled":
        predict = model.predict
        model.predict = lambda images: [_settled(answer) for answer in predict(images)]
    pictures = list(build_test_loader(cfg, dataset_name))
    before = _network_seconds(model, pictures)
    start = time.perf_counter()
    evaluators = build_evaluators(cfg, dataset_name, folder / "scores")
    inference_on_dataset(model, build_test_loader(cfg, dataset_name), evaluators)
    whole = time.perf_counter() - start
    # Before and after, so that a machine that slows down in between slows both down.
    network = (before + _network_seconds(model, pictures)) / 2
    return {"pictures": len(pictures), "whole_s": whole, "network_s": network, "ratio": whole / network}


@torch.inference_mode()
def _network_seconds(model: Any, pictures: list[list[dict[str, Any]]]) -> float:
    """Return the time of the network for pictures in memory, after some to warm up."""
    watch = Stopwatch(model.device)
    for number, batch in enumerate(pictures[:WARM_UP] + pictures, start=-WARM_UP):
        images = model.prepare_images([picture["image"] for picture in batch])
        with watch.stage("warm-up" if number < 0 else "network"):
            model.predict(images.tensor)
    return watch.seconds["network"]


def _labelled_picture(cfg: CfgNode, arguments: Namespace, folder: Path) -> dict[str, Any]:
    """Write a picture each of whose segments has a class of its own, and return its entry."""
    most = min(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, plain.IGNORE_LABEL)
    if arguments.segments > most:
        raise ValueError(f"--segments is {arguments.segments}, but a label map has {most} classes at most.")
    return write_labelled_picture(folder, arguments.size, arguments.segments, most)


def _training_run(cfg: CfgNode, arguments: Namespace, variant: str, folder: Path) -> Run:
    entry = _labelled_picture(cfg, arguments, folder)
    # Pictures keep their size.
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (min(arguments.size),), max(arguments.size)
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.SIZE_DIVISIBILITY = False, 32
    model = random_model(cfg).train()
    if recomputes_activations(cfg):
        recompute_activations(model)
    optimizer = build_optimizer(cfg, model)
    mapper = TrainingMapper(cfg)

    def run() -> dict[str, float]:
        torch.manual_seed(0)
        watch = Stopwatch(model.device)
        with watch.stage("data"):
            batch = [mapper(entry) for _ in range(arguments.batch)]
        with watch.stage("forward"):
            images = model.prepare_images([picture["image"] for picture in batch])
            targets = model.prepare_targets(batch, images)
            predictions = model.predict(images.tensor)
        leaves = [Prediction(*(logits.detach().requires_grad_() for logits in p)) for p in predictions]
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
    """Return the loss of a step, and compute its gradients with respect to `leaves`, one per layer.

    `variant` is "ours", the code of the `criterion`, or "plain".
    """
    weights = (criterion.class_weight, criterion.mask_weight, criterion.dice_weight)
    matcher = criterion.matcher
    with watch.stage("matching"):
        is_ours = variant == "ours"
        pairs = matcher(leaves, targets) if is_ours else plain.matching(leaves, targets, weights)
    with watch.stage("losses"):
        if is_ours:
            criterion.matcher = lambda *_: pairs
            loss = torch.stack(list(criterion(leaves, targets).values())).sum()
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
    entry = _labelled_picture(cfg, arguments, folder)
    mappers = {"ours": build_train_mapper(cfg), "plain": plain.mapper(cfg)}
    runs = {name: _mapper_run(mapper, entry) for name, mapper in mappers.items()}
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times = interleaved(runs, arguments.rounds, warm_up=1)
    torch.set_num_threads(torch_threads)
    seconds = {name: sums(rounds, ["samples"]) for name, rounds in times.items()}
    rates = {name: [SAMPLES / value for value in values] for name, values in seconds.items()}
    return {
        "data": {"mapper": rates, "loader": dict(_loader_rates(cfg, entry))},
        "ratios": {"samples a second, ours / plain": ratios(rates["ours"], rates["plain"])},
    }


def _mapper_run(mapper: Callable[[dict[str, Any]], Any], entry: dict[str, Any]) -> Run:
    def run() -> dict[str, float]:
        # The same crops and colours for both mappers.
        np.random.seed(0)
        random.seed(0)
        start = time.process_time()
        for _ in range(SAMPLES):
            mapper(entry)
        return {"samples": time.process_time() - start}

    return run


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
