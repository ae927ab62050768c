"""The recipe of a user's own data: a configuration that follows from data and device, a reason beside each value."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from detectron2.config import CfgNode

from mask_former.config import CONFIG_FOLDERS, available_device, load_config
from mask_former.data.own.dataset import OwnDataset
from mask_former.engine.start_weights import StartWeights

RESNETS = {"R18": 18, "R34": 34, "R50": 50, "R101": 101}
# Keys under MODEL that make the network; weights that describe themselves decide them.
NETWORK = ("META_ARCHITECTURE", "BACKBONE", "RESNETS", "SWIN", "TIMM", "SEM_SEG_HEAD", "MASK_FORMER")
NETWORK += ("PIXEL_MEAN", "PIXEL_STD")
FROM_THE_DATA = ("NUM_CLASSES", "IGNORE_VALUE", "VOID_IN_LOSS", "NUM_OBJECT_QUERIES")
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


@dataclass
class Recipe:
    """Keys with values and reasons. A key that the command gives keeps that value."""

    given: Mapping[str, Any]
    entries: dict[str, tuple[Any, str]] = field(default_factory=dict)

    def set(self, key: str, value: Any, reason: str) -> Any:
        """Set a key unless it is given, and return its value."""
        if key in self.given:
            value, reason = self.given[key], "given with the command"
        self.entries[key] = (value, reason)
        return value

    def text(self, head: str, base: Path) -> str:
        """Return the YAML."""
        for key, value in self.given.items():
            if key not in self.entries:
                self.set(key, value, "")
        tree: dict[str, Any] = {}
        for key, entry in self.entries.items():
            *path, name = key.split(".")
            node = tree
            for part in path:
                node = node.setdefault(part, {})
            node[name] = entry
        comment = "".join(f"# {line}\n" for line in head.splitlines())
        return f"{comment}_BASE_: {yaml_value(str(base))}\n{_yaml(tree)}VERSION: 2\n"


def yaml_value(value: Any) -> str:
    """Return a plain value on one line of YAML."""
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=math.inf, allow_unicode=True)
    return text.removesuffix("\n...\n").strip()


def _yaml(node: Mapping[str, Any], indent: str = "") -> str:
    lines = ""
    for name, entry in node.items():
        if isinstance(entry, dict):
            lines += f"{indent}{name}:\n{_yaml(entry, indent + '  ')}"
        else:
            value, reason = entry
            lines += f"{indent}{name}: {yaml_value(value)}" + (f"  # {reason}\n" if reason else "\n")
    return lines


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
        given: configuration keys whose values are given.
    """
    recipe = Recipe(given)
    sizing = GPU if device.is_gpu else CPU
    count = len(dataset.splits["train"])
    _set_data(recipe, dataset, request)
    _set_network(recipe, request, device, sizing, most_segments, count)
    crop = _set_sizes(recipe, sizes, sizing, device)
    _set_training(recipe, count, crop, device, sizing, request)
    head = f"{dataset.task} labels of {dataset.folder}, for {device.name}. Run it again, or on:\n"
    head += "  train_net.py --config-file THIS_FILE [--resume]"
    return recipe.text(head, base_of(dataset.task))


def base_of(task: str) -> Path:
    """Return the file of what the recipes of a task share."""
    names = [folder / "own-data" / f"{task}.yaml" for folder in CONFIG_FOLDERS]
    return next(name for name in names if name.is_file()).resolve()


def _set_data(recipe: Recipe, dataset: OwnDataset, request: Request) -> None:
    name, counts = dataset.folder.resolve().name, {k: len(v) for k, v in dataset.splits.items()}
    recipe.set("DATASETS.FOLDER", str(dataset.folder.resolve()), dataset.layout)
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


def _set_network(
    recipe: Recipe, request: Request, device: Device, sizing: Sizing, most_segments: int, count: int
) -> None:
    start = request.start
    if start is not None:
        recipe.set("MODEL.WEIGHTS", str(start.file.resolve()), "to start from")
    else:
        recipe.set(
            "MODEL.WEIGHTS", "", "none given: random ones, which need many more epochs than trained ones"
        )
    queries = sizing.queries
    if start is not None and start.cfg is not None:
        for key, value in _network_of(start.cfg).items():
            recipe.set(key, value, "as in the weights")
        queries = start.cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES
    else:
        _set_backbone(recipe, request, device, count)
        for key, value in {} if device.is_gpu else SMALL_HEAD.items():
            recipe.set(key, value, "small enough to train on a CPU")
    needed = math.ceil(1.5 * most_segments / 10) * 10
    reason = f"at least one and a half times the {most_segments} segments of the fullest picture"
    recipe.set("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", max(queries, needed), reason)


def _network_of(cfg: CfgNode) -> dict[str, Any]:
    """Return the keys of the network of a configuration that differ from the defaults and are not the data's."""
    defaults = load_config()
    differing: dict[str, Any] = {}

    def walk(node: CfgNode, default: CfgNode, prefix: str) -> None:
        for name, value in node.items():
            if isinstance(value, CfgNode):
                walk(value, default[name], f"{prefix}{name}.")
            elif value != default[name] and name not in FROM_THE_DATA and ".TEST." not in prefix:
                differing[prefix + name] = value

    for part in NETWORK:
        node, default = cfg.MODEL[part], defaults.MODEL[part]
        if isinstance(node, CfgNode):
            walk(node, default, f"MODEL.{part}.")
        elif node != default:
            differing[f"MODEL.{part}"] = node
    return differing


def _set_backbone(recipe: Recipe, request: Request, device: Device, count: int) -> None:
    """Set the backbone by name, by its weights, or by the device."""
    start = request.start
    if start is not None and start.backbone and not request.backbone:
        for key, value in start.backbone.items():
            recipe.set(key, value, "as in the weights")
        name = recipe.entries.get("MODEL.RESNETS.DEPTH", ("", ""))[0] and "R"
    else:
        name = request.backbone or ("R50" if device.is_gpu else "R18")
        reason = "as told" if request.backbone else f"for {device.name}"
        if name in RESNETS:
            recipe.set("MODEL.BACKBONE.NAME", "build_resnet_backbone", reason)
            recipe.set("MODEL.RESNETS.DEPTH", RESNETS[name], reason)
            if RESNETS[name] < 50:
                recipe.set("MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "of this depth")
        else:
            recipe.set("MODEL.BACKBONE.NAME", "build_timm_backbone", "a model of timm")
            recipe.set("MODEL.TIMM.NAME", name, reason)
    if name in RESNETS or name == "R":
        recipe.set("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"], "maps of 1/4 to 1/32")
        norm, reason = ("FrozenBN", "statistics of the weights") if start else ("BN", "nothing to freeze yet")
        recipe.set("MODEL.RESNETS.NORM", norm, reason)
        recipe.set("MODEL.PIXEL_MEAN", IMAGENET_MEAN, "of ImageNet, RGB")
        recipe.set("MODEL.PIXEL_STD", IMAGENET_STD, "of ImageNet, RGB")
