"""Activation checkpointing: less memory in training, for one more forward pass of what is recomputed."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from detectron2.layers import CNNBlockBase
from torch import nn
from torch.utils.checkpoint import checkpoint

from mask_former.modeling.swin import SwinStage
from mask_former.modeling.transformer import DecoderLayer, EncoderLayer


def recompute_activations(model: nn.Module) -> int:
    """Have the blocks of backbone and transformers keep only their inputs for the backward pass.

    Gradients stay the same to the bit, dropout included. Returns how many blocks or stages it concerns.
    """
    changed = 0
    modules: list[Any] = list(model.modules())
    for module in modules:
        if isinstance(module, SwinStage):
            module.use_checkpoint = True
        elif isinstance(module, CNNBlockBase | EncoderLayer | DecoderLayer):
            block: Any = module
            block.forward = functools.partial(_recomputed, block.forward)
        else:
            continue
        changed += 1
    return changed


def _recomputed(forward: Callable[..., Any], *inputs: Any) -> Any:
    if torch.is_grad_enabled():
        return checkpoint(forward, *inputs, use_reentrant=False)
    return forward(*inputs)
