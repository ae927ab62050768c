"""Semantic inference in the published order, on whole maps, written plainly: what strips are held against."""

import torch
from torch.nn import functional as F


def published_mask_logits(mask_logits, sizes, to_output):
    """The resizing of whole maps, step by step."""
    full = F.interpolate(mask_logits[None], size=sizes.padded, mode="bilinear", align_corners=False)
    full = full[:, :, : sizes.image[0], : sizes.image[1]]
    if to_output:
        full = F.interpolate(full, size=sizes.output, mode="bilinear", align_corners=False)
    return full[0]


def published_scores(class_logits, mask_logits, sizes, resize_logits):
    masks = published_mask_logits(mask_logits, sizes, to_output=resize_logits).sigmoid()
    scores = torch.einsum("qc,qhw->chw", class_logits.softmax(1)[:, :-1], masks)
    return F.interpolate(scores[None], size=sizes.output, mode="bilinear", align_corners=False)[0]
