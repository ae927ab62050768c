"""Semantic layouts: pictures beside label maps, masks of 0 and 255, masks a folder a class, colour labels."""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES

from mask_former.formats import LABEL_MODES, PICTURE_SUFFIXES, load_classes, picture_mode, read_label_map

from .classes import VOID_NAMES, Classes, colors_of, find_classes
from .dataset import Offer, OwnDataset
from .files import (
    CITYSCAPES_LABELS,
    LABEL_FOLDERS,
    PICTURE_FOLDERS,
    VOC_LABELS,
    Pairs,
    pair_files,
    picture_folders,
)

SAMPLE = 50  # labels that are opened to tell what kind they are
BACKGROUND = "background"
LAYOUTS = ("label-maps", "voc", "cityscapes", "binary-masks", "class-masks", "color-labels")
Record = dict[str, Any]


class Found(NamedTuple):
    """What lies in a folder of pictures and label pictures.

    class_folders: names of the folders that hold masks of a class each.
    values: in a sample of the labels, those with one channel.
    colored: whether the colours of most of that sample are to be read, not the indices.
    """

    folder: Path
    pairs: Pairs
    classes: Classes | None
    class_folders: tuple[str, ...]
    values: frozenset[int]
    colored: bool
    layout: str  # "voc", "cityscapes" or "label-maps", by the names of the folders


def offers(folder: Path, seed: int) -> dict[str, Offer]:
    """Return for each layout of this module what it lacks, and how it is read."""
    folders = picture_folders(folder, PICTURE_SUFFIXES)
    if not folders:
        lacks = (
            f"a folder of pictures ({', '.join(PICTURE_FOLDERS[:3])}, ...) beside one of label pictures "
            f"({', '.join(LABEL_FOLDERS[:4])}, ...), with train/ and val/ above, below, or not at all"
        )
        return {layout: Offer(lacks) for layout in LAYOUTS}
    pairs = pair_files(folder, folders, PICTURE_SUFFIXES, seed)
    if not any(files for split in pairs.splits.values() for _, files in split):
        places = " and ".join(path.relative_to(folder).as_posix() for path in next(iter(folders.values())))
        return {layout: Offer(f"a label with the name of a picture in {places}") for layout in LAYOUTS}
    names = {part.lower() for _, labels in folders.values() for part in (labels.name, labels.parent.name)}
    is_named = {"voc": VOC_LABELS in names, "cityscapes": CITYSCAPES_LABELS in names}
    found = _look(folder, pairs, next((layout for layout, yes in is_named.items() if yes), "label-maps"))
    return {layout: offer(found) for layout, offer in _OFFERS.items()}


