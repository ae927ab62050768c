"""The recipe of a user's own data: a configuration by data and device, with a reason beside each value."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode

from mask_former.config import CONFIG_FOLDERS, available_device, leaves, load_config
from mask_former.data.own.dataset import OwnDataset
from mask_former.engine.recipe_text import Recipe
from mask_former.engine.start_weights import StartWeights

RESNETS = {"R18": 18, "R34": 34, "R50": 50, "R101": 101}
# Beginnings of the keys of the network, which weights that describe themselves decide.
NETWORK = (
    *("MODEL.META_ARCHITECTURE", "MODEL.BACKBONE.", "MODEL.RESNETS.", "MODEL.SWIN.", "MODEL.TIMM."),
    *("MODEL.SEM_SEG_HEAD.", "MODEL.MASK_FORMER.", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"),
)
FROM_THE_DATA = (
    *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "MODEL.SEM_SEG_HEAD.IGNORE_VALUE", "MODEL.MASK_FORMER.TEST."),
    *("MODEL.MASK_FORMER.VOID_IN_LOSS", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES"),
)
IMAGENET_MEAN, IMAGENET_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
# Share of the picture that a crop shows.
CROP_SHARE = 0.8
# Masks are predicted at a quarter of the size: smaller pictures are enlarged.
SMALLEST_SIDE = 128
# GPU memory that a picture of 512x512 takes in mixed precision, ResNet-50; and what else is on the GPU.
BYTES_OF_PICTURE, BYTES_BESIDE = 1.3e9, 2e9


class Device(NamedTuple):
    """What a run has to compute with."""

    name: str
    is_gpu: bool
    memory: int
    has_bfloat16: bool
    cores: int


def this_device(wanted: str) -> Device:
    """Return the device that MODEL.DEVICE names, or the CPU where there is none."""
    cores = len(os.sched_getaffinity(0))
    name = available_device(wanted)
    if not name.startswith("cuda"):
        return Device(f"a CPU with {cores} cores", False, 0, False, cores)
    found = torch.cuda.get_device_properties(name)
    return Device(found.name, True, found.total_memory, torch.cuda.is_bf16_supported(), cores)


class Sizing(NamedTuple):
    """What differs between the two kinds of devices.

    pixels: of a crop, at most. batch: pictures of a step. steps: of a run. most_epochs, fewest_epochs: bounds
    where they would be too many, or too few. rate: learning rate at that batch. queries: unless a picture
    has many segments. scales: of the pictures in training.
    """

    pixels: int
    batch: int
    steps: int
    fewest_epochs: int
    most_epochs: int
    rate: float
    queries: int
    scales: tuple[float, ...]


# Two cores do about half a step a second: an hour. A GPU of some years ago does two to four: an hour, too.
CPU = Sizing(131_072, 6, 1800, 1, 200, 4e-4, 50, (0.75, 0.9, 1.0, 1.1, 1.25, 1.5))
GPU = Sizing(524_288, 16, 6000, 12, 300, 1e-4, 100, tuple(tenths / 10 for tenths in range(5, 21)))
# A head that a CPU can train: the transformer reads a map of 1/16, and all is half as wide.
SMALL_HEAD = {
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 128,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 128,
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "res4",
    "MODEL.MASK_FORMER.HIDDEN_DIM": 128,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 512,
    "MODEL.MASK_FORMER.DEC_LAYERS": 3,
    "MODEL.MASK_FORMER.DROPOUT": 0.0,
}


class Request(NamedTuple):
    """What a user asked for beside the data; None and "" leave it to the recipe."""

    epochs: int | None = None
    backbone: str = ""
    start: StartWeights | None = None
    ignore_faults: bool = False
    layout: str = ""
    processes: int = 1


def write_recipe(
    dataset: OwnDataset,
    sizes: Mapping[tuple[int, int], int],
    most_segments: int,
    device: Device,
    request: Request,
    given: Mapping[str, Any],
) -> str:
    """Return the recipe of a data set as YAML.

    Args:
        dataset: with splits "train" and, to be scored on, "val".
        sizes: (width, height) -> number of pictures.
        most_segments: in one picture.
        device: to train on.
        request: what the user asked for.
        given: configuration keys whose values are given, OUTPUT_DIR among them.
    """
    recipe = Recipe(given)
    sizing = GPU if device.is_gpu else CPU
    count = len(dataset.splits["train"])
    _set_data(recipe, dataset, request)
    _set_network(recipe, request, device, base_of(dataset.task), most_segments)
    crop = _set_sizes(recipe, sizes, sizing, device)
    _set_training(recipe, count, crop, device, sizing, request)
    head = f"{dataset.task} labels of {dataset.folder}, for {device.name}. Run it again, or on:\n"
    head += f"  train_net.py --config-file {given['OUTPUT_DIR']}/recipe.yaml [--resume]"
    return recipe.text(head, base_of(dataset.task))


def base_of(task: str) -> Path:
    """Return the file of what the recipes of a task share."""
    names = [folder / "own-data" / f"{task}.yaml" for folder in CONFIG_FOLDERS]
    return next(name for name in names if name.is_file()).resolve()


def _set_data(recipe: Recipe, dataset: OwnDataset, request: Request) -> None:
    name, counts = dataset.folder.resolve().name, {k: len(v) for k, v in dataset.splits.items()}
    recipe.set("DATASETS.FOLDER", str(dataset.folder.resolve()), "")
    recipe.set("DATASETS.LAYOUT", dataset.layout, "as found" if not request.layout else "as told")
    if request.ignore_faults:
        recipe.set("DATASETS.IGNORE_FAULTS", True, "pictures with faults are left out")
    recipe.set("DATASETS.TRAIN", [f"{name}_train"], f"{counts['train']} pictures")
    has_val = bool(counts.get("val"))
    recipe.set("DATASETS.TEST", [f"{name}_val"] * has_val, f"{counts.get('val', 0)} pictures")
    if not has_val:
        recipe.set("TEST.BEST_METRIC", "", "nothing to score on")
    classes = len(dataset.classes)
    recipe.set("MODEL.SEM_SEG_HEAD.NUM_CLASSES", classes, f"from {dataset.classes_from}")
    value = dataset.ignore_label if not 0 <= dataset.ignore_label < classes else 65535
    recipe.set("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", value, "of pixels without a class")


def _set_network(recipe: Recipe, request: Request, device: Device, base: Path, most_segments: int) -> None:
    start = request.start
    if start is not None:
        recipe.set("MODEL.WEIGHTS", str(start.file.resolve()), "to start from")
    else:
        recipe.set("MODEL.WEIGHTS", "", "none given: random ones, which learn slowly (--weights)")
    queries = (GPU if device.is_gpu else CPU).queries
    if start is not None and start.cfg is not None:
        _check_backbone(request.backbone, start)
        for key, value in _network_of(start.cfg, load_config(base)).items():
            recipe.set(key, value, "as in the weights")
        recipe.set("INPUT.FORMAT", start.cfg.INPUT.FORMAT, "as in the weights")
        queries = start.cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES
    else:
        _set_backbone(recipe, request, device)
        is_small = not device.is_gpu and not (start and start.is_whole)
        for key, value in SMALL_HEAD.items() if is_small else ():
            recipe.set(key, value, "small enough to train on a CPU")
    needed = math.ceil(1.5 * most_segments / 10) * 10
    reason = f"at least one and a half times the {most_segments} segments of the fullest picture"
    recipe.set("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", max(queries, needed), reason)


def _network_of(cfg: CfgNode, base: CfgNode) -> dict[str, Any]:
    """Return the keys of a configuration's network that differ from `base` and are not the data's."""
    before = leaves(base)
    return {
        key: value
        for key, value in leaves(cfg).items()
        if key.startswith(NETWORK) and not key.startswith(FROM_THE_DATA) and value != before[key]
    }


def is_timm(backbone: str) -> bool:
    """Return whether a name of a backbone is one of timm's."""
    return bool(backbone) and backbone not in RESNETS


