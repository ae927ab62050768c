"""Which results are formed, and by which thresholds."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode

from mask_former.prediction.classes import ClassTable

TASKS = ("semantic", "panoptic", "instance")


@dataclass(frozen=True)
class Rules:
    """How results are formed.

    tasks: of `TASKS`.
    thing_ids: classes whose segments stay apart, and that instances may have.
    kept: classes that results may have; None: all.
    score_threshold: panoptic segments and instances at or below it are dropped; None: segments at or below
        `default_score_threshold`, and no instances.
    mask_threshold: mask probability from which a pixel belongs to a mask.
    overlap_threshold: see `inference.panoptic`.
    top_k: most instances of a picture.
    resize_logits: bring mask logits, not scores, to the size of semantic results.
    """

    tasks: tuple[str, ...]
    thing_ids: frozenset[int]
    kept: frozenset[int] | None = None
    score_threshold: float | None = None
    default_score_threshold: float = 0.0
    mask_threshold: float = 0.5
    overlap_threshold: float = 0.0
    top_k: int = 100
    resize_logits: bool = False


def has_queries(model: Any) -> bool:
    """Return whether a model (or its class) is a MaskFormer, and not a per-pixel baseline."""
    return hasattr(model, "prepare_images")


def make_rules(
    cfg: CfgNode,
    model: Any,
    classes: ClassTable,
    *,
    score_threshold: float | None,
    mask_threshold: float,
    overlap_threshold: float | None,
    top_k: int | None,
    classes_to_keep: Collection[str | int] | None,
    tasks: Collection[str] | None,
) -> Rules:
    """Return the rules of a model: what is None comes from the configuration."""
    _check_range("score_threshold", score_threshold, 0.0, 1.0)
    _check_range("overlap_threshold", overlap_threshold, 0.0, 1.0)
    if not 0 < mask_threshold < 1:
        raise ValueError(f"mask_threshold is {mask_threshold}; it must lie between 0 and 1.")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}; it must be at least 1.")
    test = cfg.MODEL.MASK_FORMER.TEST
    own_things = getattr(model, "thing_ids", None)
    return Rules(
        tasks=_tasks(cfg, tasks, has_queries(model)),
        thing_ids=classes.things if own_things is None else own_things,
        kept=None if classes_to_keep is None else classes.indices_of(classes_to_keep),
        score_threshold=score_threshold,
        default_score_threshold=test.OBJECT_MASK_THRESHOLD,
        mask_threshold=mask_threshold,
        overlap_threshold=test.OVERLAP_THRESHOLD if overlap_threshold is None else overlap_threshold,
        top_k=cfg.TEST.DETECTIONS_PER_IMAGE if top_k is None else top_k,
        resize_logits=getattr(model, "sem_seg_postprocess_before_inference", False),
    )


def _tasks(cfg: CfgNode, wanted: Collection[str] | None, of_queries: bool) -> tuple[str, ...]:
    test = cfg.MODEL.MASK_FORMER.TEST
    if wanted is None and not of_queries:
        return ("semantic",)
    if wanted is None:
        switches = {"semantic": test.SEMANTIC_ON, "panoptic": test.PANOPTIC_ON, "instance": test.INSTANCE_ON}
        return tuple(task for task in TASKS if switches[task])
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    possible = TASKS if of_queries else ("semantic",)
    unknown = [task for task in wanted if task not in possible]
    if unknown or not wanted:
        raise ValueError(
            f"Tasks are {wanted}; choose one or more of {', '.join(possible)}, which this model can give."
        )
    return tuple(task for task in TASKS if task in wanted)


def _check_range(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise ValueError(f"{name} is {value}; it must be in {low:g}..{high:g}.")
