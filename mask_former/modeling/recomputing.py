"""Activation checkpointing: less memory in training, for one more forward pass of what is recomputed."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from detectron2.layers import CNNBlockBase
from torch import nn
from torch.utils.checkpoint import checkpoint

from mask_former.modeling.swin import SwinStage
from mask_former.modeling.transformer import DecoderLayer, EncoderLayer


def recompute_activations(model: nn.Module) -> int:
    """Have the blocks of backbone and transformers keep only their inputs for the backward pass.

    Gradients stay the same to the bit, dropout included, and so do running statistics. Returns how many
    blocks or stages it concerns.
    """
    changed = 0
    modules: list[Any] = list(model.modules())
    for module in modules:
        if isinstance(module, SwinStage):
            module.use_checkpoint = True
        elif isinstance(module, CNNBlockBase | EncoderLayer | DecoderLayer):
            block: Any = module
            norms = [part for part in block.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
            block.forward = functools.partial(_recomputed, norms, block.forward)
        else:
            continue
        changed += 1
    return changed


def _recomputed(norms: list[Any], forward: Callable[..., Any], *inputs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs)
    contexts = functools.partial(_contexts, norms)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)


def _contexts(norms: list[Any]) -> tuple[Any, Any]:
    """Return what surrounds the first and the second computation of a block."""
    return nullcontext(), _without_tracking(norms)


@contextmanager
def _without_tracking(norms: list[Any]) -> Iterator[None]:
    """Keep norms that normalise by the batch from counting it in their running statistics once more."""
    # With all tensors in place, since what is saved for the backward pass has to be the same.
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum, norm.num_batches_tracked = momentum, count
