"""Label files as segment maps. A value or id that is no class or segment is refused, with file and remedy."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mask_former.formats import read_label_map, read_panoptic_map

from .segment_maps import SegmentMap, segment_runs


def read_semantic(file_name: str, num_classes: int, ignore_label: int) -> SegmentMap:
    """Read a semantic label: one segment for each class present, in order of classes.

    Raises:
        ValueError: a value is neither `ignore_label` nor below `num_classes`.
    """
    values, runs = segment_runs(read_label_map(file_name))
    is_class = (values >= 0) & (values < num_classes) & (values != ignore_label)
    if not np.all(is_class | (values == ignore_label)):
        raise ValueError(_wrong_values(file_name, values, num_classes, ignore_label))
    return SegmentMap(runs.number(is_class), values[is_class])


def read_panoptic(file_name: str, segments_info: Sequence[Mapping[str, Any]], num_classes: int) -> SegmentMap:
    """Read a panoptic label: one segment for each entry of `segments_info` that has pixels and is no crowd.

    Args:
        file_name: RGB PNG.
        segments_info: entries with "id", "category_id" (0 to num_classes - 1) and perhaps "iscrowd".
        num_classes: K.

    Raises:
        ValueError: the file has an id, other than 0 (void), that no entry has; or a class is out of range.
    """
    values, runs = segment_runs(read_panoptic_map(file_name))
    listed = {int(segment["id"]): segment for segment in segments_info}
    missing = [int(i) for i in values if int(i) not in listed and i != 0]
    if missing:
        raise ValueError(
            f"{file_name} has segment ids that its entry in the panoptic JSON does not list: "
            f"{abbreviated(missing)}; listed are: {abbreviated(sorted(listed))}. JSON and PNG files must "
            "come from the same release."
        )
    check_classes(file_name, [segment["category_id"] for segment in segments_info], num_classes)
    non_crowd = {i for i, segment in listed.items() if not segment.get("iscrowd", 0)}
    is_segment = np.array([int(i) in non_crowd for i in values], dtype=bool)
    classes = np.array([listed[int(i)]["category_id"] for i in values[is_segment]], dtype=np.int64)
    return SegmentMap(runs.number(is_segment), classes)


def check_classes(file_name: str, classes: Sequence[int], num_classes: int) -> None:
    """Raise ValueError unless every class lies in 0..num_classes - 1."""
    wrong = sorted({int(c) for c in classes if not 0 <= c < num_classes})
    if wrong:
        raise ValueError(
            f"{file_name} has segments of class {abbreviated(wrong)}; allowed are 0 to {num_classes - 1}. "
            "Set MODEL.SEM_SEG_HEAD.NUM_CLASSES, or register the data set with a map from its ids to "
            "contiguous ids."
        )


def abbreviated(values: Sequence[int], most: int = 8) -> str:
    """Return sorted values for a message; of a long list the first ones, the last one and the number."""
    if len(values) <= most:
        return ", ".join(map(str, values))
    return f"{', '.join(map(str, values[: most - 1]))}, ..., {values[-1]} ({len(values)} values)"


def _wrong_values(file_name: str, values: np.ndarray, num_classes: int, ignore_label: int) -> str:
    wrong = [int(v) for v in values if not 0 <= v < num_classes and v != ignore_label]
    rest = [int(v) for v in values if v != ignore_label]
    if rest in ([255], [0, 255]):
        fix = "A mask of 0 and 255: write 1 in place of 255, or register 255 as the data set's ignore_label."
    elif wrong == [num_classes]:
        fix = (
            f"Off by one: if classes are counted from 1, subtract 1 (and write {ignore_label} for 0); if 0 "
            f"is a class of its own, set MODEL.SEM_SEG_HEAD.NUM_CLASSES to {num_classes + 1}."
        )
    elif wrong in ([255], [65535]):
        fix = f"If {wrong[0]} means void, register it as the ignore_label of the data set."
    else:
        fix = (
            "Set MODEL.SEM_SEG_HEAD.NUM_CLASSES, or map the values to classes first (datasets/prepare_*.py "
            "do so for the published sets); a coloured picture saved as grey or palette is no label map."
        )
    return (
        f"{file_name} has label values that are no class: {abbreviated(wrong)}. Found: "
        f"{abbreviated(values.tolist())}; allowed: 0 to {num_classes - 1}, and {ignore_label} for void. {fix}"
    )
