"""Preparation of a network for inference: the same results, within stated tolerances, in less time.

- Norms with fixed statistics are folded into the convolution before them.
- Convolutions use the channels-last memory format.
- Swin's position biases and shift masks, which depend on weights and sizes alone, are computed once.
- The last convolution of the pixel decoder and the product with the queries are merged.
- On CPUs, linear layers run as 1x1 convolutions.
- Where the hardware multiplies bfloat16, all but the transformer decoder uses it.

Only modules of exactly the types named here are changed: a subclass may compute something else.
"""

import copy
import functools
import itertools
from typing import Any

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.layers.batch_norm import NaiveSyncBatchNorm
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mask_former.modeling.head import MaskFormerHead
from mask_former.modeling.per_pixel import PerPixelBaselinePlusHead
from mask_former.modeling.pixel_decoder import BasePixelDecoder, TransformerEncoderPixelDecoder
from mask_former.modeling.structures import Prediction
from mask_former.modeling.swin import SwinStage
from mask_former.modeling.transformer_decoder import StandardTransformerDecoder
from mask_former.modeling.window_attention import WindowAttention

PRECISIONS = ("auto", "float32", "bfloat16")
# Number of map sizes for which a Swin stage caches its shift masks.
CACHED_SIZES = 8
NORMS = (FrozenBatchNorm2d, nn.BatchNorm2d, nn.SyncBatchNorm, NaiveSyncBatchNorm)


def prepare_for_inference(
    model: nn.Module,
    precision: str = "auto",
    *,
    in_place: bool = False,
) -> nn.Module:
    """Return a copy of the model in evaluation mode, for inference only, with the same interface.

    Compared to the original, float32 differs by rounding, by less than 1e-4 of the largest logit; bfloat16 by
    up to 0.1 of it with random weights, since it keeps 8 bits through some 60 layers. The names of the state
    dict change: load weights first, and prepare again if they change.

    Args:
        model: any model with `backbone` and `sem_seg_head`, ours or Detectron2's around our heads.
        precision: "float32"; "bfloat16"; or "auto": bfloat16 if the model's device multiplies it natively,
            otherwise float32.
        in_place: change the model itself instead of a copy.
    """
    device = next(model.parameters()).device
    dtype = inference_type(precision, device)
    prepared: Any = model if in_place else copy.deepcopy(model)
    prepared.eval().requires_grad_(False)
    fold_norms(prepared)
    prepared.to(memory_format=torch.channels_last)
    _convert(prepared, dtype)
    for attention in _modules_of(prepared, WindowAttention):
        attention.position_bias = functools.partial(_identity, attention.position_bias().contiguous())
    for stage in _modules_of(prepared, SwinStage):
        stage.grid_masks = functools.lru_cache(CACHED_SIZES)(stage.grid_masks)
    if device.type == "cpu":
        # The library of convolutions has faster products on many CPUs.
        for layer in _modules_of(prepared, nn.Linear):
            if layer.weight.dtype == torch.float32:
                layer.forward = functools.partial(_linear, layer)
    return prepared


def is_prepared(model: nn.Module) -> bool:
    """Return whether `prepare_for_inference` has changed a model."""
    parts: Any = model
    return any(
        getattr(hook, "func", None) is _cast_inputs for hook in parts.backbone._forward_pre_hooks.values()
    )


