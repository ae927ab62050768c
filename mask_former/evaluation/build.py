"""From the evaluator type of a data set, and the results a model is asked for, to evaluators."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
)
from detectron2.utils import comm

from .ground_truth import metadata_value
from .instances import InstanceEvaluator
from .panoptic import PanopticEvaluator
from .semantic import SemanticEvaluator

logger = logging.getLogger(__name__)

Constructor = Callable[[str, str], DatasetEvaluator]


def _semantic(dataset_name: str, output_dir: str) -> DatasetEvaluator:
    return SemanticEvaluator(dataset_name, output_dir=output_dir)


def _panoptic(dataset_name: str, output_dir: str) -> DatasetEvaluator:
    return PanopticEvaluator(dataset_name, output_dir=output_dir)


def _instance(dataset_name: str, output_dir: str) -> DatasetEvaluator:
    return InstanceEvaluator(dataset_name, output_dir=output_dir)


def _cityscapes_semantic(dataset_name: str, output_dir: str) -> DatasetEvaluator:
    return CityscapesSemSegEvaluator(dataset_name)


def _cityscapes_instance(dataset_name: str, output_dir: str) -> DatasetEvaluator:
    return CityscapesInstanceEvaluator(dataset_name)


CITYSCAPES = (_cityscapes_semantic, _cityscapes_instance)

# Evaluator type -> the switch under MODEL.MASK_FORMER.TEST of a result -> what evaluates that result.
EVALUATORS: dict[str, dict[str, Constructor]] = {
    "sem_seg": {"SEMANTIC_ON": _semantic},
    "coco": {"INSTANCE_ON": _instance},
    "ade20k_panoptic_seg": {"SEMANTIC_ON": _semantic, "PANOPTIC_ON": _panoptic, "INSTANCE_ON": _instance},
    "coco_panoptic_seg": {"SEMANTIC_ON": _semantic, "PANOPTIC_ON": _panoptic, "INSTANCE_ON": _instance},
    "shapes_panoptic_seg": {"SEMANTIC_ON": _semantic, "PANOPTIC_ON": _panoptic, "INSTANCE_ON": _instance},
    "cityscapes_panoptic_seg": {"SEMANTIC_ON": _cityscapes_semantic, "PANOPTIC_ON": _panoptic},
    "cityscapes_sem_seg": {"SEMANTIC_ON": _cityscapes_semantic},
    "cityscapes_instance": {"INSTANCE_ON": _cityscapes_instance},
}


def evaluators_of(cfg: CfgNode, dataset_name: str) -> Mapping[str, Constructor]:
    """Return what evaluates each result that `cfg` switches on, by the name of its switch.

    Raises:
        KeyError: the data set has no evaluator type, or one that is not in `EVALUATORS`.
        ValueError: no result that the type evaluates is switched on.
    """
    metadata = MetadataCatalog.get(dataset_name)
    kind = metadata_value(metadata, "evaluator_type", f"one of {', '.join(EVALUATORS)}")
    if kind not in EVALUATORS:
        raise KeyError(
            f"Data set {dataset_name} has evaluator_type '{kind}'; choose from {', '.join(EVALUATORS)}."
        )
    wanted = {key: make for key, make in EVALUATORS[kind].items() if cfg.MODEL.MASK_FORMER.TEST[key]}
    if wanted.get("INSTANCE_ON") is _instance and not getattr(metadata, "json_file", None):
        logger.warning(
            "%s has no instance annotations to evaluate 'instances' by; set its metadata 'json_file', "
            "or MODEL.MASK_FORMER.TEST.INSTANCE_ON False.", dataset_name,
        )  # fmt: skip
        del wanted["INSTANCE_ON"]
    if not wanted:
        keys = " or ".join(f"MODEL.MASK_FORMER.TEST.{key}" for key in EVALUATORS[kind])
        raise ValueError(f"Nothing to evaluate on {dataset_name} (evaluator_type '{kind}'): set {keys} True.")
    return wanted


def build_evaluators(
    cfg: CfgNode, dataset_name: str, output_dir: str | Path | None = None
) -> DatasetEvaluator:
    """Return the evaluators of a data set for the results that `cfg` switches on, as one.

    Args:
        cfg: configuration; MODEL.MASK_FORMER.TEST.{SEMANTIC,PANOPTIC,INSTANCE}_ON are read.
        dataset_name: registered with an `evaluator_type`.
        output_dir: where evaluators write; OUTPUT_DIR/inference if None.
    """
    folder = str(output_dir if output_dir is not None else Path(cfg.OUTPUT_DIR) / "inference")
    wanted = evaluators_of(cfg, dataset_name)
    if comm.get_local_size() < comm.get_world_size() and any(make in CITYSCAPES for make in wanted.values()):
        raise ValueError(
            f"{dataset_name}: Cityscapes' own evaluation collects files on one machine, but there are "
            "several; train with TEST.EVAL_PERIOD 0 and evaluate the checkpoint on one machine (--eval-only)."
        )
    evaluators = [make(dataset_name, folder) for make in wanted.values()]
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)
