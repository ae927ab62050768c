"""The losses of a step: match, compute and weight them, layer by layer."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from detectron2.utils import comm
from torch import Tensor, nn

from mask_former.modeling.losses import full_precision, mask_losses
from mask_former.modeling.points import mask_losses_at_points
from mask_former.modeling.structures import Prediction, Target

Pairs = tuple[Tensor, Tensor]
# Pixels of all masks of a batch, up to which they are copied into one block.
SMALL_MASKS = 2**22
Matcher = Callable[[Sequence[Prediction], Sequence[Target]], list[list[Pairs]]]


class Normalizers(NamedTuple):
    """What the sums over a step are divided by: totals over all processes, divided by their number.

    Dividing the class loss by the weights of all processes, as the published code divides the mask losses but
    not this one, makes a run the same on any number of processes; on one, it is the published loss.

    num_masks: segments, at least 1: divides the mask losses.
    class_weights: class weights of all queries of all images: divides the class loss.
    """

    num_masks: float | Tensor
    class_weights: float | Tensor


class SetCriterion(nn.Module):
    """Weighted losses of all supervised layers against the segments of each image."""

    empty_weight: Tensor

    def __init__(
        self,
        *,
        num_classes: int,
        matcher: Matcher,
        class_weight: float = 1.0,
        mask_weight: float,
        dice_weight: float,
        no_object_weight: float,
        num_points: int = 0,
    ) -> None:
        """Set the weights of the class, focal and dice losses.

        Args:
            num_classes: K.
            matcher: pairs queries with segments, layer by layer.
            no_object_weight: weight of queries without a segment in the class loss.
            num_points: points of each mask at which the mask losses are computed; 0: all pixels.
        """
        super().__init__()
        if num_points < 0:
            raise ValueError(
                f"MODEL.MASK_FORMER.LOSS_POINTS is {num_points}, expected at least 0 (0: all pixels)."
            )
        self.num_classes = num_classes
        self.matcher = matcher
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        self.no_object_weight = no_object_weight
        self.num_points = num_points
        weights = torch.ones(num_classes + 1)
        weights[num_classes] = no_object_weight
        # Follows from the configuration, so it is no part of a checkpoint.
        self.register_buffer("empty_weight", weights, persistent=False)

    def normalizers(self, segment_counts: Sequence[int], num_queries: int) -> Normalizers:
        """Return the normalisers of a step, for `forward`; no wait for the device.

        Every process has to call it equally often, since the processes add up their shares.

        Args:
            segment_counts: M of every image that this process sees in the step.
            num_queries: Q, of which min(Q, M) are matched.
        """
        matched = sum(min(count, num_queries) for count in segment_counts)
        unmatched = num_queries * len(segment_counts) - matched
        shares = torch.tensor([float(sum(segment_counts)), matched + self.no_object_weight * unmatched])
        processes = comm.get_world_size()
        if processes > 1:
            shares = shares.to(self.empty_weight.device, non_blocking=True)
            dist.all_reduce(shares)
            shares /= processes
            return Normalizers(shares[0].clamp(min=1), shares[1].where(shares[1] > 0, 1.0))
        num_masks, class_weights = shares.tolist()
        return Normalizers(max(num_masks, 1.0), class_weights or 1.0)  # zero weights: the losses are 0 too

    def forward(
        self,
        predictions: Sequence[Prediction],
        targets: Sequence[Target],
        normalizers: Normalizers | None = None,
    ) -> dict[str, Tensor]:
        """Return the weighted losses, scalars.

        Args:
            predictions: L layers, answer last.
            targets: one an image, all padded to the same H, W.
            normalizers: those of the whole step, where these images are a part of it: then the losses of the
                parts add up to those of one big batch (padded to the same size: padding counts). By default
                these images are the step.

        Returns:
            `loss_ce`, `loss_mask`, `loss_dice` of the last layer; those of earlier ones end in `_0`, `_1`, …
            Without any segment the mask losses are 0, with a graph.
        """
        num_classes = predictions[-1].class_logits.shape[-1] - 1
        if num_classes != self.num_classes:
            raise ValueError(
                f"Predictions have {num_classes} classes, the criterion {self.num_classes}. "
                "Build both with the same MODEL.SEM_SEG_HEAD.NUM_CLASSES."
            )
        if normalizers is None:
            num_queries = predictions[-1].class_logits.shape[1]
            normalizers = self.normalizers([len(target.labels) for target in targets], num_queries)
        matching = self.matcher(predictions, targets)
        losses: dict[str, Tensor] = {}
        for layer, (prediction, pairs) in enumerate(zip(predictions, matching, strict=True)):
            suffix = "" if layer == len(predictions) - 1 else f"_{layer}"
            layer_losses = self._layer_losses(prediction, targets, pairs, normalizers)
            losses |= {name + suffix: loss for name, loss in layer_losses.items()}
        return losses

    def _layer_losses(
        self,
        prediction: Prediction,
        targets: Sequence[Target],
        pairs: Sequence[Pairs],
        normalizers: Normalizers,
    ) -> dict[str, Tensor]:
        image_index = torch.cat([torch.full_like(query, image) for image, (query, _) in enumerate(pairs)])
        query_index = torch.cat([query for query, _ in pairs])
        classes = torch.full_like(prediction.class_logits[..., 0], self.num_classes, dtype=torch.int64)
        labels = [target.labels[segment] for target, (_, segment) in zip(targets, pairs, strict=True)]
        classes[image_index, query_index] = torch.cat(labels)
        logits = full_precision(prediction.class_logits).transpose(1, 2)  # cross_entropy takes (B, K+1, Q)
        class_loss = F.cross_entropy(logits, classes, self.empty_weight.to(logits.dtype), reduction="sum")

        # Indexed once a layer: the gradient of indexing an image has the size of all (B, Q, h, w).
        matched = prediction.mask_logits[image_index, query_index]
        focal, dice = _mask_losses(matched, targets, [segment for _, segment in pairs], self.num_points)
        return {
            "loss_ce": self.class_weight * (class_loss / normalizers.class_weights),
            "loss_mask": focal * (self.mask_weight / normalizers.num_masks),
            "loss_dice": dice * (self.dice_weight / normalizers.num_masks),
        }


def _mask_losses(
    logits: Tensor, targets: Sequence[Target], segment_index: Sequence[Tensor], num_points: int
) -> tuple[Tensor, Tensor]:
    """Return `mask_losses` of logits (N, h, w), those of one image after another, summed over the images.

    Small masks of all images are computed in one call, since the overhead of a call exceeds their own cost.
    """
    pixels = sum(target.masks.numel() for target in targets)
    if pixels <= SMALL_MASKS and not num_points and all(target.valid is None for target in targets):
        firsts = accumulate([len(target.masks) for target in targets], initial=0)
        shifted = [index + first for index, first in zip(segment_index, firsts, strict=False)]
        return mask_losses(logits, torch.cat([target.masks for target in targets]), torch.cat(shifted))
    image_logits = logits.split([len(index) for index in segment_index])
    losses = partial(mask_losses_at_points, count=num_points) if num_points else mask_losses
    sums = [
        losses(logits_of_image, target.masks, index, target.valid)
        for logits_of_image, target, index in zip(image_logits, targets, segment_index, strict=True)
    ]
    focal, dice = (torch.stack(values).sum() for values in zip(*sums, strict=True))
    return focal, dice
