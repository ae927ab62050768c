"""Layouts in COCO's formats: instances, also as Roboflow exports them, and panoptic labels."""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mask_former.data.coco import (
    Entry,
    categories_of,
    instance_entries,
    load_panoptic,
    panoptic_metadata,
)
from mask_former.formats import read_json

from .classes import colors_of
from .dataset import Offer, OwnDataset
from .files import PICTURE_FOLDERS, SPLITS, named_folders, split_folders, with_validation

MOST_FILES = 16  # JSON files in a folder, beyond which each is of one picture
# COCO's own release has these beside the instances.
OTHER_KINDS = ("captions", "person_keypoints", "stuff")


class LabelFile(NamedTuple):
    """A JSON file in COCO's format: its split ("" if its name does not say), and the token of its name."""

    split: str
    token: str  # such as "train2017", which its pictures' folder is called too
    path: Path


def offers(folder: Path, seed: int) -> dict[str, Offer]:
    """Return for each layout of this module what it lacks, and how it is read."""
    kinds: dict[str, list[LabelFile]] = {"coco-instance": [], "coco-panoptic": []}
    for path in _json_files(folder):
        kind = _kind(path)
        if kind:
            kinds[kind].append(_label_file(folder, path))
    readers = {"coco-instance": _read_instances, "coco-panoptic": _read_panoptic}
    result = {}
    for kind, files in kinds.items():
        splits = [file.split for file in files]
        if not files:
            name = "panoptic_train.json" if kind == "coco-panoptic" else "instances_train.json"
            lacks = f"a JSON file with images, annotations and categories, such as annotations/{name}"
            result[kind] = Offer(lacks)
        elif len(set(splits)) < len(splits) or "train" not in [split or "train" for split in splits]:
            listed = ", ".join(file.path.relative_to(folder).as_posix() for file in files)
            result[kind] = Offer(
                f"one JSON file a split, called by its name (train, val, test), among {listed}"
            )
        else:
            files.sort(key=lambda file: ("", "train", "val", "test").index(file.split))
            result[kind] = Offer("", partial(readers[kind], folder, files, seed))
    return result


def _json_files(folder: Path) -> list[Path]:
    """Return the JSON files that may be of a whole split; a file for each picture is another layout."""
    places = [folder, *named_folders(folder, ("annotations", "labels")), *split_folders(folder).values()]
    found = [[p for p in sorted(place.glob("*.json")) if not p.name.startswith(".")] for place in places]
    return [path for paths in found if len(paths) <= MOST_FILES for path in paths]


def _kind(path: Path) -> str:
    """Return the layout of a JSON file by its name, or else by its content; "" if it is none of these."""
    name = path.stem.lower()
    if name.startswith(OTHER_KINDS):
        return ""
    if name.startswith("panoptic"):
        return "coco-panoptic"
    if name.startswith("instances") or name == "_annotations.coco":
        return "coco-instance"
    content = read_json(path)
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= content.keys():
        return ""
    panoptic = any("segments_info" in annotation for annotation in content["annotations"][:8])
    return "coco-panoptic" if panoptic else "coco-instance"


def _label_file(folder: Path, path: Path) -> LabelFile:
    in_split = path.parent != folder and path.parent.name.lower() in SPLITS
    for token in re.split(r"[^0-9A-Za-z]+", path.parent.name if in_split else path.stem):
        split = SPLITS.get(token.lower().rstrip("0123456789"))
        if split:
            return LabelFile(split, token, path)
    return LabelFile("", "", path)


def _read_instances(folder: Path, files: Sequence[LabelFile], seed: int) -> OwnDataset:
    contents = {file.path: read_json(file.path, ("images", "annotations", "categories")) for file in files}
    categories = _used_categories(contents, files[0].path)
    splits = {}
    for file in files:
        content = contents[file.path]
        root = _picture_root(folder, file, [image["file_name"] for image in content["images"][:8]])
        class_of = _class_of(content["categories"], categories, file.path)
        splits[file.split or "train"] = instance_entries(content, root, class_of)
    return _dataset(folder, "coco-instance", files, categories, splits, seed)


