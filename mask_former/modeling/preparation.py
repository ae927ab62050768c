"""The network made ready for inference: the same answers, within stated tolerances, in less time.

Normalisation with fixed statistics is folded into the convolution before it; convolutions see channels last;
what depends on weights or sizes alone is computed once; the last convolution of the pixel decoder and the
product with the queries become one; on CPUs linear layers go the way of convolutions; and where the hardware
multiplies bfloat16, all but the transformer decoder uses it.
"""

import copy
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn

from mask_former.modeling.pixel_decoder import BasePixelDecoder
from mask_former.modeling.structures import Prediction
from mask_former.modeling.transformer_decoder import StandardTransformerDecoder

PRECISIONS = ("auto", "float32", "bfloat16")
# Sizes of maps for which a Swin stage remembers its masks.
REMEMBERED_SIZES = 8

FixedNorm = FrozenBatchNorm2d | nn.modules.batchnorm._BatchNorm


def prepare_for_inference(
    model: nn.Module,
    precision: str = "auto",
    *,
    compiled: bool = False,
    cuda_graphs: bool = False,
    in_place: bool = False,
) -> nn.Module:
    """Return the model in evaluation mode, for inference alone, called as before.

    Against the model as it was, float32 differs by rounding, by less than 1e-4 of the largest logit; bfloat16
    by up to 0.1 of it with random weights, for it keeps 8 bits through some 60 layers. The result no longer
    has the names of a checkpoint: load weights first, and prepare anew where they change.

    Args:
        model: any model with `backbone` and `sem_seg_head`, ours or Detectron2's around our heads.
        precision: "float32"; "bfloat16"; or "auto", bfloat16 where the model's device multiplies it natively
            and else float32.
        compiled: also let torch.compile fuse what it can: minutes at the first picture of each size.
        cuda_graphs: replay recorded launches, for pictures of few sizes on CUDA; needs `compiled`.
        in_place: change the model itself instead of a copy of it.
    """
    device = next(model.parameters()).device
    chosen = inference_type(precision, device)
    if cuda_graphs and not (compiled and device.type == "cuda"):
        raise ValueError(
            f"cuda_graphs needs compiled=True and a model on CUDA; here compiled is {compiled} and the model "
            f"is on {device.type}. Leave cuda_graphs out, or move the model."
        )
    fast: Any = model if in_place else copy.deepcopy(model)
    fast.eval().requires_grad_(False)
    fold_norms(fast)
    fast.to(memory_format=torch.channels_last)
    _convert(fast, chosen)
    _remember_what_is_fixed(fast)
    if device.type == "cpu" and not compiled:
        _multiply_as_convolutions(fast)
    if compiled:
        for part in (fast.backbone, fast.sem_seg_head):
            part.compile(mode="reduce-overhead" if cuda_graphs else "default", dynamic=False)
    return fast


def inference_type(precision: str, device: torch.device) -> torch.dtype:
    """Return the type that `precision` means on a device; see `prepare_for_inference`."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}, expected one of {', '.join(PRECISIONS)}.")
    if precision == "bfloat16" or (precision == "auto" and _multiplies_bfloat16(device)):
        return torch.bfloat16
    return torch.float32


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # Not in every torch that we run on.
        names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, name, bool)() for name in names)
    return False


@torch.no_grad()
def fold_norms(model: nn.Module) -> int:
    """Fold each norm with fixed statistics into its convolution, in place, and return how many there were.

    A norm counts if it is the attribute `norm` of a convolution, as Detectron2 builds them, or follows one in
    an `nn.Sequential`. Computed in float64, so that the only difference is the rounding of the new weights.
    """
    folded = 0
    modules: list[Any] = list(model.modules())
    for module in modules:
        if isinstance(module, nn.Conv2d) and isinstance(getattr(module, "norm", None), FixedNorm):
            conv: Any = module
            _fold(conv, conv.norm)
            conv.norm = None
            folded += 1
        if isinstance(module, nn.Sequential):
            for (_, first), (name, norm) in itertools.pairwise(list(module.named_children())):
                if isinstance(first, nn.Conv2d) and isinstance(norm, FixedNorm):
                    _fold(first, norm)
                    setattr(module, name, nn.Identity())
                    folded += 1
    return folded


def _fold(conv: nn.Conv2d, norm: Any) -> None:
    """Give the convolution the weights that make the norm after it superfluous."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    if conv.bias is not None:
        shift = shift + conv.bias.double() * scale
    weight = conv.weight.double() * scale.view(-1, 1, 1, 1)
    conv.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
    conv.bias = nn.Parameter(shift.to(conv.weight.dtype), requires_grad=False)


