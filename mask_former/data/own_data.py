"""Registration of a user's own data sets, from folders or files in COCO's formats, by one call each.

    register_semantic("roofs_train", "roofs/images", "roofs/labels", classes=["roof", "other"])
    register_coco_panoptic("street_val", "street/images", "street/panoptic", "street/panoptic.json")
    register_coco_instance("cells_train", "cells/images", "cells/instances.json")

Each returns the data set's metadata. `DATASETS.TRAIN` and `DATASETS.TEST` then take the name, and
`MODEL.SEM_SEG_HEAD.NUM_CLASSES` is `len(metadata.stuff_classes)`, or `len(metadata.thing_classes)`
of an instance data set.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

from mask_former.formats import LABEL_SUFFIXES, PICTURE_SUFFIXES, distinct_colors, load_classes, read_json

from .coco import Entry, instance_metadata, load_instances, load_panoptic, panoptic_metadata


def register_semantic(
    name: str,
    image_dir: str | Path,
    label_dir: str | Path | None,
    classes: Sequence[str] | str | Path,
    ignore_label: int = 255,
    colors: Sequence[Sequence[int]] | None = None,
) -> Metadata:
    """Register pictures and label maps that share file names, extensions apart; return the metadata.

    Args:
        name: a name not yet registered.
        image_dir: folder of pictures; subfolders are searched.
        label_dir: folder of one-channel or palette label maps, the same subfolders; None if there are none.
            A pixel holds the id of its class, 0..K-1, or `ignore_label`.
        classes: K names in the order of the ids, or a JSON class table (see `load_classes`).
        ignore_label: the value of pixels without a class; not one of 0..K-1.
        colors: K times [R, G, B] for drawing; None gives distinct ones.
    """
    if isinstance(classes, (str, Path)):
        table = load_classes(classes)
        classes = [entry["name"] for entry in table]
        if colors is None and all("color" in entry for entry in table):
            colors = [entry["color"] for entry in table]
    _check_classes(name, classes)
    if 0 <= ignore_label < len(classes):
        raise ValueError(
            f"Data set {name}: ignore_label {ignore_label} is also the id of class "
            f"{classes[ignore_label]!r}; use a value outside 0..{len(classes) - 1}, such as 255."
        )
    if colors is not None and len(colors) != len(classes):
        raise ValueError(
            f"Data set {name}: {len(colors)} colors for {len(classes)} classes; give one for each."
        )
    metadata = {
        "image_root": _folder(name, image_dir),
        "evaluator_type": "sem_seg",
        "ignore_label": ignore_label,
        "stuff_classes": list(classes),
        "stuff_colors": [list(color) for color in colors or distinct_colors(len(classes))],
    }
    if label_dir is not None:
        metadata["sem_seg_root"] = _folder(name, label_dir)
    return _register(name, metadata, _load_pairs)


def register_coco_panoptic(
    name: str,
    image_dir: str | Path,
    panoptic_dir: str | Path,
    panoptic_json: str | Path,
    sem_seg_dir: str | Path | None = None,
    ignore_label: int = 255,
) -> Metadata:
    """Register panoptic labels in COCO's format; return the metadata.

    Classes are the JSON's categories in the order of their ids; `isthing` tells things from stuff.

    Args:
        name: a name not yet registered.
        image_dir: folder of the pictures.
        panoptic_dir: folder of the PNGs of segment ids (R + 256 G + 65536 B).
        panoptic_json: holds "images", "annotations" and "categories" (id, name, isthing, color if any).
        sem_seg_dir: folder of semantic label maps (PNG, with the stems of the panoptic ones), or None.
        ignore_label: of those label maps.
    """
    metadata = {
        "image_root": _folder(name, image_dir),
        "panoptic_root": _folder(name, panoptic_dir),
        "panoptic_json": _file(name, panoptic_json),
        "json_file": None,
        "evaluator_type": "coco_panoptic_seg",
        "ignore_label": ignore_label,
        **panoptic_metadata(_categories(name, panoptic_json, keys=("id", "name", "isthing"))),
    }
    if sem_seg_dir is not None:
        metadata["sem_seg_root"] = _folder(name, sem_seg_dir)
    return _register(name, metadata, load_panoptic)


def register_coco_instance(name: str, image_dir: str | Path, json_file: str | Path) -> Metadata:
    """Register instance labels in COCO's format (polygons or RLE); return the metadata.

    Classes are the JSON's categories in the order of their ids.

    Args:
        name: a name not yet registered.
        image_dir: folder of the pictures.
        json_file: holds "images", "annotations" and "categories" (id, name, color if any).
    """
    categories = _categories(name, json_file, keys=("id", "name"))
    metadata = {
        "image_root": _folder(name, image_dir),
        "json_file": _file(name, json_file),
        "evaluator_type": "coco",
        **instance_metadata(categories),
    }
    return _register(name, metadata, load_instances)


def _register(name: str, metadata: dict[str, Any], load: Any) -> Metadata:
    if name in DatasetCatalog:
        raise ValueError(
            f"A data set {name} is registered already; choose another name, or remove that one first with "
            f"DatasetCatalog.remove({name!r}) and MetadataCatalog.remove({name!r})."
        )
    DatasetCatalog.register(name, partial(load, name, metadata))
    return MetadataCatalog.get(name).set(**metadata)


def _folder(name: str, path: str | Path) -> str:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"Data set {name}: there is no folder {folder}.")
    return str(folder)


def _file(name: str, path: str | Path) -> str:
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"Data set {name}: there is no file {file}.")
    return str(file)


def _check_classes(name: str, classes: Sequence[str]) -> None:
    if not classes:
        raise ValueError(f"Data set {name} has no class; name at least one.")
    repeated = [each for each, times in Counter(classes).items() if times > 1]
    if repeated:
        raise ValueError(f"Data set {name} has two classes {repeated[0]!r}; give each a name of its own.")


def _categories(name: str, path: str | Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Return the categories of a COCO file, sorted by id."""
    path = _file(name, path)
    content = read_json(path, keys=("images", "annotations", "categories"))
    for key, part in (("id", "images"), ("id", "categories")):
        repeated = [
            each for each, times in Counter(entry[key] for entry in content[part]).items() if times > 1
        ]
        if repeated:
            raise ValueError(f"{path}: {part} has {key} {repeated[0]!r} more than once; ids must be unique.")
    for category in content["categories"]:
        missing = [key for key in keys if key not in category]
        if missing:
            raise ValueError(f"{path}: category {category} lacks {', '.join(map(repr, missing))}; add it.")
    categories = sorted(content["categories"], key=lambda category: category["id"])
    _check_classes(name, [category["name"] for category in categories])
    if not content["annotations"]:
        raise ValueError(f"{path}: the list 'annotations' is empty, so data set {name} has no label.")
    return categories


