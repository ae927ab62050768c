"""The checkpointer of every entry point: safe reading, one report of what did not fit, whole writing.

What is written describes itself: besides the weights it holds what is needed to predict with them, as
plain texts and numbers under "metadata" (see `describe`).
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.config import CfgNode
from torch import nn

from mask_former.checkpoint.atomic_writing import replacing, save_atomically, save_safetensors
from mask_former.checkpoint.reading import read_checkpoint, refuse_endless
from mask_former.checkpoint.unpickling import DamagedFileError
from mask_former.checkpoint.weight_fitting import LoadReport, fit_weights
from mask_former.checkpoint.weights import resolve

logger = logging.getLogger(__name__)

# Raised when the meaning of an entry of the metadata changes.
METADATA_FORMAT = 1
# Ours have some thousand values, most of them names and colours of classes.
MAX_METADATA_VALUES = 100_000


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, with safe reading, a report, and self-describing files written whole.

    Attributes:
        metadata: what is written beside the weights; entries may be changed at any time.
        report: what became of the last file that was loaded, None before.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        metadata: Mapping[str, Any] | None = None,
        strict: bool = False,
        allow_unsafe: bool = False,
        **checkpointables: Any,
    ) -> None:
        """Prepare to load and save.

        Args:
            model: the model, wrapped for several processes or not.
            save_dir: folder of the checkpoints.
            save_to_disk: by default, only the main process writes.
            metadata: see `describe`; its "class_names" carry classifier rows over by name.
            strict: raise ValueError unless the model then holds the file's weights, all of them.
            allow_unsafe: read pickles without restriction, which runs whatever code a file names.
            checkpointables: what else is saved and resumed: objects with `state_dict` and `load_state_dict`.
        """
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.metadata: dict[str, Any] = dict(metadata or {})
        self.strict = strict
        self.allow_unsafe = allow_unsafe
        self.report: LoadReport | None = None
        self._source = ""

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a file (a path, URL or `detectron2://` name) and return what it holds besides the weights."""
        if not path:
            return super().load(path, *args, **kwargs)
        return super().load(str(resolve(path)), *args, **kwargs)

    def save(self, name: str, tag_last: bool = True, **extra: Any) -> None:
        """Write `name`.pth: the model, everything that is to be resumed, the metadata and `extra`.

        With `tag_last`, a resumed run starts from this file.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: item.state_dict() for key, item in self.checkpointables.items()}
        data = {"model": self.model.state_dict(), **states, **extra, **self._described(extra)}
        file = Path(self.save_dir) / f"{name}.pth"
        self.logger.info("Saving checkpoint to %s", file)
        save_atomically(data, file)
        if tag_last:
            self.tag_last_checkpoint(file.name)

    def save_weights(self, file: str | Path) -> None:
        """Write the weights and the metadata alone, as .safetensors or .pth by the file's name."""
        file = Path(file)
        state = self.model.state_dict()
        if file.suffix == ".safetensors":
            save_safetensors(state, self.metadata, file)
        else:
            save_atomically({"model": state, **self._described({})}, file)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Make `--resume` start from this file of the folder."""
        with replacing(Path(self.save_dir) / "last_checkpoint") as partial:
            partial.write_text(last_filename_basename)

    def _described(self, extra: Mapping[str, Any]) -> dict[str, Any]:
        if not self.metadata:
            return {}
        progress = {"iteration": int(extra["iteration"])} if "iteration" in extra else {}
        return {"metadata": {**self.metadata, **progress}}

    def _load_file(self, filename: str) -> dict[str, Any]:
        self._source = filename
        return read_checkpoint(filename, self.allow_unsafe)

    def _load_model(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint.pop("model")
        if checkpoint.get("__author__") == "Caffe2":
            state = align_and_update_state_dicts(self.model.state_dict(), state, c2_conversion=True)
        fitted, self.report = fit_weights(
            state,
            self.model,
            source=self._source,
            file_classes=described_classes(checkpoint.get("metadata", {})),
            model_classes=described_classes(self.metadata),
        )
        if self.strict and not self.report.is_complete:
            raise ValueError(
                f"Not every entry fits, and loading is strict (leave out --strict to accept).\n{self.report}"
            )
        self.model.load_state_dict(fitted, strict=False)
        logger.log(logging.INFO if self.report.is_complete else logging.WARNING, "%s", self.report)


def described_config(metadata: Mapping[str, Any]) -> CfgNode | None:
    """Return the configuration that a file's metadata hold, or None. It is plain data, of bounded size."""
    text = metadata.get("config")
    if not isinstance(text, str) or not text:
        return None
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise DamagedFileError(f"The configuration in the file's metadata is no YAML ({error}).") from error
    refuse_endless(content, "The configuration in the file's metadata")
    return CfgNode(content) if isinstance(content, dict) else None


