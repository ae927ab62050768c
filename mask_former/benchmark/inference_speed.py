"""Inference by stage: ours, the published formulas written plainly, Hugging Face's; evaluation as a whole."""

import importlib
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from PIL import Image
from torch import Tensor

from mask_former.benchmark import plain
from mask_former.benchmark.measuring import (
    WARM_UP,
    Run,
    Stopwatch,
    check_known,
    random_model,
    register,
    settled_class_logits,
    write_labelled_picture,
)
from mask_former.conversion.files import write_hugging_face
from mask_former.data.loader import build_test_loader
from mask_former.evaluation import build_evaluators
from mask_former.formats import read_picture
from mask_former.inference.postprocess import form_results
from mask_former.inference.resizing import Sizes
from mask_former.modeling.preparation import prepare_for_inference
from mask_former.modeling.structures import Prediction

# Compared between variants: from the picture in memory to its result.
COMPARED_STAGES = ("network", "post-processing")
OURS = ("plain network", "float32", "bfloat16")
OTHERS = ("naive", "transformers")
TASKS = ("semantic", "panoptic", "instance")
DATASET = "benchmark_pictures"

Network = Callable[[Tensor], Prediction]
PostProcessing = Callable[[Tensor, Tensor, Sizes], Any]


def variants(arguments: Namespace) -> tuple[list[str], list[str]]:
    """Return which variants of ours, and which others, the command line asks for."""
    check_known(arguments, OTHERS)
    if arguments.compare and arguments.task != "semantic":
        names = " ".join(arguments.compare)
        raise ValueError(f"--compare {names} makes label maps only: use it with --task semantic.")
    return list(arguments.precision), list(arguments.compare)


def build_run(cfg: CfgNode, arguments: Namespace, variant: str, folder: Path) -> Run:
    """Return a function that runs one picture through a variant; files go to `folder`."""
    size = (arguments.size[0], arguments.size[1])
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
    if variant == "naive":
        return lambda images: model.predict(images)[-1], plain.label_map
    if variant != "plain network":
        model = prepare_for_inference(model, variant, in_place=True)
    rules = replace(model.rules, tasks=(task,), semantic_form="labels")

    def post_processing(class_logits: Tensor, mask_logits: Tensor, sizes: Sizes) -> Any:
        return form_results(class_logits, mask_logits, sizes, rules)

    return lambda images: model.predict(images)[-1], post_processing


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
    height, width = arguments.size
    dataset_name = arguments.dataset
    if not dataset_name:
        # The pictures keep their size.
        cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = min(height, width), max(height, width)
        classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        dataset_name = register_pictures(folder, arguments.pictures, (height, width), classes)
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
    evaluator = build_evaluators(cfg, dataset_name, folder / "scores")
    evaluator.reset()
    with torch.inference_mode():
        for batch in build_test_loader(cfg, dataset_name):
            evaluator.process(batch, model(batch))
    evaluator.evaluate()
    whole = time.perf_counter() - start
    # Before and after, so that a machine that slows down in between slows both down.
    network = (before + _network_seconds(model, pictures)) / 2
    return {"pictures": len(pictures), "whole_s": whole, "network_s": network, "ratio": whole / network}


@torch.inference_mode()
def _network_seconds(model: Any, pictures: list[list[dict[str, Any]]]) -> float:
    """Return the time of the network for pictures in memory, after some to warm up."""
    watch = Stopwatch(model.device)
    first = pictures[:WARM_UP]
    for number, batch in enumerate([*first, *pictures]):
        images = model.prepare_images([picture["image"] for picture in batch])
        with watch.stage("warm-up" if number < len(first) else "network"):
            model.predict(images.tensor)
    return watch.seconds["network"]
