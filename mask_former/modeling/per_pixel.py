"""The per-pixel baselines of the paper (arXiv 2107.06278, section 4.1): heads, and the model around them.

In training heads return `(None, losses)`, in evaluation `(scores, {})` with scores (B, K, H, W) before the
softmax, of the size of the padded input.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY, SemanticSegmentor
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn

from mask_former.inference.resizing import Sizes
from mask_former.inference.ruled_model import Logits, PixelLogits, RuledModel
from mask_former.inference.rules import ResultRules
from mask_former.modeling.head import TwoDecoderHead, rename_old_entries
from mask_former.modeling.pixel_decoder import build_pixel_decoder, decode_pixels

ScoresAndLosses = tuple[Tensor | None, dict[str, Tensor]]


@SEM_SEG_HEADS_REGISTRY.register()
class PerPixelBaselineHead(nn.Module):
    """PerPixelBaseline: a linear classifier on the per-pixel embeddings."""

    # See TwoDecoderHead.
    _version = 2

    @configurable
    def __init__(
        self,
        *,
        input_shape: dict[str, ShapeSpec],
        pixel_decoder: nn.Module,
        mask_dim: int,
        num_classes: int,
        ignore_value: int,
        loss_weight: float,
    ) -> None:
        super().__init__()
        self.input_shape = input_shape
        self.pixel_decoder = pixel_decoder
        self.predictor = nn.Conv2d(mask_dim, num_classes, kernel_size=1)
        c2_msra_fill(self.predictor)
        self.ignore_value = ignore_value
        self.loss_weight = loss_weight
        self.num_classes = num_classes
        self._register_load_state_dict_pre_hook(rename_old_entries)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Read MODEL.SEM_SEG_HEAD and build the pixel decoder for maps of `input_shape`."""
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": input_shape,
            "pixel_decoder": build_pixel_decoder(cfg, input_shape),
            "mask_dim": head.MASK_DIM,
            "num_classes": head.NUM_CLASSES,
            "ignore_value": head.IGNORE_VALUE,
            "loss_weight": head.LOSS_WEIGHT,
        }

    def forward(self, features: dict[str, Tensor], targets: Tensor | None = None) -> ScoresAndLosses:
        """Return losses in training, else scores; `targets` are labels (B, H, W) int64, read in training."""
        scores = self.grid_scores(features)
        if self.training:
            return None, per_pixel_losses([scores], targets, self.ignore_value, self.loss_weight)
        return _enlarge(scores, features, self.input_shape), {}

    def grid_scores(self, features: dict[str, Tensor]) -> Tensor:
        """Return scores (B, K, h, w) of the size of the finest map."""
        return self.predictor(decode_pixels(self.pixel_decoder, features).mask_features)


@SEM_SEG_HEADS_REGISTRY.register()
class PerPixelBaselinePlusHead(TwoDecoderHead):
    """PerPixelBaseline+: MaskFormer's decoders without classification; the mask of query k scores class k."""

    @configurable
    def __init__(self, *, input_shape: dict[str, ShapeSpec], loss_weight: float, **decoders: Any) -> None:
        """Combine the decoders that TwoDecoderHead takes."""
        super().__init__(**decoders)
        self.input_shape = input_shape
        self.loss_weight = loss_weight

    @classmethod
    def from_config(
        cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec], mask_classification: bool = False
    ) -> dict[str, Any]:
        """Build both decoders for maps of `input_shape`, with as many queries as classes."""
        queries, classes = cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        if queries != classes:
            raise ValueError(
                f"MODEL.MASK_FORMER.NUM_OBJECT_QUERIES is {queries} and MODEL.SEM_SEG_HEAD.NUM_CLASSES is "
                f"{classes}; PerPixelBaselinePlusHead has one query per class. Set both to the same number."
            )
        return {
            **super().from_config(cfg, input_shape, mask_classification),
            "input_shape": input_shape,
            "loss_weight": cfg.MODEL.SEM_SEG_HEAD.LOSS_WEIGHT,
        }

    def forward(self, features: dict[str, Tensor], targets: Tensor | None = None) -> ScoresAndLosses:
        """See PerPixelBaselineHead; earlier decoder layers have losses of their own."""
        scores = [prediction.mask_logits for prediction in self.decode(features)]
        if self.training:
            return None, per_pixel_losses(scores, targets, self.ignore_value, self.loss_weight)
        return _enlarge(scores[-1], features, self.input_shape), {}

    def grid_scores(self, features: dict[str, Tensor]) -> Tensor:
        """Return scores (B, K, h, w) of the size of the finest map."""
        return self.decode(features)[-1].mask_logits


