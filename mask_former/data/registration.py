"""The folder of all data sets, and the registration of this package's sets in Detectron2's catalogs."""

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import builtin

logger = logging.getLogger(__name__)

Load = Callable[[], list[dict[str, Any]]]
_registered: dict[str, Load] = {}  # what this package registered


def datasets_root() -> Path:
    """Return the folder that holds all data sets: $DETECTRON2_DATASETS, `~` allowed, or "datasets"."""
    return Path(os.environ.get("DETECTRON2_DATASETS") or "datasets").expanduser()


def register_published(name: str, load: Load, metadata: Mapping[str, Any]) -> None:
    """Register a set of this package in place of Detectron2's own or of an earlier registration by this one.

    A set that the user registered under the same name stays. The metadata object of a replaced set stays
    too, with new content, since others may hold it.
    """
    if name in DatasetCatalog and not (
        DatasetCatalog.data[name] is _registered.get(name) or _is_detectron2s(name)
    ):
        logger.info("Data set %s is registered already, not by this package: it stays as it is.", name)
        return
    DatasetCatalog.pop(name, None)
    DatasetCatalog.register(name, load)
    _registered[name] = load
    entry = MetadataCatalog.get(name)
    for key in set(entry.as_dict()) - {"name"}:
        delattr(entry, key)
    entry.set(**metadata)


def _is_detectron2s(name: str) -> bool:
    """Tell whether a set is one that Detectron2 registers when imported.

    A user may register the same name by the same functions of Detectron2, but with other folders.
    """
    if not DatasetCatalog.data[name].__module__.startswith("detectron2.data.datasets."):
        return False
    metadata = MetadataCatalog.get(name).as_dict()
    folder = metadata.get("image_root") or metadata.get("image_dir") or ""
    return folder.startswith(os.path.join(builtin._root, ""))
