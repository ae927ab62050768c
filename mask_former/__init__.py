"""MaskFormer on Detectron2: importing the package registers its models and data sets."""

# ruff: noqa: E402  OpenMP is configured before torch is imported.
from mask_former.cpu import configure_threads

configure_threads()

from mask_former import data, model_zoo, modeling
from mask_former.config import add_mask_former_config, load_config
from mask_former.inference.tta import SemanticSegmentorWithTTA
from mask_former.modeling.mask_former import MaskFormer
from mask_former.prediction.predictor import Predictor

__all__ = [
    "MaskFormer",
    "Predictor",
    "SemanticSegmentorWithTTA",
    "add_mask_former_config",
    "data",
    "load_config",
    "model_zoo",
    "modeling",
]
