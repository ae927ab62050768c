"""Convert weights, or say what a file of weights is: `python -m mask_former.convert`."""

import argparse
import importlib
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_model
from torch import Tensor, nn

from mask_former.checkpoint import describe, described_config, resolve
from mask_former.checkpoint.fitting import fit_weights
from mask_former.checkpoint.limits import plain_text
from mask_former.config import load_config
from mask_former.conversion.backbones import Backbone, State, describe_backbone, swin_to_timm
from mask_former.conversion.files import (
    TITLES,
    SourceWeights,
    describe_source,
    read_source,
    target_of,
    write_checkpoint,
    write_hugging_face,
    write_published,
)

TOLERANCE = 1e-4
# (height, width) of the image that both sides see.
IMAGE_SIZE = (96, 128)

# What a file of a backbone need not have: our output norms, theirs before the classifier, and indices.
COMPUTED = r"norm\d?\.|.*relative_position_index$"

Maps = dict[str, Tensor]
EXAMPLES = """
SRC may be: a ResNet of torchvision or timm, a Swin release or a Swin of timm, a Hugging Face folder, a
published .pkl, or a checkpoint of ours (.pth, .safetensors); a path, URL or detectron2:// name.
DST tells what is written: .pth or .safetensors (ours), .pkl (the published layout), a folder (Hugging Face).

examples:
  python -m mask_former.convert resnet101-63fe2227.pth R-101.pkl
  python -m mask_former.convert swin_tiny_patch4_window7_224.pth swin_tiny_patch4_window7_224.pkl --verify
  python -m mask_former.convert output/model_final.pth my_model/ --verify
  python -m mask_former.convert my_model/ model.pth
  python -m mask_former.convert inspect output/model_final.pth
"""


def argument_parser(is_inspection: bool) -> argparse.ArgumentParser:
    """Return the parser of a conversion, or of `inspect`."""
    text = "Convert weights between frameworks and layouts."
    if is_inspection:
        text = "Say what a file of weights is, and how it fits a configuration."
    parser = argparse.ArgumentParser(
        prog="python -m mask_former.convert" + (" inspect" if is_inspection else ""),
        description=text,
        epilog="" if is_inspection else EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if is_inspection:
        parser.add_argument("source", metavar="FILE", help="weights: a path, URL or detectron2:// name")
    else:
        parser.add_argument("source", metavar="SRC", help="weights, or 'inspect' (see inspect --help)")
        parser.add_argument("target", metavar="DST", type=Path, help="file or folder to write")
        parser.add_argument("--verify", action="store_true", help="run both sides on an image and compare")
        parser.add_argument("--licence", default="", help="licence of the weights, noted in what is written")
        labels = "Hugging Face folder: labels will be raw ADE20K's (0 is void, 1 is the first class)"
        parser.add_argument("--reduce-labels", action="store_true", help=labels)
    parser.add_argument("--config-file", help="configuration of the model, where the file does not hold it")
    changes = "changes of the configuration"
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help=changes)
    unsafe = "run whatever code a pickle names; only for files you trust"
    parser.add_argument("--allow-unsafe", action="store_true", help=unsafe)
    return parser


def configuration(source: SourceWeights, config_file: str | None, opts: Sequence[str]) -> CfgNode | None:
    """Return the configuration of a model: the file given, else what the weights say; None for neither."""
    if config_file or opts:
        return load_config(config_file, opts)
    if source.keys:
        cfg = load_config()
        for key, value in source.keys.items():
            cfg.merge_from_list([key, value])
        return cfg
    return described_config(source.metadata)


def class_names_of(source: SourceWeights, cfg: CfgNode) -> list[str]:
    """Return the names of the classes: the file's, else those of the configuration's data set."""
    if len(source.names) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES:
        return source.names
    names = [name for name in cfg.DATASETS.TRAIN[:1] if name in MetadataCatalog.list()]
    return describe(cfg, MetadataCatalog.get(names[0]))["class_names"] if names else []


