"""The synthetic set of shapes: registered in Detectron2's catalogs, written when it is first asked for."""

import functools
import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any

from iopath.common.file_io import file_lock

from mask_former.data.coco import Entry, instance_metadata, load_instances, load_panoptic
from mask_former.data.datasets import datasets_root, register_published

from .drawing import CLASSES, THING_COUNT
from .files import VOID_LABEL, ShapesSpec, write_set

__all__ = ["ShapesSpec", "ensure_set", "register", "set_metadata"]

logger = logging.getLogger(__name__)

VERSION = 1  # of the pictures and files; raised when they change, so that older sets are written anew
NAME = "shapes"
MARKER = "shapes.json"


def ensure_set(root: Path, spec: ShapesSpec | None = None) -> Path:
    """Return the folder of a complete set, `root`/shapes; write it first if need be.

    Safe for processes that start together: one writes a temporary folder and renames it, the others wait.

    Args:
        root: folder of all data sets.
        spec: what the set must hold; a different set in the folder is replaced. None: any complete set is
            accepted, and without one the default set is written.
    """
    folder = root / NAME
    if _is_suitable(folder, spec):
        return folder
    with file_lock(str(folder.absolute())):
        if not _is_suitable(folder, spec):
            for leftover in root.glob(f".{NAME}-*"):  # of a killed process
                shutil.rmtree(leftover)
            _write(folder, spec or ShapesSpec())
    return folder


def _is_suitable(folder: Path, spec: ShapesSpec | None) -> bool:
    """Tell whether `folder` holds a set of this version and of `spec`; refuse folders of others."""
    if not folder.exists():
        return False
    try:
        marker = json.loads((folder / MARKER).read_text())
        version, existing = marker.pop("version"), ShapesSpec(**marker)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if not folder.exists():  # another process is replacing the set
            return False
        raise ValueError(
            f"{folder} exists, but its {MARKER} is missing or unreadable, so it was not written by this "
            "program and is not replaced. Move it away, or set DETECTRON2_DATASETS to another folder."
        ) from error
    if spec is None and existing != ShapesSpec():
        logger.warning("The set holds %s; remove its folder to get the default, %s.", existing, ShapesSpec())
    return version == VERSION and spec in (None, existing)


def _write(folder: Path, spec: ShapesSpec) -> None:
    logger.info("Writing the synthetic set %s (%d + %d pictures) ...", folder, spec.train, spec.val)
    start = time.perf_counter()
    fresh = folder.with_name(f".{NAME}-new")
    write_set(fresh, spec)
    (fresh / MARKER).write_text(json.dumps({"version": VERSION, **spec._asdict()}))
    if folder.exists():
        folder.rename(folder.with_name(f".{NAME}-old"))
    fresh.rename(folder)
    shutil.rmtree(folder.with_name(f".{NAME}-old"), ignore_errors=True)
    logger.info("Wrote %s in %.1f s", folder, time.perf_counter() - start)


def register(root: str | Path | None = None, spec: ShapesSpec | None = None) -> None:
    """Register shapes_{sem_seg,panoptic,instance}_{train,val}; nothing is written before a set is asked for.

    Calling it again replaces what was registered before, see `register_published`.

    Args:
        root: folder of all data sets; None is `datasets_root()`.
        spec: as for `ensure_set`.
    """
    root = datasets_root() if root is None else Path(root).expanduser()
    for task in ("sem_seg", "panoptic", "instance"):
        for split in ("train", "val"):
            load = functools.partial(_load, root, spec, task, split)
            register_published(f"shapes_{task}_{split}", load, set_metadata(root / NAME, task, split))


def _load(root: Path, spec: ShapesSpec | None, task: str, split: str) -> list[Entry]:
    name, metadata = f"shapes_{task}_{split}", set_metadata(ensure_set(root, spec), "panoptic", split)
    if task == "instance":
        return load_instances(name, metadata)
    entries = load_panoptic(name, metadata)
    if task == "sem_seg":
        for entry in entries:
            del entry["pan_seg_file_name"], entry["segments_info"]
    return entries


def set_metadata(folder: Path, task: str, split: str) -> dict[str, Any]:
    """Return every metadata key that mappers, evaluators and visualisers read for this task.

    Contiguous classes are things first, then stuff. `thing_classes` lists the things only, as Detectron2's
    COCOEvaluator demands; `stuff_classes` and the stuff id map list all classes, since semantic evaluation
    and drawing look up every class there. Only `thing_dataset_id_to_contiguous_id` says what is a thing.
    """
    evaluators = {"sem_seg": "sem_seg", "panoptic": "shapes_panoptic_seg", "instance": "coco"}
    keys: dict[str, Any] = {
        "evaluator_type": evaluators[task],
        "image_root": str(folder / "images" / split),
        "ignore_label": VOID_LABEL,
    }
    if task != "sem_seg":
        keys |= instance_metadata(CLASSES[:THING_COUNT])
        keys["json_file"] = str(folder / f"annotations/instances_{split}.json")
    if task != "instance":
        keys |= {key.replace("thing", "stuff"): value for key, value in instance_metadata(CLASSES).items()}
        keys["sem_seg_root"] = str(folder / "sem_seg" / split)
    if task == "panoptic":
        keys["panoptic_root"] = str(folder / "panoptic" / split)
        keys["panoptic_json"] = str(folder / f"annotations/panoptic_{split}.json")
        keys["label_divisor"] = 1000
    return keys
