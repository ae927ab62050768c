"""Mask losses and costs at random points instead of all pixels: MODEL.MASK_FORMER.LOSS_POINTS.

The sampling of PointRend and Mask2Former: matching compares all pairs of an image at the same random points;
the losses draw three times as many random points for each pair, keep those where the prediction is least
certain, and add a quarter of random ones. The formulas are those of `losses.py`; no full-size map is made.

Points are (x, y) in [0, 1], as Detectron2's point_features has them.
"""

import torch
from detectron2.projects.point_rend.point_features import point_sample
from torch import Tensor

from mask_former.modeling.losses import full_precision, paired_dice, paired_focal

# Candidates for each point of a loss, and the share of points that are chosen by uncertainty.
OVERSAMPLE_RATIO = 3
IMPORTANCE_SAMPLE_RATIO = 0.75


def random_points(count: int, device: torch.device) -> Tensor:
    """Return points (count, 2), spread evenly at random."""
    return torch.rand(count, 2, device=device)


def logits_at(logits: Tensor, points: Tensor) -> Tensor:
    """Return logits (N, P), float32 or wider, of (N, h, w) maps, bilinear, with a gradient.

    Args:
        logits: (N, h, w).
        points: (N, P, 2), or (P, 2) for the same points in all maps.
    """
    logits = full_precision(logits)
    points = points.to(logits.dtype)
    with torch.autocast(logits.device.type, enabled=False):
        if points.ndim == 2:
            return point_sample(logits[None], points[None], align_corners=False, padding_mode="border")[0]
        sampled = point_sample(logits[:, None], points, align_corners=False, padding_mode="border")
        return sampled[:, 0]


def masks_at(masks: Tensor, points: Tensor, numbers: Tensor | None = None) -> Tensor:
    """Return what some of (M, H, W) bool masks are at points, as (N, P).

    Args:
        masks: (M, H, W).
        points: (N, P, 2), or (P, 2) for the same points in all masks.
        numbers: (N,) int64, which masks; None: all of them.
    """
    height, width = masks.shape[-2:]
    if numbers is None:
        numbers = torch.arange(len(masks), device=masks.device)
    column = (points[..., 0] * width).long().clamp_(max=width - 1)
    row = (points[..., 1] * height).long().clamp_(max=height - 1)
    return masks[numbers[:, None], row, column]


def mask_losses_at_points(
    logits: Tensor, masks: Tensor, segment_index: Tensor, valid: Tensor | None, count: int
) -> tuple[Tensor, Tensor]:
    """Return the focal and the dice loss of matched masks at `count` points each, summed over masks.

    Args:
        logits: (N, h, w), the matched queries' masks.
        masks: (M, H, W) bool, the segments of the image.
        segment_index: (N,) int64, the segment of each query.
        valid: (H, W) bool, False where a pixel counts for nothing; None: all count.
        count: points of each mask.

    Returns:
        Two scalars; 0, with a graph, where N is 0.
    """
    if len(logits) == 0:
        nothing = full_precision(logits).sum()
        return nothing, nothing
    points = _uncertain_points(logits.detach(), count)
    point_masks = masks_at(masks, points, segment_index)
    point_valid = None if valid is None else masks_at(valid[None], points, torch.zeros_like(segment_index))
    point_logits = logits_at(logits, points)
    arguments = (point_logits, point_masks, point_valid)
    return paired_focal(*arguments).sum(), paired_dice(*arguments).sum()


@torch.no_grad()
def _uncertain_points(logits: Tensor, count: int) -> Tensor:
    """Return points (N, count, 2), most of them where the masks (N, h, w) are least certain."""
    candidates = torch.rand(len(logits), OVERSAMPLE_RATIO * count, 2, device=logits.device)
    num_uncertain = int(IMPORTANCE_SAMPLE_RATIO * count)
    most_uncertain = logits_at(logits, candidates).abs().topk(num_uncertain, dim=1, largest=False).indices
    chosen = candidates.gather(1, most_uncertain[..., None].expand(-1, -1, 2))
    others = torch.rand(len(logits), count - num_uncertain, 2, device=logits.device)
    return torch.cat([chosen, others], dim=1)
