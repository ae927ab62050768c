"""Weight files: located by name, read safely, fitted to a model with one report, written atomically."""

from mask_former.checkpoint.checkpointer import Checkpointer, checkpoints_in
from mask_former.checkpoint.description import describe, described_config, flat_metrics
from mask_former.checkpoint.locating import resolve
from mask_former.checkpoint.reading import read_checkpoint, read_metadata

__all__ = [
    "Checkpointer",
    "checkpoints_in",
    "describe",
    "described_config",
    "flat_metrics",
    "read_checkpoint",
    "read_metadata",
    "resolve",
]
