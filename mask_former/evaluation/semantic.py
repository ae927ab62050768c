"""Semantic segmentation scores of a model on a data set, counted picture by picture while it runs."""

import json
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from numpy.typing import NDArray
from torch import Tensor

from mask_former.formats import encode_mask
from mask_former.inference.postprocess import labels_of_scores
from mask_former.inference.rules import NO_CLASS

from .ground_truth import entries_by_file, entry_of, semantic_classes, semantic_target
from .semantic_quality import SemanticCounts, to_classes
from .tables import class_table, overall_table

logger = logging.getLogger(__name__)


class SemanticEvaluator(DatasetEvaluator):
    """mIoU, fwIoU, mACC, pACC of `sem_seg` results, and IoU and accuracy of each class.

    Takes from a model, under "sem_seg", scores (K, H, W) or a label map (H, W) of integers. Gives, on the
    main process, `{"sem_seg": scores}` with the keys of Detectron2's SemSegEvaluator (see
    `semantic_quality` for the definition of mIoU); None on the others.
    """

    semantic_form = "labels"

    def __init__(
        self,
        dataset_name: str,
        *,
        output_dir: str | Path | None = None,
        save_predictions: bool = False,
        segment_quality: bool = False,
        void_is_background: bool | None = None,
        distributed: bool = True,
    ) -> None:
        """Read the data set's classes and list of pictures.

        Args:
            dataset_name: a registered data set with semantic labels, or with panoptic ground truth, from
                which the labels are taken where there are no others.
            output_dir: where predictions are saved.
            save_predictions: write `sem_seg_predictions.json`, each class of a picture as an RLE, with the
                data set's own category ids. It takes about as long as all the rest.
            segment_quality: also give PQ, SQ and RQ, taking each class of a picture as one segment.
            void_is_background: whether a class predicted on void is a mistake (True) or does not count
                (False). None: a mistake where the data set has a single class, whose IoU could otherwise
                not be below 100 for predicting it everywhere.
            distributed: add up the counts of all processes.
        """
        if save_predictions and output_dir is None:
            raise ValueError("save_predictions needs an output_dir to save them in.")
        self._dataset_name = dataset_name
        self._pictures = entries_by_file(dataset_name)
        from_panoptic = not any("sem_seg_file_name" in picture for picture in self._pictures.values())
        self._classes = semantic_classes(dataset_name, from_panoptic)
        self._json_file = (
            Path(output_dir) / "sem_seg_predictions.json" if save_predictions and output_dir else None
        )
        self._segment_quality = segment_quality
        one_class = len(self._classes.names) == 1
        self._void_is_background = one_class if void_is_background is None else void_is_background
        self._distributed = distributed
        if one_class and void_is_background is None:
            logger.info(
                "%s has one class: pixels without it, void included, count as background.", dataset_name
            )
        self.reset()

    def reset(self) -> None:
        """Forget all pictures."""
        self._counts = SemanticCounts(len(self._classes.names))
        self._predictions: list[dict[str, Any]] = []

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Count pictures; `inputs` are entries of the data set, `outputs` what the model gave for them."""
        num_classes = len(self._classes.names)
        ignore_label = self._classes.ignore_label
        for entry, result in zip(inputs, outputs, strict=True):
            if "sem_seg" not in result:
                raise KeyError(
                    "The model gave no 'sem_seg' to evaluate; set MODEL.MASK_FORMER.TEST.SEMANTIC_ON True."
                )
            file_name = entry["file_name"]
            picture = entry_of(self._pictures, file_name, self._dataset_name)
            target = semantic_target(picture, num_classes, ignore_label)
            predicted = predicted_classes(result["sem_seg"], num_classes, ignore_label, file_name)
            self._counts.add(target, predicted, file_name)
            if self._json_file:
                self._predictions += encode_classes(predicted, file_name, self._classes.dataset_ids)

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Return the scores of all pictures so far, on the main process; processes may have had none."""
        parts = [(self._counts, self._predictions)]
        if self._distributed:
            comm.synchronize()
            parts = comm.gather(parts[0])
            if not comm.is_main_process():
                return None
        counts = parts[0][0].merge([part[0] for part in parts[1:]])
        if counts.pictures != len(self._pictures):
            logger.warning(
                "%s: scored %d pictures of %d; give the test loader the whole data set for final figures.",
                self._dataset_name, counts.pictures, len(self._pictures),
            )  # fmt: skip
        if self._json_file:
            self._json_file.parent.mkdir(parents=True, exist_ok=True)
            self._json_file.write_text(json.dumps([entry for part in parts for entry in part[1]]))
        names = self._classes.names
        scores = counts.scores(names, self._void_is_background, self._segment_quality)
        logger.info("%s, semantic segmentation by class:\n%s", self._dataset_name,
                    class_table(scores, ("IoU", "ACC", "PQ"), names))  # fmt: skip
        logger.info("%s, semantic segmentation:\n%s", self._dataset_name, overall_table(scores))
        return OrderedDict(sem_seg=scores)


def predicted_classes(
    sem_seg: Tensor, num_classes: int, ignore_label: int | None, source: str
) -> NDArray[np.int64]:
    """Return (H, W) in 0..K, K where no class is predicted.

    Args:
        sem_seg: scores (K, H, W), or integer labels (H, W); `NO_CLASS` and `ignore_label` are no class.
        num_classes: K.
        ignore_label: the data set's label for void, or None.
        source: what to call the prediction in an error.
    """
    if sem_seg.dim() == 2 and not sem_seg.dtype.is_floating_point:
        labels = sem_seg.cpu().numpy()
        classes = np.full(labels.shape, num_classes, np.int64)
        has_class = labels != NO_CLASS
        classes[has_class] = to_classes(labels[has_class], num_classes, ignore_label, f"{source}: prediction")
        return classes
    if sem_seg.dim() != 3 or sem_seg.shape[0] != num_classes:
        raise ValueError(
            f"{source}: expected 'sem_seg' to be scores ({num_classes}, H, W) or an integer label map "
            f"(H, W), found {tuple(sem_seg.shape)} of {sem_seg.dtype}; the data set has {num_classes} "
            "classes, which MODEL.SEM_SEG_HEAD.NUM_CLASSES must be."
        )
    labels = labels_of_scores(sem_seg).cpu().numpy()
    return np.where(labels == NO_CLASS, num_classes, labels)


def encode_classes(
    predicted: NDArray[np.int64], file_name: str, dataset_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Return one JSON entry with an RLE for each class of a map (H, W) in 0..K, at least one."""
    present = [index for index in np.unique(predicted).tolist() if index < len(dataset_ids)]
    entries = []
    # A picture without any class still needs an entry, or it would look as if it had not been predicted.
    for index in present or [0]:
        segmentation = encode_mask(predicted == index)
        entries.append(
            {"file_name": file_name, "category_id": dataset_ids[index], "segmentation": segmentation}
        )
    return entries
