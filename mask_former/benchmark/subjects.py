"""What is measured: a model with random weights, a picture, and class predictions of either kind."""

import copy
import importlib
import os
import platform
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mask_former.config import load_config, merge_opts
from mask_former.model_zoo import config_file as published
from mask_former.modeling.build import build_model
from mask_former.modeling.mask_former import MaskFormer

PREDICTIONS = ("random", "settled")


# In label maps of bytes.
IGNORE_LABEL = 255

DEFAULT_CONFIG = "ade20k-150/maskformer_R50_bs16_160k.yaml"


def benchmark_config(config_file: str | None, opts: Sequence[str]) -> CfgNode:
    """Return the configuration without data sets and weights, for nothing is read but pictures."""
    cfg = load_config(config_file or published(DEFAULT_CONFIG))
    # Thing classes do not change the time; the first half stands for them, see `random_model`.
    merge_opts(cfg, ["DATASETS.TRAIN", (), "DATASETS.TEST", (), "MODEL.WEIGHTS", "", *opts])
    return cfg


def random_model(cfg: CfgNode) -> Any:
    """Return the model with the same random weights on every call."""
    torch.manual_seed(0)
    things = range(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES // 2)
    model = build_model(cfg, thing_ids=things)
    if not isinstance(model, MaskFormer):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}: the benchmark measures models with "
            "queries, such as those of configs/*/maskformer_*.yaml."
        )
    return model


def synthetic_picture(height: int, width: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return a picture (H, W, 3) uint8 of soft blobs with noise, the same on every call."""
    generator = torch.Generator().manual_seed(1)
    blobs = 255 * torch.rand(1, 3, height // 32 + 2, width // 32 + 2, generator=generator)
    picture = F.interpolate(blobs, size=(height, width), mode="bilinear", align_corners=False)[0]
    picture += 20 * torch.randn(picture.shape, generator=generator)
    return picture.clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()


def register(name: str, entries: list[dict[str, Any]]) -> Any:
    """Register a data set anew and return its metadata, empty."""
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, lambda: copy.deepcopy(entries))
    return MetadataCatalog.get(name)


def check_segments(segments: int, classes: int) -> None:
    """Raise ValueError where a label map of bytes cannot have so many segments, each a class."""
    most = min(classes, IGNORE_LABEL)
    if segments > most:
        raise ValueError(f"--segments is {segments}, but a label map has {most} classes at most.")


def settled_class_logits(queries: int, classes: int) -> Tensor:
    """Return class logits (Q, K+1) that look like a trained model's, the same on every call.

    Two thirds of the queries put 0.99 on "no object", the others 0.9 on one class each; what is left is
    spread unevenly over the classes.
    """
    generator = torch.Generator().manual_seed(2)
    spread = torch.rand(queries, classes, generator=generator)
    spread /= spread.sum(1, keepdim=True)
    has_object = torch.arange(queries) % 3 == 0
    probs = torch.cat([0.01 * spread, torch.full((queries, 1), 0.99)], dim=1)
    probs[has_object, :-1] = 0.1 * spread[has_object]
    probs[has_object, -1] = 0.0
    chosen = torch.randint(classes, (queries,), generator=generator)
    probs[has_object, chosen[has_object]] += 0.9
    return probs.clamp(min=1e-12).log()


def parameters_and_operations(model: Any, height: int, width: int) -> dict[str, float]:
    """Return millions of parameters, and 10^9 multiply-adds for a picture of that size, padded.

    Leaves the model in evaluation mode.
    """
    without_gradients(model)
    with FlopCounterMode(display=False) as counter:
        images = model.prepare_images([torch.zeros(3, height, width)])
        model.predict(images.tensor)
    return {
        "parameters_million": sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        # torch counts a multiplication and an addition as two; papers count them as one.
        "multiply_adds_1e9": counter.get_total_flops() / 2e9,
    }


def machine(device: torch.device) -> dict[str, Any]:
    """Return what one has to know of a machine to compare its times."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def library(name: str) -> Any:
    """Return a library that the package itself does without."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"{name} is not installed ({error}): install it, or leave it out of --compare."
        ) from error


def without_gradients(model: Any) -> Any:
    """Return the model in evaluation mode."""
    return model.eval().requires_grad_(False)
