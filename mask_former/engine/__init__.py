"""Training and evaluation runs: trainer, training step, hooks, start of processes."""

from mask_former.engine.launch import launch
from mask_former.engine.run import RunOptions, main
from mask_former.engine.trainer import Trainer

__all__ = ["RunOptions", "Trainer", "launch", "main"]
