"""Evaluators of semantic and panoptic results, which count picture by picture."""

import logging
import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from numpy.typing import NDArray
from tabulate import tabulate
from torch import Tensor

from mask_former.inference.postprocess import labels_of_scores
from mask_former.inference.rules import NO_CLASS

from . import ground_truth, quality
from .ground_truth import Classes, Entry

logger = logging.getLogger(__name__)


def score_tables(scores: Mapping[str, float], per_class: bool = True) -> str:
    """Return a table of the scores over all classes, and one with a row for each class that occurs."""
    by_class: dict[str, dict[str, float]] = {}
    for key, value in scores.items():
        metric, _, name = key.partition("-")
        by_class.setdefault(name, {})[metric] = value
    overall = by_class.pop("")
    tables: list[list[dict[str, Any]]] = [[overall]]
    if "PQ_th" in overall:
        groups = {"All": "", "Things": "_th", "Stuff": "_st"}
        keys = ("PQ", "SQ", "RQ")
        tables = [[{"": name} | {key: overall[key + end] for key in keys} for name, end in groups.items()]]
    if per_class:
        known = {name: row for name, row in by_class.items() if not all(map(math.isnan, row.values()))}
        tables.append([{"class": name, **row} for name, row in known.items()])
    options = {"headers": "keys", "tablefmt": "pipe", "floatfmt": ".3f", "numalign": "right"}
    return "\n\n".join(tabulate(table, **options) for table in tables)


class CountingEvaluator(DatasetEvaluator, ABC):
    """Base: compares results with the ground truth of their pictures, and adds up counts of all processes."""

    semantic_form = "labels"
    task: ClassVar[str]  # key of the results and of the scores
    _sum: ClassVar[Callable[..., Any]]  # of a list of counts

    def __init__(self, dataset_name: str, *, output_dir: str | Path | None = None) -> None:
        """Read the data set's classes and list of pictures.

        Args:
            dataset_name: a registered data set with ground truth for the task.
            output_dir: not used, as nothing is written.
        """
        self._dataset_name = dataset_name
        self._entries = ground_truth.entries_by_file(dataset_name)
        self._classes = self._read_classes()
        self._num_classes = len(self._classes.names)
        self.reset()

    def reset(self) -> None:
        """Forget all pictures."""
        self._counts = self._no_counts()
        self._num_pictures = 0

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Count pictures; `inputs` are entries of the data set, `outputs` the results of the model."""
        for entry, output in zip(inputs, outputs, strict=True):
            result = ground_truth.required_result(output, self.task)
            name = entry["file_name"]
            if name not in self._entries:
                raise KeyError(
                    f"{name} was evaluated, but is none of the {len(self._entries)} of {self._dataset_name}."
                )
            self._counts = self._sum([self._counts, self._count(self._entries[name], result)])
            self._num_pictures += 1

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Return the scores of all pictures so far, on the main process; processes may have had none."""
        comm.synchronize()
        parts = comm.gather((self._counts, self._num_pictures))
        if not comm.is_main_process():
            return None
        counts, numbers = zip(*parts, strict=True)
        if sum(numbers) != len(self._entries):
            logger.warning(
                "%s: scored %d pictures of %d; give the test loader the whole data set for final figures.",
                self._dataset_name, sum(numbers), len(self._entries),
            )  # fmt: skip
        scores = self._scores(self._sum(counts))
        logger.info("%s, %s:\n%s", self._dataset_name, self.task, score_tables(scores))
        return OrderedDict({self.task: scores})

    def check(self, entries: Sequence[Entry]) -> None:
        """Raise ValueError or KeyError if the ground truth of some entries cannot be used."""
        for entry in entries:
            self._target(entry)

    @abstractmethod
    def _read_classes(self) -> Classes: ...

    @abstractmethod
    def _target(self, entry: Entry) -> Any: ...

    @abstractmethod
    def _no_counts(self) -> Any: ...

    @abstractmethod
    def _count(self, entry: Entry, result: Any) -> Any: ...

    @abstractmethod
    def _scores(self, counts: Any) -> dict[str, float]: ...


