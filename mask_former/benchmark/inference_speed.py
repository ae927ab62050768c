"""Time by stage of inference: our ways, the published way written plainly, and Hugging Face's."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from PIL import Image
from torch import Tensor

from mask_former import inference
from mask_former.benchmark import plain
from mask_former.benchmark.subjects import (
    library,
    random_model,
    settled_class_logits,
    synthetic_picture,
    without_gradients,
)
from mask_former.benchmark.timing import Run, Stopwatch
from mask_former.conversion.targets import write_hugging_face
from mask_former.formats import read_picture
from mask_former.inference.resizing import Sizes
from mask_former.modeling.preparation import prepare_for_inference
from mask_former.modeling.structures import Prediction

# What counts where two variants are compared: from the picture in memory to its result.
COMPARED_STAGES = ("network", "post-processing")
OURS = ("plain network", "float32", "bfloat16")
OTHERS = ("naive", "transformers")
TASKS = ("semantic", "panoptic", "instance")

Network = Callable[[Tensor], Prediction]
PostProcessing = Callable[[Tensor, Tensor, Sizes], Any]


class Setting(NamedTuple):
    """What is measured.

    size: height and width of the picture, which is also the size of the result.
    predictions: "random", the class predictions of the network, or "settled".
    """

    cfg: CfgNode
    size: tuple[int, int]
    predictions: str
    task: str


def build_run(setting: Setting, variant: str, folder: Path) -> Run:
    """Return what runs one picture through a variant and gives seconds by stage; files go to `folder`."""
    model = without_gradients(random_model(setting.cfg))
    picture_file = folder / "picture.jpg"
    if not picture_file.exists():
        Image.fromarray(synthetic_picture(*setting.size)).save(picture_file, quality=95)
    network, post_processing = _parts(setting, variant, model)

    @torch.inference_mode()
    def run() -> dict[str, float]:
        watch = Stopwatch(model.device)
        with watch.stage("data"):
            picture = torch.from_numpy(read_picture(str(picture_file), setting.cfg.INPUT.FORMAT).copy())
            images = model.prepare_images([picture.permute(2, 0, 1)])
        with watch.stage("network"):
            answer = network(images.tensor)
        class_logits = _chosen(setting.predictions, answer.class_logits[0])
        padded_height, padded_width = images.tensor.shape[-2:]
        sizes = Sizes((padded_height, padded_width), setting.size, setting.size)
        with watch.stage("post-processing"):
            result = post_processing(class_logits, answer.mask_logits[0], sizes)
        with watch.stage("save"):
            if isinstance(result, Tensor):
                Image.fromarray(_small(result)).save(folder / "result.png", compress_level=1)
        return watch.seconds

    return run


def _chosen(predictions: str, class_logits: Tensor) -> Tensor:
    if predictions == "random":
        return class_logits
    queries, classes = class_logits.shape
    return settled_class_logits(queries, classes - 1).to(class_logits)


def _small(labels: Tensor) -> np.ndarray[Any, Any]:
    return labels.cpu().numpy().astype(np.uint8 if labels.max() < 256 else np.uint16)


def _parts(setting: Setting, variant: str, model: Any) -> tuple[Network, PostProcessing]:
    """Return network and post-processing of a variant."""
    if variant == "transformers":
        return _hugging_face(setting, model)
    if variant == "naive":
        return lambda images: model.predict(images)[-1], plain.label_map
    if variant != "plain network":
        model = prepare_for_inference(model, variant, in_place=True)
    return lambda images: model.predict(images)[-1], _ours(setting.task, model)


def _ours(task: str, model: Any) -> PostProcessing:
    rules = model.rules
    if task == "semantic":
        return lambda *logits: inference.semantic_labels(*logits, resize_logits=rules.resize_logits)
    if task == "panoptic":
        return lambda *logits: inference.panoptic(
            *logits,
            thing_ids=rules.thing_ids,
            object_mask_threshold=rules.object_mask_threshold,
            overlap_threshold=rules.overlap_threshold,
        )[0]
    return lambda *logits: inference.instances(*logits, top_k=rules.top_k, thing_ids=rules.thing_ids)


def _hugging_face(setting: Setting, model: Any) -> tuple[Network, PostProcessing]:
    """Return Hugging Face's model with the same weights, and its own way to label maps."""
    transformers = library("transformers")
    cfg = setting.cfg
    names = [f"class {number}" for number in range(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)]
    with tempfile.TemporaryDirectory() as folder:
        write_hugging_face(model.state_dict(), cfg, names, 255, False, Path(folder))
        theirs = transformers.MaskFormerForInstanceSegmentation.from_pretrained(folder)
    theirs = without_gradients(theirs.to(model.device))
    # Ours still prepares pictures, but shall not hold weights beside theirs.
    model.backbone = model.sem_seg_head = None
    processor = transformers.MaskFormerImageProcessor()
    outputs: Any = None

    def network(images: Tensor) -> Prediction:
        nonlocal outputs
        outputs = theirs(pixel_values=images)
        return Prediction(outputs.class_queries_logits, outputs.masks_queries_logits)

    def post_processing(class_logits: Tensor, mask_logits: Tensor, sizes: Sizes) -> Tensor:
        outputs.class_queries_logits = class_logits[None]
        labels: Tensor = processor.post_process_semantic_segmentation(outputs, [sizes.output])[0]
        return labels

    return network, post_processing


def check_variants(variants: Sequence[str], task: str) -> None:
    """Raise ValueError where a variant cannot do the task."""
    others = [variant for variant in variants if variant in OTHERS]
    if others and task != "semantic":
        raise ValueError(f"--compare {' '.join(others)} makes label maps only: use it with --task semantic.")
