"""Faults that only the whole data set shows: its classes, palettes, copies, and what a model is built for."""

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from detectron2.config import CfgNode

from mask_former.formats import PICTURE_SUFFIXES

from .dataset import OwnDataset
from .polygon_files import Records
from .report import Fault, Statistics


class Checked(NamedTuple):
    """A record, None if it cannot be read, where it is in its data set, and what was measured of it."""

    split: str
    number: int
    record: dict[str, Any] | None
    measure: Mapping[str, Any]


def set_faults(dataset: OwnDataset, checked: Sequence[Checked], statistics: Statistics) -> list[Fault]:
    """Return the faults of the whole data set."""
    return [
        *_class_faults(dataset),
        *_content_faults(dataset, statistics),
        *_palette_faults(checked),
        *_copy_faults(checked),
        *_stray_faults(dataset),
    ]


def check_against_config(dataset: OwnDataset, statistics: Statistics, cfg: CfgNode) -> list[Fault]:
    """Return the faults of a configuration for a data set: class count, void value and number of queries."""
    faults = []
    head, count = cfg.MODEL.SEM_SEG_HEAD, len(dataset.classes)
    if count != head.NUM_CLASSES:
        found = f"it is {head.NUM_CLASSES}, but {dataset.folder} has {count} classes ({dataset.classes_from})"
        key = "MODEL.SEM_SEG_HEAD.NUM_CLASSES"
        faults.append(Fault("keys that contradict the data", key, found, f"Set it to {count}."))
    queries = cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES
    if statistics.most_segments > queries:
        found = f"it is {queries}, but {statistics.most_segments_in} has {statistics.most_segments} segments"
        remedy = f"Each query gives one segment: set it to {statistics.most_segments} or more."
        key = "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES"
        faults.append(Fault("keys that contradict the data", key, found, remedy))
    if dataset.task == "semantic" and dataset.ignore_label != head.IGNORE_VALUE < count:
        found = f"it is {head.IGNORE_VALUE}, which is class {dataset.classes[head.IGNORE_VALUE]!r}"
        key = "MODEL.SEM_SEG_HEAD.IGNORE_VALUE"
        remedy = f"Set it to {dataset.ignore_label}."
        faults.append(Fault("keys that contradict the data", key, found, remedy))
    return faults


def _class_faults(dataset: OwnDataset) -> Iterator[Fault]:
    where, count = dataset.classes_from, len(dataset.classes)
    for name, times in Counter(dataset.classes).items():
        if times > 1:
            found = f"{times} classes are called {name!r}"
            yield Fault("class names that occur twice", where, found, "Give each a name of its own.")
        if not name.strip():
            found = f"class {dataset.classes.index(name)} has no name"
            yield Fault("classes without a name", where, found, "Name it, or take the empty line out.")
    if dataset.task == "semantic" and 0 <= dataset.ignore_label < count:
        found = f"the void value {dataset.ignore_label} is class {dataset.classes[dataset.ignore_label]!r}"
        remedy = f"Take a value outside 0 to {count - 1} for void, such as 255."
        yield Fault("void values that are a class", where, found, remedy)
    if dataset.task == "panoptic" and not dataset.thing_classes:
        found, remedy = "no class is a thing", "Set 'isthing' to 1 for the classes whose objects are counted."
        yield Fault("panoptic sets without things", where, found, remedy, stops=False)


def _content_faults(dataset: OwnDataset, statistics: Statistics) -> Iterator[Fault]:
    where, names = str(dataset.folder), dataset.classes
    used = {k for counts in statistics.pixels_by_class.values() for k, count in enumerate(counts) if count}
    if not sum(statistics.pictures.values()):
        return
    if not used:
        found = "no label has a pixel of any class"
        yield Fault("data sets without a label", where, found, "Check the labels' export.")
        return
    if dataset.task == "semantic" and len(used) == 1:
        (only,) = used
        if any(statistics.void_pixels.values()):
            found = f"every pixel is {only} ({names[only]}) or void ({dataset.ignore_label})"
            remedy = "Masks of 0 and 255? Write 1 in place of 255, or name another void value."
            yield Fault("labels of one class and void", where, found, remedy)
        else:
            found = f"every pixel is {only} ({names[only]})"
            remedy = "There is nothing to learn: check the labels' export."
            yield Fault("labels that are all one class", where, found, remedy)
        return
    train = statistics.pixels_by_class.get("train", ())
    absent = [names[k] for k, count in enumerate(train) if not count]
    if absent and any(train):
        found = f"no training picture shows {', '.join(absent[:8])}" + ", ..." * (len(absent) > 8)
        remedy = "The model cannot learn these; if others are missing too, check the order of the classes."
        yield Fault("classes without a training pixel", dataset.classes_from, found, remedy, stops=False)
    if not statistics.pictures.get("val"):
        remedy = "The scores of a training need some."
        yield Fault("sets without validation", where, "no validation pictures", remedy, stops=False)


