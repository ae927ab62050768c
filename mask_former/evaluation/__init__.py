"""Evaluators by type of data set, panoptic quality, semantic scores; runnable on saved predictions."""

from .build import EVALUATORS, build_evaluators, check_evaluators, check_ground_truth, semantic_form
from .detectron2_evaluators import InstanceEvaluator
from .evaluators import PanopticEvaluator, SemanticEvaluator
from .quality import (
    PanopticCounts,
    PanopticSegments,
    count_picture,
    panoptic_scores,
    segments_from_info,
    semantic_quality,
    sum_counts,
)

__all__ = [
    "EVALUATORS",
    "InstanceEvaluator",
    "PanopticCounts",
    "PanopticEvaluator",
    "PanopticSegments",
    "SemanticEvaluator",
    "build_evaluators",
    "check_evaluators",
    "check_ground_truth",
    "count_picture",
    "panoptic_scores",
    "segments_from_info",
    "semantic_form",
    "semantic_quality",
    "sum_counts",
]
