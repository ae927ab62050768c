"""The annotation files of a folder, read once more as they stand, for faults that records do not show."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mask_former.formats import read_json

from .dataset import OwnDataset
from .file_faults import labelme_faults, yolo_faults, yolo_table_faults
from .json_faults import PARTS, json_faults
from .report import Fault

# Layouts with a label file a picture; a folder that no layout fits is searched for all kinds of files.
FILE_LAYOUTS = ("yolo", "labelme")
CLASS_TABLES = ("data.yaml", "data.yml", "dataset.yaml")


def source_files(folder: Path, dataset: OwnDataset | None) -> list[Path]:
    """Return the annotation files, and of YOLO the class table, of a data set or of an unknown folder."""
    if dataset is not None and dataset.json_files:
        return sorted(set(dataset.json_files.values()))
    if dataset is not None and dataset.layout not in FILE_LAYOUTS:
        return []
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(place, name) for name in sorted(names) if _is_source(Path(place), name)]
    return found


def _is_source(place: Path, name: str) -> bool:
    suffix = os.path.splitext(name)[1].lower()
    is_yolo_label = suffix == ".txt" and "labels" in place.parts
    return suffix == ".json" or is_yolo_label or name in CLASS_TABLES


def source_faults(path: Path, classes: Sequence[str], without_records: bool) -> list[Fault]:
    """Return the faults of one of the `source_files`; their pictures have the end of a record's path."""
    picture = str(path)
    if path.suffix == ".txt":
        faults = yolo_faults(path, len(classes))
        picture = "/images/".join(picture.rsplit("/labels/", 1))
    elif path.suffix in (".yaml", ".yml"):
        return yolo_table_faults(path)
    else:
        try:
            content = read_json(path)
        except (OSError, ValueError) as error:
            found = str(error).removeprefix(f"{path}: ").rstrip(".")
            faults = [Fault("label files that cannot be read", str(path), found, "Replace the file.")]
        else:
            if not isinstance(content, Mapping) or "shapes" not in content:
                is_coco = isinstance(content, Mapping) and any(part in content for part in PARTS)
                return json_faults(path, content, with_masks=without_records) if is_coco else []
            faults = labelme_faults(path, content, classes)
    return [replace(fault, picture=picture) for fault in faults]