def _look(folder: Path, pairs: Pairs, layout: str) -> Found:
    classes = find_classes(folder)
    labels = [files for split in pairs.splits.values() for _, files in split if files]
    values: set[int] = set()
    read = colored = 0
    for files in labels[:: max(1, len(labels) // SAMPLE)]:
        try:
            is_color, present = _look_at(next(iter(files.values())), classes)
        except ValueError:  # a broken file is not the place to stop: the check names all of them
            continue
        read, colored, values = read + 1, colored + is_color, values | present
    class_folders = tuple(sorted({name for files in labels for name in files} - {""}))
    if classes is None and layout == "voc" and not colored and not {v for v in values if v > 20} - {255}:
        classes = _table(load_classes("pascal_voc_21"), "Pascal VOC")
    return Found(folder, pairs, classes, class_folders, frozenset(values), 2 * colored > read, layout)


def _table(entries: Sequence[Record], source: str) -> Classes:
    return Classes([entry["name"] for entry in entries], [tuple(e["color"]) for e in entries], source)


def _look_at(file: str, classes: Classes | None) -> tuple[bool, set[int]]:
    """Return whether a label's colours are to be read, and if not the values in it."""
    mode, palette = picture_mode(file)
    if mode not in LABEL_MODES:
        return True, set()
    values = set(np.unique(read_label_map(file)).tolist())
    if palette and classes and classes.colors:
        used = [value for value in values if value < len(palette)]
        as_indices = all(palette[v] == color for v, color in enumerate(classes.colors) if v in used)
        return not as_indices and {palette[v] for v in used} <= set(classes.colors), values
    return False, values


def _offer_maps(found: Found, layout: str) -> Offer:
    if found.classes is None:
        values = f" (found in the labels: {_listed(found.values)})" if found.values else ""
        return Offer(
            "a file of the classes, such as classes.txt with one name a line in the order of the values"
            + values
        )
    read = partial(_read_maps, found, layout, found.classes)
    if layout != found.layout:
        return Offer(f"the names of its folders: these are of {found.layout}", read)
    if found.class_folders or found.colored or _is_binary(found):
        return Offer("one class index a pixel, beginning with 0", read)
    return Offer("", read)


def _offer_cityscapes(found: Found) -> Offer:
    if found.layout != "cityscapes":
        return Offer("the folders leftImg8bit and gtFine")
    return _offer_maps(found, "cityscapes") if found.classes else Offer("", partial(_read_cityscapes, found))


def _read_cityscapes(found: Found) -> OwnDataset:
    """Read labelTrainIds, or labelIds, which are there without a preparation; the test set has no labels."""
    table = sorted((c for c in CITYSCAPES_CATEGORIES if c["trainId"] < 255), key=lambda c: c["trainId"])
    first = next(files[""] for _, files in found.pairs.splits["train"] if files)
    values = {}
    if first.endswith("_labelIds.png"):
        void = dict.fromkeys(range(256), 255)
        values = {"sem_seg_values": void | {c["id"]: c["trainId"] for c in table}}
    splits = {split: pairs for split, pairs in found.pairs.splits.items() if split != "test"}
    # The other files of a picture, such as its instances, are no labels that lost their picture.
    found = found._replace(pairs=found.pairs._replace(splits=splits, strays=()))
    classes = _table(table, "Cityscapes")
    return _dataset(
        found, "cityscapes", classes, lambda files: {"sem_seg_file_name": files[""], **values}, 255, ""
    )


def _read_maps(found: Found, layout: str, classes: Classes) -> OwnDataset:
    kept = [number for number, name in enumerate(classes.names) if name.lower() not in VOID_NAMES]
    ignore, note = _ignore_label(found.values, len(classes.names))
    common: Record = {}
    if len(kept) < len(classes.names):
        void = [number for number in range(len(classes.names)) if number not in kept]
        note = f"value {_listed(void)} is void by its name"
        class_ids = {value: number for number, value in enumerate(kept)}
        common = {"sem_seg_values": {ignore: ignore, **dict.fromkeys(void, ignore), **class_ids}}
    chosen = _chosen(classes, kept)
    return _dataset(
        found, layout, chosen, lambda files: {"sem_seg_file_name": files[""], **common}, ignore, note
    )


def _ignore_label(values: Collection[int], count: int) -> tuple[int, str]:
    """Return the value that is void, from the values in a sample of the labels of `count` classes.

    It is 255; or the value after the last class, where labels have it and nothing else beyond the classes.
    Without 0 in the labels, classes are more likely counted from 1, which is no matter of void.
    """
    usual = 255 if count < 256 else 65535
    beyond = {value for value in values if value >= count}
    if len(beyond) == 1 and 0 in values and beyond <= {count, 65535} and usual not in beyond:
        (value,) = beyond
        return value, f"value {value} is void"
    return usual, ""


def _is_binary(found: Found) -> bool:
    """Tell whether labels are masks of one class: 0 and 255, or 0 and 1 where one class has a name."""
    count = len(found.classes.names) if found.classes else 1
    if count > 2 or found.colored or found.class_folders or 0 not in found.values:
        return False
    return found.values == {0, 255} or (count == 1 and found.values in ({0, 1}, {0, 1, 255}))


def _offer_binary(found: Found) -> Offer:
    if not _is_binary(found):
        return Offer("masks of 0 and 255, and two names of classes at most")
    return Offer("", partial(_read_binary, found))


def _read_binary(found: Found) -> OwnDataset:
    names = found.classes.names if found.classes else ["foreground"]
    classes = Classes(
        names if len(names) == 2 else [BACKGROUND, *names],
        found.classes.colors if found.classes and len(names) == 2 else None,
        found.classes.source if found.classes else "the masks' two values",
    )
    values = {0: 0, 255: 1} if 1 not in found.values else {0: 0, 1: 1, 255: 255}
    note = f"{max(value for value, number in values.items() if number == 1)} is {classes.names[1]}"
    return _dataset(
        found, "binary-masks", classes,
        lambda files: {"sem_seg_file_name": files[""], "sem_seg_values": values}, 255, note,
    )  # fmt: skip


def _offer_class_masks(found: Found) -> Offer:
    if not found.class_folders:
        return Offer("a folder for each class in the folder of labels, with a mask for each picture")
    return Offer("", partial(_read_class_masks, found))


def _read_class_masks(found: Found) -> OwnDataset:
    folders = [name for name in found.class_folders if name.lower() != BACKGROUND]
    classes, source = found.classes, "the folders of masks"
    order = [name for name in classes.names if name in folders] if classes else []
    if classes and set(order) == set(folders):
        folders, source = order, classes.source
    number_of = {name: number for number, name in enumerate(folders, 1)}

    def label(files: dict[str, str]) -> Record:
        return {"sem_seg_masks": [(files[n], number) for n, number in number_of.items() if n in files]}

    return _dataset(found, "class-masks", Classes([BACKGROUND, *folders], None, source), label, 255, "")


def _offer_colors(found: Found) -> Offer:
    if found.classes is None or found.classes.colors is None:
        return Offer(
            "a table of the label colours: classes.txt with lines such as 'road 128 64 128', or classes.json"
        )
    read = partial(_read_colors, found, found.classes, found.classes.colors)
    return Offer("" if found.colored else "labels whose colours are the classes", read)


def _read_colors(found: Found, classes: Classes, colors: Sequence[tuple[int, int, int]]) -> OwnDataset:
    kept = [number for number, name in enumerate(classes.names) if name.lower() not in VOID_NAMES]
    ignore = 255 if len(kept) < 256 else 65535
    values = {color: kept.index(number) if number in kept else ignore for number, color in enumerate(colors)}

    def label(files: dict[str, str]) -> Record:
        return {"sem_seg_file_name": files[""], "sem_seg_values": values}

    return _dataset(found, "color-labels", _chosen(classes, kept), label, ignore, "")


def _chosen(classes: Classes, kept: Sequence[int]) -> Classes:
    colors = classes.colors and [classes.colors[number] for number in kept]
    return Classes([classes.names[number] for number in kept], colors, classes.source)


def _dataset(
    found: Found,
    layout: str,
    classes: Classes,
    label: Callable[[dict[str, str]], Record],
    ignore_label: int,
    note: str,
) -> OwnDataset:
    return OwnDataset(
        folder=found.folder,
        layout=layout,
        task="semantic",
        classes=tuple(classes.names),
        thing_classes=frozenset(),
        colors=colors_of(classes.colors, len(classes.names)),
        classes_from=classes.source,
        ignore_label=ignore_label,
        splits={
            split: [{"file_name": file, **(label(files) if files else {})} for file, files in pairs]
            for split, pairs in found.pairs.splits.items()
        },
        stray_labels=found.pairs.strays,
        notes=tuple(filter(None, (note, found.pairs.note))),
    )


def _listed(values: Collection[int]) -> str:
    first = sorted(values)[:10]
    return ", ".join(map(str, first)) + (", ..." if len(values) > len(first) else "")


_OFFERS: dict[str, Callable[[Found], Offer]] = {
    "label-maps": partial(_offer_maps, layout="label-maps"),
    "voc": partial(_offer_maps, layout="voc"),
    "cityscapes": _offer_cityscapes,
    "binary-masks": _offer_binary,
    "class-masks": _offer_class_masks,
    "color-labels": _offer_colors,
}
