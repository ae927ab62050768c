"""Folders and files of a user's data set: their usual names, labels beside pictures, and the split."""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mask_former.formats import LABEL_SUFFIXES, PICTURE_SUFFIXES

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# In lower case, as folders are compared.
VOC_LABELS = "segmentationclass"
CITYSCAPES_PICTURES, CITYSCAPES_LABELS = "leftimg8bit", "gtfine"
PICTURE_FOLDERS = ("images", "image", "imgs", "img", "pictures", "photos", "jpegimages", CITYSCAPES_PICTURES)
LABEL_FOLDERS = (
    *("labels", "label", "masks", "mask", "annotations", "annotation", "gt", "ground_truth"),
    *("targets", VOC_LABELS, CITYSCAPES_LABELS),
)
LIST_FOLDERS = (".", "splits", "lists", "ImageSets/Segmentation")
# After a picture's name, which is a_b_c for the picture a_b_c_leftImg8bit of Cityscapes.
LABEL_ENDINGS = (
    *("_mask", "_label", "_labels", "_gt", "_seg", "_L"),
    *("_gtFine_labelTrainIds", "_gtFine_labelIds"),
)
VALIDATION_SHARE = 0.2


# A picture, and its labels: {"": file}, a file for each class, or none where the label is missing.
Pair = tuple[str, dict[str, str]]


class Pairs(NamedTuple):
    """Pictures and their labels, in order.

    splits: split -> pairs.
    note: how the split was made, if neither files nor folders say.
    strays: labels without a picture.
    """

    splits: dict[str, list[Pair]]
    note: str
    strays: tuple[Path, ...]


def files_by_stem(
    folder: str | Path, suffixes: Collection[str], recursive: bool = True, unique: bool = True
) -> dict[str, str]:
    """Return path under a folder, without extension -> file, sorted; hidden files are left out.

    Args:
        folder, recursive: where to look, and whether in its subfolders too.
        suffixes: in lower case.
        unique: refuse files that differ only in the extension; else the one with a lossless format stays.
    """
    files: dict[str, str] = {}
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        prefix = (Path(place).relative_to(folder).as_posix() + "/").removeprefix("./")
        for name in names:
            base, _, suffix = name.rpartition(".")
            if f".{suffix.lower()}" not in suffixes or name[0] == ".":
                continue
            stem, file = prefix + base, f"{place}{os.sep}{name}"
            if stem in files and unique:
                raise ValueError(f"{files[stem]} and {file} differ only in the extension; keep one of them.")
            if stem not in files or f".{suffix.lower()}" in LABEL_SUFFIXES:
                files[stem] = file
    return dict(sorted(files.items()))


def split_folders(folder: Path) -> dict[str, Path]:
    """Return the subfolders that are splits, in the order train, val, test."""
    found = {SPLITS[path.name.lower()]: path for path in _folders(folder) if path.name.lower() in SPLITS}
    return {split: found[split] for split in ("train", "val", "test") if split in found}


def named_folders(folder: Path, names: Sequence[str]) -> list[Path]:
    """Return the subfolders with one of the names, in the order of the names; capitals do not matter."""
    by_name = {path.name.lower(): path for path in _folders(folder)}
    return [by_name[name] for name in names if name in by_name]


def _folders(folder: Path) -> list[Path]:
    return (
        sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir()) if folder.is_dir() else []
    )


def picture_folders(folder: Path, label_suffixes: Collection[str]) -> dict[str, tuple[Path, Path]]:
    """Return split -> folders of its pictures and labels; "" where folders say nothing of splits.

    Splits may lie above (train/images, train/labels), below (images/train, labels/train) or be all there is
    (train, train_labels). Empty if there are no such folders.
    """
    parts = split_folders(folder)
    above = {s: _beside(p, label_suffixes) or _named_after(p, label_suffixes) for s, p in parts.items()}
    pairs = {split: pair for split, pair in above.items() if pair}
    if "train" in pairs:
        return pairs
    pair = _beside(folder, label_suffixes)
    if not pair:
        return {}
    pictures, labels = map(split_folders, pair)
    below = {split: (pictures[split], labels[split]) for split in pictures if split in labels}
    return below if "train" in below else {"": pair}


def _beside(folder: Path, label_suffixes: Collection[str]) -> tuple[Path, Path] | None:
    """Return the folders of pictures and of labels in a folder."""
    pictures = named_folders(folder, PICTURE_FOLDERS)
    labels = [path for path in named_folders(folder, LABEL_FOLDERS) if _holds(path, label_suffixes)]
    return (pictures[0], labels[0]) if pictures and labels else None


