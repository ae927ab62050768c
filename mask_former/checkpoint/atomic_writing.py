"""Files that are written whole, or not at all."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mask_former.checkpoint.reading import METADATA_KEY

# Leftovers of writers that were killed are removed when they are older than this, in seconds.
STALE_AFTER = 600


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Give a path to write to, and put what was written there in the place of `file`.

    At any moment either the old file is there or the new one, complete; also after a loss of power.
    """
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    _remove_leftovers(file)
    try:
        yield partial
        _flush(partial)
        os.replace(partial, file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _flush(file.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some file systems flush no folders
            raise
    finally:
        os.close(descriptor)


def _remove_leftovers(file: Path) -> None:
    for leftover in file.parent.glob(f".{file.name}.*.partial"):
        with suppress(OSError):  # another process may be removing it, too
            if time.time() - leftover.stat().st_mtime > STALE_AFTER:
                leftover.unlink()


def save_atomically(data: dict[str, Any], file: Path) -> None:
    """Write what `torch.save` can write, see `replacing`."""
    with replacing(file) as partial:
        torch.save(data, partial)


def save_safetensors(state: Mapping[str, Tensor], metadata: Mapping[str, Any], file: Path) -> None:
    """Write weights, and metadata as JSON under one key of the header; see `replacing`."""
    # The format holds no views into shared memory.
    tensors = {name: value.detach().contiguous().clone() for name, value in state.items()}
    with replacing(file) as partial:
        save_file(tensors, str(partial), {"format": "pt", METADATA_KEY: json.dumps(metadata)})