def per_pixel_losses(
    scores: list[Tensor], targets: Tensor | None, ignore_value: int, loss_weight: float
) -> dict[str, Tensor]:
    """Return `loss_sem_seg` of the last entry of `scores`, `loss_sem_seg_0`, `_1`, ... of those before it.

    Each is the mean cross entropy over the pixels that have a class, in float32 and at the size of the
    targets; 0 if no pixel has one.

    Args:
        scores: (B, K, h, w) per supervised layer, the last layer's last.
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
    num_labelled = (targets != ignore_value).sum().clamp(min=1)
    losses = {}
    for name, layer_scores in zip(names, scores, strict=True):
        resized = F.interpolate(layer_scores.float(), targets.shape[-2:], mode="bilinear")
        total = F.cross_entropy(resized, targets, ignore_index=ignore_value, reduction="sum")
        losses[name] = total / num_labelled * loss_weight
    return losses


def _enlarge(scores: Tensor, features: dict[str, Tensor], input_shape: dict[str, ShapeSpec]) -> Tensor:
    """Resize scores to the padded input, whose size follows from the backbone's finest map and its stride."""
    name, shape = min(input_shape.items(), key=lambda item: item[1].stride)
    size = [side * shape.stride for side in features[name].shape[-2:]]
    return F.interpolate(scores, size, mode="bilinear")


class PerPixelModel(SemanticSegmentor, RuledModel):
    """Semantic segmentation by classification of each pixel; META_ARCHITECTURE SemanticSegmentor."""

    @configurable
    def __init__(self, **parts: Any) -> None:
        """Take the arguments of Detectron2's SemanticSegmentor."""
        super().__init__(**parts)
        self.rules = ResultRules()
        backbone: Any = self.backbone
        self.size_divisibility: int = backbone.size_divisibility

    @classmethod
    def from_config(cls, cfg: CfgNode, thing_ids: Collection[int] | None = None) -> dict[str, Any]:
        """Return the constructor's arguments; there are no things to a per-pixel model."""
        if cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES < 2:
            raise ValueError(
                "MODEL.SEM_SEG_HEAD.NUM_CLASSES is 1, but a per-pixel model needs a second class to tell "
                "the first from: add a class for all other pixels, or use MODEL.META_ARCHITECTURE MaskFormer."
            )
        return super().from_config(cfg)

    def forward(
        self, batched_inputs: list[dict[str, Any]], rules: ResultRules | None = None
    ) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Return the losses of a batch (training) or `sem_seg` of each image (evaluation)."""
        if self.training:
            return super().forward(batched_inputs)
        return self.results(batched_inputs, rules)

    def step_shares(
        self, parts: Sequence[list[dict[str, Any]]]
    ) -> list[tuple[dict[str, Any], float | Tensor]]:
        """See `RuledModel`: the loss is a mean over the labelled pixels."""
        head: Any = self.sem_seg_head
        counts = [sum(int((entry["sem_seg"] != head.ignore_value).sum()) for entry in part) for part in parts]
        return [({}, count / max(sum(counts), 1)) for count in counts]

    def predict(self, images: Tensor) -> Tensor:
        """Return class logits (B, K, h, w); `images` are (B, 3, H, W), normalised and padded."""
        parts: Any = self
        return parts.sem_seg_head(parts.backbone(images), None)[0]

    def split_logits(self, predictions: Tensor, sizes: Sequence[Sizes]) -> list[Logits]:
        """Return the class logits of each image."""
        return [PixelLogits(logits, size) for logits, size in zip(predictions, sizes, strict=True)]

    def check_rules(self, rules: ResultRules) -> None:
        """Raise ValueError unless only semantic results of all pixels are asked for."""
        if rules.tasks != ("semantic",):
            raise ValueError(
                f"Tasks are {', '.join(rules.tasks)}, but a per-pixel model gives semantic results alone."
            )
        if rules.max_queries is not None:
            raise ValueError("A per-pixel model has no queries: leave out top_k_queries.")
