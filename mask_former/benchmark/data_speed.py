"""Training samples a second: of the mapper on one core, beside the plain way, and of the loader on all."""

import copy
import os
import random
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.detection_utils import read_image
from PIL import Image
from torch.nn import functional as F

from mask_former.benchmark.subjects import IGNORE_LABEL, check_segments, register, synthetic_picture
from mask_former.data.augmentations import crop_recipe
from mask_former.data.loader import build_train_loader
from mask_former.data.mapper import build_train_mapper
from mask_former.formats import id_to_rgb

NAME = "benchmark_training_pictures"
# Samples in a run of either way, whose times are compared.
SAMPLES = 20
PICTURE_PADDING = 128
# Mappers that the plain way is written for, and the labels that they read.
LABELS = {"mask_former_semantic": "sem_seg", "mask_former_panoptic": "pan_seg"}

Entry = dict[str, Any]


class Setting(NamedTuple):
    """What is measured: pictures of `size` (height, width) with so many segments."""

    cfg: CfgNode
    size: tuple[int, int]
    segments: int


def write_entry(folder: Path, size: tuple[int, int], segments: int) -> Entry:
    """Write a picture and labels of wavy cells, semantic and panoptic; return their data set entry."""
    height, width = size
    names = {
        "file_name": str(folder / "picture.jpg"),
        "sem_seg_file_name": str(folder / "semantic.png"),
        "pan_seg_file_name": str(folder / "panoptic.png"),
    }
    Image.fromarray(synthetic_picture(height, width)).save(names["file_name"], quality=90)
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    y, x = y + 12 * np.sin(x / 19), x + 12 * np.sin(y / 23)
    centres = generator.random((segments, 2)) * [height, width]
    cells = np.argmin([(y - a) ** 2 + (x - b) ** 2 for a, b in centres], axis=0)
    Image.fromarray(cells.astype(np.uint8)).save(names["sem_seg_file_name"])
    # Numbers that use all three channels.
    ids = (cells + 1) * 40503
    Image.fromarray(id_to_rgb(ids)).save(names["pan_seg_file_name"])
    infos = [{"id": (i + 1) * 40503, "category_id": i, "iscrowd": 0} for i in range(segments)]
    return {**names, "height": height, "width": width, "ignore_label": IGNORE_LABEL, "segments_info": infos}


def plain_mapper(cfg: CfgNode) -> Callable[[Entry], Any]:
    """Return the straightforward way to a sample: label moved as float64 or RGB, mask after mask."""
    kind = LABELS[cfg.INPUT.DATASET_MAPPER_NAME]
    augmentations = T.AugmentationList(crop_recipe(cfg))
    divisibility = max(1, cfg.INPUT.SIZE_DIVISIBILITY)

    def sample(entry: Entry) -> Any:
        entry = copy.deepcopy(entry)
        label = read_image(entry[f"{kind}_file_name"], "RGB" if kind == "pan_seg" else None)
        picture = T.AugInput(read_image(entry["file_name"], cfg.INPUT.FORMAT))
        transforms = augmentations(picture)
        if kind == "sem_seg":
            label = transforms.apply_segmentation(label.astype("double")).astype(int)
            classes = {int(value): int(value) for value in np.unique(label) if value != IGNORE_LABEL}
        else:
            label = transforms.apply_segmentation(label).astype(int)
            label = label[..., 0] + 256 * label[..., 1] + 65536 * label[..., 2]
            classes = {info["id"]: info["category_id"] for info in entry["segments_info"]}
        image = torch.from_numpy(np.ascontiguousarray(picture.image.transpose(2, 0, 1)))
        height, width = image.shape[1:]
        padding = (0, -width % divisibility, 0, -height % divisibility)
        label = F.pad(torch.from_numpy(np.ascontiguousarray(label)), padding, value=IGNORE_LABEL).numpy()
        masks = [torch.from_numpy((label == value).copy()) for value in classes]
        return F.pad(image, padding, value=PICTURE_PADDING), torch.stack(masks), list(classes.values())

    return sample


def measure(setting: Setting, folder: Path, rounds: int) -> dict[str, Any]:
    """Return samples a second of processor time by way and round, and of the loader by number of workers.

    Args:
        setting: the mapper's settings and the picture.
        folder: for files.
        rounds: runs of either way, in turns.
    """
    cfg = setting.cfg
    if cfg.INPUT.DATASET_MAPPER_NAME not in LABELS:
        raise ValueError(
            f"INPUT.DATASET_MAPPER_NAME is {cfg.INPUT.DATASET_MAPPER_NAME}; mode data measures "
            f"{' and '.join(LABELS)}: choose one by --opts, or another --config-file."
        )
    check_segments(setting.segments, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    entry = write_entry(folder, setting.size, setting.segments)
    ways = {"ours": build_train_mapper(cfg), "plain": plain_mapper(cfg)}
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for way in ways.values():
            way(entry)
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                rates[name].append(_samples_a_second(way, entry))
    finally:
        torch.set_num_threads(torch_threads)
    return {"mapper": rates, "loader": dict(_loader_rates(cfg, entry))}


def _samples_a_second(way: Callable[[Entry], Any], entry: Entry) -> float:
    # The same crops and colours for both.
    np.random.seed(0)
    random.seed(0)
    start = time.process_time()
    for _ in range(SAMPLES):
        way(entry)
    return SAMPLES / (time.process_time() - start)


def _loader_rates(cfg: CfgNode, entry: Entry) -> Iterator[tuple[int, float]]:
    """Yield numbers of workers with the samples that the loader then gives in a second of wall time."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TRAIN, cfg.SOLVER.IMS_PER_BATCH = (NAME,), 2
    register(NAME, [{**entry, "image_id": number} for number in range(SAMPLES)])
    for workers in (0, os.cpu_count() or 1):
        cfg.DATALOADER.NUM_WORKERS = workers
        batches = iter(build_train_loader(cfg, seed=0))
        next(batches)  # starts the workers
        start = time.perf_counter()
        count = sum(len(batch) for batch in islice(batches, 2 * SAMPLES))
        yield workers, count / (time.perf_counter() - start)
        del batches