def described_classes(metadata: Mapping[str, Any]) -> list[str] | None:
    """Return the class names that a file's metadata hold, or None."""
    names = metadata.get("class_names")
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if is_list and names else None


def dataset_ids_of(metadata: Any, count: int) -> list[int]:
    """Return the category id of each class by the id maps of a catalogue entry; empty if not all have one."""
    ids: dict[int, int] = {}
    for key in ("stuff_dataset_id_to_contiguous_id", "thing_dataset_id_to_contiguous_id"):
        # Things last: ADE20K's stuff map holds them, too.
        ids |= {int(index): int(own) for own, index in (getattr(metadata, key, None) or {}).items()}
    if sorted(ids) != list(range(count)) or len(set(ids.values())) < count:
        return []
    return [ids[index] for index in range(count)]


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
        "format", "config" (YAML), "class_names", "class_colors" (RGB, 0..255), "class_dataset_ids" (category
        ids in files of the data set), "thing_classes" (indices of classes with instances), "ignore_value",
        "pixel_mean", "pixel_std", "input_format", "thresholds", "iteration", "metrics" ("task/name" ->
        number) and "license". Lists are empty where nothing is known.
    """
    count = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    test = cfg.MODEL.MASK_FORMER.TEST
    thing_map = getattr(dataset_metadata, "thing_dataset_id_to_contiguous_id", None) or {}
    return {
        "format": METADATA_FORMAT,
        "config": cfg.dump(),
        "class_names": [str(name) for name in _of_classes(dataset_metadata, "classes", count)],
        "class_colors": [[int(v) for v in color] for color in _of_classes(dataset_metadata, "colors", count)],
        "class_dataset_ids": dataset_ids_of(dataset_metadata, count),
        "thing_classes": sorted(int(index) for index in thing_map.values()),
        "ignore_value": int(getattr(dataset_metadata, "ignore_label", cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)),
        "pixel_mean": [float(value) for value in cfg.MODEL.PIXEL_MEAN],
        "pixel_std": [float(value) for value in cfg.MODEL.PIXEL_STD],
        "input_format": str(cfg.INPUT.FORMAT),
        "thresholds": {
            "object_mask": float(test.OBJECT_MASK_THRESHOLD),
            "overlap": float(test.OVERLAP_THRESHOLD),
        },
        "iteration": iteration,
        "metrics": flat_metrics(metrics or {}),
        "license": licence,
    }


def flat_metrics(metrics: Mapping[str, Any], path: str = "") -> dict[str, float]:
    """Return nested scores as "task/name" -> number, for `Checkpointer.metadata["metrics"]`."""
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            flat |= flat_metrics(value, f"{path}{name}/")
        elif isinstance(value, int | float | np.number):
            flat[f"{path}{name}"] = float(value)
    return flat


def _of_classes(metadata: Any, what: str, count: int) -> Sequence[Any]:
    """Return names or colours of all classes: Detectron2 keeps them under `stuff_` or `thing_`, or split."""
    stuff, things = (list(getattr(metadata, f"{kind}_{what}", None) or []) for kind in ("stuff", "thing"))
    choices = (stuff, things, things + stuff)
    return next((choice for choice in choices if len(choice) == count), [])
