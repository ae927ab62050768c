"""Weight files: found by name, read safely, fitted to a model with one report, written whole."""

from mask_former.checkpoint.checkpointer import (
    Checkpointer,
    dataset_ids_of,
    describe,
    described_classes,
    described_config,
    flat_metrics,
    read_checkpoint,
)

__all__ = [
    "Checkpointer",
    "dataset_ids_of",
    "describe",
    "described_classes",
    "described_config",
    "flat_metrics",
    "read_checkpoint",
]
