"""The synthetic set in Detectron2's catalogues, written to disk when it is first asked for."""

import json
import logging
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from iopath.common.file_io import file_lock

from mask_former.data.root import datasets_root
from mask_former.data.shapes_drawing import class_table, thing_count
from mask_former.data.shapes_files import MARKER, VOID_LABEL, ShapesSpec, write_set

logger = logging.getLogger(__name__)

VERSION = 1  # of the pictures and files; raised when they change, so that older sets are written anew
NAME = "shapes"
Record = dict[str, Any]


def ensure_set(root: Path, spec: ShapesSpec | None = None) -> Path:
    """Return the folder of a complete set, `root`/shapes; write it first if need be.

    Args:
        root: folder of all data sets.
        spec: what the set must hold; another set in its place is replaced. None: whatever complete set is
            there is taken, and where there is none the default one is written.

    Processes that start together do no harm: one writes beside the final place and renames, the others wait.
    """
    folder = root / NAME
    if _is_wanted(_found_spec(folder), spec):
        return folder
    with file_lock(str(folder.absolute())):
        if not _is_wanted(_found_spec(folder), spec):
            for leftover in root.glob(f".{NAME}-*"):  # of a process that was killed while it held the lock
                shutil.rmtree(leftover)
            _build(folder, spec or ShapesSpec())
    return folder


def _is_wanted(found: ShapesSpec | None, wanted: ShapesSpec | None) -> bool:
    if found is not None and wanted is None and found != ShapesSpec():
        logger.warning("The set holds %s; remove its folder to get the default, %s.", found, ShapesSpec())
    return found is not None and wanted in (None, found)


def _found_spec(folder: Path) -> ShapesSpec | None:
    """Return what the set in `folder` holds, None without one of this version; refuse foreign folders."""
    if not folder.exists():
        return None
    try:
        marker = json.loads((folder / MARKER).read_text())
        found_version, found = marker.pop("version"), ShapesSpec(**marker)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if not folder.exists():  # another process is putting a new set into its place
            return None
        raise ValueError(
            f"{folder} exists, but its {MARKER} is missing or unreadable, so it was not written by this "
            "program and will not be replaced. Move it away, or set DETECTRON2_DATASETS to another folder."
        ) from error
    return found if found_version == VERSION else None


def _build(folder: Path, spec: ShapesSpec) -> None:
    logger.info("Writing the synthetic set %s (%d + %d pictures) ...", folder, spec.train, spec.val)
    start = time.perf_counter()
    fresh, stale = (folder.with_name(f".{NAME}-{kind}-{secrets.token_hex(4)}") for kind in ("new", "old"))
    try:
        write_set(fresh, spec)
        (fresh / MARKER).write_text(json.dumps({"version": VERSION, **spec._asdict()}))
        if folder.exists():
            folder.rename(stale)
        fresh.rename(folder)
    finally:
        for remains in (fresh, stale):
            shutil.rmtree(remains, ignore_errors=True)
    logger.info("Wrote %s in %.1f s", folder, time.perf_counter() - start)


def register(root: str | Path | None = None, spec: ShapesSpec | None = None) -> None:
    """Register shapes_{sem_seg,panoptic,instance}_{train,val}; nothing is written before a set is asked for.

    Args:
        root: folder of all data sets; None is `datasets_root()`.
        spec: as for `ensure_set`.

    Calling it again replaces what was registered before.
    """
    root = datasets_root() if root is None else Path(root).expanduser()
    for split in ("train", "val"):
        for task in LOADERS:
            _register_one(f"shapes_{task}_{split}", task, split, root, spec)


def _register_one(name: str, task: str, split: str, root: Path, spec: ShapesSpec | None) -> None:
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
    if name in MetadataCatalog:
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, lambda: LOADERS[task](ensure_set(root, spec), split))
    MetadataCatalog.get(name).set(**set_metadata(root / NAME, task, split))


