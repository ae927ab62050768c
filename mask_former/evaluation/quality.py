"""Panoptic quality and semantic scores from arrays alone, without files or the catalog.

Panoptic quality (Kirillov et al., arXiv 1801.00868): a predicted and a true segment of the same class match
if their IoU exceeds one half; the union leaves out pixels that are void in the ground truth. Crowd segments
match nothing and are never missed. An unmatched prediction is not counted as false if more than half of it
lies on void, or on crowd of its own class.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mask_former.formats import MAX_SEGMENT_ID


class PanopticSegments(NamedTuple):
    """The segments of one panoptic map; M may be 0.

    ids: (M,) int64, positive and distinct, as in the map.
    classes: (M,) int64 in 0..K-1.
    crowd: (M,) bool, True for a group whose members are not separated.
    """

    ids: NDArray[np.int64]
    classes: NDArray[np.int64]
    crowd: NDArray[np.bool_]


class PanopticCounts(NamedTuple):
    """What panoptic quality is computed from, each (K,): summed IoU of matches, and numbers of segments."""

    iou_sum: NDArray[np.float64]
    true_positives: NDArray[np.int64]
    false_positives: NDArray[np.int64]
    false_negatives: NDArray[np.int64]


def no_counts(num_classes: int) -> PanopticCounts:
    """Return counts of zero."""
    zero = np.zeros(num_classes, np.int64)
    return PanopticCounts(np.zeros(num_classes), zero, zero, zero)


def sum_counts(parts: Iterable[PanopticCounts]) -> PanopticCounts:
    """Return the sum of at least one part."""
    return PanopticCounts(*(np.sum(column, axis=0) for column in zip(*parts, strict=True)))


def segments_from_info(
    infos: Sequence[Mapping[str, Any]], class_of: Mapping[int, int], source: str
) -> PanopticSegments:
    """Return the segments of a `segments_info` list.

    Args:
        infos: dicts with "id", "category_id" and, in ground truth, "iscrowd".
        class_of: class in 0..K-1 of every allowed category id.
        source: name of the list in an error.
    """
    ids = np.array([info["id"] for info in infos], np.int64)
    if len(np.unique(ids)) < len(ids) or (ids <= 0).any() or (ids > MAX_SEGMENT_ID).any():
        raise ValueError(
            f"{source}: segment ids must be distinct, in 1..{MAX_SEGMENT_ID}; found {sorted(ids.tolist())}."
        )
    unknown = sorted({int(info["category_id"]) for info in infos} - class_of.keys())
    if unknown:
        raise ValueError(
            f"{source}: category ids {unknown} are none of the data set's {len(class_of)} categories "
            f"({min(class_of)}..{max(class_of)})."
        )
    classes = np.array([class_of[int(info["category_id"])] for info in infos], np.int64)
    crowd = np.array([bool(info.get("iscrowd", 0)) for info in infos], np.bool_)
    return PanopticSegments(ids, classes, crowd)


def segment_index(
    panoptic_map: NDArray[np.integer], ids: NDArray[np.int64], source: str
) -> NDArray[np.int64]:
    """Return (H, W) with 0 for void and 1 + the position in `ids` elsewhere; an unknown id is an error."""
    lowest, highest = (int(panoptic_map.min()), int(panoptic_map.max())) if panoptic_map.size else (0, 0)
    if not 0 <= lowest <= highest <= MAX_SEGMENT_ID:
        raise ValueError(f"{source}: segment ids must be in 0..{MAX_SEGMENT_ID}, found {lowest}..{highest}.")
    # A table over all possible ids is fast: memory is touched only at ids that occur. 0 is unknown.
    table = np.zeros(max(highest, int(ids.max(initial=0))) + 1, np.int64)
    table[0] = 1
    table[ids] = np.arange(2, len(ids) + 2)
    index = table[panoptic_map]
    if index.size and index.min() == 0:
        unknown = np.unique(panoptic_map[index == 0])[:10].tolist()
        raise ValueError(f"{source}: the map holds segment ids {unknown} that segments_info does not list.")
    index -= 1
    return index


def require_same_size(target: NDArray, predicted: NDArray, source: str) -> None:
    """Raise ValueError if two maps (H, W) differ in size."""
    if target.shape != predicted.shape:
        raise ValueError(
            f"{source}: the prediction has size {predicted.shape}, the ground truth {target.shape} "
            "(height, width)."
        )


def count_picture(
    target_map: NDArray[np.integer],
    target: PanopticSegments,
    predicted_map: NDArray[np.integer],
    predicted: PanopticSegments,
    num_classes: int,
    source: str = "picture",
) -> PanopticCounts:
    """Return the counts of one picture from two maps (H, W) and their segments.

    A true segment without a pixel counts as missed, as published; a predicted one is an error.
    """
    require_same_size(target_map, predicted_map, source)
    num_columns = len(predicted.ids) + 1
    pair = segment_index(target_map, target.ids, f"{source}: ground truth") * num_columns
    pair += segment_index(predicted_map, predicted.ids, f"{source}: prediction")
    overlap = np.bincount(pair.ravel(), minlength=(len(target.ids) + 1) * num_columns)
    overlap = overlap.reshape(-1, num_columns)
    empty = predicted.ids[overlap.sum(axis=0)[1:] == 0].tolist()
    if empty:
        raise ValueError(f"{source}: prediction: segments {empty} of segments_info have no pixel in the map.")
    return _count_overlap(overlap, target, predicted, num_classes)


def _count_overlap(
    overlap: NDArray[np.int64], target: PanopticSegments, predicted: PanopticSegments, num_classes: int
) -> PanopticCounts:
    """Return the counts from shared pixels, (1 + true, 1 + predicted segments); void is first in each."""
    shared = overlap[1:, 1:]
    on_void = overlap[0, 1:]
    predicted_area = overlap.sum(axis=0)[1:]
    union = overlap.sum(axis=1)[1:, None] + (predicted_area - on_void)[None] - shared
    same_class = target.classes[:, None] == predicted.classes[None]
    # In integers: a share of exactly one half must not match.
    matched = same_class & ~target.crowd[:, None] & (2 * shared > union)
    rows, columns = np.nonzero(matched)
    excused = on_void + (shared * (same_class & target.crowd[:, None])).sum(axis=0)
    spurious = ~matched.any(axis=0) & (2 * excused <= predicted_area)
    missed = ~matched.any(axis=1) & ~target.crowd

    def per_class(classes: NDArray[np.int64], weights: NDArray[np.float64] | None = None) -> NDArray:
        return np.bincount(classes, weights, minlength=num_classes)

    return PanopticCounts(
        per_class(target.classes[rows], shared[rows, columns] / union[rows, columns]),
        per_class(target.classes[rows]),
        per_class(predicted.classes[spurious]),
        per_class(target.classes[missed]),
    )


def panoptic_scores(
    counts: PanopticCounts, names: Sequence[str], is_thing: Sequence[bool] | NDArray[np.bool_] = ()
) -> dict[str, float]:
    """Return PQ, SQ and RQ in percent, as means over the classes that occur, and per class.

    Args:
        counts: of all pictures.
        names: of the K classes.
        is_thing: (K,); adds the means over things ("PQ_th", ...) and stuff ("PQ_st", ...).

    Returns:
        "PQ", "SQ", "RQ", with suffix `_th` and `_st`, and `-<class name>` for one class. NaN if no
        segment is true or predicted, or no class occurs.
    """
    iou_sum, true_positives, false_positives, false_negatives = counts
    size = true_positives + 0.5 * false_positives + 0.5 * false_negatives
    occurs = size > 0
    with np.errstate(invalid="ignore"):
        columns = {
            "PQ": 100 * iou_sum / size,
            "SQ": np.where(occurs, 100 * iou_sum / np.maximum(true_positives, 1), np.nan),
            "RQ": 100 * true_positives / size,
        }
    groups = {"": occurs}
    if len(is_thing):
        groups |= {"_th": occurs & is_thing, "_st": occurs & np.logical_not(is_thing)}
    scores = {
        f"{key}{suffix}": float(values[group].mean()) if group.any() else float("nan")
        for suffix, group in groups.items()
        for key, values in columns.items()
    }
    return scores | _by_class(columns, names)


def _by_class(columns: Mapping[str, NDArray[np.float64]], names: Sequence[str]) -> dict[str, float]:
    return {
        f"{key}-{name}": float(value)
        for key, values in columns.items()
        for name, value in zip(names, values, strict=True)
    }


def to_classes(
    labels: NDArray[np.integer], num_classes: int, ignore_label: int | None, source: str
) -> NDArray[np.int64]:
    """Return labels with classes in 0..K-1, and K for `ignore_label`; any other label is an error."""
    is_class = (labels >= 0) & (labels < num_classes)
    ignored = np.zeros_like(is_class) if ignore_label is None else labels == ignore_label
    known = is_class | ignored
    if not known.all():
        unknown = np.unique(labels[~known])
        listed = ", ".join(map(str, unknown[:10])) + (", ..." if len(unknown) > 10 else "")
        ignore = "no label is ignored" if ignore_label is None else f"{ignore_label} is ignored"
        raise ValueError(
            f"{source}: found labels {listed}; allowed are 0..{num_classes - 1}, and {ignore}. Check the "
            f"number of classes, the ignore label, and whether the labels start at 1 or use 255 for yes."
        )
    return np.where(is_class & ~ignored, labels, num_classes).astype(np.int64, copy=False)


def confusion_matrix(
    target: NDArray[np.int64], predicted: NDArray[np.int64], num_classes: int, source: str
) -> NDArray[np.int64]:
    """Return the confusion (K+1, K+1) of two maps (H, W) in 0..K, see `to_classes` and `semantic_quality`."""
    require_same_size(target, predicted, source)
    side = num_classes + 1
    pair = target.ravel() * side + predicted.ravel()
    return np.bincount(pair, minlength=side * side).reshape(side, side)


def count_class_segments(confusion: NDArray[np.int64]) -> PanopticCounts:
    """Return the counts of one picture's confusion (K+1, K+1), with each class as one segment."""
    overlap = np.roll(confusion, 1, (0, 1))  # void first
    present = [np.flatnonzero(overlap.sum(axis=axis)[1:]) for axis in (1, 0)]
    target, predicted = (PanopticSegments(index, index, np.zeros(len(index), np.bool_)) for index in present)
    overlap = overlap[np.ix_(*(np.append(0, index + 1) for index in present))]
    return _count_overlap(overlap, target, predicted, len(confusion) - 1)