def backbone_keys(name: str) -> dict[str, Any]:
    """Return the configuration keys of a backbone by its short name."""
    if is_timm(name):
        return {"MODEL.BACKBONE.NAME": "build_timm_backbone", "MODEL.TIMM.NAME": name}
    keys = {"MODEL.BACKBONE.NAME": "build_resnet_backbone", "MODEL.RESNETS.DEPTH": RESNETS[name]}
    keys |= {"MODEL.RESNETS.RES2_OUT_CHANNELS": 64} if RESNETS[name] < 50 else {}
    return keys | {"MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"]}


def _check_backbone(name: str, start: StartWeights) -> None:
    """Raise ValueError if a backbone is asked for that is not the one of the weights."""
    assert start.cfg is not None
    own = leaves(start.cfg)
    for key, value in backbone_keys(name).items() if name else ():
        if own[key] != value:
            raise ValueError(f"--backbone {name}: {start.file} has {key} {own[key]}; leave --backbone out.")


def _set_backbone(recipe: Recipe, request: Request, device: Device) -> None:
    """Set the backbone by name, by its weights, or by the device."""
    start, name = request.start, request.backbone or ("R50" if device.is_gpu else "R18")
    keys: Mapping[str, Any] = backbone_keys(name)
    reason = "as told" if request.backbone else f"for {device.name}"
    if start is not None and start.backbone and not request.backbone:
        keys, reason = start.backbone, "as in the weights"
    for key, value in keys.items():
        recipe.set(key, value, reason)
    if "MODEL.RESNETS.DEPTH" in keys:
        norm = ("FrozenBN", "statistics of the weights") if start else ("BN", "nothing to freeze yet")
        recipe.set("MODEL.RESNETS.NORM", *norm)
    elif start is not None and "MODEL.TIMM.NAME" in keys:
        recipe.set("MODEL.BACKBONE.FREEZE", "norms", "statistics of the weights")
    if "MODEL.TIMM.NAME" not in keys:  # those of timm know theirs
        recipe.set("MODEL.PIXEL_MEAN", IMAGENET_MEAN, "of ImageNet, RGB")
        recipe.set("MODEL.PIXEL_STD", IMAGENET_STD, "of ImageNet, RGB")


