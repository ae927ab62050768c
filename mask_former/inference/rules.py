"""The rules by which results are formed from the logits of a model: tasks, thresholds, classes."""

from dataclasses import dataclass

# Each task with the key of its result in Detectron2's dicts.
RESULT_KEYS = {"semantic": "sem_seg", "panoptic": "panoptic_seg", "instance": "instances"}
TASKS = tuple(RESULT_KEYS)
# In label maps of results; not K, so that a label outside the classes of a data set stays an error.
NO_CLASS = -1


@dataclass(frozen=True)
class ResultRules:
    """How the results of one image are formed from its logits.

    tasks: of `TASKS`, the results to form.
    thing_ids: classes in 0..K-1 whose panoptic segments stay apart and that instances may have; None:
        unknown, then panoptic results are impossible and instances may have any class.
    kept_classes: classes that labels, segments and instances may have; None: all. Scores keep all classes.
    semantic_form: of `sem_seg`, "scores" (K, H, W) float32, which Detectron2's evaluators take, or "labels"
        (H, W) int64, which need far less memory and hold `NO_CLASS` where there is no class.
    resize_logits: resize mask logits (True) or scores (False) to the output size, for semantic results.
    mask_threshold: mask probability from which a pixel belongs to a mask; scores and winners do not depend
        on it. Semantic: no effect. Panoptic: the mask whose area `overlap_threshold` refers to. Instance:
        the pixels of `pred_masks`.
    object_mask_threshold: panoptic, queries with a class probability at or below it are dropped.
    overlap_threshold: panoptic, segments that win less than this share of their mask are dropped.
    instance_score_threshold: instances with a score at or below it are dropped; None: none.
    top_k: most instances of an image.
    max_queries: use only this many queries, those with the highest class probabilities; None: all.
    """

    tasks: tuple[str, ...] = ("semantic",)
    thing_ids: frozenset[int] | None = None
    kept_classes: frozenset[int] | None = None
    semantic_form: str = "scores"
    resize_logits: bool = False
    mask_threshold: float = 0.5
    object_mask_threshold: float = 0.0
    overlap_threshold: float = 0.0
    instance_score_threshold: float | None = None
    top_k: int = 100
    max_queries: int | None = None

    def __post_init__(self) -> None:
        if self.semantic_form not in ("scores", "labels"):
            raise ValueError(f"semantic_form is {self.semantic_form!r}, expected 'scores' or 'labels'.")
