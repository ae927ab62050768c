"""Focal and dice losses: of matched pairs, for the criterion, and of all pairs, for the matcher.

Computed in float32 or wider, also under autocast: in float16 the sums over a large map overflow.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# The published settings of the focal loss: share of the positive pixels; gamma is 2, written as a square.
ALPHA = 0.25

# How many pixels of full-size masks are worked on at a time: few enough for a CPU's caches, many for a GPU.
CPU_CHUNK_PIXELS = 2**18
GPU_CHUNK_PIXELS = 2**24

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def full_precision(logits: Tensor) -> Tensor:
    """Return logits in float32, or as they are if they are wider."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _in_full_precision(
    function: Callable[Concatenate[Tensor, Arguments], Result],
) -> Callable[Concatenate[Tensor, Arguments], Result]:
    @wraps(function)
    def guarded(logits: Tensor, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with torch.autocast(logits.device.type, enabled=False):
            return function(full_precision(logits), *args, **kwargs)

    return guarded


def _softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), and its exact gradient, also at 0."""
    # torch's own softplus, logsigmoid and log1p take several times as long on CPUs; atanh is vectorised. With
    # r = sigmoid(-|x|), log(1 + exp(-|x|)) = 2 atanh(r / (2 - r)), which loses no digit where r is small.
    size = x.abs()
    r = torch.sigmoid(-size)
    return torch.add((x + size).mul_(0.5), torch.atanh(r / (2 - r)), alpha=2)


def focal_cost(logits: Tensor) -> Tensor:
    """Return the cost of each logit where the target is 1; where it is 0, it is `focal_cost(-logits)`.

    With p = sigmoid(logit) it is (1 - p)^2 * -log(p), not yet weighted by ALPHA or 1 - ALPHA.
    """
    return torch.sigmoid(-logits).square() * _softplus(-logits)


def _split_pixels(
    targets: Tensor, valid: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | int]:
    """Pixels inside and outside each target, invalid ones in neither, and the number of pixels that count."""
    inside = targets.to(dtype)
    outside = 1 - inside
    if valid is None:
        return inside, outside, max(targets.shape[-1], 1)
    counts = valid.to(dtype)
    return inside * counts, outside * counts, counts.sum(-1).clamp(min=1)


@_in_full_precision
def paired_focal(logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the focal loss of each mask against its own target, the mean over the pixels that count.

    Args:
        logits: (N, P), P pixels.
        targets: (N, P) bool.
        valid: (P,) or (N, P) bool, False for pixels that do not count; None: all count.

    Returns:
        (N,), float32 or wider.
    """
    inside, outside, pixels = _split_pixels(targets, valid, logits.dtype)
    cost = focal_cost(logits * (2 * targets - 1))
    return (cost * (ALPHA * inside + (1 - ALPHA) * outside)).sum(-1) / pixels


