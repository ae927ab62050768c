"""Training and evaluation runs: trainer, training step, hooks, start of processes."""

from mask_former.engine.launch import launch
from mask_former.engine.run import argument_parser, main
from mask_former.engine.trainer import Trainer

__all__ = ["Trainer", "argument_parser", "launch", "main"]
