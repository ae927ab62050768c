"""A data set as it is after its check: what follows filled in, pictures left out, and counted."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from detectron2.structures import BoxMode

from .dataset import OwnDataset
from .picture_check import has_label
from .report import Statistics
from .set_faults import Checked


def kept(checked: Sequence[Checked], task: str, left_out: Collection[str]) -> list[Checked]:
    """Return what a training and its evaluation can use, less the pictures `left_out`."""
    return [
        entry
        for entry in checked
        if entry.record is not None
        and (entry.split == "test" or has_label(entry.record, task))
        and entry.record["file_name"] not in left_out
    ]


def mended_dataset(dataset: OwnDataset, entries: Sequence[Checked]) -> OwnDataset:
    """Return the data set of these records, with sizes, boxes and crowd flags where they were missing."""
    splits: dict[str, list[dict[str, Any]]] = {split: [] for split in dataset.splits}
    for entry in entries:
        assert entry.record is not None
        record = dict(entry.record)
        if "size" in entry.measure:
            width, height = entry.measure["size"]
            record = {"width": width, "height": height, **record}
        if "boxes" in entry.measure:
            boxes = {number: box for number, *box in entry.measure["boxes"]}
            record["annotations"] = [
                {**each, "bbox": boxes[number], "bbox_mode": BoxMode.XYWH_ABS} if number in boxes else each
                for number, each in enumerate(record["annotations"])
            ]
        if "empty" in entry.measure:
            segments = record["segments_info"]
            record["segments_info"] = [each for each in segments if each["id"] not in entry.measure["empty"]]
        splits[entry.split].append(record)
    return replace(dataset, splits=splits)


def statistics_of(entries: Sequence[Checked], dataset: OwnDataset) -> Statistics:
    """Return the counts of these records."""
    splits, classes = tuple(dataset.splits), len(dataset.classes)
    counts = {name: {split: [0] * classes for split in splits} for name in ("pictures", "pixels", "segments")}
    pictures, void, sizes = Counter[str](), Counter[str](), Counter[tuple[int, int]]()
    most, most_in = 0, ""
    for split, _, record, measure in entries:
        if "size" not in measure or record is None:
            continue
        width, height = measure["size"]
        pictures[split] += 1
        sizes[width, height] += 1
        void[split] += measure.get("void", 0)
        for name in ("pixels", "segments"):
            for k, count in measure.get(name, ()):
                counts[name][split][k] += count
        for k, _ in measure.get("segments", ()):
            counts["pictures"][split][k] += 1
        in_picture = sum(count for _, count in measure.get("segments", ()))
        if in_picture > most:
            most, most_in = in_picture, record["file_name"]
    return Statistics(
        {split: pictures[split] for split in splits},
        dict(sizes.most_common()),
        counts["pictures"],
        counts["pixels"],
        counts["segments"],
        {split: void[split] for split in splits},
        most,
        most_in,
    )
