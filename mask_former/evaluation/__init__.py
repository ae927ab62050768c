"""Evaluators by type of data set, panoptic quality, semantic scores; runnable on saved predictions."""

from .build import EVALUATORS, build_evaluators, check_evaluators, semantic_form
from .check import check_ground_truth
from .instances import InstanceEvaluator
from .panoptic import PanopticEvaluator
from .panoptic_quality import (
    PanopticCounts,
    PanopticSegments,
    count_picture,
    panoptic_scores,
    segments_from_info,
    sum_counts,
)
from .semantic import SemanticEvaluator
from .semantic_quality import SemanticCounts, semantic_quality

__all__ = [
    "EVALUATORS",
    "InstanceEvaluator",
    "PanopticCounts",
    "PanopticEvaluator",
    "PanopticSegments",
    "SemanticCounts",
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
