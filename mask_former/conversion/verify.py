"""Run both sides of a conversion on the same image and measure how far apart they are.

The other side is run by the library it comes from, which is imported here and nowhere else.
"""

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_model
from torch import Tensor, nn

from mask_former.conversion.backbones import Backbone, State, describe_backbone, swin_to_timm

# (height, width) of the image that both sides see.
IMAGE_SIZE = (96, 128)

# What a file of a backbone need not have: our output norms, theirs before the classifier, and indices.
COMPUTED = r"norm\d?\.|.*relative_position_index$"

Maps = dict[str, Tensor]


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
