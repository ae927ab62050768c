"""Matching of queries and segments: the one-to-one assignment of least cost."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.utils.registry import Registry
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mask_former.modeling.losses import full_precision, pairwise_dice, pairwise_focal
from mask_former.modeling.points import logits_at, masks_at, random_points
from mask_former.modeling.structures import Prediction, Target

MATCHER_REGISTRY = Registry("MATCHER")
MATCHER_REGISTRY.__doc__ = """
Matchers, chosen by MODEL.MASK_FORMER.MATCHER_NAME. Built with the config; called as `HungarianMatcher` is.
"""

# For each supervised layer, for each image: (query_index, segment_index).
Matching = list[list[tuple[Tensor, Tensor]]]


def build_matcher(cfg: CfgNode) -> "HungarianMatcher":
    """Return the matcher named by MODEL.MASK_FORMER.MATCHER_NAME."""
    name = cfg.MODEL.MASK_FORMER.MATCHER_NAME
    if name not in MATCHER_REGISTRY:
        known = ", ".join(sorted(known for known, _ in MATCHER_REGISTRY))
        raise KeyError(f"MODEL.MASK_FORMER.MATCHER_NAME is {name!r}, but must be one of: {known}.")
    return MATCHER_REGISTRY.get(name)(cfg)


@MATCHER_REGISTRY.register()
class HungarianMatcher:
    """One-to-one matching of queries with segments, of least total cost, for each layer and image by itself.

    The cost of a pair is a weighted sum of -p(class of the segment), focal and dice, on the mask grid, or at
    some random points, the same ones for all pairs of an image.
    """

    @configurable
    def __init__(
        self, *, class_weight: float = 1.0, mask_weight: float, dice_weight: float, num_points: int = 0
    ) -> None:
        """Set the weights of the costs, and the number of points; 0 points: the whole mask grid."""
        self.num_points = num_points
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, float]:
        """Return the constructor's arguments: the weights of the losses, which also weigh the costs."""
        return {
            "mask_weight": cfg.MODEL.MASK_FORMER.MASK_WEIGHT,
            "dice_weight": cfg.MODEL.MASK_FORMER.DICE_WEIGHT,
            "num_points": cfg.MODEL.MASK_FORMER.LOSS_POINTS,
        }

    @torch.no_grad()
    def __call__(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> Matching:
        """Return, for each layer and image, `(query_index, segment_index)`.

        Both are (min(Q, M),) int64 on the predictions' device; no query and no segment appears twice.
        All costs of the step go to the host in one transfer, which is the only wait for the device.

        Raises:
            ValueError: a label is no class, or a cost is not finite.
        """
        costs = [cost for layer in self.costs(predictions, targets) for cost in layer]
        values = torch.cat([cost.flatten() for cost in costs]).cpu()
        if not np.isfinite(values.numpy()).all():
            raise ValueError(_explain_costs(predictions, targets, costs))
        parts = values.split([cost.numel() for cost in costs])
        on_host = [part.view(cost.shape).numpy() for part, cost in zip(parts, costs, strict=True)]
        pairs = _to_device([np.stack(linear_sum_assignment(cost)) for cost in on_host], costs[0].device)
        return [pairs[first : first + len(targets)] for first in range(0, len(pairs), len(targets))]

    @torch.no_grad()
    def costs(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> list[list[Tensor]]:
        """Return, for each layer and image, the cost (Q, M) of every pair, float32.

        It is NaN where a label is outside 0..K-1, so that no transfer is needed to find such labels.
        """
        size = predictions[-1].mask_logits.shape[-2:]
        samples = [_sample(target, size, self.num_points) for target in targets]
        return [
            [
                self._image_costs(class_logits, mask_logits, target.labels, sample)
                for class_logits, mask_logits, target, sample in zip(
                    *prediction, targets, samples, strict=True
                )
            ]
            for prediction in predictions
        ]

    def _image_costs(
        self, class_logits: Tensor, mask_logits: Tensor, labels: Tensor, sample: "_Sample"
    ) -> Tensor:
        num_classes = class_logits.shape[-1] - 1
        # Clamped, because an index out of range ends a CUDA process without a useful message.
        probability = full_precision(class_logits).softmax(-1)[:, labels.clamp(0, num_classes - 1)]
        class_cost = (-probability).masked_fill((labels < 0) | (labels >= num_classes), torch.nan)
        points = sample.points
        pixel_logits = mask_logits.flatten(1) if points is None else logits_at(mask_logits, points)
        focal = pairwise_focal(pixel_logits, sample.masks, sample.valid)
        dice = pairwise_dice(pixel_logits, sample.masks, sample.valid)
        return self.class_weight * class_cost + self.mask_weight * focal + self.dice_weight * dice


class _Sample(NamedTuple):
    """Where the masks of an image are compared with its segments, and the segments there.

    masks: (M, P) uint8 or bool.
    valid: (P,) bool, False for pixels that do not count; None: all count.
    points: (P, 2), see `points.py`; None: the cells of the mask grid, row by row.
    """

    masks: Tensor
    valid: Tensor | None
    points: Tensor | None


def _sample(target: Target, size: torch.Size, num_points: int) -> _Sample:
    """Sample at random points, or where `num_points` is 0 at all cells of the grid by the "nearest" rule."""
    points = random_points(num_points, target.masks.device) if num_points else None

    def values(masks: Tensor) -> Tensor:
        if points is not None:
            return masks_at(masks, points)
        return F.interpolate(masks.view(torch.uint8)[:, None], size=size, mode="nearest").flatten(1)

    valid = None if target.valid is None else values(target.valid[None])[0].to(torch.bool)
    return _Sample(values(target.masks.to(torch.bool)), valid, points)


def _to_device(pairs: list[np.ndarray], device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Copy pairs (2, N) of indices by one transfer that the host does not wait for."""
    flat = torch.from_numpy(np.concatenate(pairs, axis=1).astype(np.int64, copy=False))
    if device.type == "cuda":
        flat = flat.pin_memory()
    parts = flat.to(device, non_blocking=True).split([pair.shape[1] for pair in pairs], dim=1)
    return [(part[0], part[1]) for part in parts]


def _explain_costs(
    predictions: Sequence[Prediction], targets: Sequence[Target], costs: Sequence[Tensor]
) -> str:
    """Return the message for costs that are not finite, those of each image of each layer in turn."""
    num_classes = predictions[-1].class_logits.shape[-1] - 1
    for image, target in enumerate(targets):
        bad = sorted({label for label in target.labels.tolist() if not 0 <= label < num_classes})
        if bad:
            return (
                f"Image {image} of the batch has segments with label {', '.join(map(str, bad))}; the model "
                f"has classes 0..{num_classes - 1}. Set MODEL.SEM_SEG_HEAD.NUM_CLASSES to the number of "
                "classes, or give such pixels the data set's ignore label."
            )
    first = next(number for number, cost in enumerate(costs) if not cost.isfinite().all())
    layer, image = divmod(first, len(targets))
    class_logits = predictions[layer].class_logits[image]
    in_classes = not bool(class_logits.isfinite().all())
    logits = class_logits if in_classes else predictions[layer].mask_logits[image]
    return (
        f"Matching costs of image {image} of the batch at decoder layer {layer} of {len(predictions)} are "
        f"not finite, because of its {'class' if in_classes else 'mask'} logits: "
        f"{int((~logits.isfinite()).sum())} of {logits.numel()} are NaN or infinite, "
        f"the largest of the others is {float(logits.nan_to_num(0, 0, 0).abs().max()):.3g} ({logits.dtype}). "
        "Usual remedies: lower SOLVER.BASE_LR or warm up longer, enable SOLVER.CLIP_GRADIENTS, set "
        "SOLVER.AMP.DTYPE to bfloat16 or SOLVER.AMP.ENABLED to False; look for NaN in pictures and in "
        "loaded weights."
    )