def convert(arguments: argparse.Namespace) -> list[str]:
    """Convert as a command line says, and return what to tell."""
    path, target = _local(arguments.source), target_of(arguments.target)
    source = read_source(path, arguments.allow_unsafe)
    cfg = configuration(source, arguments.config_file, arguments.opts)
    dropped = len(source.original) - len(source.state)
    author = source.author or TITLES[source.kind]
    if target == "hugging_face":
        _write_folder(source, cfg, arguments)
    elif target == "published":
        weight = cfg.MODEL.MASK_FORMER.NO_OBJECT_WEIGHT if cfg else 0.1
        write_published(source.state, author, weight, arguments.target)
    else:
        write_checkpoint(source.state, _metadata(source, cfg, arguments), author, arguments.target)
    note = f" (they had {dropped} more)" if dropped > 0 else ""
    lines = [f"{path}: {TITLES[source.kind]}", f"{arguments.target}: {len(source.state)} entries{note}"]
    if source.is_backbone:
        backbone = describe_backbone(source.state)
        keys = " ".join(f"{key} {str(value).replace(' ', '')}" for key, value in backbone.keys.items())
        lines += [f"backbone: {backbone.title}", f"config: MODEL.WEIGHTS {arguments.target} {keys}"]
    return [*lines, *(_verify(source, cfg, path, arguments.target) if arguments.verify else [])]


def _local(name: str) -> Path:
    return Path(name) if Path(name).is_dir() else resolve(name)


def _write_folder(source: SourceWeights, cfg: CfgNode | None, arguments: argparse.Namespace) -> None:
    if source.is_backbone or cfg is None:
        reason = "holds a backbone alone" if source.is_backbone else "does not hold its configuration"
        raise ValueError(
            f"{arguments.source} {reason}; a Hugging Face folder needs a whole model with its configuration. "
            "Give --config-file for a whole model, or a DST ending in .pth, .safetensors or .pkl."
        )
    ignore = source.metadata.get("ignore_value", cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)
    names = class_names_of(source, cfg)
    write_hugging_face(source.state, cfg, names, ignore, arguments.reduce_labels, arguments.target)


def _metadata(source: SourceWeights, cfg: CfgNode | None, arguments: argparse.Namespace) -> dict[str, object]:
    if cfg is None or source.is_backbone:
        metadata = dict(source.metadata)
    else:
        names = SimpleNamespace(stuff_classes=class_names_of(source, cfg))
        metadata = {**describe(cfg, names), **{key: value for key, value in source.metadata.items() if value}}
        metadata["config"] = cfg.dump()
    return {**metadata, "license": arguments.licence or metadata.get("license", "")}


def _verify(source: SourceWeights, cfg: CfgNode | None, path: Path, target: Path) -> list[str]:
    if source.kind in ("resnet", "swin_release", "timm_swin"):
        difference, where = compare_backbone(source.kind, source.original, source.state, load_config())
    elif source.kind == "hugging_face" or target.is_dir():
        assert cfg is not None, "refused before anything was written"
        difference, where = compare_model(cfg, source.state, path if path.is_dir() else target)
    else:
        again = read_source(target)
        same = again.state.keys() == source.state.keys() and all(
            bool((again.state[name] == value).all()) for name, value in source.state.items()
        )
        if not same:
            raise ValueError(f"{target} does not hold the weights of {path}.")
        return ["verified: read back, every entry is the same"]
    if not difference < TOLERANCE:
        raise ValueError(f"The two sides differ: {difference:.2e} of the largest value in {where} (of 1e-4).")
    return [f"verified: largest difference {difference:.2e} of the largest value, in {where}"]


def library(name: str) -> Any:
    """Return a library that only this check needs."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"--verify runs {name}, which is not installed: pip install {name}.") from error


def largest_difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> tuple[float, str]:
    """Return the largest difference, relative to the largest value of its map, and the map's name."""
    differences = {}
    for name, expected in theirs.items():
        if ours[name].shape != expected.shape:
            raise ValueError(f"{name}: {tuple(ours[name].shape)} here, {tuple(expected.shape)} there.")
        differences[name] = ((ours[name] - expected).abs().max() / expected.abs().max()).item()
    worst = max(differences, key=lambda name: differences[name])
    return differences[worst], worst


@torch.no_grad()
def compare_backbone(kind: str, original: State, state: State, cfg: CfgNode) -> tuple[float, str]:
    """Return the largest difference of the four maps of a backbone, see `largest_difference`.

    Args:
        kind: "resnet", "swin_release" or "timm_swin".
        original: the weights in their names.
        state: the weights in ours.
        cfg: a configuration; the keys of the backbone are set here.
    """
    backbone = describe_backbone(state)
    window = int(str(backbone.keys.get("MODEL.SWIN.WINDOW_SIZE", 0)))
    # timm leaves out the shift where a map is one window, and pads after it where windows do not fill the
    # map; the segmentation models do neither, so the two agree on two whole windows.
    size = (64 * window, 64 * window) if window else IMAGE_SIZE
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    ours = _our_maps(state, backbone, cfg, image)
    if kind == "resnet":
        return largest_difference(ours, _resnet_maps(original, backbone, image))
    return largest_difference(ours, _timm_swin_maps(swin_to_timm(state), backbone, image))


