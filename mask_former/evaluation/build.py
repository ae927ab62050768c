"""Evaluators of a data set for the results that a model gives, and the check of their ground truth."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, SemSegEvaluator
from detectron2.utils import comm

from mask_former.formats import semantic_label_files

from .detectron2_evaluators import CityscapesInstance, CityscapesSemantic, InstanceEvaluator
from .evaluators import CountingEvaluator, PanopticEvaluator, SemanticEvaluator
from .ground_truth import Entry, entries_by_file, metadata_value

logger = logging.getLogger(__name__)

# Called with the name of the data set and `output_dir`.
Constructor = Callable[..., DatasetEvaluator]

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
    """Return the evaluator of each result that `cfg` turns on, by the key that does so."""
    metadata = MetadataCatalog.get(dataset_name)
    kind = metadata_value(metadata, "evaluator_type", f"one of {', '.join(EVALUATORS)}")
    if kind not in EVALUATORS:
        raise KeyError(
            f"Data set {dataset_name} has evaluator_type '{kind}'; choose from {', '.join(EVALUATORS)}."
        )
    constructors = {key: make for key, make in EVALUATORS[kind].items() if cfg.MODEL.MASK_FORMER.TEST[key]}
    # The entries of a set of instances hold them; those of a panoptic set do not.
    is_missing = kind != "coco" and not metadata.get("json_file")
    if constructors.get("INSTANCE_ON") is InstanceEvaluator and is_missing:
        logger.warning(
            "%s has no instance annotations to evaluate 'instances' by; set its metadata 'json_file', "
            "or MODEL.MASK_FORMER.TEST.INSTANCE_ON False.", dataset_name,
        )  # fmt: skip
        del constructors["INSTANCE_ON"]
    if not constructors:
        keys = " or ".join(f"MODEL.MASK_FORMER.TEST.{key}" for key in EVALUATORS[kind])
        raise ValueError(f"Nothing to evaluate on {dataset_name} (evaluator_type '{kind}'): set {keys} True.")
    return constructors


def _construct(cfg: CfgNode, dataset_name: str, output_dir: str | Path | None) -> list[DatasetEvaluator]:
    folder = str(output_dir if output_dir is not None else Path(cfg.OUTPUT_DIR) / "inference")
    return [make(dataset_name, output_dir=folder) for make in evaluators_of(cfg, dataset_name).values()]


def build_evaluators(
    cfg: CfgNode, dataset_name: str, output_dir: str | Path | None = None
) -> DatasetEvaluator:
    """Return the evaluators of a data set for the results that `cfg` turns on, as one.

    Args:
        cfg: configuration; MODEL.MASK_FORMER.TEST.{SEMANTIC,PANOPTIC,INSTANCE}_ON are read.
        dataset_name: registered with an `evaluator_type`.
        output_dir: where evaluators write; OUTPUT_DIR/inference if None.
    """
    evaluators = _construct(cfg, dataset_name, output_dir)
    is_cityscapes = any(isinstance(part, CityscapesSemantic | CityscapesInstance) for part in evaluators)
    if is_cityscapes and comm.get_local_size() < comm.get_world_size():
        raise ValueError(
            f"{dataset_name}: Cityscapes' own evaluation collects files on one machine, but there are "
            "several; train with TEST.EVAL_PERIOD 0 and evaluate the checkpoint on one machine (--eval-only)."
        )
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)


def semantic_form(evaluators: Sequence[DatasetEvaluator]) -> str:
    """Return "labels" if that is the `semantic_form` of all evaluators, else "scores", which any can take."""
    forms = {getattr(evaluator, "semantic_form", "scores") for evaluator in _flat(evaluators)}
    return "labels" if forms == {"labels"} else "scores"


def check_evaluators(cfg: CfgNode, evaluators: Sequence[DatasetEvaluator]) -> None:
    """Raise ValueError for evaluators that cannot score the model of a configuration."""
    is_semseg = any(isinstance(evaluator, SemSegEvaluator) for evaluator in _flat(evaluators))
    if cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 1 and is_semseg:
        raise ValueError(
            "Detectron2's SemSegEvaluator takes the class with the highest score at each pixel, which with "
            "one class is the class everywhere: evaluate with mask_former.evaluation.SemanticEvaluator "
            "(evaluator_type 'sem_seg')."
        )


def _flat(evaluators: Sequence[DatasetEvaluator]) -> list[DatasetEvaluator]:
    nested = [getattr(evaluator, "_evaluators", None) for evaluator in evaluators]
    return [p for e, parts in zip(evaluators, nested, strict=True) for p in (_flat(parts) if parts else [e])]


def check_ground_truth(cfg: CfgNode, dataset_names: Sequence[str], sample: int = 8) -> None:
    """Raise an error now for what would stop an evaluation of these data sets later.

    ImportError or FileNotFoundError for a missing package or file; ValueError or KeyError for JSON files
    that do not load, and for labels of `sample` pictures, spread over each set, that cannot be read or are
    no classes of the data set.
    """
    for dataset_name in dataset_names:
        evaluators = _construct(cfg, dataset_name, None)
        entries = list(entries_by_file(dataset_name).values())
        if not entries:
            raise ValueError(f"Data set {dataset_name} has no pictures to evaluate.")
        _check_files(entries, dataset_name)
        chosen = entries[:: max(1, len(entries) // max(1, sample))][:sample]
        for evaluator in evaluators:
            if isinstance(evaluator, InstanceEvaluator):
                evaluator.check(entries)
            elif isinstance(evaluator, CountingEvaluator):
                evaluator.check(chosen)
        logger.info("Ground truth of %s: %d pictures, all files there, %d read.",
                    dataset_name, len(entries), len(chosen))  # fmt: skip


def _check_files(entries: Sequence[Entry], dataset_name: str) -> None:
    names = [entry[key] for entry in entries for key in ("file_name", "pan_seg_file_name") if key in entry]
    names += [file for entry in entries for file in semantic_label_files(entry)]
    missing = [name for name in names if not Path(name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"Data set {dataset_name}: {len(missing)} of {len(names)} files are missing, the first "
            f"{missing[0]}; see datasets/README.md for the expected layout."
        )