@_in_full_precision
def pairwise_focal(logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return `paired_focal` of every mask of (Q, P) against every target of (M, P), as (Q, M)."""
    inside, outside, pixels = _split_pixels(targets, valid, logits.dtype)
    costs = []
    for rows in logits.split(_chunk_length(logits, logits.shape[-1])):
        # focal_cost of rows and of -rows share the softplus, since softplus(-x) = softplus(x) - x.
        softplus = _softplus(rows)
        negative = torch.sigmoid(rows).square() * softplus
        positive = torch.sigmoid(-rows).square() * (softplus - rows)
        costs.append(ALPHA * (positive @ inside.T) + (1 - ALPHA) * (negative @ outside.T))
    return torch.cat(costs) / pixels


def _dice(overlap: Tensor, predicted_area: Tensor, target_area: Tensor) -> Tensor:
    return 1 - (2 * overlap + 1) / (predicted_area + target_area + 1)


@_in_full_precision
def paired_dice(logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the dice loss of each mask against its own target; arguments and result as in `paired_focal`."""
    inside, outside, _ = _split_pixels(targets, valid, logits.dtype)
    probability = logits.sigmoid() * (inside + outside)
    return _dice((probability * inside).sum(-1), probability.sum(-1), inside.sum(-1))


@_in_full_precision
def pairwise_dice(logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return `paired_dice` of every mask of (Q, P) against every target of (M, P), as (Q, M)."""
    inside, _, _ = _split_pixels(targets, valid, logits.dtype)
    probability = logits.sigmoid()
    if valid is not None:
        probability = probability * valid
    return _dice(probability @ inside.T, probability.sum(-1)[:, None], inside.sum(-1))


@_in_full_precision
def mask_losses(
    logits: Tensor, masks: Tensor, segment_index: Tensor, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the focal and the dice loss of matched masks at full size, each summed over masks.

    Equal to upsampling all logits (bilinear, align_corners False) and summing `paired_focal` and
    `paired_dice`, gradient included, but a few masks at a time: the memory for full-size maps does not grow
    with the number of masks.

    Args:
        logits: (N, h, w), the matched queries' masks.
        masks: (M, H, W) bool, the segments of the image.
        segment_index: (N,) int64, the segment of each query.
        valid: (H, W) bool, False for pixels that do not count; None: all count.

    Returns:
        Two scalars; 0, with a graph, where N is 0.
    """
    focal, dice = _MaskLosses.apply(logits, masks, segment_index, valid)
    return focal, dice


def _chunk_length(logits: Tensor, pixels: int) -> int:
    """How many masks of that many pixels to work on at a time."""
    budget = CPU_CHUNK_PIXELS if logits.device.type == "cpu" else GPU_CHUNK_PIXELS
    return max(1, budget // max(1, pixels))


class _MaskLosses(torch.autograd.Function):
    """`mask_losses` with its gradient computed, chunk by chunk, in the forward pass.

    The backward pass keeps two gradients on the mask grid instead of a dozen full-size maps.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, masks: Tensor, segment_index: Tensor, valid: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        slopes = logits.new_empty(2, *logits.shape)
        totals = logits.new_zeros(2)
        counts = None if valid is None else valid.flatten().to(logits.dtype)
        size = masks.shape[-2:]
        step = _chunk_length(logits, size.numel())
        for first in range(0, len(logits), step):
            rows = slice(first, first + step)
            upsampled = F.interpolate(logits[rows, None], size=size, mode="bilinear", align_corners=False)
            targets = masks[segment_index[rows]].flatten(1)
            values, full_slopes = _values_and_slopes(upsampled.flatten(1), targets, counts)
            totals += values
            maps = _upsampling_adjoint(full_slopes.view(-1, *size), logits.shape[-2:])
            slopes[:, rows] = maps.unflatten(0, (2, -1))
        ctx.save_for_backward(slopes)
        return totals[0].clone(), totals[1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, focal_gradient: Tensor, dice_gradient: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return torch.addcmul(slopes[0] * focal_gradient, slopes[1], dice_gradient), None, None, None


def _values_and_slopes(logits: Tensor, targets: Tensor, counts: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sums (2,) of `paired_focal` and `paired_dice`, and their gradients (2, N, P)."""
    # A view as bytes is converted several times as fast as bool.
    inside = targets.view(torch.uint8).to(logits.dtype)
    probability = torch.sigmoid(logits)
    # With x the logit of the wrong answer and q its probability, the element cost is q^2 softplus(x), and its
    # derivative q^2 (2 (1 - q) softplus(x) + q).
    x = torch.addcmul(logits, logits, inside, value=-2)
    q = torch.sigmoid(x)
    softplus = _softplus(x)
    square = q.square()
    pixels: Tensor | int = max(logits.shape[-1], 1)
    if counts is not None:
        square, probability, inside = square * counts, probability * counts, inside * counts
        pixels = counts.sum().clamp(min=1)
    cost = square * softplus
    focal = (1 - ALPHA) * cost.sum() - (1 - 2 * ALPHA) * torch.vdot(cost.flatten(), inside.flatten())
    overlap = torch.linalg.vecdot(probability, inside)
    areas = probability.sum(-1) + inside.sum(-1) + 1
    dice = (1 - (2 * overlap + 1) / areas).sum()

    slopes = logits.new_empty(2, *logits.shape)
    torch.addcmul(softplus, softplus, q, value=-1, out=slopes[0])
    # The weight of an answer times the direction of a wrong one: 1 - ALPHA outside, -ALPHA inside.
    slopes[0].mul_(2).add_(q).mul_(square).mul_(1 - ALPHA - inside).div_(pixels)
    # The area grows by p (1 - p) a pixel, the overlap by as much inside; where invalid, p is 0 here.
    torch.mul(inside, (-2 / areas)[:, None], out=slopes[1]).add_(
        ((2 * overlap + 1) / areas.square())[:, None]
    )
    slopes[1].mul_(torch.addcmul(probability, probability, probability, value=-1))
    return torch.stack((focal / pixels, dice)), slopes


def _upsampling_adjoint(gradient: Tensor, size: torch.Size) -> Tensor:
    """Gradient (N, h, w) with respect to the input, of height and width `size`, of a bilinear upsampling.

    `gradient`: (N, H, W), with respect to its output.
    """
    (H, W), (h, w) = gradient.shape[-2:], size
    if H % h == 0 and W % w == 0:
        # The usual case; ten times as fast on CPUs as torch's own kernel, and deterministic on GPUs.
        return _fold(_fold(gradient, 1, h), 2, w)
    return torch.ops.aten.upsample_bilinear2d_backward(
        gradient[:, None], [H, W], [len(gradient), 1, h, w], False, None, None
    )[:, 0]


def _fold(gradient: Tensor, axis: int, size: int) -> Tensor:
    """Adjoint of linear upsampling along one axis by a whole factor, to `size` entries."""
    factor = gradient.shape[axis] // size
    folded = torch.zeros_like(gradient.narrow(axis, 0, size))
    for step, part in enumerate(gradient.unflatten(axis, (size, factor)).unbind(axis + 1)):
        # Each pixel lies this far, in cells, from the centre of its own cell, and takes that share of the
        # neighbour on that side; beyond the border there is only the cell itself.
        offset = (step + 0.5) / factor - 0.5
        share, others = abs(offset), size - 1
        folded.add_(part, alpha=1 - share)
        before, after, border = (0, 1, 0) if offset < 0 else (1, 0, others)
        folded.narrow(axis, before, others).add_(part.narrow(axis, after, others), alpha=share)
        folded.narrow(axis, border, 1).add_(part.narrow(axis, border, 1), alpha=share)
    return folded
