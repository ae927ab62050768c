"""Where data sets lie."""

import os
from pathlib import Path


def datasets_root() -> Path:
    """Return the folder that holds all data sets: $DETECTRON2_DATASETS, `~` allowed, or "datasets"."""
    return Path(os.environ.get("DETECTRON2_DATASETS") or "datasets").expanduser()
