"""Training pictures, as mappers give them, to the segments that the criterion takes."""

from typing import Any

import torch
from detectron2.structures import BitMasks
from torch import Tensor
from torch.nn import functional as F

from mask_former.modeling.structures import Target

Size = tuple[int, int]


def padded_target(
    picture: dict[str, Any],
    image_size: Size,
    padded_size: Size,
    *,
    void_is_ignored: bool,
    device: torch.device,
) -> Target:
    """Return the segments of one training picture, padded right and below to `padded_size`.

    Args:
        picture: `instances` with `gt_classes` (M,) int64 and `gt_masks` (M, H_i, W_i) bool or `BitMasks`,
            M may be 0; if void is ignored also `valid_mask` (H_i, W_i) bool, without it the whole picture
            is valid.
        image_size: (H_i, W_i).
        padded_size: (H, W) of the batch.
        void_is_ignored: say in the target which pixels are neither void nor padding.
        device: where the target shall be.
    """
    below, right = padded_size[0] - image_size[0], padded_size[1] - image_size[1]
    labels, masks = _segments_of(picture, image_size)
    masks = F.pad(masks.to(device), (0, right, 0, below), value=False)
    valid = None
    if void_is_ignored:
        valid = _valid_mask_of(picture, image_size).to(device)
        valid = F.pad(valid, (0, right, 0, below), value=False)
    return Target(labels.to(device), masks, valid)


def _segments_of(picture: dict[str, Any], image_size: Size) -> tuple[Tensor, Tensor]:
    """Return a training picture's labels (M,) int64 and masks (M, H_i, W_i) bool."""
    if "instances" not in picture:
        raise KeyError(
            f"A training picture ({_name_of(picture)}) has no 'instances', only {sorted(picture)}: set "
            "INPUT.DATASET_MAPPER_NAME to a mapper that makes them, such as 'mask_former_semantic'."
        )
    segments = picture["instances"]
    labels = segments.gt_classes
    if len(labels) == 0:
        # Detectron2's mappers leave the masks of an empty picture out, or in another form.
        return labels.long(), torch.zeros((0, *image_size), dtype=torch.bool)
    if not segments.has("gt_masks"):
        raise KeyError(
            f"'instances' of a training picture ({_name_of(picture)}) have no 'gt_masks': set "
            "MODEL.MASK_ON True or INPUT.DATASET_MAPPER_NAME to a mapper that keeps masks."
        )
    masks = segments.gt_masks
    if isinstance(masks, BitMasks):
        masks = masks.tensor
    if not isinstance(masks, Tensor):
        raise TypeError(
            f"gt_masks of a training picture ({_name_of(picture)}) are {type(masks).__name__}, but must be "
            "a bool tensor (M, H, W) or BitMasks: set INPUT.MASK_FORMAT 'bitmask'."
        )
    if masks.shape != (len(labels), *image_size):
        raise ValueError(
            f"gt_masks of a training picture ({_name_of(picture)}) have shape {tuple(masks.shape)}, but its "
            f"{len(labels)} gt_classes and its image of {image_size} need {(len(labels), *image_size)}: "
            "the mapper must transform both alike."
        )
    return labels.long(), masks.bool()


def _valid_mask_of(picture: dict[str, Any], image_size: Size) -> Tensor:
    valid = picture.get("valid_mask")
    if valid is None:
        return torch.ones(image_size, dtype=torch.bool)
    if valid.shape != image_size:
        raise ValueError(
            f"valid_mask of a training picture ({_name_of(picture)}) has shape {tuple(valid.shape)}, but "
            f"its image is {image_size}: the mapper must transform both alike."
        )
    return valid.bool()


def _name_of(picture: dict[str, Any]) -> str:
    return str(picture.get("file_name", "no file_name"))
