"""From the logits of a network to results, and test-time augmentation; nothing here has weights."""

from mask_former.inference.postprocess import (
    form_results,
    instances,
    panoptic,
    semantic_labels,
    semantic_scores,
)
from mask_former.inference.rules import TASKS, ResultRules

__all__ = [
    "TASKS",
    "ResultRules",
    "form_results",
    "instances",
    "panoptic",
    "semantic_labels",
    "semantic_scores",
]
