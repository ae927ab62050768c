"""Models from configurations, on a device that exists, with or without a registered data set."""

from collections.abc import Collection

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from mask_former.config import available_device
from mask_former.prediction.rules import has_queries


def build_model(
    cfg: CfgNode, device: str | None = None, thing_ids: Collection[int] | None = None
) -> nn.Module:
    """Return the model of a configuration on its device, without weights.

    Args:
        cfg: its MODEL.DEVICE is set to where the model is.
        device: as "cpu" or "cuda:1"; None: MODEL.DEVICE, or the CPU where that is not there.
        thing_ids: classes that are things; None: those of the data set that `cfg` names.
    """
    if device is not None:
        if available_device(device) != device:
            raise ValueError(f"Device {device!r} is not there: torch sees no GPU. Use device='cpu'.")
        cfg.MODEL.DEVICE = device
    cfg.MODEL.DEVICE = available_device(cfg.MODEL.DEVICE)
    architecture = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    # Detectron2's own architectures know nothing of things.
    takes_things = has_queries(architecture)
    model = architecture(cfg, thing_ids=thing_ids) if takes_things else architecture(cfg)
    return model.to(cfg.MODEL.DEVICE)