def inference_type(precision: str, device: torch.device) -> torch.dtype:
    """Return the type for `precision` on a device; see `prepare_for_inference`."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}, expected one of {', '.join(PRECISIONS)}.")
    if precision == "bfloat16" or (precision == "auto" and _multiplies_bfloat16(device)):
        return torch.bfloat16
    return torch.float32


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # Missing in older torch.
        names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, name, bool)() for name in names)
    return False


@torch.no_grad()
def fold_norms(model: nn.Module) -> int:
    """Fold each norm with fixed statistics into its convolution, in place, and return their number.

    A norm is folded if it is the attribute `norm` of Detectron2's Conv2d, or follows an nn.Conv2d in an
    nn.Sequential. Computed in float64, so that the only difference is the rounding of the new weights.
    """
    folded = 0
    modules: list[Any] = list(model.modules())
    for module in modules:
        if type(module) is Conv2d and _has_fixed_statistics(module.norm):
            _fold(module, module.norm)
            module.norm = None
            folded += 1
        if type(module) is nn.Sequential:
            for (_, conv), (name, norm) in itertools.pairwise(list(module.named_children())):
                if type(conv) is nn.Conv2d and _has_fixed_statistics(norm):
                    _fold(conv, norm)
                    setattr(module, name, nn.Identity())
                    folded += 1
    return folded


def _has_fixed_statistics(norm: Any) -> bool:
    return type(norm) in NORMS and norm.running_var is not None


def _fold(conv: nn.Conv2d, norm: Any) -> None:
    """Set the weights of the convolution to those of convolution and norm together."""
    dtype = conv.weight.dtype
    values = (conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    doubles: Any = [value.double() if isinstance(value, Tensor) else value for value in values]
    weight, bias = fuse_conv_bn_weights(*doubles)
    conv.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(dtype), requires_grad=False)


def _convert(model: Any, dtype: torch.dtype) -> None:
    """Run backbone and pixel decoder in `dtype` and the rest in float32."""
    model.backbone.to(dtype).register_forward_pre_hook(functools.partial(_cast_inputs, dtype))
    head = model.sem_seg_head
    if getattr(head, "pixel_decoder", None) is None:
        head.register_forward_pre_hook(functools.partial(_cast_inputs, torch.float32))
        return
    head.pixel_decoder.to(dtype)
    if isinstance(getattr(head, "predictor", None), nn.Module):
        is_merged = _merge_mask_products(head)
        cast = _cast_memory if is_merged else functools.partial(_cast_inputs, torch.float32)
        head.predictor.register_forward_pre_hook(cast)


def _cast_inputs(dtype: torch.dtype, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(_cast(value, dtype) for value in inputs)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        layout = torch.channels_last if value.ndim == 4 else torch.contiguous_format
        return value.to(dtype=dtype, memory_format=layout)
    if isinstance(value, dict):
        return {name: _cast(item, dtype) for name, item in value.items()}
    return value


def _modules_of(model: nn.Module, kind: type[nn.Module]) -> list[Any]:
    return [module for module in model.modules() if type(module) is kind]


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply the layer to (..., C) float32."""
    rows = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
    outputs = torch.conv2d(rows, layer.weight[:, :, None, None], layer.bias)
    return outputs.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(layer.weight))


def _identity(value: Tensor) -> Tensor:
    return value


def _merge_mask_products(head: Any) -> bool:
    """Merge the pixel decoder's last convolution and the product with the queries; return whether it is done.

    Both are linear: (query . weights) * map is query . (weights * map), with as many output channels as there
    are queries instead of mask channels. Nothing changes where that is more, or where a type is not known.
    """
    decoder, predictor = head.pixel_decoder, head.predictor
    if (
        type(head) not in (MaskFormerHead, PerPixelBaselinePlusHead)
        or type(decoder) not in (BasePixelDecoder, TransformerEncoderPixelDecoder)
        or type(predictor) is not StandardTransformerDecoder
    ):
        return False
    last = decoder.mask_features
    if type(last) is not Conv2d or len(predictor.query_embed.weight) > last.out_channels:
        return False
    decoder.mask_features = nn.Identity()
    predictor._predict = functools.partial(_predict, predictor, last)
    return True


def _cast_memory(module: nn.Module, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Cast the memory, but not the map that masks are computed from; see `_predict`."""
    memory, last_map = inputs
    return memory.float(), last_map


def _predict(
    decoder: StandardTransformerDecoder, last: nn.Conv2d, states: Tensor, last_map: Tensor
) -> Prediction:
    """Return the prediction of `decoder` from the input (B, C, h, w) of the convolution `last`."""
    class_embed = decoder.class_embed
    class_logits = states.new_empty(*states.shape[:2], 0) if class_embed is None else class_embed(states)
    queries = decoder.mask_embed(states)
    kernels = torch.einsum("bqc,cdij->bqdij", queries, last.weight.float())
    masks = [
        torch.conv2d(
            features[None], kernel.contiguous(memory_format=torch.channels_last), padding=last.padding
        )
        for features, kernel in zip(last_map, kernels.to(last_map.dtype), strict=True)
    ]
    offsets = 0 if last.bias is None else (queries @ last.bias.float())[:, :, None, None]
    return Prediction(class_logits, torch.cat(masks).float().contiguous() + offsets)