def _our_maps(state: State, backbone: Backbone, cfg: CfgNode, image: Tensor) -> Maps:
    cfg = cfg.clone()
    for key, value in backbone.keys.items():
        cfg.merge_from_list([key, value])
    model = BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME)(cfg, ShapeSpec(channels=3)).eval()
    _fill(model, state)
    return model(image)


def _fill(model: nn.Module, state: State) -> None:
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [name for name in missing if not re.match(COMPUTED, name)]
    if missing or unexpected:
        raise ValueError(
            f"{type(model).__name__}: the weights lack {missing[:5]}; it has no place for {unexpected[:5]}."
        )


def _resnet_maps(original: State, backbone: Backbone, image: Tensor) -> Maps:
    depth = backbone.keys["MODEL.RESNETS.DEPTH"]
    model = getattr(library("torchvision").models, f"resnet{depth}")(weights=None).eval()
    model.load_state_dict({**original, "fc.weight": model.fc.weight, "fc.bias": model.fc.bias})
    features = model.maxpool(model.relu(model.bn1(model.conv1(image))))
    maps = {}
    for number in range(1, 5):
        features = getattr(model, f"layer{number}")(features)
        maps[f"res{number + 1}"] = features
    return maps


def _timm_swin_maps(state: State, backbone: Backbone, image: Tensor) -> Maps:
    names = ("EMBED_DIM", "DEPTHS", "NUM_HEADS", "WINDOW_SIZE")
    sizes = {name.lower(): backbone.keys[f"MODEL.SWIN.{name}"] for name in names}
    timm = library("timm.models.swin_transformer")
    model = timm.SwinTransformer(img_size=image.shape[-1], num_classes=0, **sizes).eval()
    _fill(model, state)
    maps: Maps = {}
    features = model.patch_embed(image)
    for number, stage in enumerate(model.layers):
        features = stage(features)  # (B, H, W, C)
        # The files have no output norms; ours begin as plain ones.
        maps[f"res{number + 2}"] = F.layer_norm(features, features.shape[-1:]).permute(0, 3, 1, 2)
    return maps


@torch.no_grad()
def compare_model(cfg: CfgNode, state: State, folder: Path) -> tuple[float, str]:
    """Return the largest difference of class and mask logits between ours and a Hugging Face folder."""
    ours = build_model(cfg).eval()
    ours.load_state_dict(state, strict=False)
    transformers = library("transformers")
    theirs = transformers.MaskFormerForInstanceSegmentation.from_pretrained(folder).eval()
    image = torch.randn(1, 3, *IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    answer = ours.predict(image.to(ours.device))[-1]
    expected = theirs(image, output_hidden_states=True)  # what auxiliary logits need
    return largest_difference(
        {"class logits": answer.class_logits.cpu(), "mask logits": answer.mask_logits.cpu()},
        {"class logits": expected.class_queries_logits, "mask logits": expected.masks_queries_logits},
    )


def inspect(arguments: argparse.Namespace) -> list[str]:
    """Return what there is to say of a file."""
    path = _local(arguments.source)
    source = read_source(path, arguments.allow_unsafe)
    lines = describe_source(path, source)
    if arguments.config_file:
        cfg = load_config(arguments.config_file, arguments.opts)
        cfg.MODEL.DEVICE = "cpu"
        is_ours = source.kind in ("mask_former", "published")
        state = source.original if is_ours else source.state
        names = class_names_of(source._replace(names=[]), cfg)
        _, report = fit_weights(state, build_model(cfg), str(path), source.names, names)
        lines += str(report).splitlines()
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; return 1 where it cannot be done, after one line on standard error."""
    argv = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    is_inspection = argv[:1] == ["inspect"]
    parser = argument_parser(is_inspection)
    arguments = parser.parse_args(argv[1:] if is_inspection else argv)
    try:
        lines = inspect(arguments) if is_inspection else convert(arguments)
    except (ValueError, KeyError, OSError) as error:
        where = "" if arguments.source in str(error) else f"{arguments.source}: "
        sys.stderr.write(f"{parser.prog}: {plain_text(where + str(error))}\n")
        return 1
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