def _load_pairs(name: str, metadata: Mapping[str, Any]) -> list[Entry]:
    pictures = _by_stem(metadata["image_root"], PICTURE_SUFFIXES)
    if not pictures:
        raise ValueError(
            f"Data set {name}: no picture ({', '.join(sorted(PICTURE_SUFFIXES))}) under "
            f"{metadata['image_root']}."
        )
    if "sem_seg_root" not in metadata:
        return [{"file_name": file} for file in pictures.values()]
    labels = _by_stem(metadata["sem_seg_root"], LABEL_SUFFIXES)
    unlabelled = sorted(pictures.keys() - labels.keys())
    if unlabelled:
        raise ValueError(
            f"Data set {name}: {len(unlabelled)} of {len(pictures)} pictures have no label map of the same "
            f"name ({', '.join(sorted(LABEL_SUFFIXES))}) under {metadata['sem_seg_root']}: "
            f"{pictures[unlabelled[0]]} first; add maps or take pictures out."
        )
    return [{"file_name": file, "sem_seg_file_name": labels[stem]} for stem, file in pictures.items()]


def _by_stem(folder: str, suffixes: Collection[str]) -> dict[str, str]:
    """Return path under the folder, without extension -> file, sorted."""
    files: dict[str, str] = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.suffix.lower() in suffixes:
            stem = path.relative_to(folder).with_suffix("").as_posix()
            if stem in files:
                raise ValueError(f"{files[stem]} and {path} differ only in the extension; keep one of them.")
            files[stem] = str(path)
    return files
