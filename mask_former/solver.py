"""Parameter groups, optimizer, clipping and learning-rate schedule: SOLVER.* made into torch objects."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_lr_scheduler as build_detectron2_lr_scheduler
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

# The first is the base of all batch and instance norms; LocalResponseNorm has no parameters.
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
# Tables and tokens of Swin and of timm's transformers, which do not decay.
_POSITION_TABLES = (
    *("relative_position_bias_table", "absolute_pos_embed", "pos_embed"),
    *("cls_token", "reg_token", "dist_token"),
)


def parameter_groups(cfg: CfgNode, model: nn.Module) -> list[dict[str, Any]]:
    """Return the trainable parameters, grouped by learning rate and weight decay.

    The backbone learns at BACKBONE_MULTIPLIER times the rate, its early layers at less by LAYER_DECAY, its
    parts that are not pretrained at the full rate. Position tables do not decay; norms and embeddings decay
    by values of their own. A parameter used in two places counts once. Parameters that share both values
    share a group, which gives the same numbers as a group each, in fewer kernels.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[int] = set()
    factors = _backbone_factors(cfg, model)
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            rate = cfg.SOLVER.BASE_LR * factors.get(f"{module_name}.{name}", 1.0)
            groups.setdefault((rate, _weight_decay(cfg, module, name)), []).append(parameter)
    return [{"params": group, "lr": lr, "weight_decay": decay} for (lr, decay), group in groups.items()]


def _backbone_factors(cfg: CfgNode, model: nn.Module) -> dict[str, float]:
    """Return the factor on the rate of each parameter of the backbone by its name."""
    multiplier, decay = cfg.SOLVER.BACKBONE_MULTIPLIER, cfg.SOLVER.LAYER_DECAY
    backbone: Any = getattr(model, "backbone", None)
    if hasattr(backbone, "layer_numbers"):
        numbers = backbone.layer_numbers()
        last = max(numbers.values())
        return {f"backbone.{name}": multiplier * decay ** (last - number) for name, number in numbers.items()}
    if decay != 1:
        raise ValueError(
            f"SOLVER.LAYER_DECAY is {decay}, but the layers of {type(backbone).__name__} are not known: set "
            "it 1.0, or take a backbone of timm or a Swin."
        )
    names = (name for name, _ in model.named_parameters())
    return {name: multiplier for name in names if "backbone" in name.rpartition(".")[0]}


def _weight_decay(cfg: CfgNode, module: nn.Module, parameter_name: str) -> float:
    if parameter_name in _POSITION_TABLES:
        return 0.0
    if isinstance(module, _NORMS):
        return cfg.SOLVER.WEIGHT_DECAY_NORM
    if isinstance(module, nn.Embedding):
        return cfg.SOLVER.WEIGHT_DECAY_EMBED
    return cfg.SOLVER.WEIGHT_DECAY


def build_optimizer(cfg: CfgNode, model: nn.Module) -> Optimizer:
    """Return SOLVER.OPTIMIZER over the parameters of `model`, with clipping inside its step."""
    groups = parameter_groups(cfg, model)
    optimizer: Optimizer
    if cfg.SOLVER.OPTIMIZER == "ADAMW":
        optimizer = torch.optim.AdamW(groups, cfg.SOLVER.BASE_LR, fused=True)
    elif cfg.SOLVER.OPTIMIZER == "SGD":
        optimizer = torch.optim.SGD(
            groups, cfg.SOLVER.BASE_LR, momentum=cfg.SOLVER.MOMENTUM, nesterov=cfg.SOLVER.NESTEROV
        )
    else:
        raise ValueError(
            f"SOLVER.OPTIMIZER is {cfg.SOLVER.OPTIMIZER!r}, expected 'ADAMW' or 'SGD': change the key"
        )
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if clip.ENABLED and clip.CLIP_TYPE == "full_model":
        if clip.CLIP_VALUE > 0:
            clipping = partial(_clip_full_model, clip.CLIP_VALUE, clip.NORM_TYPE)
            optimizer.register_step_pre_hook(clipping)
        return optimizer
    return maybe_add_gradient_clipping(cfg, optimizer)


def _clip_full_model(bound: float, norm_type: float, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
    """Scale all gradients together so that their common norm does not exceed the bound."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    nn.utils.clip_grad_norm_(parameters, bound, norm_type)


def parameter_names(model: nn.Module, optimizer: Optimizer) -> list[list[str]]:
    """Return the names in `model` of the parameters of each group of `optimizer`."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


def state_by_name(
    saved: dict[str, Any], saved_names: list[list[str]], optimizer: Optimizer, names: list[list[str]]
) -> dict[str, Any]:
    """Return the saved state of an optimizer for one whose parameters may be others, or in other groups.

    Groups with their rates and weight decay are those of `optimizer`; parameters that were not trained before
    start without a state.

    Args:
        saved: `optimizer.state_dict()` of the saved run.
        saved_names: its `parameter_names`.
        optimizer: whose `load_state_dict` is to read the result.
        names: the `parameter_names` of `optimizer`.
    """
    states = {
        name: saved["state"].get(index)
        for group, group_names in zip(saved["param_groups"], saved_names, strict=True)
        for index, name in zip(group["params"], group_names, strict=True)
    }
    groups = optimizer.state_dict()["param_groups"]
    pairs = [
        (index, states.get(name))
        for group, group_names in zip(groups, names, strict=True)
        for index, name in zip(group["params"], group_names, strict=True)
    ]
    return {"state": {index: state for index, state in pairs if state is not None}, "param_groups": groups}


def polynomial_decay(cfg: CfgNode) -> Callable[[int], float]:
    """Return the factor on the learning rate by iteration: warm-up times (1 - iteration / last)^power."""
    solver = cfg.SOLVER
    if solver.WARMUP_METHOD not in ("linear", "constant"):
        raise ValueError(f"SOLVER.WARMUP_METHOD is {solver.WARMUP_METHOD!r}, expected 'linear' or 'constant'")

    def factor(iteration: int) -> float:
        decay = max(1 - iteration / solver.MAX_ITER, 0.0) ** solver.POLY_LR_POWER
        if iteration >= solver.WARMUP_ITERS:
            return max(decay, solver.POLY_LR_CONSTANT_ENDING)
        progress = iteration / solver.WARMUP_ITERS if solver.WARMUP_METHOD == "linear" else 0.0
        return decay * (solver.WARMUP_FACTOR * (1 - progress) + progress)

    return factor


def build_lr_scheduler(cfg: CfgNode, optimizer: Optimizer) -> LRScheduler:
    """Return the schedule SOLVER.LR_SCHEDULER_NAME: "WarmupPolyLR", or one of Detectron2's own.

    Its saved state holds counters only, so a resumed run may have another MAX_ITER.
    """
    if cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupPolyLR":
        return LambdaLR(optimizer, polynomial_decay(cfg))
    return build_detectron2_lr_scheduler(cfg, optimizer)
