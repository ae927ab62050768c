"""Evaluators of semantic and panoptic results, which count picture by picture."""

import json
import logging
import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from numpy.typing import NDArray
from PIL import Image
from tabulate import tabulate
from torch import Tensor

from mask_former.formats import encode_mask, id_to_rgb
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
    """Base: takes results beside the ground truth of their pictures, and adds up counts of all processes."""

    semantic_form = "labels"
    task: ClassVar[str]  # key of the results and of the scores
    file_name: ClassVar[str]  # of saved predictions
    _new_counts: ClassVar[Any]  # called with the number of classes

    def __init__(
        self,
        dataset_name: str,
        *,
        output_dir: str | Path | None = None,
        save_predictions: bool = False,
        distributed: bool = True,
    ) -> None:
        """Read the data set's classes and list of pictures.

        Args:
            dataset_name: a registered data set with ground truth for the task.
            output_dir: where predictions are saved.
            save_predictions: save predictions, with the data set's own category ids, in the files that
                `python -m mask_former.evaluation` reads.
            distributed: add up the counts of all processes.
        """
        if save_predictions and output_dir is None:
            raise ValueError("save_predictions needs an output_dir to save them in.")
        self._dataset_name = dataset_name
        self._entries = ground_truth.entries_by_file(dataset_name)
        self._classes = self._read_classes()
        self._num_classes = len(self._classes.names)
        self._folder = Path(output_dir) if save_predictions and output_dir else None
        self._distributed = distributed
        self.reset()

    def reset(self) -> None:
        """Forget all pictures."""
        self._counts = self._new_counts(self._num_classes)
        self._num_pictures = 0
        self._saved: list[dict[str, Any]] = []

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Count pictures; `inputs` are entries of the data set, `outputs` the results of the model."""
        for entry, output in zip(inputs, outputs, strict=True):
            result = ground_truth.required_result(output, self.task)
            name = entry["file_name"]
            if name not in self._entries:
                raise KeyError(
                    f"{name} was evaluated, but is none of the {len(self._entries)} of {self._dataset_name}."
                )
            self._count(self._entries[name], result)
            self._num_pictures += 1

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Return the scores of all pictures so far, on the main process; processes may have had none."""
        parts = [(self._counts, self._num_pictures, self._saved)]
        if self._distributed:
            comm.synchronize()
            parts = comm.gather(parts[0])
            if not comm.is_main_process():
                return None
        counts, numbers, saved = zip(*parts, strict=True)
        if sum(numbers) != len(self._entries):
            logger.warning(
                "%s: scored %d pictures of %d; give the test loader the whole data set for final figures.",
                self._dataset_name, sum(numbers), len(self._entries),
            )  # fmt: skip
        if self._folder:
            self._folder.mkdir(parents=True, exist_ok=True)
            content = self._file_content(list(chain(*saved)))
            (self._folder / self.file_name).write_text(json.dumps(content))
        scores = self._scores(counts)
        logger.info("%s, %s:\n%s", self._dataset_name, self.task, score_tables(scores))
        return OrderedDict({self.task: scores})

    def check(self, entries: Sequence[Entry]) -> None:
        """Raise ValueError or KeyError if the ground truth of some entries cannot be used."""
        for entry in entries:
            self._target(entry)

    def _file_content(self, saved: list[dict[str, Any]]) -> Any:
        return saved

    @abstractmethod
    def _read_classes(self) -> Classes: ...

    @abstractmethod
    def _target(self, entry: Entry) -> Any: ...

    @abstractmethod
    def _count(self, entry: Entry, result: Any) -> None: ...

    @abstractmethod
    def _scores(self, counts: Sequence[Any]) -> dict[str, float]: ...


class SemanticEvaluator(CountingEvaluator):
    """mIoU, fwIoU, mACC, pACC of `sem_seg` results, and IoU and accuracy of each class.

    Takes, under "sem_seg", scores (K, H, W) or an integer label map (H, W). Gives, on the main process,
    `{"sem_seg": scores}` with the keys of Detectron2's SemSegEvaluator (see `semantic_quality` for the
    definition of mIoU); None on the others. Without semantic labels, the panoptic ground truth is used.
    Saving writes `sem_seg_predictions.json`, an RLE for each class, which doubles the time.
    """

    task = "sem_seg"
    file_name = "sem_seg_predictions.json"
    _new_counts = quality.SemanticCounts

    def __init__(
        self,
        dataset_name: str,
        *,
        segment_quality: bool = False,
        void_is_background: bool | None = None,
        **options: Any,
    ) -> None:
        """Read the data set's classes and list of pictures.

        Args:
            dataset_name: a registered data set.
            segment_quality: also give PQ, SQ and RQ, with each class of a picture as one segment.
            void_is_background: whether a class predicted on void is an error (True) or does not count
                (False). None: an error if the data set has a single class, whose IoU would otherwise be
                100 when it is predicted everywhere.
            options: `output_dir`, `save_predictions`, `distributed`: see the base class.
        """
        super().__init__(dataset_name, **options)
        self._segment_quality = segment_quality
        one_class = self._num_classes == 1
        self._void_is_background = one_class if void_is_background is None else void_is_background
        if one_class and void_is_background is None:
            logger.info("%s has one class: pixels without it, void too, count as background.", dataset_name)

    def _read_classes(self) -> Classes:
        return ground_truth.semantic_classes(self._dataset_name, self._entries)

    def _target(self, entry: Entry) -> NDArray[np.int64]:
        return ground_truth.semantic_target(entry, self._num_classes, self._classes.ignore_label)

    def _count(self, entry: Entry, result: Tensor) -> None:
        name = entry["file_name"]
        target = self._target(entry)
        predicted = self._predicted_classes(result, name)
        self._counts.add(target, predicted, name)
        if self._folder:
            present = np.setdiff1d(predicted, self._num_classes).tolist()
            # Without an entry, a picture without any class would look as if it had not been predicted.
            for index in present or [0]:
                category_id = self._classes.dataset_ids[index]
                mask = encode_mask(predicted == index)
                self._saved.append({"file_name": name, "category_id": category_id, "segmentation": mask})

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

    def _scores(self, counts: Sequence[quality.SemanticCounts]) -> dict[str, float]:
        merged = counts[0].merge(counts[1:])
        return merged.scores(self._classes.names, self._void_is_background, self._segment_quality)


