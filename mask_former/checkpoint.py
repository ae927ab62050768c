"""Checkpoints: what is written is written whole, or not at all."""

import os
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, with atomic writing."""

    def save(self, name: str, tag_last: bool = True, **extra: Any) -> None:
        """Write `name`.pth: the model, everything that is to be resumed, and `extra`.

        With `tag_last`, a resumed run starts from this file.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: item.state_dict() for key, item in self.checkpointables.items()}
        file = Path(self.save_dir) / f"{name}.pth"
        self.logger.info("Saving checkpoint to %s", file)
        save_atomically({"model": self.model.state_dict(), **states, **extra}, file)
        if tag_last:
            self.tag_last_checkpoint(file.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Make `--resume` start from this file of the folder."""
        with _replacing(Path(self.save_dir) / "last_checkpoint") as partial:
            partial.write_text(last_filename_basename)


def save_atomically(data: dict[str, Any], file: Path) -> None:
    """Write a checkpoint so that at any moment either the old file is there or the new one, complete."""
    with _replacing(file) as partial:
        torch.save(data, partial)


class _replacing:  # noqa: N801  (a context manager, used like a function)
    """Gives a path to write to, and puts what was written in the place of `file`."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.partial = file.with_name(f".{file.name}.{os.getpid()}.partial")

    def __enter__(self) -> Path:
        return self.partial

    def __exit__(self, error: Any, *_: Any) -> None:
        if error is not None:
            self.partial.unlink(missing_ok=True)
            return
        with self.partial.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(self.partial, self.file)
