"""From the evaluator type of a data set, and the results that a model gives, to evaluators."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, SemSegEvaluator
from detectron2.utils import comm

from .cityscapes import CityscapesInstance, CityscapesSemantic
from .ground_truth import metadata_value
from .instances import InstanceEvaluator
from .panoptic import PanopticEvaluator
from .semantic import SemanticEvaluator

logger = logging.getLogger(__name__)

# Called with the name of the data set and `output_dir`.
Constructor = Callable[..., DatasetEvaluator]

CITYSCAPES: tuple[Constructor, ...] = (CityscapesSemantic, CityscapesInstance)
ALL_TASKS: dict[str, Constructor] = {
    "SEMANTIC_ON": SemanticEvaluator,
    "PANOPTIC_ON": PanopticEvaluator,
    "INSTANCE_ON": InstanceEvaluator,
}
# Evaluator type -> the key under MODEL.MASK_FORMER.TEST that turns a result on -> its evaluator.
EVALUATORS: dict[str, dict[str, Constructor]] = {
    "sem_seg": {"SEMANTIC_ON": SemanticEvaluator},
    "coco": {"INSTANCE_ON": InstanceEvaluator},
    "ade20k_panoptic_seg": ALL_TASKS,
    "coco_panoptic_seg": ALL_TASKS,
    "shapes_panoptic_seg": ALL_TASKS,
    "cityscapes_panoptic_seg": {"SEMANTIC_ON": CityscapesSemantic, "PANOPTIC_ON": PanopticEvaluator},
    "cityscapes_sem_seg": {"SEMANTIC_ON": CityscapesSemantic},
    "cityscapes_instance": {"INSTANCE_ON": CityscapesInstance},
}


def evaluators_of(cfg: CfgNode, dataset_name: str) -> Mapping[str, Constructor]:
    """Return the evaluator of each result that `cfg` turns on, by the key that does so.

    Raises:
        KeyError: the data set has no evaluator type, or one that is not in `EVALUATORS`.
        ValueError: no result that the type evaluates is turned on.
    """
    metadata = MetadataCatalog.get(dataset_name)
    kind = metadata_value(metadata, "evaluator_type", f"one of {', '.join(EVALUATORS)}")
    if kind not in EVALUATORS:
        raise KeyError(
            f"Data set {dataset_name} has evaluator_type '{kind}'; choose from {', '.join(EVALUATORS)}."
        )
    constructors = {key: make for key, make in EVALUATORS[kind].items() if cfg.MODEL.MASK_FORMER.TEST[key]}
    if constructors.get("INSTANCE_ON") is InstanceEvaluator and not metadata.get("json_file"):
        logger.warning(
            "%s has no instance annotations to evaluate 'instances' by; set its metadata 'json_file', "
            "or MODEL.MASK_FORMER.TEST.INSTANCE_ON False.", dataset_name,
        )  # fmt: skip
        del constructors["INSTANCE_ON"]
    if not constructors:
        keys = " or ".join(f"MODEL.MASK_FORMER.TEST.{key}" for key in EVALUATORS[kind])
        raise ValueError(f"Nothing to evaluate on {dataset_name} (evaluator_type '{kind}'): set {keys} True.")
    return constructors


def build_evaluators(
    cfg: CfgNode, dataset_name: str, output_dir: str | Path | None = None
) -> DatasetEvaluator:
    """Return the evaluators of a data set for the results that `cfg` turns on, as one.

    Args:
        cfg: configuration; MODEL.MASK_FORMER.TEST.{SEMANTIC,PANOPTIC,INSTANCE}_ON are read.
        dataset_name: registered with an `evaluator_type`.
        output_dir: where evaluators write; OUTPUT_DIR/inference if None.
    """
    folder = str(output_dir if output_dir is not None else Path(cfg.OUTPUT_DIR) / "inference")
    constructors = evaluators_of(cfg, dataset_name)
    is_cityscapes = any(make in CITYSCAPES for make in constructors.values())
    if is_cityscapes and comm.get_local_size() < comm.get_world_size():
        raise ValueError(
            f"{dataset_name}: Cityscapes' own evaluation collects files on one machine, but there are "
            "several; train with TEST.EVAL_PERIOD 0 and evaluate the checkpoint on one machine (--eval-only)."
        )
    evaluators = [make(dataset_name, output_dir=folder) for make in constructors.values()]
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)


def semantic_form(evaluators: Sequence[DatasetEvaluator]) -> str:
    """Return the form of `sem_seg` that all evaluators take: "labels" if each says so, else "scores".

    Evaluators say so by an attribute `semantic_form`. Detectron2's, and others without it, take scores.
    """
    forms = {getattr(evaluator, "semantic_form", "scores") for evaluator in _parts(evaluators)}
    return "labels" if forms == {"labels"} else "scores"


def check_evaluators(cfg: CfgNode, evaluators: Sequence[DatasetEvaluator]) -> None:
    """Raise ValueError for evaluators that cannot score the model of a configuration."""
    for evaluator in _parts(evaluators):
        if cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 1 and isinstance(evaluator, SemSegEvaluator):
            raise ValueError(
                "Detectron2's SemSegEvaluator takes the class with the highest score at each pixel, which "
                "with one class is the class everywhere: evaluate with "
                "mask_former.evaluation.SemanticEvaluator (evaluator_type 'sem_seg')."
            )


def _parts(evaluators: Sequence[DatasetEvaluator]) -> list[DatasetEvaluator]:
    """Return the evaluators that others are made of."""
    return [
        part
        for evaluator in evaluators
        for part in (
            _parts(evaluator._evaluators) if isinstance(evaluator, DatasetEvaluators) else [evaluator]
        )
    ]
