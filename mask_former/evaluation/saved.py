"""What predictions in a file are, and whether they are of the true pictures."""

import json
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog

from .ground_truth import metadata_value

logger = logging.getLogger(__name__)

Scores = dict[str, dict[str, float]]  # task -> metric -> value in percent


def load_json(path: Path) -> Any:
    """Return what a JSON file holds."""
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is not JSON ({error}); is it cut off?") from error


def kind_of_predictions(path: Path) -> str:
    """Return "labels" for a folder, and for JSON "panoptic", "instances" or "semantic", by its content."""
    if path.is_dir():
        return "labels"
    content = load_json(path)
    if isinstance(content, dict) and "annotations" in content:
        return "panoptic"
    entry = content[0] if isinstance(content, list) and content else None
    if isinstance(entry, dict) and "score" in entry:
        return "instances"
    if isinstance(entry, dict) and {"file_name", "category_id", "segmentation"} <= entry.keys():
        return "semantic"
    raise ValueError(
        f"{path}: expected panoptic predictions (an object with 'annotations'), COCO results (a list of "
        "objects with 'score') or sem_seg_predictions.json (a list of objects with 'file_name', "
        "'category_id' and 'segmentation'); name the kind with --task if it is one of them without entries."
    )


def dataset_file(dataset_name: str, key: str) -> Path:
    """Return a file or folder that the catalog names for a data set."""
    return Path(metadata_value(MetadataCatalog.get(dataset_name), key, "needed for this task"))


def require_all(truths: Collection[Any], guesses: Collection[Any], predictions: Path) -> None:
    """Refuse a score over a part of the pictures."""
    missing = [key for key in truths if key not in guesses]
    if missing:
        raise ValueError(
            f"{predictions}: {len(missing)} of {len(truths)} true pictures have no prediction, "
            f"the first {missing[0]}; is it the ground truth of another split?"
        )
    if len(guesses) > len(truths):
        logger.warning(
            "%s: %d predictions are of pictures without ground truth and do not count.",
            predictions, len(guesses) - len(truths),
        )  # fmt: skip
