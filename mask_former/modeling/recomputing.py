"""Activation checkpointing: less memory in training, for a second forward pass of the blocks concerned."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from detectron2.layers import CNNBlockBase
from torch import nn
from torch.utils.checkpoint import checkpoint

from mask_former.modeling.swin import SwinBlock
from mask_former.modeling.transformer import DecoderLayer, EncoderLayer


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
    contexts = functools.partial(_contexts, norms)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)


def _contexts(norms: list[Any]) -> tuple[Any, Any]:
    """Return the contexts of the first and the second forward pass."""
    return nullcontext(), _without_tracking(norms)


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
