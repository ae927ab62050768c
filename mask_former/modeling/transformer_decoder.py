"""Transformer decoder: from a memory map and per-pixel embeddings to class and mask logits per query.

A transformer decoder is built as `(cfg, in_channels, mask_classification)` and called with
`(memory, mask_features)`; it returns a list of `Prediction`, the last layer's last.
"""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.utils.registry import Registry
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn

from mask_former.modeling.structures import Prediction
from mask_former.modeling.transformer import LayerOptions, TransformerDecoder, TransformerEncoder, check_width

TRANSFORMER_DECODER_REGISTRY = Registry("TRANSFORMER_DECODER")
TRANSFORMER_DECODER_REGISTRY.__doc__ = (
    "Transformer decoders by name; built as (cfg, in_channels, mask_classification)."
)


def build_transformer_decoder(cfg: CfgNode, in_channels: int, mask_classification: bool = True) -> nn.Module:
    """Return the decoder named by MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME.

    Args:
        cfg: the configuration.
        in_channels: channels of the memory map.
        mask_classification: classify queries; otherwise `Prediction.class_logits` is (B, Q, 0).
    """
    name = cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME
    if name not in TRANSFORMER_DECODER_REGISTRY:
        raise ValueError(
            f"MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME: {name!r} is not registered. Choose one of "
            f"{sorted(key for key, _ in TRANSFORMER_DECODER_REGISTRY)}, or register your own in "
            "TRANSFORMER_DECODER_REGISTRY before the model is built."
        )
    return TRANSFORMER_DECODER_REGISTRY.get(name)(cfg, in_channels, mask_classification)


class MLP(nn.Module):
    """Linear layers with ReLU in between."""

    def __init__(self, widths: list[int]) -> None:
        """Build one linear layer for each pair of consecutive `widths`."""
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., widths[0]) to (..., widths[-1])."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class _Transformer(nn.Module):
    """The module named `transformer` in checkpoints: an encoder of the memory (if any) and a decoder."""

    def __init__(self, enc_layers: int, dec_layers: int, options: LayerOptions) -> None:
        super().__init__()
        self.encoder = TransformerEncoder(enc_layers, options) if enc_layers else nn.Identity()
        self.decoder = TransformerDecoder(dec_layers, options)

    def forward(self, queries: Tensor, memory: Tensor) -> list[Tensor]:
        return self.decoder(queries, self.encoder(memory))


@TRANSFORMER_DECODER_REGISTRY.register()
class StandardTransformerDecoder(nn.Module):
    """MaskFormer's decoder (arXiv 2107.06278, section 3.3): queries attend to one map.

    Masks are dot products of mask embeddings and per-pixel embeddings.
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        mask_classification: bool = True,
        hidden_dim: int,
        num_queries: int,
        nheads: int,
        dropout: float,
        dim_feedforward: int,
        enc_layers: int,
        dec_layers: int,
        pre_norm: bool,
        deep_supervision: bool,
        mask_dim: int,
        enforce_input_proj: bool,
    ) -> None:
        super().__init__()
        check_width(hidden_dim, nheads, "MODEL.MASK_FORMER.HIDDEN_DIM")
        for key, value in (("DEC_LAYERS", dec_layers), ("NUM_OBJECT_QUERIES", num_queries)):
            if value < 1:
                raise ValueError(f"MODEL.MASK_FORMER.{key} is {value}; it must be at least 1.")
        self.deep_supervision = deep_supervision
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.input_proj: nn.Module = nn.Identity()
        if in_channels != hidden_dim or enforce_input_proj:
            self.input_proj = nn.Conv2d(in_channels, hidden_dim, kernel_size=1)
            c2_xavier_fill(self.input_proj)
        options = LayerOptions(hidden_dim, nheads, dim_feedforward, dropout, normalize_before=pre_norm)
        self.transformer = _Transformer(enc_layers, dec_layers, options)
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1) if mask_classification else None
        self.mask_embed = MLP([hidden_dim, hidden_dim, hidden_dim, mask_dim])

    @classmethod
    def from_config(cls, cfg: CfgNode, in_channels: int, mask_classification: bool = True) -> dict[str, Any]:
        """Read MODEL.MASK_FORMER, and the widths of the outputs from MODEL.SEM_SEG_HEAD."""
        mask_former = cfg.MODEL.MASK_FORMER
        return {
            "in_channels": in_channels,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "mask_classification": mask_classification,
            "hidden_dim": mask_former.HIDDEN_DIM,
            "num_queries": mask_former.NUM_OBJECT_QUERIES,
            "nheads": mask_former.NHEADS,
            "dropout": mask_former.DROPOUT,
            "dim_feedforward": mask_former.DIM_FEEDFORWARD,
            "enc_layers": mask_former.ENC_LAYERS,
            "dec_layers": mask_former.DEC_LAYERS,
            "pre_norm": mask_former.PRE_NORM,
            "deep_supervision": mask_former.DEEP_SUPERVISION,
            "mask_dim": cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
            "enforce_input_proj": mask_former.ENFORCE_INPUT_PROJ,
        }

    def forward(self, memory: Tensor, mask_features: Tensor) -> list[Prediction]:
        """Return the predictions of the supervised layers, the last layer's last.

        In evaluation, and without deep supervision, only the last layer's.

        Args:
            memory: (B, C_in, h', w') the map that the queries attend to.
            mask_features: (B, C, h, w) per-pixel embeddings.
        """
        states = self.transformer(self.query_embed.weight, self.input_proj(memory))
        if not (self.training and self.deep_supervision):
            states = states[-1:]
        return [self._predict(layer_states, mask_features) for layer_states in states]

    def _predict(self, states: Tensor, mask_features: Tensor) -> Prediction:
        if self.class_embed is None:
            class_logits = states.new_empty(*states.shape[:2], 0)
        else:
            class_logits = self.class_embed(states)
        mask_logits = torch.einsum("bqc,bchw->bqhw", self.mask_embed(states), mask_features)
        return Prediction(class_logits, mask_logits)