class PanopticEvaluator(CountingEvaluator):
    """PQ, SQ and RQ of `panoptic_seg` results: over all classes, things, stuff, and of each class.

    Takes, under "panoptic_seg", a map (H, W) of integer segment ids with 0 for void, and `segments_info`, a
    list of dicts with "id" and "category_id" (the class index). Gives, on the main process,
    `{"panoptic_seg": scores}` with the keys of Detectron2's COCOPanopticEvaluator and, for each class,
    `PQ-<name>`, `SQ-<name>`, `RQ-<name>`; None on the others. Saving writes `predictions.json` and
    `predictions/*.png` in COCO's panoptic form.
    """

    task = "panoptic_seg"
    file_name = "predictions.json"
    _new_counts = staticmethod(quality.no_counts)

    def __init__(self, dataset_name: str, **options: Any) -> None:
        """Read the data set's classes and list of pictures; for `options` see the base class."""
        super().__init__(dataset_name, **options)
        if self._folder and len({Path(name).stem for name in self._entries}) < len(self._entries):
            raise ValueError(
                f"{dataset_name}: predictions are saved under the names of the pictures, but some pictures "
                "in different folders have the same name; turn save_predictions off."
            )

    def _read_classes(self) -> Classes:
        return ground_truth.panoptic_classes(self._dataset_name)

    def _target(self, entry: Entry) -> ground_truth.PanopticTarget:
        return ground_truth.panoptic_target(entry, self._num_classes)

    def check(self, entries: Sequence[Entry]) -> None:
        """Raise ValueError or KeyError if maps cannot be read or do not fit their lists of segments."""
        for entry in entries:
            panoptic_map, segments = self._target(entry)
            quality.segment_index(panoptic_map, segments.ids, entry["pan_seg_file_name"])

    def _count(self, entry: Entry, result: tuple[Tensor, list[dict[str, Any]]]) -> None:
        name = entry["file_name"]
        panoptic_map, infos = result[0].cpu().numpy(), result[1]
        class_of = {index: index for index in range(self._num_classes)}
        predicted = quality.segments_from_info(infos, class_of, f"{name}: prediction")
        counts = quality.count_picture(*self._target(entry), panoptic_map, predicted, self._num_classes, name)
        self._counts = quality.sum_counts([self._counts, counts])
        if self._folder:
            self._saved.append(self._save(entry, panoptic_map, infos, self._folder / "predictions"))

    def _save(
        self, entry: Entry, panoptic_map: NDArray[np.integer], infos: list[dict[str, Any]], folder: Path
    ) -> dict[str, Any]:
        """Write one picture's PNG and return its annotation for the JSON file."""
        folder.mkdir(parents=True, exist_ok=True)
        stem = Path(entry["file_name"]).stem
        Image.fromarray(id_to_rgb(panoptic_map)).save(folder / f"{stem}.png")
        segments = [
            {
                "id": int(info["id"]),
                "category_id": self._classes.dataset_ids[info["category_id"]],
                "isthing": bool(self._classes.is_thing[info["category_id"]]),
                "area": int(np.count_nonzero(panoptic_map == info["id"])),
            }
            | ({"score": float(info["score"])} if "score" in info else {})
            for info in infos
        ]
        image_id = entry.get("image_id", stem)
        return {"image_id": image_id, "file_name": f"{stem}.png", "segments_info": segments}

    def _scores(self, counts: Sequence[quality.PanopticCounts]) -> dict[str, float]:
        return quality.panoptic_scores(
            quality.sum_counts(counts), self._classes.names, self._classes.is_thing
        )

    def _file_content(self, saved: list[dict[str, Any]]) -> dict[str, Any]:
        columns = zip(self._classes.dataset_ids, self._classes.names, self._classes.is_thing, strict=True)
        categories = [{"id": i, "name": name, "isthing": int(thing)} for i, name, thing in columns]
        return {"annotations": saved, "categories": categories}
