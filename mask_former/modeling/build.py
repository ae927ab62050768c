"""Models from configurations, on a device that exists."""

from collections.abc import Collection
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, SemanticSegmentor
from torch import nn

from mask_former.config import available_device
from mask_former.inference.ruled_model import RuledModel
from mask_former.modeling.per_pixel_model import PerPixelModel

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
    name = cfg.MODEL.META_ARCHITECTURE
    architecture = RULED.get(name) or META_ARCH_REGISTRY.get(name)
    is_ruled = issubclass(architecture, RuledModel)
    model = architecture(cfg, thing_ids=thing_ids) if is_ruled else architecture(cfg)
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