def set_metadata(folder: Path, task: str, split: str) -> dict[str, Any]:
    """Return every metadata key that mappers, evaluators and visualisers read for this task.

    Contiguous classes are things first, then stuff. `thing_classes` lists the things only, as Detectron2's
    COCOEvaluator demands; `stuff_classes` and the stuff id map list all classes, since semantic evaluation
    and drawing look up every class there. What a thing is, `thing_dataset_id_to_contiguous_id` alone tells.
    """
    table, things = class_table(), class_table()[: thing_count()]
    evaluator = {"sem_seg": "sem_seg", "panoptic": "shapes_panoptic_seg", "instance": "coco"}[task]
    keys: dict[str, Any] = {
        "evaluator_type": evaluator,
        "image_root": str(folder / "images" / split),
        "ignore_label": VOID_LABEL,
    }
    if task != "sem_seg":
        keys["thing_classes"] = [entry["name"] for entry in things]
        keys["thing_colors"] = [entry["color"] for entry in things]
        keys["thing_dataset_id_to_contiguous_id"] = {entry["id"]: k for k, entry in enumerate(things)}
        keys["json_file"] = str(folder / f"annotations/instances_{split}.json")
    if task != "instance":
        keys["stuff_classes"] = [entry["name"] for entry in table]
        keys["stuff_colors"] = [entry["color"] for entry in table]
        keys["stuff_dataset_id_to_contiguous_id"] = {entry["id"]: k for k, entry in enumerate(table)}
        keys["sem_seg_root"] = str(folder / "sem_seg" / split)
    if task == "panoptic":
        keys["panoptic_root"] = str(folder / "panoptic" / split)
        keys["panoptic_json"] = str(folder / f"annotations/panoptic_{split}.json")
        keys["label_divisor"] = 1000
    return keys


def load_panoptic(folder: Path, split: str) -> list[Record]:
    """Return Detectron2's dicts with `pan_seg_file_name`, `sem_seg_file_name`, contiguous `segments_info`."""
    content = json.loads((folder / f"annotations/panoptic_{split}.json").read_text())
    contiguous = {entry["id"]: k for k, entry in enumerate(class_table())}
    infos_of_image = {entry["image_id"]: entry["segments_info"] for entry in content["annotations"]}
    records = []
    for image in content["images"]:
        infos = infos_of_image[image["id"]]
        for info in infos:
            info["category_id"] = contiguous[info["category_id"]]
            info["isthing"] = info["category_id"] < thing_count()
        label = f"{Path(image['file_name']).stem}.png"
        records.append(
            {
                "file_name": str(folder / "images" / split / image["file_name"]),
                "image_id": image["id"],
                "height": image["height"],
                "width": image["width"],
                "pan_seg_file_name": str(folder / "panoptic" / split / label),
                "sem_seg_file_name": str(folder / "sem_seg" / split / label),
                "segments_info": infos,
            }
        )
    return records


def load_semantic(folder: Path, split: str) -> list[Record]:
    """Return Detectron2's dicts with `sem_seg_file_name`."""
    panoptic_only = ("pan_seg_file_name", "segments_info")
    records = load_panoptic(folder, split)
    return [{key: value for key, value in r.items() if key not in panoptic_only} for r in records]


def load_instances(folder: Path, split: str) -> list[Record]:
    """Return Detectron2's dicts with `annotations`, those without any included; categories are contiguous."""
    # Not given the data set's name, Detectron2 leaves ids and metadata alone.
    records = load_coco_json(
        str(folder / f"annotations/instances_{split}.json"), str(folder / "images" / split)
    )
    contiguous = {entry["id"]: k for k, entry in enumerate(class_table())}
    for record in records:
        for annotation in record["annotations"]:
            annotation["category_id"] = contiguous[annotation["category_id"]]
    return records


LOADERS: dict[str, Callable[[Path, str], list[Record]]] = {
    "sem_seg": load_semantic,
    "panoptic": load_panoptic,
    "instance": load_instances,
}

register()
