"""Layouts with a file of polygons for each picture: YOLO segmentation and labelme.

Listing opens none of these files: a record is read when it is taken from its split.
"""

import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
import yaml
from detectron2.structures import BoxMode

from mask_former.data.coco import Entry, box_of_polygons
from mask_former.formats import PICTURE_SUFFIXES, picture_size, read_json

from .classes import CLASS_FILES, check_names, colors_of, find_classes
from .dataset import Offer, OwnDataset
from .files import (
    LABEL_FOLDERS,
    PICTURE_FOLDERS,
    files_by_stem,
    named_folders,
    split_folders,
    with_validation,
)

Pair = tuple[str, str | None]  # a picture, and the file of its polygons if there is one
CIRCLE_CORNERS = 64
YOLO_FILES = ("data.yaml", "data.yml", "dataset.yaml")
LABELME_IGNORED = ("__ignore__", "_ignore_")  # areas that are not to be learned


class Records(Sequence[Entry]):
    """Records that are read when they are taken."""

    def __init__(self, pairs: Sequence[Pair], read: Callable[[int, str, str | None], Entry]) -> None:
        self.pairs, self.read = pairs, read

    def __len__(self) -> int:
        return len(self.pairs)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | list[Entry]:
        """Return the record of a picture; ValueError names a file of polygons that cannot be used."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        return self.read(number, *self.pairs[number])


def offers(folder: Path, seed: int) -> dict[str, Offer]:
    """Return for each layout of this module what it lacks, and how it is read."""
    return {"yolo": _offer_yolo(folder, seed), "labelme": _offer_labelme(folder, seed)}


def _offer_yolo(folder: Path, seed: int) -> Offer:
    path = next((folder / name for name in YOLO_FILES if (folder / name).is_file()), None)
    if path is None:
        return Offer("data.yaml with the names of the classes")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: is not YAML ({error}).") from error
    names = content.get("names") if isinstance(content, dict) else None
    if not isinstance(names, list | dict):
        return Offer(f"'names' in {path.name}, a list of the classes")
    names = [names[key] for key in sorted(names)] if isinstance(names, dict) else names
    named = {split: content[split] for split in ("train", "val", "test") if content.get(split)}
    splits = {split: _yolo_pairs(folder, content, entry) for split, entry in named.items()}
    splits = {split: pairs for split, pairs in splits.items() if pairs}
    if not any(label for _, label in splits.get("train", ())):
        return Offer(f"the pictures that 'train' of {path.name} names, with labels/*.txt beside images/")
    read = partial(_read_yolo, len(names))
    return Offer("", partial(_dataset, folder, "yolo", splits, list(map(str, names)), path.name, read, seed))


def _yolo_pairs(folder: Path, content: Mapping[str, Any], entry: Any) -> list[Pair]:
    """Return the pictures that a split's entry names: folders, or text files of one picture a line."""
    pairs: list[Pair] = []
    for name in entry if isinstance(entry, list) else [entry]:
        # Exported files have paths that are right on another machine: ../train/images, /content/town/images.
        parts = [part for part in str(name).replace("\\", "/").split("/") if part not in ("", ".", "..")]
        roots = (folder, folder / str(content.get("path") or ""))
        inside = [root.joinpath(*some) for root in roots for some in (parts, parts[-2:], parts[-1:])]
        place = next((path for path in (*inside, folder / str(name)) if path.exists()), None)
        if place is not None and place.is_dir():
            labels = files_by_stem(_labels_beside(folder, str(place)), {".txt"})
            pictures = files_by_stem(place, PICTURE_SUFFIXES)
            pairs += [(file, labels.get(stem)) for stem, file in pictures.items()]
        elif place is not None:
            lines = filter(None, map(str.strip, place.read_text(encoding="utf-8").splitlines()))
            for picture in (os.path.normpath(folder / line) for line in lines):
                label = os.path.splitext(_labels_beside(folder, picture))[0] + ".txt"
                pairs.append((picture, label if os.path.isfile(label) else None))
    return pairs


def _labels_beside(folder: Path, path: str) -> str:
    """Return a path with the last part "images" below the folder replaced by "labels", as YOLO has them."""
    parts = os.path.relpath(path, folder).split(os.sep)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return os.path.normpath(os.path.join(folder, *parts))