class SemanticEvaluator(CountingEvaluator):
    """mIoU, fwIoU, mACC, pACC of `sem_seg` results, and IoU and accuracy of each class.

    Takes, under "sem_seg", scores (K, H, W) or an integer label map (H, W). Gives, on the main process,
    `{"sem_seg": scores}` with the keys of Detectron2's SemSegEvaluator (see `semantic_quality` for the
    definition of mIoU); None on the others. Without semantic labels, the panoptic ground truth is used.
    If the data set has a single class, predicting it on void is an error: otherwise its IoU would be 100
    when it is predicted everywhere.
    """

    task = "sem_seg"
    _sum = staticmethod(sum)

    def _read_classes(self) -> Classes:
        return ground_truth.semantic_classes(self._dataset_name, self._entries)

    def _target(self, entry: Entry) -> NDArray[np.int64]:
        return ground_truth.semantic_target(entry, self._num_classes, self._classes.ignore_label)

    def _no_counts(self) -> NDArray[np.int64]:
        return np.zeros((self._num_classes + 1, self._num_classes + 1), np.int64)

    def _count(self, entry: Entry, result: Tensor) -> NDArray[np.int64]:
        name = entry["file_name"]
        predicted = self._predicted_classes(result, name)
        return quality.confusion_matrix(self._target(entry), predicted, self._num_classes, name)

    def _predicted_classes(self, sem_seg: Tensor, source: str) -> NDArray[np.int64]:
        """Return (H, W) in 0..K; `NO_CLASS` and the ignore label become K."""
        is_label_map = sem_seg.dim() == 2 and not sem_seg.dtype.is_floating_point
        if not is_label_map and (sem_seg.dim() != 3 or sem_seg.shape[0] != self._num_classes):
            raise ValueError(
                f"{source}: expected 'sem_seg' to be scores ({self._num_classes}, H, W) or an integer label "
                f"map (H, W), found {tuple(sem_seg.shape)} of {sem_seg.dtype}; the data set has "
                f"{self._num_classes} classes, which MODEL.SEM_SEG_HEAD.NUM_CLASSES must be."
            )
        labels = (sem_seg if is_label_map else labels_of_scores(sem_seg)).cpu().numpy()
        known = labels != NO_CLASS
        classes = np.full(labels.shape, self._num_classes, np.int64)
        classes[known] = quality.to_classes(
            labels[known], self._num_classes, self._classes.ignore_label, f"{source}: prediction"
        )
        return classes

    def _scores(self, counts: NDArray[np.int64]) -> dict[str, float]:
        return quality.semantic_quality(counts, self._classes.names)


class PanopticEvaluator(CountingEvaluator):
    """PQ, SQ and RQ of `panoptic_seg` results: over all classes, things, stuff, and of each class.

    Takes, under "panoptic_seg", a map (H, W) of integer segment ids with 0 for void, and `segments_info`, a
    list of dicts with "id" and "category_id" (the class index). Gives, on the main process,
    `{"panoptic_seg": scores}` with the keys of Detectron2's COCOPanopticEvaluator and, for each class,
    `PQ-<name>`, `SQ-<name>`, `RQ-<name>`; None on the others.
    """

    task = "panoptic_seg"
    _sum = staticmethod(quality.sum_counts)

    def _read_classes(self) -> Classes:
        return ground_truth.panoptic_classes(self._dataset_name)

    def _target(self, entry: Entry) -> ground_truth.PanopticTarget:
        return ground_truth.panoptic_target(entry, self._num_classes)

    def check(self, entries: Sequence[Entry]) -> None:
        """Raise ValueError or KeyError if maps cannot be read or do not fit their lists of segments."""
        for entry in entries:
            panoptic_map, segments = self._target(entry)
            quality.segment_index(panoptic_map, segments.ids, entry["pan_seg_file_name"])

    def _no_counts(self) -> quality.PanopticCounts:
        return quality.no_counts(self._num_classes)

    def _count(self, entry: Entry, result: tuple[Tensor, list[dict[str, Any]]]) -> quality.PanopticCounts:
        name = entry["file_name"]
        class_of = {index: index for index in range(self._num_classes)}
        predicted = quality.segments_from_info(result[1], class_of, f"{name}: prediction")
        panoptic_map = result[0].cpu().numpy()
        return quality.count_picture(*self._target(entry), panoptic_map, predicted, self._num_classes, name)

    def _scores(self, counts: quality.PanopticCounts) -> dict[str, float]:
        return quality.panoptic_scores(counts, self._classes.names, self._classes.is_thing)
