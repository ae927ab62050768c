"""Training and evaluation runs: trainer, step, hooks, and the start of their processes."""

from mask_former.engine.launch import launch
from mask_former.engine.trainer import Trainer, main

__all__ = ["Trainer", "launch", "main"]