def _convert(model: Any, dtype: torch.dtype) -> None:
    """Let backbone and pixel decoder compute in `dtype` and the rest in float32."""
    model.backbone.to(dtype).register_forward_pre_hook(functools.partial(_cast_inputs, dtype))
    head = model.sem_seg_head
    if getattr(head, "pixel_decoder", None) is None:
        head.register_forward_pre_hook(functools.partial(_cast_inputs, torch.float32))
        return
    head.pixel_decoder.to(dtype)
    if isinstance(getattr(head, "predictor", None), nn.Module):
        is_merged = _merge_mask_products(head.pixel_decoder, head.predictor)
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


def _remember_what_is_fixed(model: nn.Module) -> None:
    """Compute the position biases of Swin's blocks now, and a stage's masks once for each size."""
    modules: Iterator[Any] = model.modules()
    for module in modules:
        if callable(getattr(module, "position_bias", None)):
            module.position_bias = functools.partial(_same, module.position_bias().contiguous())
        if callable(getattr(module, "_shift_mask", None)):
            module._shift_mask = functools.lru_cache(REMEMBERED_SIZES)(module._shift_mask)


def _multiply_as_convolutions(model: nn.Module) -> None:
    """Let float32 linear layers be 1x1 convolutions, whose library has the faster products on many CPUs."""
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.dtype == torch.float32:
            layer: Any = module
            layer.forward = functools.partial(_linear, layer)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Return what the layer makes of (..., C) float32."""
    rows = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
    found = torch.conv2d(rows, layer.weight[:, :, None, None], layer.bias)
    return found.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(layer.weight))


def _same(value: Tensor) -> Tensor:
    return value


def _merge_mask_products(decoder: Any, predictor: Any) -> bool:
    """Let the queries be convolved with what the pixel decoder's last convolution would have been given.

    Both are linear, so that (query . weights) * map is query . (weights * map), with as many output channels
    as there are queries instead of mask channels. Returns False, and changes nothing, where that is not so.
    """
    if type(predictor) is not StandardTransformerDecoder or not isinstance(decoder, BasePixelDecoder):
        return False
    last = decoder.mask_features
    if not isinstance(last, nn.Conv2d) or len(predictor.query_embed.weight) > last.out_channels:
        return False
    decoder.mask_features = nn.Identity()
    predictor._predict = functools.partial(_predict, predictor, last)
    return True


def _cast_memory(module: nn.Module, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Leave the map that masks are made from as it is; see `_predict`."""
    memory, last_map = inputs
    return memory.float(), last_map


def _predict(
    decoder: StandardTransformerDecoder, last: nn.Conv2d, states: Tensor, last_map: Tensor
) -> Prediction:
    """Return what `decoder` says, given the map (B, C, h, w) before the convolution it was trained behind."""
    class_embed = decoder.class_embed
    class_logits = states.new_empty(*states.shape[:2], 0) if class_embed is None else class_embed(states)
    queries = decoder.mask_embed(states)
    kernels = torch.einsum("bqc,cdij->bqdij", queries, last.weight.float())
    masks = [
        torch.conv2d(features[None], kernel, padding=last.padding)
        for features, kernel in zip(last_map, _cast_kernels(kernels, last_map.dtype), strict=True)
    ]
    offsets = 0 if last.bias is None else (queries @ last.bias.float())[:, :, None, None]
    return Prediction(class_logits, torch.cat(masks).float().contiguous() + offsets)


def _cast_kernels(kernels: Tensor, dtype: torch.dtype) -> list[Tensor]:
    return [kernel.to(dtype=dtype, memory_format=torch.channels_last) for kernel in kernels]
