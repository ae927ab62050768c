"""Records of failed training steps, from which `mask_former.replay` runs them again without the data set."""

import logging
import platform
import shutil
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import detectron2
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances
from detectron2.utils import comm
from torch import Tensor

from mask_former.checkpoint import describe
from mask_former.checkpoint.checkpointer import save_torch

logger = logging.getLogger(__name__)

FOLDER = "failed_steps"
# Marks a dict of a record that stands for Detectron2's Instances.
INSTANCES = "instances of size"


class StepRecorder:
    """Writes a record of a failed step under OUTPUT_DIR, and keeps the newest ones.

    It costs nothing until a step fails. Never raises, so that the error of the step is not hidden.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg
        self.folder = Path(cfg.OUTPUT_DIR) / FOLDER

    def record(self, step: Any, batch: list[dict[str, Any]] | None, error: Exception, moment: str) -> None:
        """Write the record of a step.

        Args:
            step: the `TrainStep`; its weights and optimizer are recorded as they are now.
            batch: what the step was run on; None: nothing is recorded.
            error: what ended it.
            moment: "before the update" or "after the update", which the weights are of.
        """
        if not batch or self.cfg.SOLVER.FAILED_STEPS_KEPT < 1:
            return
        try:
            file = self._write(step, batch, error, moment)
        except Exception as failure:  # a full disk, a broken device
            logger.warning("The failed step could not be recorded: %s", str(failure)[:300])
            return
        logger.warning("The failed step is in %s: python -m mask_former.replay %s runs it again", file, file)

    def _write(self, step: Any, batch: list[dict[str, Any]], error: Exception, moment: str) -> Path:
        cfg = self.cfg
        metadata = describe(cfg, MetadataCatalog.get(cfg.DATASETS.TRAIN[0]) if cfg.DATASETS.TRAIN else None)
        content = {
            "metadata": metadata,
            "model": {name.removeprefix("module."): v for name, v in step.model.state_dict().items()},
            "batch": [plain(picture) for picture in batch],
            "grad_scaler": step.grad_scaler.state_dict(),
            "failure": {
                "iteration": step.iter,
                "moment": moment,
                "error": f"{type(error).__name__}: {error}",
                "traceback": "".join(traceback.format_exception(error))[-20_000:],
                "step_seed": step.last_seed,
                "accumulate": step.accumulate,
                "rank": comm.get_rank(),
                "processes": comm.get_world_size(),
            },
            "versions": {
                "python": platform.python_version(),
                "torch": str(torch.__version__),
                "detectron2": detectron2.__version__,
                "device": str(next(step.model.parameters()).device),
            },
        }
        optimizer = step.optimizer.state_dict()
        self.folder.mkdir(parents=True, exist_ok=True)
        if size_of([content, optimizer]) < shutil.disk_usage(self.folder).free // 2:
            content["optimizer"] = optimizer
        file = self.folder / f"step_{step.iter:07d}_rank{comm.get_rank()}.pth"
        save_torch(content, file)
        own = sorted(
            self.folder.glob(f"step_*_rank{comm.get_rank()}.pth"), key=lambda f: f.stat().st_mtime_ns
        )
        for old in own[: -cfg.SOLVER.FAILED_STEPS_KEPT]:
            old.unlink()
        return file


def size_of(content: Any) -> int:
    """Return the bytes of all tensors in a tree."""
    if isinstance(content, Tensor):
        return content.nbytes
    parts = content.values() if isinstance(content, Mapping) else content
    return sum(map(size_of, parts)) if isinstance(content, Mapping | list | tuple) else 0


def plain(value: Any) -> Any:
    """Return a part of a sample as tensors, numbers, texts, lists and dicts; others by type name."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, Instances):
        return {
            INSTANCES: list(value.image_size),
            **{name: plain(v) for name, v in value.get_fields().items()},
        }
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool):
        return value
    # Of NumPy's numbers and of subclasses, what they are.
    kind = next((kind for kind in (int, float, str) if isinstance(value, kind)), None)
    return kind(value) if kind else f"a {type(value).__name__}, not recorded"


def restored(value: Any) -> Any:
    """Return the sample of which `plain` made this, without what was not recorded."""
    if isinstance(value, dict) and INSTANCES in value:
        fields = {name: item for name, item in value.items() if isinstance(item, Tensor)}
        return Instances(tuple(value[INSTANCES]), **fields)
    return {name: restored(item) for name, item in value.items()} if isinstance(value, dict) else value
