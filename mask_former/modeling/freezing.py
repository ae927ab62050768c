"""Frozen backbones: MODEL.BACKBONE.FREEZE."""

from functools import partial
from typing import Any

from detectron2.modeling.backbone import ResNet
from torch import nn

Part = nn.Module | nn.Parameter


def freeze_backbone(backbone: nn.Module, what: str) -> None:
    """Fix what is pretrained of a backbone: no gradients, and evaluation mode whatever the model's mode.

    What lies before the first part that learns saves no activations then.

    Args:
        backbone: is changed. What was frozen before stays so.
        what: see MODEL.BACKBONE.FREEZE in config.py.
    """
    parts = _parts(backbone, what)
    for part in parts:
        part.requires_grad_(False)
    modules = {id(part) for part in parts if isinstance(part, nn.Module)}
    names = [name for name, module in backbone.named_modules() if id(module) in modules]
    if names:
        # By name, for copies of the model; before each call, since train() can be called on any module.
        backbone.register_forward_pre_hook(partial(_set_evaluation_mode, names))


def _set_evaluation_mode(names: list[str], backbone: nn.Module, inputs: Any) -> None:
    if backbone.training:
        for name in names:
            backbone.get_submodule(name).eval()


def _parts(backbone: nn.Module, what: str) -> list[Part]:
    kind, _, number = what.partition(" ")
    if what == "none":
        return []
    if what == "all":
        return _pretrained(backbone, None)
    if what == "norms":
        roots = [part for part in _pretrained(backbone, None) if isinstance(part, nn.Module)]
        return [module for root in roots for module in root.modules() if _is_norm(module)]
    if kind == "stages" and number.isdecimal():
        return _pretrained(backbone, int(number))
    raise ValueError(
        f"MODEL.BACKBONE.FREEZE is {what!r}, expected 'none', 'norms', 'stages N' (as 'stages 2') or 'all'."
    )


def _pretrained(backbone: Any, stages: int | None) -> list[Part]:
    """Return what is pretrained of a backbone, or of its first stages and what is before them."""
    if hasattr(backbone, "pretrained_parts"):
        return backbone.pretrained_parts(stages)
    if stages is None:
        return [backbone]
    if not isinstance(backbone, ResNet):
        raise ValueError(
            f"MODEL.BACKBONE.FREEZE is 'stages {stages}', but {type(backbone).__name__} has no known stages: "
            "use 'all', 'norms' or 'none', or give it a method pretrained_parts(stages)."
        )
    check_stages(stages, len(backbone.stages))
    return [backbone.stem, *backbone.stages[:stages]]


def check_stages(stages: int, count: int) -> None:
    """Raise ValueError for a number of stages that a backbone does not have."""
    if not 1 <= stages <= count:
        raise ValueError(
            f"MODEL.BACKBONE.FREEZE is 'stages {stages}', but the backbone has {count}: use 'stages 1' to "
            f"'stages {count}', 'all' or 'none'."
        )


def _is_norm(module: nn.Module) -> bool:
    """Return whether a module is a norm of any library, and not a block that contains one."""
    return "Norm" in type(module).__name__ and not any(_has_any(part) for part in module.children())


def _has_any(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())
