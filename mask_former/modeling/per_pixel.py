"""The per-pixel baselines of the paper (arXiv 2107.06278, section 4.1), for Detectron2's SemanticSegmentor.

In training they return `(None, losses)`, in evaluation `(scores, {})`, scores (B, K, 4h, 4w) before softmax.
"""

from typing import Any

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn

from mask_former.modeling.head import accept_old_names, build_decoders, decoder_inputs
from mask_former.modeling.pixel_decoder import build_pixel_decoder, decode_pixels

# Per-pixel embeddings have a quarter of the input's resolution.
STRIDE = 4


@SEM_SEG_HEADS_REGISTRY.register()
class PerPixelBaselineHead(nn.Module):
    """PerPixelBaseline: a linear classifier on the per-pixel embeddings."""

    # See MaskFormerHead.
    _version = 2

    @configurable
    def __init__(
        self,
        *,
        pixel_decoder: nn.Module,
        mask_dim: int,
        num_classes: int,
        ignore_value: int,
        loss_weight: float,
    ) -> None:
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = nn.Conv2d(mask_dim, num_classes, kernel_size=1)
        c2_msra_fill(self.predictor)
        self.ignore_value = ignore_value
        self.loss_weight = loss_weight
        self.num_classes = num_classes
        accept_old_names(self)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Read MODEL.SEM_SEG_HEAD and build the pixel decoder for maps of `input_shape`."""
        return {
            "pixel_decoder": build_pixel_decoder(cfg, input_shape),
            "mask_dim": cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
            **_common_options(cfg),
        }

    def forward(
        self, features: dict[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Return losses in training, else scores; `targets` are labels (B, H, W) int64, read in training."""
        scores = self.predictor(decode_pixels(self.pixel_decoder, features).mask_features)
        if self.training:
            return None, per_pixel_losses([scores], targets, self.ignore_value, self.loss_weight)
        return _enlarge(scores), {}


@SEM_SEG_HEADS_REGISTRY.register()
class PerPixelBaselinePlusHead(nn.Module):
    """PerPixelBaseline+: MaskFormer's decoders without classification; the mask of query k scores class k."""

    # See MaskFormerHead.
    _version = 2

    @configurable
    def __init__(
        self,
        *,
        pixel_decoder: nn.Module,
        predictor: nn.Module,
        transformer_in_feature: str,
        num_classes: int,
        ignore_value: int,
        loss_weight: float,
    ) -> None:
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor
        self.transformer_in_feature = transformer_in_feature
        self.ignore_value = ignore_value
        self.loss_weight = loss_weight
        self.num_classes = num_classes
        accept_old_names(self)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Build both decoders for maps of `input_shape`, with as many queries as classes."""
        queries, classes = cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        if queries != classes:
            raise ValueError(
                f"MODEL.MASK_FORMER.NUM_OBJECT_QUERIES is {queries} and MODEL.SEM_SEG_HEAD.NUM_CLASSES is "
                f"{classes}; PerPixelBaselinePlusHead has one query per class. Set both to the same number."
            )
        return {**build_decoders(cfg, input_shape, mask_classification=False), **_common_options(cfg)}

    def forward(
        self, features: dict[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """See PerPixelBaselineHead; earlier decoder layers have losses of their own."""
        predictions = self.predictor(
            *decoder_inputs(self.pixel_decoder, self.transformer_in_feature, features)
        )
        scores = [prediction.mask_logits for prediction in predictions]
        if self.training:
            return None, per_pixel_losses(scores, targets, self.ignore_value, self.loss_weight)
        return _enlarge(scores[-1]), {}


def per_pixel_losses(
    scores: list[Tensor], targets: Tensor | None, ignore_value: int, loss_weight: float
) -> dict[str, Tensor]:
    """Return `loss_sem_seg` of the last entry of `scores`, `loss_sem_seg_0`, `_1`, ... of those before it.

    Each is the mean cross entropy, in float32 and at the size of the targets, over the pixels that have a
    class; 0 where none has.

    Args:
        scores: (B, K, h, w) per supervised layer, the answer last.
        targets: (B, H, W) int64, in 0..K-1 or `ignore_value`.
        ignore_value: label of the pixels left out.
        loss_weight: factor on every loss.
    """
    if targets is None:
        raise ValueError(
            "A per-pixel head was trained without labels: the data set mapper must give 'sem_seg' "
            "(H, W) with each picture; INPUT.DATASET_MAPPER_NAME 'mask_former_semantic' does."
        )
    names = [*(f"loss_sem_seg_{layer}" for layer in range(len(scores) - 1)), "loss_sem_seg"]
    counted = (targets != ignore_value).sum().clamp(min=1)
    return {
        name: _summed_loss(layer_scores, targets, ignore_value) / counted * loss_weight
        for name, layer_scores in zip(names, scores, strict=True)
    }


def _summed_loss(scores: Tensor, targets: Tensor, ignore_value: int) -> Tensor:
    size = targets.shape[-2:]
    scores = F.interpolate(scores.float(), size=size, mode="bilinear", align_corners=False)
    return F.cross_entropy(scores, targets, ignore_index=ignore_value, reduction="sum")


def _enlarge(scores: Tensor) -> Tensor:
    return F.interpolate(scores, scale_factor=STRIDE, mode="bilinear", align_corners=False)


def _common_options(cfg: CfgNode) -> dict[str, Any]:
    head = cfg.MODEL.SEM_SEG_HEAD
    return {
        "num_classes": head.NUM_CLASSES,
        "ignore_value": head.IGNORE_VALUE,
        "loss_weight": head.LOSS_WEIGHT,
    }
