"""Write weight files atomically, see `formats.replacing`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mask_former.checkpoint.reading import METADATA_KEY
from mask_former.formats import replacing


def save_torch(data: Mapping[str, Any], file: Path) -> None:
    """Write anything that `torch.save` can write."""
    with replacing(file) as partial:
        torch.save(data, partial)


def save_safetensors(
    state: Mapping[str, Tensor], file: Path, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write weights, and metadata as JSON under one key of the header."""
    # The format holds no views into shared memory.
    tensors = {name: value.detach().contiguous().clone() for name, value in state.items()}
    header = {} if metadata is None else {METADATA_KEY: json.dumps(metadata)}
    with replacing(file) as partial:
        save_file(tensors, str(partial), {"format": "pt", **header})
