"""Training and evaluation runs: trainer, step, hooks, and the start of their processes."""

from mask_former.engine.arguments import argument_parser
from mask_former.engine.launch import launch
from mask_former.engine.trainer import Trainer, main

__all__ = ["Trainer", "argument_parser", "launch", "main"]