def _palette_faults(checked: Sequence[Checked]) -> Iterator[Fault]:
    """Yield the files whose palette gives an index another colour than most files do."""
    votes: dict[int, Counter[tuple[int, ...]]] = defaultdict(Counter)
    palettes = [(entry.record, entry.measure["palette"]) for entry in checked if "palette" in entry.measure]
    for _, palette in palettes:
        for index, *color in palette:
            votes[index][tuple(color)] += 1
    usual = {index: colors.most_common(1)[0][0] for index, colors in votes.items()}
    for record, palette in palettes:
        odd = [(index, tuple(color)) for index, *color in palette if tuple(color) != usual[index]]
        if odd and record:
            index, color = odd[0]
            found = f"index {index} has colour {color} here, but {usual[index]} in most files"
            remedy = "One of them has other indices for the classes: export all labels with one palette."
            label = record["sem_seg_file_name"]
            yield Fault("palettes that differ", label, found, remedy, picture=record["file_name"])


def _copy_faults(checked: Sequence[Checked]) -> Iterator[Fault]:
    """Yield pictures whose pixels an earlier one has."""
    first: dict[str, Checked] = {}
    for entry in checked:
        if entry.record is None or "digest" not in entry.measure:
            continue
        other = first.setdefault(entry.measure["digest"], entry)
        if other is entry or other.record is None:
            continue
        name, earlier = entry.record["file_name"], other.record["file_name"]
        if entry.split != other.split:
            found = f"the same picture as {earlier}, which is in {other.split}; this one is in {entry.split}"
            remedy = "Scores on pictures that were trained on mean nothing: take one of them out."
            yield Fault("pictures in two splits", name, found, remedy, picture=name)
        elif name == earlier:
            remedy = "Name each picture once."
            yield Fault("pictures listed twice", name, f"it is twice in {entry.split}", remedy)
        else:
            found, remedy = f"the same picture as {earlier}", "One of them is enough."
            yield Fault("copies within a split", name, found, remedy, stops=False)


def _stray_faults(dataset: OwnDataset) -> Iterator[Fault]:
    strays = [*map(str, dataset.stray_labels)]
    pairs: list[tuple[str, str | None]] = []
    for records in dataset.splits.values():
        if isinstance(records, Records) and dataset.layout == "yolo":
            pairs += records.pairs
    strays += _others_beside([label for _, label in pairs if label], (".txt",))
    for label in strays:
        found = "no picture has the name of this label"
        remedy = "It is not used: rename it after its picture, or add the picture."
        yield Fault("labels without a picture", label, found, remedy, stops=False, mended=True)
    for picture in (picture for picture, label in pairs if label is None):
        found, remedy = "it has no label file", "It is taken as a picture without objects."
        yield Fault("pictures without a label", picture, found, remedy, stops=False, mended=True)
    listed = {record["file_name"] for split in dataset.json_files for record in dataset.splits[split]}
    for picture in _others_beside(listed, PICTURE_SUFFIXES):
        found, remedy = "no annotation file lists it", "It is not used: add it to 'images', or take it out."
        yield Fault("pictures without a label", picture, found, remedy, stops=False, mended=True)


def _others_beside(files: Collection[str], suffixes: Collection[str]) -> list[str]:
    """Return the files with one of the suffixes in the folders of some files, without those."""
    known, folders = set(map(os.path.abspath, files)), sorted(set(map(os.path.dirname, files)))
    paths = [entry.path for folder in folders if os.path.isdir(folder) for entry in os.scandir(folder)]
    suffixed = [path for path in paths if os.path.splitext(path)[1].lower() in suffixes]
    return sorted(path for path in suffixed if os.path.abspath(path) not in known)