def _used_categories(contents: Mapping[Path, Any], first: Path) -> list[Entry]:
    """Return the categories of a file, without those that are only a name for the kind of the others."""
    categories = categories_of(contents[first], first, ("id", "name"))
    used = {annotation.get("category_id") for c in contents.values() for annotation in c["annotations"]}
    kinds = {category.get("supercategory") for category in categories}
    return [c for c in categories if c["id"] in used or c["name"] not in kinds] or categories


def _class_of(own: Sequence[Entry], categories: Sequence[Entry], path: Path) -> dict[Any, int]:
    """Return the class of each category id in a file, which may number the names in another way."""
    number_of = {category["name"]: number for number, category in enumerate(categories)}
    return {
        category["id"]: number_of[category["name"]] for category in own if category.get("name") in number_of
    }


def _read_panoptic(folder: Path, files: Sequence[LabelFile], seed: int) -> OwnDataset:
    splits: dict[str, list[Entry]] = {}
    categories: list[Entry] = []
    for file in files:
        content = read_json(file.path, ("images", "annotations", "categories"))
        own = categories_of(content, file.path, ("id", "name", "isthing"))
        categories = categories or own
        if [(c["id"], c["name"]) for c in own] != [(c["id"], c["name"]) for c in categories]:
            raise ValueError(f"{file.path}: has other categories than {files[0].path}; give both the same.")
        metadata = {
            "panoptic_json": str(file.path),
            "panoptic_root": str(_panoptic_root(folder, file, content)),
            "image_root": str(_picture_root(folder, file, _pictures_of(content))),
            **panoptic_metadata(categories),
        }
        splits[file.split or "train"] = load_panoptic("", metadata)
    return _dataset(folder, "coco-panoptic", files, categories, splits, seed)


def _pictures_of(content: Mapping[str, Any]) -> list[str]:
    named = [image["file_name"] for image in content["images"][:8] if "file_name" in image]
    return named or [f"{Path(a['file_name']).stem}.jpg" for a in content["annotations"][:8]]


def _panoptic_root(folder: Path, file: LabelFile, content: Mapping[str, Any]) -> Path:
    names = [a["file_name"] for a in content["annotations"][:8] if "file_name" in a]
    places = [file.path.with_suffix(""), folder / file.path.stem, file.path.parent, folder]
    return _place_of(
        names, [*places, *(place / file.token for place in (folder / "panoptic", *places[:2]))], file
    )


def _picture_root(folder: Path, file: LabelFile, names: Sequence[str]) -> Path:
    inside = named_folders(folder, PICTURE_FOLDERS)
    places = [file.path.parent]
    for name in dict.fromkeys((file.token, file.split)):
        places += [folder / name, *(path / name for path in inside)]
        places += named_folders(folder / name, PICTURE_FOLDERS)
    return _place_of(names, [*places, folder], file)


def _place_of(names: Sequence[str], places: Sequence[Path], file: LabelFile) -> Path:
    """Return the first folder that holds one of the files; several are tried, for one may be missing."""
    if not names:
        raise ValueError(f"{file.path}: the list 'images' is empty; expected the pictures of this split.")
    for place in places:
        if any((place / name).is_file() for name in names):
            return place
    tried = ", ".join(dict.fromkeys(str(place) for place in places))
    raise FileNotFoundError(
        f"{file.path} names {names[0]}, which is in none of {tried}; put the files there."
    )


def _dataset(
    folder: Path,
    layout: str,
    files: Sequence[LabelFile],
    categories: Sequence[Entry],
    splits: dict[str, list[Entry]],
    seed: int,
) -> OwnDataset:
    ordered, note = with_validation(splits, seed)
    path_of = {file.split or "train": file.path for file in files}
    ids = [category["id"] for category in categories]
    is_numbered = all(isinstance(category_id, int) for category_id in ids)
    colors = [category["color"] for category in categories if "color" in category]
    things = [number for number, category in enumerate(categories) if category.get("isthing", 1)]
    return OwnDataset(
        folder=folder,
        layout=layout,
        task=layout.removeprefix("coco-"),
        classes=tuple(str(category["name"]) for category in categories),
        thing_classes=frozenset(things),
        colors=colors_of(colors if len(colors) == len(categories) else None, len(categories)),
        classes_from=f"the categories of {files[0].path.relative_to(folder)}",
        ignore_label=255,
        splits=ordered,
        category_ids=tuple(ids) if is_numbered else (),
        json_files={split: path_of.get(split, files[0].path) for split in ordered},
        notes=(note,) if note else (),
    )
