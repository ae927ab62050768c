"""The published computations written plainly, on whole maps, image by image: the reference for speed.

Used for nothing else; tests compare the results of the model's own code with them.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.detection_utils import read_image
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mask_former.data.augmentations import crop_recipe
from mask_former.inference.resizing import Sizes
from mask_former.modeling.structures import Prediction, Target

# Label files of the mappers that `mapper` stands for.
LABELS = {"mask_former_semantic": "sem_seg", "mask_former_panoptic": "pan_seg"}
IGNORE_LABEL, PICTURE_PADDING = 255, 128

Pairs = list[tuple[Tensor, Tensor]]


def label_map(class_logits: Tensor, mask_logits: Tensor, sizes: Sizes) -> Tensor:
    """Return the labels (H, W) of one picture, the argmax of scores (K, H, W) of all classes."""
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
    masks = F.interpolate(target.masks[:, None].float(), size=mask_logits.shape[-2:], mode="nearest")
    masks = masks.flatten(1)
    logits = mask_logits.flatten(1)
    probs = logits.sigmoid()
    entropy_of_1 = F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits), reduction="none")
    entropy_of_0 = F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits), reduction="none")
    cost_of_1 = 0.25 * (1 - probs) ** 2 * entropy_of_1
    cost_of_0 = 0.75 * probs**2 * entropy_of_0
    focal_cost = (cost_of_1 @ masks.T + cost_of_0 @ (1 - masks).T) / logits.shape[1]
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
        layer_losses = torch.stack(_layer_losses(prediction, targets, layer_pairs, class_weights))
        total = total + (layer_losses * layer_losses.new_tensor(weights)).sum()
    return total


def _layer_losses(
    prediction: Prediction, targets: Sequence[Target], pairs: Pairs, class_weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    image = torch.cat([torch.full_like(query, number) for number, (query, _) in enumerate(pairs)])
    query = torch.cat([query for query, _ in pairs])
    segment = torch.cat([segment for _, segment in pairs])
    device = prediction.mask_logits.device
    num_classes = prediction.class_logits.shape[-1] - 1
    classes = torch.full(prediction.class_logits.shape[:2], num_classes, dtype=torch.int64, device=device)
    classes[image, query] = torch.cat(
        [target.labels[segment_index] for target, (_, segment_index) in zip(targets, pairs, strict=True)]
    )
    class_loss = F.cross_entropy(prediction.class_logits.transpose(1, 2), classes, class_weights)

    # The segments of all images, padded to the largest number of them.
    most = max(len(target.masks) for target in targets)
    height, width = targets[0].masks.shape[-2:]
    masks = torch.zeros(len(targets), most, height, width, device=device)
    for number, target in enumerate(targets):
        masks[number, : len(target.masks)] = target.masks
    true_masks = masks[image, segment].flatten(1)
    logits = prediction.mask_logits[image, query]
    logits = F.interpolate(logits[:, None], size=(height, width), mode="bilinear", align_corners=False)[:, 0]
    logits = logits.flatten(1)

    count = max(sum(len(target.masks) for target in targets), 1)
    probs = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, true_masks, reduction="none")
    prob_of_truth = probs * true_masks + (1 - probs) * (1 - true_masks)
    alpha = 0.25 * true_masks + 0.75 * (1 - true_masks)
    focal = (alpha * entropy * (1 - prob_of_truth) ** 2).mean(1).sum() / count
    overlap = 2 * (probs * true_masks).sum(1)
    dice = (1 - (overlap + 1) / (probs.sum(1) + true_masks.sum(1) + 1)).sum() / count
    return class_loss, focal, dice


def mapper(cfg: CfgNode) -> Callable[[dict[str, Any]], Any]:
    """Return a mapper that transforms labels as float64 or RGB, and makes mask after mask."""
    kind = LABELS[cfg.INPUT.DATASET_MAPPER_NAME]
    augmentations = T.AugmentationList(crop_recipe(cfg))
    divisibility = max(1, cfg.INPUT.SIZE_DIVISIBILITY)

    def sample(entry: dict[str, Any]) -> Any:
        entry = copy.deepcopy(entry)
        label = read_image(entry[f"{kind}_file_name"], "RGB" if kind == "pan_seg" else None)
        picture = T.AugInput(read_image(entry["file_name"], cfg.INPUT.FORMAT))
        transforms = augmentations(picture)
        if kind == "sem_seg":
            label = transforms.apply_segmentation(label.astype("double")).astype(int)
            classes = {int(value): int(value) for value in np.unique(label) if value != IGNORE_LABEL}
        else:
            label = transforms.apply_segmentation(label).astype(int)
            label = label[..., 0] + 256 * label[..., 1] + 65536 * label[..., 2]
            classes = {info["id"]: info["category_id"] for info in entry["segments_info"]}
        image = torch.from_numpy(np.ascontiguousarray(picture.image.transpose(2, 0, 1)))
        height, width = image.shape[1:]
        padding = (0, -width % divisibility, 0, -height % divisibility)
        label = F.pad(torch.from_numpy(np.ascontiguousarray(label)), padding, value=IGNORE_LABEL).numpy()
        masks = [torch.from_numpy((label == value).copy()) for value in classes]
        return F.pad(image, padding, value=PICTURE_PADDING), torch.stack(masks), list(classes.values())

    return sample
