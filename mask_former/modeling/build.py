"""Models from configurations, on a device that exists, and activation checkpointing of their blocks."""

import functools
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase
from detectron2.modeling import META_ARCH_REGISTRY, SemanticSegmentor
from torch import nn
from torch.utils.checkpoint import checkpoint

from mask_former.config import available_device
from mask_former.inference.ruled_model import RuledModel
from mask_former.modeling.freezing import freeze_backbone
from mask_former.modeling.per_pixel import PerPixelModel
from mask_former.modeling.swin import SwinBlock
from mask_former.modeling.timm_backbone import with_pixel_statistics
from mask_former.modeling.transformer import DecoderLayer, EncoderLayer

# Detectron2's architectures whose results follow rules as well, by their registered names.
RULED = {"SemanticSegmentor": PerPixelModel}


def build_model(
    cfg: CfgNode, device: str | None = None, thing_ids: Collection[int] | None = None
) -> nn.Module:
    """Return the model of a configuration on its device, without weights.

    Args:
        cfg: its MODEL.DEVICE is set to where the model is, if it is not frozen.
        device: "cpu" or "cuda:1", for example; None: MODEL.DEVICE, or the CPU where that is absent.
        thing_ids: classes that are things; None: those of the data set that `cfg` names.
    """
    if device is not None and available_device(device) != device:
        raise ValueError(f"Device {device!r} is absent: torch sees no GPU. Use device='cpu'.")
    device = device or available_device(cfg.MODEL.DEVICE)
    if not cfg.is_frozen():
        cfg.MODEL.DEVICE = device
    cfg = with_pixel_statistics(cfg)
    name = cfg.MODEL.META_ARCHITECTURE
    architecture = RULED.get(name) or META_ARCH_REGISTRY.get(name)
    is_ruled = issubclass(architecture, RuledModel)
    model = architecture(cfg, thing_ids=thing_ids) if is_ruled else architecture(cfg)
    if cfg.MODEL.BACKBONE.FREEZE != "none":
        freeze_backbone(model.backbone, cfg.MODEL.BACKBONE.FREEZE)
    return model.to(device)


def as_ruled(model: nn.Module) -> RuledModel:
    """Return the model, or for Detectron2's SemanticSegmentor a `PerPixelModel` of the same parts."""
    if isinstance(model, RuledModel):
        return model
    if type(model) is not SemanticSegmentor:
        raise TypeError(
            f"The model is a {type(model).__name__}; expected a MaskFormer or a SemanticSegmentor: build it "
            "with mask_former.modeling.build.build_model."
        )
    parts: Any = model
    ruled = PerPixelModel(
        backbone=parts.backbone,
        sem_seg_head=parts.sem_seg_head,
        pixel_mean=parts.pixel_mean.flatten().tolist(),
        pixel_std=parts.pixel_std.flatten().tolist(),
    )
    return ruled.to(parts.pixel_mean.device).train(model.training)


def recompute_activations(model: nn.Module) -> int:
    """Let the blocks of backbone and transformers keep only their inputs for the backward pass.

    Gradients and running statistics stay bit-identical, dropout included. Returns the number of blocks.
    """
    kinds = (CNNBlockBase, SwinBlock, EncoderLayer, DecoderLayer)
    blocks: list[Any] = [module for module in model.modules() if isinstance(module, kinds)]
    for block in blocks:
        norms = [part for part in block.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
        block.forward = functools.partial(_recomputed, norms, block.forward)
    return len(blocks)


def _recomputed(norms: list[Any], forward: Callable[..., Any], *inputs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs)
    return checkpoint(
        forward,
        *inputs,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), _without_tracking(norms)),  # of the first and the second pass
    )


@contextmanager
def _without_tracking(norms: list[Any]) -> Iterator[None]:
    """Keep batch norms from updating their running statistics a second time."""
    # The tensors stay in place, since both passes have to save the same ones for the backward pass.
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum, norm.num_batches_tracked = momentum, count
