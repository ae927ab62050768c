"""Panoptic quality (Kirillov et al., arXiv 1801.00868) from arrays alone, no files and no catalog.

A predicted and a true segment of the same class match when their IoU exceeds one half; the union leaves
out the pixels that are void in the ground truth. Crowd segments match nothing and are never missed. An
unmatched prediction is excused when more than half of it lies on void, or on crowd of its own class.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mask_former.formats import MAX_SEGMENT_ID


class PanopticSegments(NamedTuple):
    """The segments of one panoptic map; M may be 0.

    ids: (M,) int64, positive and distinct, as painted in the map.
    classes: (M,) int64 in 0..K-1.
    crowd: (M,) bool, True where a segment is a group whose members are not separated.
    """

    ids: NDArray[np.int64]
    classes: NDArray[np.int64]
    crowd: NDArray[np.bool_]


class PanopticCounts(NamedTuple):
    """What panoptic quality is made of, each (K,): summed IoU of the matches, and numbers of segments."""

    iou_sum: NDArray[np.float64]
    true_positives: NDArray[np.int64]
    false_positives: NDArray[np.int64]
    false_negatives: NDArray[np.int64]


def no_counts(num_classes: int) -> PanopticCounts:
    """Return the counts of no picture at all."""
    zero = np.zeros(num_classes, np.int64)
    return PanopticCounts(np.zeros(num_classes), zero, zero, zero)


def sum_counts(parts: Iterable[PanopticCounts]) -> PanopticCounts:
    """Return the counts of all pictures from the counts of some; there must be at least one part."""
    return PanopticCounts(*(np.sum(column, axis=0) for column in zip(*parts, strict=True)))


def segments_from_info(
    infos: Sequence[Mapping[str, Any]], class_of: Mapping[int, int], source: str
) -> PanopticSegments:
    """Return the segments that a `segments_info` list names.

    Args:
        infos: dicts with "id", "category_id" and, in ground truth, "iscrowd".
        class_of: class in 0..K-1 of every allowed category id.
        source: what to call the list in an error.
    """
    ids = np.array([info["id"] for info in infos], np.int64)
    if len(np.unique(ids)) < len(ids) or (ids <= 0).any() or (ids > MAX_SEGMENT_ID).any():
        raise ValueError(
            f"{source}: segment ids must be distinct and in 1..{MAX_SEGMENT_ID}, found "
            f"{sorted(ids.tolist())}."
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
    """Return (H, W) with 0 for void and 1 + the position in `ids` elsewhere.

    Raises:
        ValueError: the map holds an id that is neither 0 nor in `ids`.
    """
    lowest, highest = (int(panoptic_map.min()), int(panoptic_map.max())) if panoptic_map.size else (0, 0)
    if not 0 <= lowest <= highest <= MAX_SEGMENT_ID:
        raise ValueError(f"{source}: segment ids must be in 0..{MAX_SEGMENT_ID}, found {lowest}..{highest}.")
    # A table over all possible ids is fast: memory is touched only where ids are. In it, 0 is unknown.
    table = np.zeros(max(highest, int(ids.max(initial=0))) + 1, np.int64)
    table[0] = 1
    table[ids] = np.arange(2, len(ids) + 2)
    index = table[panoptic_map]
    if index.size and index.min() == 0:
        unknown = np.unique(panoptic_map[index == 0])[:10].tolist()
        raise ValueError(f"{source}: the map holds segment ids {unknown} that segments_info does not list.")
    index -= 1
    return index


def count_picture(
    target_map: NDArray[np.integer],
    target: PanopticSegments,
    predicted_map: NDArray[np.integer],
    predicted: PanopticSegments,
    num_classes: int,
    source: str = "picture",
) -> PanopticCounts:
    """Return the counts of one picture from two maps (H, W) and their segments.

    A true segment that has no pixel counts as missed, as published; a predicted one is an error.
    """
    if target_map.shape != predicted_map.shape:
        raise ValueError(
            f"{source}: the prediction has size {tuple(predicted_map.shape)}, "
            f"the ground truth {tuple(target_map.shape)} (height, width)."
        )
    num_columns = len(predicted.ids) + 1
    pair = segment_index(target_map, target.ids, f"{source}: ground truth") * num_columns
    pair += segment_index(predicted_map, predicted.ids, f"{source}: prediction")
    overlap = np.bincount(pair.ravel(), minlength=(len(target.ids) + 1) * num_columns)
    overlap = overlap.reshape(-1, num_columns)
    if (overlap.sum(axis=0)[1:] == 0).any():
        empty = predicted.ids[overlap.sum(axis=0)[1:] == 0].tolist()
        raise ValueError(f"{source}: prediction: segments {empty} of segments_info have no pixel in the map.")
    return _count_overlap(overlap, target, predicted, num_classes)


def _count_overlap(
    overlap: NDArray[np.int64], target: PanopticSegments, predicted: PanopticSegments, num_classes: int
) -> PanopticCounts:
    """Return the counts from pixels shared, (1 + true, 1 + predicted segments); void is first in each."""
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


def count_class_segments(confusion: NDArray[np.int64]) -> PanopticCounts:
    """Return the counts of one picture whose segments are its classes, each class one segment.

    Args:
        confusion: (K+1, K+1) pixels of true class (row) and predicted class (column); K is void or none.
    """
    shared = np.diagonal(confusion)[:-1]
    on_void = confusion[-1, :-1]
    predicted_area = confusion[:, :-1].sum(axis=0)
    target_area = confusion[:-1].sum(axis=1)
    union = target_area + predicted_area - on_void - shared
    matched = 2 * shared > union
    spurious = (predicted_area > 0) & ~matched & (2 * on_void <= predicted_area)
    missed = (target_area > 0) & ~matched
    iou = np.where(matched, shared / np.maximum(union, 1), 0.0)
    return PanopticCounts(iou, *(flag.astype(np.int64) for flag in (matched, spurious, missed)))


def panoptic_scores(
    counts: PanopticCounts, names: Sequence[str], is_thing: NDArray[np.bool_] | None = None
) -> dict[str, float]:
    """Return PQ, SQ and RQ in percent, as means over the classes that occur, and per class.

    Args:
        counts: of all pictures.
        names: of the K classes.
        is_thing: (K,); with it come the means over things ("PQ_th", ...) and stuff ("PQ_st", ...).

    Returns:
        "PQ", "SQ", "RQ", with suffix `_th` and `_st`, and `-<class name>` for one class. NaN where no
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
    if is_thing is not None:
        groups |= {"_th": occurs & is_thing, "_st": occurs & ~is_thing}
    scores = {
        f"{key}{suffix}": float(values[group].mean()) if group.any() else float("nan")
        for suffix, group in groups.items()
        for key, values in columns.items()
    }
    for key, values in columns.items():
        scores |= {f"{key}-{name}": float(value) for name, value in zip(names, values, strict=True)}
    return scores
