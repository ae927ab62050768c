"""What a checkpoint says of itself under "metadata": written by `describe`, read by the other functions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from detectron2.config import CfgNode

from mask_former.checkpoint.reading import DamagedFileError, refuse_endless
from mask_former.config import load_config

# Raised when the meaning of an entry changes.
METADATA_FORMAT = 1
# Keys that say where and how a model was trained, not what it is. They are not written, and not obeyed in
# files that have them.
MACHINE_KEYS = (
    *("OUTPUT_DIR", "MODEL.DEVICE", "MODEL.WEIGHTS", "DATALOADER.NUM_WORKERS", "CUDNN_BENCHMARK"),
    *("DATASETS.PROPOSAL_FILES_TRAIN", "DATASETS.PROPOSAL_FILES_TEST", "DATASETS.FOLDER"),
)


def describe(
    cfg: CfgNode,
    dataset_metadata: Any = None,
    *,
    iteration: int | None = None,
    metrics: Mapping[str, Any] | None = None,
    licence: str = "",
) -> dict[str, Any]:
    """Return what a checkpoint should say of itself: plain dicts, lists, texts and numbers.

    Args:
        cfg: the configuration of the model.
        dataset_metadata: the catalog's entry of the training set, or None.
        iteration: training steps done; `Checkpointer.save` fills it in.
        metrics: scores of the weights, nested as evaluators return them.
        licence: of the weights, as a short name.

    Returns:
        "format", "config" (YAML, without MACHINE_KEYS), "class_names", "class_colors" (RGB, 0..255),
        "class_dataset_ids" (category ids in files of the data set), "thing_classes" (indices of classes with
        instances), "ignore_value", "iteration", "metrics" ("task/name" -> number) and "license". Lists are
        empty where nothing is known.
    """
    count = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    thing_map = getattr(dataset_metadata, "thing_dataset_id_to_contiguous_id", None) or {}
    return {
        "format": METADATA_FORMAT,
        "config": _without_machine_keys(cfg).dump(),
        "class_names": [str(name) for name in _of_classes(dataset_metadata, "classes", count)],
        "class_colors": [[int(v) for v in color] for color in _of_classes(dataset_metadata, "colors", count)],
        "class_dataset_ids": dataset_ids_of(dataset_metadata, count),
        "thing_classes": sorted(int(index) for index in thing_map.values()),
        "ignore_value": int(getattr(dataset_metadata, "ignore_label", cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)),
        "iteration": iteration,
        "metrics": flat_metrics(metrics or {}),
        "license": licence,
    }


def _without_machine_keys(cfg: CfgNode) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    for key in MACHINE_KEYS:
        path, _, name = key.rpartition(".")
        node = cfg.get(path, {}) if path else cfg
        if isinstance(node, CfgNode):
            node.pop(name, None)
    return cfg


def _of_classes(metadata: Any, what: str, count: int) -> Sequence[Any]:
    """Return names or colours of all classes: Detectron2 keeps them under `stuff_` or `thing_`, or split."""
    stuff, things = (list(getattr(metadata, f"{kind}_{what}", None) or []) for kind in ("stuff", "thing"))
    return next((choice for choice in (stuff, things, things + stuff) if len(choice) == count), [])


def dataset_ids_of(metadata: Any, count: int) -> list[int]:
    """Return the category id of each class by the id maps of a catalog entry; empty if not all have one."""
    ids: dict[int, int] = {}
    for key in ("stuff_dataset_id_to_contiguous_id", "thing_dataset_id_to_contiguous_id"):
        # Things last: ADE20K's stuff map holds them, too.
        ids |= {int(index): int(own) for own, index in (getattr(metadata, key, None) or {}).items()}
    if sorted(ids) != list(range(count)) or len(set(ids.values())) < count:
        return []
    return [ids[index] for index in range(count)]


def flat_metrics(metrics: Mapping[str, Any], path: str = "") -> dict[str, float]:
    """Return nested scores as "task/name" -> number."""
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            flat |= flat_metrics(value, f"{path}{name}/")
        elif isinstance(value, int | float | np.number):
            flat[f"{path}{name}"] = float(value)
    return flat


def class_names_of(metadata: Mapping[str, Any]) -> list[str] | None:
    """Return the class names that a file's metadata hold, or None."""
    names = metadata.get("class_names")
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if is_list and names else None


def described_config(metadata: Mapping[str, Any], file: str | Path = "The file") -> CfgNode | None:
    """Return the configuration in a file's metadata over the defaults, or None; errors name `file`."""
    text = metadata.get("config")
    if not isinstance(text, str) or not text:
        return None
    if metadata.get("format") not in (None, METADATA_FORMAT):
        raise ValueError(f"{file} was written by a newer version of mask_former: update it to read the file.")
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise DamagedFileError(
            f"{file} has a configuration in its metadata that is no YAML ({error})."
        ) from error
    refuse_endless(content, f"configuration ({file})")
    if not isinstance(content, dict):
        return None
    cfg = load_config()
    try:
        cfg.merge_from_other_cfg(_without_machine_keys(CfgNode(content)))
    except (KeyError, ValueError, AttributeError, TypeError, AssertionError) as error:
        raise ValueError(
            f"{file} describes its model with a configuration that does not fit this version ({error}); "
            "give a configuration of this version (Predictor.from_config, --config-file)."
        ) from error
    return cfg