def _named_after(folder: Path, label_suffixes: Collection[str]) -> tuple[Path, Path] | None:
    """Return a folder of pictures, and that of labels which is called after it."""
    names = [folder.name.lower() + ending for ending in ("_labels", "_masks", "annot")]
    labels = [path for path in named_folders(folder.parent, names) if _holds(path, label_suffixes)]
    return (folder, labels[0]) if labels else None


def _holds(folder: Path, suffixes: Collection[str]) -> bool:
    return any(
        os.path.splitext(name)[1].lower() in suffixes for _, _, names in os.walk(folder) for name in names
    )


def pair_files(
    folder: Path, folders: Mapping[str, tuple[Path, Path]], label_suffixes: Collection[str], seed: int
) -> Pairs:
    """Return pictures with the labels of their names, split by folders, by lists, or else by the seed.

    The label of images/north/a.jpg is labels/north/a.png, perhaps with one of `LABEL_ENDINGS`, or there is
    one in each folder of classes, labels/roof/north/a.png.
    """
    splits: dict[str, list[Pair]] = {}
    strays: list[Path] = []
    for split, (picture_folder, label_folder) in folders.items():
        pictures = files_by_stem(picture_folder, PICTURE_SUFFIXES)
        labels, unused = _labels_of(pictures, files_by_stem(label_folder, label_suffixes, unique=False))
        strays += map(Path, unused)
        pairs = {stem: (file, labels.get(stem, {})) for stem, file in pictures.items()}
        lists = {} if split else _lists(folder)
        if lists:
            splits = {part: _listed(file, pairs, picture_folder.name) for part, file in lists.items()}
        else:
            splits[split or "train"] = list(pairs.values())
    return Pairs(*with_validation(splits, seed), tuple(strays))


def with_validation(splits: Mapping[str, list[Any]], seed: int) -> tuple[dict[str, list[Any]], str]:
    """Return splits in the order train, val, test, and a note where "val" had to be taken from "train"."""
    note = ""
    if "val" not in splits and len(splits["train"]) > 1:
        items = splits["train"]
        count = max(1, round(VALIDATION_SHARE * len(items)))
        # The legacy generator, because NumPy promises that its stream never changes.
        chosen = set(np.random.RandomState(seed).permutation(len(items))[:count].tolist())
        splits = {
            **splits,
            "train": [item for number, item in enumerate(items) if number not in chosen],
            "val": [items[number] for number in sorted(chosen)],
        }
        note = f"split by seed {seed}"
    return {split: splits[split] for split in ("train", "val", "test") if split in splits}, note


def _labels_of(
    pictures: Collection[str], labels: Mapping[str, str]
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Return the labels of pictures by stem and by folder of a class, and those of no picture."""
    plain: dict[str, str] = {}
    names = {stem: stem.removesuffix("_leftImg8bit") for stem in pictures}
    for ending in ("", *LABEL_ENDINGS):
        if 2 * len(plain) < len(names):
            plain = max(
                plain, {s: labels[n + ending] for s, n in names.items() if n + ending in labels}, key=len
            )
    by_class: dict[str, dict[str, str]] = {}
    for stem, file in labels.items():
        name, _, rest = stem.partition("/")
        if rest in pictures:
            by_class.setdefault(rest, {})[name] = file
    found = by_class if len(by_class) > len(plain) else {stem: {"": file} for stem, file in plain.items()}
    used = {file for files in found.values() for file in files.values()}
    return found, [file for file in labels.values() if file not in used]


def _lists(folder: Path) -> dict[str, Path]:
    """Return split -> text file of its pictures, train.txt and others, from the first place that has them."""
    for place in LIST_FOLDERS:
        files = sorted((folder / place).glob("*.txt"))
        lists = {SPLITS[file.stem.lower()]: file for file in files if file.stem.lower() in SPLITS}
        if "train" in lists:
            return lists
    return {}


def _listed(file: Path, pairs: Mapping[str, Pair], picture_folder: str) -> list[Pair]:
    """Return the pairs that a text file lists, a picture a line: its name, stem or path, then anything."""
    listed = []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), 1):
        if line.strip():
            words = (line.strip(), line.split()[0])
            stems = [stem for word in words for stem in _possible_stems(word, picture_folder)]
            stem = next((stem for stem in stems if stem in pairs), None)
            if stem is None:
                raise ValueError(
                    f"{file}: line {number} is {line.strip()!r}, but there is no such picture in "
                    f"{picture_folder}/; a line holds the name of one picture. Correct or remove the line."
                )
            listed.append(pairs[stem])
    return listed


def _possible_stems(word: str, picture_folder: str) -> list[str]:
    path = word.replace("\\", "/").removeprefix("./").lstrip("/")
    inside = path.rpartition(f"{picture_folder}/")[2]
    return [stem for name in (path, inside) for stem in (name, os.path.splitext(name)[0])]
