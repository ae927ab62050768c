"""The model around a per-pixel head: Detectron2's SemanticSegmentor, with results under `ResultRules`."""

from collections.abc import Collection, Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import SemanticSegmentor
from torch import Tensor

from mask_former.inference.resizing import Sizes
from mask_former.inference.ruled_model import Logits, PixelLogits, RuledModel
from mask_former.inference.rules import ResultRules


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
