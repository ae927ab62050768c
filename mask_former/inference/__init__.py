"""From a network's logits to results, and a network prepared for that; nothing here has weights."""

from mask_former.inference.postprocess import instances, panoptic, semantic_labels, semantic_scores

__all__ = ["instances", "panoptic", "semantic_labels", "semantic_scores"]