def semantic_quality(
    confusion: NDArray[np.int64], names: Sequence[str], void_is_background: bool | None = None
) -> dict[str, float]:
    """Return mIoU, fwIoU, mACC, pACC, and IoU and ACC of each class, in percent.

    mIoU is the mean over the classes that occur in the ground truth, as in Detectron2's main branch. Its
    releases 0.5 and 0.6 divide by the number of classes in ground truth or prediction; the two are equal
    if every class occurs in the ground truth, as in the published validation sets.

    Args:
        confusion: (K+1, K+1) int64, pixels of true class (row) and predicted class (column). Row K is void
            in the ground truth, column K pixels that were given no class.
        names: of the K classes.
        void_is_background: count a class predicted on void pixels as false, instead of leaving them out.
            None: with a single class, for which holes would otherwise be the only possible error.

    Returns:
        The scores; NaN for a class that does not occur, and for all of them if no class does.
    """
    correct = np.diagonal(confusion)[:-1].astype(np.float64)
    target = confusion[:-1].sum(axis=1).astype(np.float64)
    if void_is_background is None:
        void_is_background = len(names) == 1
    rows = confusion if void_is_background else confusion[:-1]
    predicted = rows[:, :-1].sum(axis=0).astype(np.float64)
    occurs = target > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = np.where(occurs, 100 * correct / (target + predicted - correct), np.nan)
        accuracy = 100 * correct / target
        weight = target / target.sum()
        pixel_accuracy = 100 * correct.sum() / target.sum()
    scores = dict.fromkeys(("mIoU", "fwIoU", "mACC", "pACC"), float("nan"))
    if occurs.any():
        scores = {
            "mIoU": float(iou[occurs].mean()),
            "fwIoU": float((iou * weight)[occurs].sum()),
            "mACC": float(accuracy[occurs].mean()),
            "pACC": float(pixel_accuracy),
        }
    return scores | _by_class({"IoU": iou, "ACC": accuracy}, names)
