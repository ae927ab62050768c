"""What a network predicts for one image, and the results that follow from it under given rules."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mask_former.inference.postprocess import (
    form_results,
    keep_classes,
    labels_of_scores,
    semantic_scores,
)
from mask_former.inference.resizing import Sizes
from mask_former.inference.rules import ResultRules


class QueryLogits(NamedTuple):
    """The prediction of a mask classification model for one image.

    class_logits: (Q, K+1), index K is "no object".
    mask_logits: (Q, h, w), on the mask grid of the padded image.
    sizes: what the grid covers, and the size of the results.
    """

    class_logits: Tensor
    mask_logits: Tensor
    sizes: Sizes

    def results(self, rules: ResultRules) -> dict[str, Any]:
        """Return `sem_seg`, `panoptic_seg` and `instances`, as far as the rules ask for them."""
        return form_results(*self.strongest(rules.max_queries), rules)

    def scores(self, rules: ResultRules) -> Tensor:
        """Return the semantic scores (K, H, W)."""
        strongest = self.strongest(rules.max_queries)
        return semantic_scores(*strongest, resize_logits=rules.resize_logits)

    def strongest(self, count: int | None) -> "QueryLogits":
        """Return the logits of the `count` queries with the highest class probability, in their order."""
        if count is None or count >= len(self.class_logits):
            return self
        highest = self.class_logits.float().softmax(-1)[:, :-1].amax(1)
        chosen = highest.topk(count).indices.sort().values
        return QueryLogits(self.class_logits[chosen], self.mask_logits[chosen], self.sizes)


class PixelLogits(NamedTuple):
    """The prediction of a per-pixel model for one image.

    class_logits: (K, h, w), on a grid over the padded image.
    sizes: what the grid covers, and the size of the results.
    """

    class_logits: Tensor
    sizes: Sizes

    def results(self, rules: ResultRules) -> dict[str, Any]:
        """Return `sem_seg`: class logits (K, H, W), which Detectron2 calls scores, or labels (H, W)."""
        logits = self._resized()
        if rules.semantic_form == "scores":
            return {"sem_seg": logits}
        return {"sem_seg": keep_classes(labels_of_scores(logits), len(logits), rules.kept_classes)}

    def scores(self, rules: ResultRules) -> Tensor:
        """Return the probabilities (K, H, W) of the classes."""
        return self._resized().float().softmax(0)

    @torch.no_grad()
    def _resized(self) -> Tensor:
        """Return the class logits (K, H, W) at the output size."""
        logits, (padded, image, output) = self.class_logits[None], self.sizes
        # Heads that enlarge to whole cells give more than the image, which is cut off below.
        if logits.shape[-2] < padded[0] or logits.shape[-1] < padded[1]:
            logits = F.interpolate(logits, size=padded, mode="bilinear", align_corners=False)
        logits = logits[..., : image[0], : image[1]]
        return F.interpolate(logits, size=output, mode="bilinear", align_corners=False)[0]
