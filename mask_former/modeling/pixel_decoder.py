"""Pixel decoders: from the maps of the backbone to the per-pixel embeddings that masks are made with.

A pixel decoder is built as `(cfg, input_shape)` and used through `forward_features(features)`, which
returns `PixelFeatures` or a tuple that begins alike.
"""

from typing import Any, NamedTuple

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from detectron2.utils.registry import Registry
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn

from mask_former.modeling.transformer import LayerOptions, TransformerEncoder, check_width

PIXEL_DECODER_REGISTRY = Registry("PIXEL_DECODER")
PIXEL_DECODER_REGISTRY.__doc__ = "Pixel decoders by name; built as (cfg, input_shape)."


class PixelFeatures(NamedTuple):
    """What a pixel decoder gives to the head.

    mask_features: (B, C, h, w) per-pixel embeddings.
    memory: (B, C, h', w') the encoded coarsest map, or None where the decoder has no encoder.
    """

    mask_features: Tensor
    memory: Tensor | None


def build_pixel_decoder(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """Return the decoder named by MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME for maps of `input_shape`.

    A name that PIXEL_DECODER_REGISTRY does not hold is looked up among Detectron2's segmentation heads,
    where code written for the reference release registers its pixel decoders.
    """
    name = cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME
    decoders = {
        key: entry
        for registry in (SEM_SEG_HEADS_REGISTRY, PIXEL_DECODER_REGISTRY)
        for key, entry in registry
        if callable(getattr(entry, "forward_features", None))
    }
    if name in decoders:
        return decoders[name](cfg, input_shape)
    is_head = name in SEM_SEG_HEADS_REGISTRY
    state = "is no pixel decoder: it has no forward_features" if is_head else "is not registered"
    raise ValueError(
        f"MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME: {name!r} {state}. Choose one of {sorted(decoders)}, "
        "or register your own in PIXEL_DECODER_REGISTRY before the model is built."
    )


def decode_pixels(pixel_decoder: Any, features: dict[str, Tensor]) -> PixelFeatures:
    """Return what a pixel decoder, ours or another's, makes of maps (B, C_s, H/s, W/s) by name."""
    # Those written for Mask2Former return a third value.
    return PixelFeatures(*pixel_decoder.forward_features(features)[:2])


@PIXEL_DECODER_REGISTRY.register()
class BasePixelDecoder(nn.Module):
    """Top-down decoder: 3x3 on the coarsest map, then per finer map 1x1, add the map above, 3x3.

    `memory_channels` are the channels of its memory; None: it has no encoder and gives no memory.
    """

    memory_channels: int | None = None

    @configurable
    def __init__(
        self,
        *,
        input_shape: dict[str, ShapeSpec],
        conv_dim: int,
        mask_dim: int,
        norm: str,
        coarsest_channels: int | None = None,
    ) -> None:
        """Build from the backbone's maps, of which `coarsest_channels` describes the last once encoded."""
        super().__init__()
        finest_first = sorted(input_shape.items(), key=lambda item: item[1].stride)
        self.in_features = [name for name, _ in finest_first]
        channels = [shape.channels for _, shape in finest_first]
        self.num_levels = len(channels)
        for level, width in enumerate(channels[:-1], start=1):
            self.add_module(f"adapter_{level}", _conv(width, conv_dim, 1, norm, activation=None))
            self.add_module(f"layer_{level}", _conv(conv_dim, conv_dim, 3, norm))
        last = _conv(coarsest_channels or channels[-1], conv_dim, 3, norm)
        self.add_module(f"layer_{self.num_levels}", last)
        self.mask_features = _conv(conv_dim, mask_dim, 3, norm="", activation=None)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Read the maps, the widths and the norm from MODEL.SEM_SEG_HEAD."""
        head = cfg.MODEL.SEM_SEG_HEAD
        missing = [name for name in head.IN_FEATURES if name not in input_shape]
        if missing or not head.IN_FEATURES:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES is {list(head.IN_FEATURES)}; "
                f"the backbone gives {list(input_shape)}. Name one or more of those."
            )
        if head.NORM == "GN" and head.CONVS_DIM % 32:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.CONVS_DIM is {head.CONVS_DIM}; with MODEL.SEM_SEG_HEAD.NORM 'GN' "
                "it must be a multiple of 32, the number of groups."
            )
        return {
            "input_shape": {name: input_shape[name] for name in head.IN_FEATURES},
            "conv_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "norm": head.NORM,
        }

    def forward_features(self, features: dict[str, Tensor]) -> PixelFeatures:
        """Return the embeddings, as large as the finest map, from maps (B, C_s, H/s, W/s) by name."""
        return self(features)

    def forward(self, features: dict[str, Tensor]) -> PixelFeatures:
        """See `forward_features`, the name that code written for the reference release calls."""
        maps = [features[name] for name in self.in_features]
        coarsest, memory = self._encode(maps[-1])
        merged = self.get_submodule(f"layer_{self.num_levels}")(coarsest)
        for level in range(self.num_levels - 1, 0, -1):
            lateral = self.get_submodule(f"adapter_{level}")(maps[level - 1])
            # To the size of the finer map, for odd sizes do not double.
            merged = lateral + F.interpolate(merged, size=lateral.shape[2:], mode="nearest")
            merged = self.get_submodule(f"layer_{level}")(merged)
        return PixelFeatures(self.mask_features(merged), memory)

    def _encode(self, coarsest: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return what the top-down path starts from, and the memory for the transformer decoder."""
        return coarsest, None


@PIXEL_DECODER_REGISTRY.register()
class TransformerEncoderPixelDecoder(BasePixelDecoder):
    """The top-down decoder with a transformer encoder on the coarsest map."""

    @configurable
    def __init__(
        self,
        *,
        input_shape: dict[str, ShapeSpec],
        conv_dim: int,
        nheads: int,
        dropout: float,
        dim_feedforward: int,
        enc_layers: int,
        pre_norm: bool,
        **others: Any,
    ) -> None:
        """Take `mask_dim` and `norm` of the base too."""
        super().__init__(input_shape=input_shape, conv_dim=conv_dim, coarsest_channels=conv_dim, **others)
        check_width(conv_dim, nheads, "MODEL.SEM_SEG_HEAD.CONVS_DIM")
        self.memory_channels = conv_dim
        in_channels = input_shape[self.in_features[-1]].channels
        self.input_proj = _conv(in_channels, conv_dim, 1, norm="", activation=None)
        options = LayerOptions(conv_dim, nheads, dim_feedforward, dropout, normalize_before=pre_norm)
        # Checkpoints know it as `transformer.encoder`.
        self.transformer = nn.ModuleDict({"encoder": TransformerEncoder(enc_layers, options)})

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Read, besides what the base reads, the encoder's depth and the layers of MODEL.MASK_FORMER."""
        mask_former = cfg.MODEL.MASK_FORMER
        return super().from_config(cfg, input_shape) | {
            "nheads": mask_former.NHEADS,
            "dropout": mask_former.DROPOUT,
            "dim_feedforward": mask_former.DIM_FEEDFORWARD,
            "enc_layers": cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS,
            "pre_norm": mask_former.PRE_NORM,
        }

    def _encode(self, coarsest: Tensor) -> tuple[Tensor, Tensor | None]:
        memory = self.transformer["encoder"](self.input_proj(coarsest))
        return memory, memory


def _conv(in_channels: int, out_channels: int, kernel: int, norm: str, activation: Any = F.relu) -> nn.Module:
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size=kernel,
        padding=kernel // 2,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=activation,
    )
    c2_xavier_fill(conv)
    return conv
