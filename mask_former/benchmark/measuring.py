"""What is measured, a random model and synthetic pictures, and how: stages, runs in turns, ratios."""

import copy
import os
import platform
import re
import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mask_former.config import load_config, merge_opts
from mask_former.formats import id_to_rgb
from mask_former.model_zoo import config_file as published
from mask_former.modeling.build import build_model
from mask_former.modeling.mask_former import MaskFormer

DEFAULT_CONFIG = "ade20k-150/maskformer_R50_bs16_160k.yaml"
# Ignored in label maps of 8 bits.
IGNORE_LABEL = 255
# Runs of each variant before measuring: the first ones allocate, choose kernels and fill caches.
WARM_UP = 2

# Runs a variant once and returns seconds by stage.
Run = Callable[[], dict[str, float]]


def benchmark_config(config_file: str | None, opts: Sequence[str]) -> CfgNode:
    """Return a configuration without data sets and weights."""
    cfg = load_config(config_file or published(DEFAULT_CONFIG))
    merge_opts(cfg, ["DATASETS.TRAIN", (), "DATASETS.TEST", (), "MODEL.WEIGHTS", "", *opts])
    return cfg


def random_model(cfg: CfgNode) -> Any:
    """Return a model with the same random weights on every call, whose first half of classes are things."""
    torch.manual_seed(0)
    model = build_model(cfg, thing_ids=range(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES // 2))
    if not isinstance(model, MaskFormer):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}: the benchmark measures models with "
            "queries, such as those of configs/*/maskformer_*.yaml."
        )
    return model


def synthetic_picture(height: int, width: int) -> NDArray[np.uint8]:
    """Return soft blobs with noise, (H, W, 3) uint8, the same on every call."""
    generator = torch.Generator().manual_seed(1)
    blobs = 255 * torch.rand(1, 3, height // 32 + 2, width // 32 + 2, generator=generator)
    picture = F.interpolate(blobs, size=(height, width), mode="bilinear", align_corners=False)[0]
    picture += 20 * torch.randn(picture.shape, generator=generator)
    return picture.clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()


def write_labelled_picture(
    folder: Path,
    size: tuple[int, int],
    segments: int,
    classes: int,
    *,
    panoptic: bool = False,
    number: int = 0,
) -> dict[str, Any]:
    """Write a picture with labels of wavy cells, and return its data set entry.

    Args:
        folder: for the files.
        size: height and width.
        segments: number of cells; the class of cell i is i modulo `classes`.
        classes: from 255 on, labels have 16 bits, as those of ADE20K's full set.
        panoptic: write panoptic labels, too.
        number: pictures of other numbers are shifted.
    """
    height, width = size
    kind, suffix, ignore_label = (np.uint8, "png", 255) if classes < 255 else (np.uint16, "tif", 65535)
    entry: dict[str, Any] = {"height": height, "width": width, "ignore_label": ignore_label}
    entry["file_name"], entry["sem_seg_file_name"] = (
        str(folder / name) for name in (f"picture_{number}.jpg", f"semantic_{number}.{suffix}")
    )
    picture = np.roll(synthetic_picture(height, width), 8 * number, axis=1)
    Image.fromarray(picture).save(entry["file_name"], quality=95)
    rows = max(1, int(segments**0.5))
    columns = -(-segments // rows)
    y, x = np.mgrid[:height, :width]
    row = ((y + 12 * np.sin(x / 19)) * rows / height).clip(0, rows - 1).astype(int)
    column = ((x + 12 * np.sin(y / 23)) * columns / width).clip(0, columns - 1).astype(int)
    cells = np.roll(np.minimum(row * columns + column, segments - 1), 8 * number, axis=1)
    Image.fromarray((cells % classes).astype(kind)).save(entry["sem_seg_file_name"])
    if panoptic:
        entry["pan_seg_file_name"] = str(folder / f"panoptic_{number}.png")
        ids = (np.arange(segments) + 1) * 40503  # which uses all three channels
        Image.fromarray(id_to_rgb(ids)[cells]).save(entry["pan_seg_file_name"])
        entry["segments_info"] = [
            {"id": segment, "category_id": index % classes, "iscrowd": 0}
            for index, segment in enumerate(ids.tolist())
        ]
    return entry


def check_segments(segments: int, classes: int) -> None:
    """Raise ValueError unless each of the segments can have a class of its own in a label map of 8 bits."""
    most = min(classes, IGNORE_LABEL)
    if segments > most:
        raise ValueError(f"--segments is {segments}, but a label map has {most} classes at most.")


def check_known(arguments: Namespace, known: Sequence[str]) -> None:
    """Raise ValueError where --compare names something else."""
    for name in set(arguments.compare) - set(known):
        raise ValueError(f"--compare {name}: in mode {arguments.mode}, expected {' or '.join(known)}.")


def register(name: str, entries: list[dict[str, Any]]) -> Any:
    """Register a data set, replacing one of that name, and return its empty metadata."""
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, lambda: copy.deepcopy(entries))
    return MetadataCatalog.get(name)


def settled_class_logits(queries: int, classes: int) -> Tensor:
    """Return class logits (Q, K+1) like those of a trained model, the same on every call.

    Two thirds of the queries give "no object" 0.99, the others one class 0.9; the rest is spread unevenly
    over the classes.
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
    """Return millions of parameters, and 10^9 multiply-adds for a padded picture of that size."""
    model.eval().requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        model.predict(model.prepare_images([torch.zeros(3, height, width)]).tensor)
    return {
        "parameters_million": sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        # torch counts a multiplication and an addition as two; papers count them as one.
        "multiply_adds_1e9": counter.get_total_flops() / 2e9,
    }


def machine(device: torch.device) -> dict[str, Any]:
    """Return what times depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.*)$", cpuinfo.read_text(), re.M) if cpuinfo.exists() else None
    processor = model.group(1) if model else platform.processor() or platform.machine()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
    }


class Stopwatch:
    """Seconds by stage of one run."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block, and of what it starts on the device, to a stage."""
        start = self._now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - start

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def interleaved(
    runs: Mapping[str, Run], rounds: int, warm_up: int = WARM_UP
) -> dict[str, list[dict[str, float]]]:
    """Return the seconds by stage of every variant in each round.

    Variants take turns, and each round starts with another one, so that a machine that slows down for a
    while slows all of them down.
    """
    names = list(runs)
    times: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(warm_up + rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            seconds = runs[name]()
            if number >= warm_up:
                times[name].append(seconds)
    return times


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return median and 95th percentile (nearest rank) in milliseconds."""
    ordered = sorted(values)
    rank = max(0, -(-95 * len(ordered) // 100) - 1)
    return {"median_ms": 1e3 * statistics.median(ordered), "p95_ms": 1e3 * ordered[rank]}


def sums(rounds: Sequence[Mapping[str, float]], stages: Sequence[str]) -> list[float]:
    """Return the seconds of several stages together, by round."""
    return [sum(seconds[stage] for stage in stages if stage in seconds) for seconds in rounds]


def ratios(values: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """Return the quotients of two variants' values, pair by pair, and their median."""
    pairs = [ours / theirs for ours, theirs in zip(values, others, strict=True)]
    return {"median": statistics.median(pairs), "pairs": pairs}