def _set_sizes(
    recipe: Recipe, sizes: Mapping[tuple[int, int], int], sizing: Sizing, device: Device
) -> tuple[int, int]:
    """Set sizes and crops by the pictures' own sizes, and return (height, width) of a crop."""
    pictures = [size for size, times in sorted(sizes.items()) for _ in range(times)]
    aspects = sorted(max(size) / min(size) for size in pictures)
    shorts = sorted(min(size) for size in pictures)
    short, aspect = shorts[len(shorts) // 2], aspects[len(aspects) // 2]
    affordable = math.isqrt(int(sizing.pixels / (CROP_SHARE**2 * aspect)))
    side = recipe.set(
        "INPUT.MIN_SIZE_TEST",
        max(SMALLEST_SIDE, min(short, affordable)),
        f"median of the shorter sides, {short}, kept in {SMALLEST_SIDE} to {affordable}",
    )
    longest = math.ceil(side * aspects[-1])
    recipe.set("INPUT.MAX_SIZE_TEST", longest, "the longest picture keeps its shape")
    scales = [round(side * scale) for scale in sizing.scales]
    first, last = sizing.scales[0], sizing.scales[-1]
    recipe.set("INPUT.MIN_SIZE_TRAIN", scales, f"{first} to {last} times the size for tests")
    recipe.set("INPUT.MAX_SIZE_TRAIN", math.ceil(longest * last), "so that no scale is cut")
    across, along = (max(32, int(CROP_SHARE * length) // 32 * 32) for length in (side, side * aspect))
    wide = sum(width >= height for width, height in pictures) / len(pictures)
    crop = [across, along] if wide > 0.9 else [along, across] if wide < 0.1 else [across, across]
    recipe.set("INPUT.CROP.ENABLED", True, "other views of the same pictures")
    height, width = recipe.set("INPUT.CROP.SIZE", crop, f"{CROP_SHARE} of a picture, a multiple of 32")
    return int(height), int(width)


def _set_training(
    recipe: Recipe, count: int, crop: tuple[int, int], device: Device, sizing: Sizing, request: Request
) -> None:
    """Set batch, learning rate and lengths; `count` pictures, of which a step sees crops."""
    batch, parts = _batch(count, crop, device, sizing, request.processes)
    batch = recipe.set("SOLVER.IMS_PER_BATCH", batch, f"for {device.name} and {count} pictures")
    recipe.set(
        "SOLVER.ACCUMULATE", parts, "parts of the batch, one after the other, that memory has room for"
    )
    if device.is_gpu:
        recipe.set("SOLVER.AMP.ENABLED", True, "faster, in less memory")
        kind = "bfloat16" if device.has_bfloat16 else "float16"
        recipe.set("SOLVER.AMP.DTYPE", kind, "what the GPU has")
        if crop[0] * crop[1] > 512 * 512:
            recipe.set("MODEL.MASK_FORMER.LOSS_POINTS", 12544, "less memory for crops larger than 512x512")
    usual = GPU if request.start and request.start.is_whole else sizing  # trained heads need no higher rate
    rate = usual.rate * math.sqrt(batch / usual.batch)
    reason = f"{usual.rate} at a batch of {usual.batch}, by the square root of the batch"
    recipe.set("SOLVER.BASE_LR", float(f"{rate:.2g}"), reason)
    multiplier = (0.1, "trained already") if request.start else (1.0, "as new as the rest")
    recipe.set("SOLVER.BACKBONE_MULTIPLIER", *multiplier)
    fewest, most = sizing.fewest_epochs * count / batch, sizing.most_epochs * count / batch
    steps, reason = max(fewest, min(sizing.steps, most)), f"{sizing.steps} for {device.name}"
    if request.epochs is not None:
        steps, reason = request.epochs * count / batch, f"{request.epochs} epochs as told"
    steps = max(1, math.ceil(steps))
    reason += f"; {steps * batch / count:.3g} times through {count} pictures"
    steps = recipe.set("SOLVER.MAX_ITER", steps, reason)
    recipe.set("SOLVER.WARMUP_ITERS", min(500, steps // 10), "a tenth of the run, 500 at most")
    decay = round(1 - 20 / steps, 4) if steps >= 200 else 0.0
    recipe.set("SOLVER.EMA_DECAY", decay, "an average over a twentieth of the run; none for a very short one")
    tenth = math.ceil(steps / 10)
    recipe.set("TEST.EVAL_PERIOD", tenth, "ten times in all; the best weights are kept")
    recipe.set("SOLVER.CHECKPOINT_PERIOD", tenth, "as often; the last two are kept")
    workers = min(4, device.cores // 2) if device.is_gpu else min(1, device.cores - 1)
    recipe.set("DATALOADER.NUM_WORKERS", workers, f"of {device.cores} cores")


def _batch(
    count: int, crop: tuple[int, int], device: Device, sizing: Sizing, processes: int
) -> tuple[int, int]:
    """Return the pictures of a step, a multiple of `processes`, and in how many parts they are trained."""
    own = max(1, min(sizing.batch, count) // processes)
    parts = 1
    if device.is_gpu:
        need = BYTES_OF_PICTURE * crop[0] * crop[1] / 512**2
        fitting = max(1, int((0.9 * device.memory - BYTES_BESIDE) / need))
        parts = next(n for n in range(1, own + 1) if (own % n == 0 and own // n <= fitting) or n == own)
    return own * processes, parts
