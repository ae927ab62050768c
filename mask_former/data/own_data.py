"""Registration of a user's own data sets, from folders or files in COCO's formats, by one call each.

Each takes a name not yet registered and returns the data set's metadata; datasets/README.md has examples.
`DATASETS.TRAIN` and `DATASETS.TEST` then take the name, and `MODEL.SEM_SEG_HEAD.NUM_CLASSES` is
`len(metadata.stuff_classes)`, or `len(metadata.thing_classes)` of an instance data set.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data.catalog import Metadata

from mask_former.formats import LABEL_SUFFIXES, PICTURE_SUFFIXES, distinct_colors, load_classes, read_json

from .coco import Entry, categories_of, instance_metadata, load_instances, load_panoptic, panoptic_metadata
from .own.classes import check_names, first_repeated
from .own.dataset import register_split, semantic_metadata
from .own.files import files_by_stem

PathLike = str | Path


def register_semantic(
    name: str,
    image_dir: PathLike,
    label_dir: PathLike | None,
    classes: Sequence[str] | PathLike,
    ignore_label: int = 255,
    colors: Sequence[Sequence[int]] | None = None,
) -> Metadata:
    """Register pictures and label maps that share file names, extensions apart.

    Args:
        name, image_dir: of the data set; a folder of pictures, whose subfolders are searched.
        label_dir: folder of one-channel or palette label maps, the same subfolders; None if there are none.
            A pixel holds the id of its class, 0..K-1, or `ignore_label`.
        classes: K names in the order of the ids, or a JSON class table (see `load_classes`).
        ignore_label: the value of pixels without a class; not one of 0..K-1.
        colors: K times [R, G, B] for drawing; None gives distinct ones.
    """
    if isinstance(classes, PathLike):
        table = load_classes(classes)
        classes = [entry["name"] for entry in table]
        if colors is None and all("color" in entry for entry in table):
            colors = [entry["color"] for entry in table]
    check_names(classes, f"Data set {name}")
    if 0 <= ignore_label < len(classes):
        raise ValueError(
            f"Data set {name}: ignore_label {ignore_label} is also the id of class "
            f"{classes[ignore_label]!r}; use a value outside 0..{len(classes) - 1}, such as 255."
        )
    colors = colors or distinct_colors(len(classes))
    if len(colors) != len(classes):
        raise ValueError(
            f"Data set {name}: {len(colors)} colors for {len(classes)} classes; give one for each."
        )
    paths = _existing(name, image_root=image_dir, sem_seg_root=label_dir)
    metadata = {**paths, **semantic_metadata(classes, colors, ignore_label)}
    return _register(name, metadata, _load_pairs)


def register_coco_panoptic(
    name: str,
    image_dir: PathLike,
    panoptic_dir: PathLike,
    panoptic_json: PathLike,
    sem_seg_dir: PathLike | None = None,
    ignore_label: int = 255,
) -> Metadata:
    """Register panoptic labels in COCO's format.

    Args:
        name, image_dir: of the data set; a folder of pictures.
        panoptic_dir: folder of the PNGs of segment ids (R + 256 G + 65536 B).
        panoptic_json: holds "images", "annotations" and "categories" (id, name, isthing, color if any);
            classes are the categories in the order of their ids.
        sem_seg_dir: folder of semantic label maps (PNG, with the stems of the panoptic ones), or None.
        ignore_label: of those label maps.
    """
    folders = {"image_root": image_dir, "panoptic_root": panoptic_dir, "sem_seg_root": sem_seg_dir}
    paths = _existing(name, **folders, panoptic_json=panoptic_json)
    metadata = {
        **paths,
        "json_file": None,
        "evaluator_type": "coco_panoptic_seg",
        "ignore_label": ignore_label,
        **panoptic_metadata(_categories(paths["panoptic_json"], ("id", "name", "isthing"))),
    }
    return _register(name, metadata, load_panoptic)


def register_coco_instance(name: str, image_dir: PathLike, json_file: PathLike) -> Metadata:
    """Register instance labels in COCO's format, polygons or RLE; see `register_coco_panoptic`."""
    paths = _existing(name, image_root=image_dir, json_file=json_file)
    classes = instance_metadata(_categories(paths["json_file"], ("id", "name")))
    return _register(name, {**paths, "evaluator_type": "coco", **classes}, load_instances)


def _register(name: str, metadata: dict[str, Any], load: Any) -> Metadata:
    return register_split(name, metadata, partial(load, name, metadata))


def _existing(name: str, **paths: PathLike | None) -> dict[str, str]:
    """Return the paths that are not None, with `~` expanded; those whose key ends in "root" are folders."""
    expanded = {key: Path(path).expanduser() for key, path in paths.items() if path is not None}
    for key, path in expanded.items():
        kind = "folder" if key.endswith("root") else "file"
        if not (path.is_dir() if kind == "folder" else path.is_file()):
            raise FileNotFoundError(f"Data set {name}: there is no {kind} {path}.")
    return {key: str(path) for key, path in expanded.items()}


def _categories(path: str, keys: Sequence[str]) -> list[Entry]:
    """Return the categories of a COCO file, sorted by id."""
    content = read_json(path, keys=("images", "annotations", "categories"))
    repeated = first_repeated(entry["id"] for entry in content["images"])
    if repeated is not None:
        raise ValueError(f"{path}: images has id {repeated!r} more than once; ids must be unique.")
    if not content["annotations"]:
        raise ValueError(f"{path}: the list 'annotations' is empty, so the data set has no label.")
    return categories_of(content, path, keys)


def _load_pairs(name: str, metadata: Mapping[str, Any]) -> list[Entry]:
    pictures = files_by_stem(metadata["image_root"], PICTURE_SUFFIXES)
    if not pictures:
        suffixes = ", ".join(sorted(PICTURE_SUFFIXES))
        raise ValueError(f"Data set {name}: no picture ({suffixes}) under {metadata['image_root']}.")
    if "sem_seg_root" not in metadata:
        return [{"file_name": file} for file in pictures.values()]
    labels = files_by_stem(metadata["sem_seg_root"], LABEL_SUFFIXES)
    unlabelled = sorted(pictures.keys() - labels.keys())
    if unlabelled:
        raise ValueError(
            f"Data set {name}: {len(unlabelled)} of {len(pictures)} pictures have no label map of the same "
            f"name ({', '.join(sorted(LABEL_SUFFIXES))}) under {metadata['sem_seg_root']}: "
            f"{pictures[unlabelled[0]]} first; add maps or take pictures out."
        )
    return [{"file_name": file, "sem_seg_file_name": labels[stem]} for stem, file in pictures.items()]
