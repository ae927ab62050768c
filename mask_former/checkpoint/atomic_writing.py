"""Weight files that are written whole or not at all."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mask_former.checkpoint.reading import METADATA_KEY
from mask_former.formats import replacing


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
