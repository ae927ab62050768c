"""Semantic segmentation scores from label maps alone, no files and no catalog."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .panoptic_quality import PanopticCounts, count_class_segments, no_counts, panoptic_scores, sum_counts


def to_classes(
    labels: NDArray[np.integer], num_classes: int, ignore_label: int | None, source: str
) -> NDArray[np.int64]:
    """Return (H, W) with classes in 0..K-1, and K where the label is `ignore_label`.

    Raises:
        ValueError: a label is neither a class nor `ignore_label`; it is never taken for either.
    """
    is_class = (labels >= 0) & (labels < num_classes)
    ignored = np.zeros_like(is_class) if ignore_label is None else labels == ignore_label
    known = is_class | ignored
    if not known.all():
        found = np.unique(labels[~known])
        listed = ", ".join(map(str, found[:10])) + (", ..." if len(found) > 10 else "")
        ignore = "no label is ignored" if ignore_label is None else f"{ignore_label} is ignored"
        raise ValueError(
            f"{source}: found labels {listed}; allowed are 0..{num_classes - 1}, and {ignore}. Check the "
            f"number of classes, the ignore label, and whether the labels start at 1 or use 255 for yes."
        )
    return np.where(is_class & ~ignored, labels, num_classes).astype(np.int64, copy=False)


class SemanticCounts:
    """Pixels and class segments counted over pictures, and the scores that follow from them.

    confusion: (K+1, K+1) int64, pixels of true class (row) and predicted class (column). The last row is
        void in the ground truth, the last column pixels that were given no class.
    segments: each class of a picture taken as one segment, for panoptic quality.
    pictures: how many were counted.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.confusion: NDArray[np.int64] = np.zeros((num_classes + 1, num_classes + 1), np.int64)
        self.segments: PanopticCounts = no_counts(num_classes)
        self.pictures = 0

    def add(self, target: NDArray[np.int64], predicted: NDArray[np.int64], source: str) -> None:
        """Count one picture: two maps (H, W) in 0..K, as `to_classes` makes them."""
        if target.shape != predicted.shape:
            raise ValueError(
                f"{source}: the prediction has size {tuple(predicted.shape)}, "
                f"the ground truth {tuple(target.shape)} (height, width)."
            )
        side = self.num_classes + 1
        pair = target.ravel() * side + predicted.ravel()
        confusion = np.bincount(pair, minlength=side * side).reshape(side, side)
        self.confusion += confusion
        self.segments = sum_counts([self.segments, count_class_segments(confusion)])
        self.pictures += 1

    def merge(self, others: Sequence["SemanticCounts"]) -> "SemanticCounts":
        """Return the counts of this and the others together."""
        merged = SemanticCounts(self.num_classes)
        for part in [self, *others]:
            merged.confusion += part.confusion
            merged.segments = sum_counts([merged.segments, part.segments])
            merged.pictures += part.pictures
        return merged

    def scores(
        self, names: Sequence[str], void_is_background: bool, segment_quality: bool = False
    ) -> dict[str, float]:
        """Return `semantic_quality`, and with `segment_quality` also PQ, SQ and RQ of class segments."""
        scores = semantic_quality(self.confusion, names, void_is_background)
        if segment_quality:
            scores |= panoptic_scores(self.segments, names)
        return scores


def semantic_quality(
    confusion: NDArray[np.int64], names: Sequence[str], void_is_background: bool = False
) -> dict[str, float]:
    """Return mIoU, fwIoU, mACC, pACC, and IoU and ACC of each class, in percent.

    mIoU is the mean over the classes that occur in the ground truth, as in Detectron2's main branch. Its
    releases 0.5 and 0.6 divide by the number of classes in ground truth or prediction; on a set that has
    every class in its ground truth, as the published validation sets have, both are the same number.

    Args:
        confusion: (K+1, K+1) pixels of true class (row) and predicted class (column); K is void or none.
        names: of the K classes.
        void_is_background: count void pixels as false where a class is predicted on them, instead of not
            at all. With a single class nothing else can be wrong but a hole.

    Returns:
        The scores; NaN for a class that does not occur, and for all of them where no class does.
    """
    correct = np.diagonal(confusion)[:-1].astype(np.float64)
    target = confusion[:-1].sum(axis=1).astype(np.float64)
    rows = confusion if void_is_background else confusion[:-1]
    predicted = rows[:, :-1].sum(axis=0).astype(np.float64)
    occurs = target > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = np.where(occurs, 100 * correct / (target + predicted - correct), np.nan)
        accuracy = 100 * correct / target
        weight = target / target.sum()
        pixel_accuracy = 100 * correct.sum() / target.sum()
    if not occurs.any():
        scores = dict.fromkeys(("mIoU", "fwIoU", "mACC", "pACC"), float("nan"))
    else:
        scores = {
            "mIoU": float(iou[occurs].mean()),
            "fwIoU": float((iou * weight)[occurs].sum()),
            "mACC": float(accuracy[occurs].mean()),
            "pACC": float(pixel_accuracy),
        }
    scores |= {f"IoU-{name}": float(value) for name, value in zip(names, iou, strict=True)}
    scores |= {f"ACC-{name}": float(value) for name, value in zip(names, accuracy, strict=True)}
    return scores
