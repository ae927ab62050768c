"""The published arithmetic written plainly, on whole maps and image by image: what speed is measured against.

Not used for anything else; the tests hold the model's own ways against it.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mask_former.inference.resizing import Sizes
from mask_former.modeling.structures import Prediction, Target

Pairs = list[tuple[Tensor, Tensor]]


def label_map(class_logits: Tensor, mask_logits: Tensor, sizes: Sizes) -> Tensor:
    """Return the labels (H, W) of one picture by scores (K, H, W) of all classes at all pixels."""
    full = F.interpolate(mask_logits[None], size=sizes.padded, mode="bilinear", align_corners=False)[0]
    class_probs = class_logits.softmax(-1)[:, :-1]
    scores = torch.einsum("qc,qhw->chw", class_probs, full.sigmoid())
    scores = scores[:, : sizes.image[0], : sizes.image[1]]
    scores = F.interpolate(scores[None], size=sizes.output, mode="bilinear", align_corners=False)[0]
    return scores.argmax(0)


@torch.no_grad()
def matching(
    predictions: Sequence[Prediction], targets: Sequence[Target], weights: Sequence[float]
) -> list[Pairs]:
    """Return the pairs of each layer and image; `weights` are those of class, mask and dice costs."""
    return [
        [
            _match(class_logits, mask_logits, target, weights)
            for class_logits, mask_logits, target in zip(*prediction, targets, strict=True)
        ]
        for prediction in predictions
    ]


def _match(
    class_logits: Tensor, mask_logits: Tensor, target: Target, weights: Sequence[float]
) -> tuple[Tensor, Tensor]:
    class_cost = -class_logits.softmax(-1)[:, target.labels]
    masks = F.interpolate(target.masks[:, None].float(), size=mask_logits.shape[-2:], mode="nearest").flatten(
        1
    )
    logits = mask_logits.flatten(1)
    probs = logits.sigmoid()
    yes = (
        0.25
        * (1 - probs) ** 2
        * F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits), reduction="none")
    )
    no = (
        0.75
        * probs**2
        * F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits), reduction="none")
    )
    focal_cost = (yes @ masks.T + no @ (1 - masks).T) / logits.shape[1]
    overlap = 2 * probs @ masks.T
    dice_cost = 1 - (overlap + 1) / (probs.sum(-1)[:, None] + masks.sum(-1)[None] + 1)
    cost = weights[0] * class_cost + weights[1] * focal_cost + weights[2] * dice_cost
    query, segment = linear_sum_assignment(cost.cpu())
    return torch.as_tensor(query), torch.as_tensor(segment)


def losses(
    predictions: Sequence[Prediction],
    targets: Sequence[Target],
    pairs: Sequence[Pairs],
    class_weights: Tensor,
    weights: Sequence[float],
) -> Tensor:
    """Return the sum of all layers' weighted losses, every matched mask at full size in float32."""
    total = predictions[-1].mask_logits.new_zeros(())
    for prediction, layer_pairs in zip(predictions, pairs, strict=True):
        for weight, loss in zip(
            weights, _layer(prediction, targets, layer_pairs, class_weights), strict=True
        ):
            total = total + weight * loss
    return total


def _layer(
    prediction: Prediction, targets: Sequence[Target], pairs: Pairs, class_weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    image = torch.cat([torch.full_like(query, number) for number, (query, _) in enumerate(pairs)])
    query = torch.cat([query for query, _ in pairs])
    segment = torch.cat([segment for _, segment in pairs])
    device = prediction.mask_logits.device
    num_classes = prediction.class_logits.shape[-1] - 1
    classes = torch.full(prediction.class_logits.shape[:2], num_classes, dtype=torch.int64, device=device)
    classes[image, query] = torch.cat(
        [target.labels[found] for target, (_, found) in zip(targets, pairs, strict=True)]
    )
    class_loss = F.cross_entropy(prediction.class_logits.transpose(1, 2), classes, class_weights)

    # All segments of all images, padded to the most that one has.
    most = max(len(target.masks) for target in targets)
    height, width = targets[0].masks.shape[-2:]
    masks = torch.zeros(len(targets), most, height, width, device=device)
    for number, target in enumerate(targets):
        masks[number, : len(target.masks)] = target.masks
    wanted = masks[image, segment].flatten(1)
    logits = prediction.mask_logits[image, query]
    logits = F.interpolate(logits[:, None], size=(height, width), mode="bilinear", align_corners=False)[:, 0]
    logits = logits.flatten(1)

    count = max(sum(len(target.masks) for target in targets), 1)
    probs = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    right = probs * wanted + (1 - probs) * (1 - wanted)
    alpha = 0.25 * wanted + 0.75 * (1 - wanted)
    focal = (alpha * entropy * (1 - right) ** 2).mean(1).sum() / count
    overlap = 2 * (probs * wanted).sum(1)
    dice = (1 - (overlap + 1) / (probs.sum(1) + wanted.sum(1) + 1)).sum() / count
    return class_loss, focal, dice