def _read_yolo(num_classes: int, number: int, picture: str, label: str | None) -> Entry:
    """Return the record of a picture; one without a text file has no objects."""
    width, height = picture_size(picture)
    annotations = []
    lines = Path(label).read_text(encoding="utf-8").splitlines() if label else []
    for line_number, line in enumerate(lines, 1):
        words = line.split()
        place = f"{label}: line {line_number}"
        try:
            class_id, corners = int(words[0]) if words else 0, [float(word) for word in words[1:]]
        except ValueError:
            raise ValueError(f"{place} is {line[:40]!r}; expected a class and numbers x y x y ...") from None
        if not words:
            continue
        if len(corners) < 6 or len(corners) % 2:
            what = "a box" if len(corners) == 4 else f"{len(corners)} numbers"
            raise ValueError(
                f"{place} has {what} after the class; expected a polygon of three corners or more, "
                "x y of each from 0 to 1. Export the labels as segmentation, or correct the line."
            )
        if not 0 <= class_id < num_classes:
            raise ValueError(f"{place} has class {class_id}; the names give 0 to {num_classes - 1}.")
        sizes = (width, height) * (len(corners) // 2)
        annotations.append(_annotation(class_id, [[c * s for c, s in zip(corners, sizes, strict=True)]]))
    return _record(number, picture, width, height, annotations)


def _offer_labelme(folder: Path, seed: int) -> Offer:
    roots: dict[str, Path] = {s: p for s, p in split_folders(folder).items() if files_by_stem(p, {".json"})}
    splits: dict[str, list[Pair]] = {}
    strays: list[str] = []
    for split, root in (roots if "train" in roots else {"train": folder}).items():
        labels = _below(root, LABEL_FOLDERS, {".json"})
        labels = {stem: file for stem, file in labels.items() if os.path.basename(file) not in CLASS_FILES}
        pictures = _below(root, PICTURE_FOLDERS, PICTURE_SUFFIXES) if labels else {}
        splits[split] = [(file, labels.get(stem)) for stem, file in pictures.items()]
        strays += [file for stem, file in labels.items() if stem not in pictures]
    named = [label for pairs in splits.values() for _, label in pairs if label]
    if len(named) <= len(strays) or not _is_labelme(named[0]):
        return Offer("a JSON file of the same name beside each picture, with 'shapes'")
    return Offer("", partial(_read_labelme_folder, folder, splits, strays, seed))


def _is_labelme(file: str) -> bool:
    content = read_json(file)
    return isinstance(content, dict) and "shapes" in content


def _below(folder: Path, names: Sequence[str], suffixes: Collection[str]) -> dict[str, str]:
    """Return the files by stem in the usual folder of such files, or else in the folder itself."""
    places = [*named_folders(folder, names), folder]
    return next(filter(None, (files_by_stem(place, suffixes, unique=False) for place in places)), {})


def _read_labelme_folder(
    folder: Path, splits: Mapping[str, list[Pair]], strays: Sequence[str], seed: int
) -> OwnDataset:
    classes = find_classes(folder)
    if classes:
        names, source = classes.names, classes.source
    else:
        files = [label for pairs in splits.values() for _, label in pairs if label]
        shapes = (shape for file in files for shape in read_json(file, ("shapes",))["shapes"])
        names, source = sorted({str(shape["label"]) for shape in shapes}), "the labels of all JSON files"
    names = [name for name in names if name not in (*LABELME_IGNORED, "_background_")]
    read = partial(_read_labelme, {name: number for number, name in enumerate(names)})
    return _dataset(folder, "labelme", splits, names, source, read, seed, strays)


def _read_labelme(class_of: Mapping[str, int], number: int, picture: str, label: str | None) -> Entry:
    """Return the record of a picture; shapes of one group are one object. Without JSON it is unlabelled."""
    if label is None:
        return {"file_name": picture, "image_id": number}
    content = read_json(label, keys=("shapes",))
    width, height = content.get("imageWidth"), content.get("imageHeight")
    if not (width and height):
        width, height = picture_size(picture)
    objects: dict[Any, list[list[float]]] = {}
    for place, shape in enumerate(content["shapes"]):
        name, group = str(shape.get("label")), shape.get("group_id")
        if name in LABELME_IGNORED:
            name = LABELME_IGNORED[0]
        elif name not in class_of:
            raise ValueError(
                f"{label}: shape {place} has the label {name!r}, which is none of the {len(class_of)} "
                f"classes ({', '.join(list(class_of)[:8])}). Correct it, or add the class."
            )
        key = (name, "shape", place) if group is None else (name, "group", group)
        objects.setdefault(key, []).append(_corners(shape, f"{label}: shape {place}"))
    annotations = [
        _annotation(class_of.get(name, 0), polygons, iscrowd=int(name not in class_of))
        for (name, *_), polygons in objects.items()
    ]
    return _record(number, picture, width, height, annotations)


def _corners(shape: Mapping[str, Any], place: str) -> list[float]:
    """Return a polygon x1, y1, x2, y2, ... of a polygon, rectangle or circle."""
    kind, points = shape.get("shape_type") or "polygon", shape.get("points") or []
    if kind == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        points = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    elif kind == "circle" and len(points) == 2:
        (x, y), edge = points
        radius, turns = math.dist((x, y), edge), np.arange(CIRCLE_CORNERS) * (2 * math.pi / CIRCLE_CORNERS)
        points = np.stack([x + radius * np.cos(turns), y + radius * np.sin(turns)], axis=1).tolist()
    elif kind not in ("polygon", "rectangle") or len(points) < 3:
        raise ValueError(
            f"{place} is a {kind} of {len(points)} points; expected a polygon of three or more, a rectangle "
            "or a circle. Draw it again, or remove it."
        )
    return [float(value) for point in points for value in point]


def _annotation(class_id: int, polygons: list[list[float]], iscrowd: int = 0) -> Entry:
    box = {"bbox": box_of_polygons(polygons), "bbox_mode": BoxMode.XYWH_ABS}
    return {**box, "category_id": class_id, "segmentation": polygons, "iscrowd": iscrowd}


def _record(number: int, picture: str, width: int, height: int, annotations: list[Entry]) -> Entry:
    size = {"height": height, "width": width}
    return {"file_name": picture, **size, "image_id": number, "annotations": annotations}


def _dataset(
    folder: Path,
    layout: str,
    splits: Mapping[str, list[Pair]],
    names: Sequence[str],
    source: str,
    read: Callable[[int, str, str | None], Entry],
    seed: int,
    strays: Sequence[str] = (),
) -> OwnDataset:
    check_names(names, folder)
    ordered, note = with_validation(splits, seed)
    return OwnDataset(
        folder=folder,
        layout=layout,
        task="instance",
        classes=tuple(names),
        thing_classes=frozenset(range(len(names))),
        colors=colors_of(None, len(names)),
        classes_from=source,
        ignore_label=255,
        splits={split: Records(pairs, read) for split, pairs in ordered.items()},
        stray_labels=tuple(map(Path, strays)),
        notes=(note,) if note else (),
    )
