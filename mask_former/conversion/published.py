"""The layout of the published models: early names, numpy arrays, Detectron2's pickle."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mask_former.conversion.renaming import State
from mask_former.formats import replacing

HEAD = "sem_seg_head."
PIXEL_DECODER = f"{HEAD}pixel_decoder."
EMPTY_WEIGHT = "criterion.empty_weight"
CLASSIFIER = f"{HEAD}predictor.class_embed.bias"


def to_published(state: Mapping[str, Tensor], no_object_weight: float = 0.1) -> State:
    """Return a model in the names of the release, which hold the pixel decoder's under the head itself."""
    result = {re.sub(f"^{re.escape(PIXEL_DECODER)}", HEAD, name): value for name, value in state.items()}
    if CLASSIFIER in state and EMPTY_WEIGHT not in state:
        weights = torch.ones(len(state[CLASSIFIER]))
        weights[-1] = no_object_weight
        result[EMPTY_WEIGHT] = weights
    return result


def from_published(state: Mapping[str, Tensor]) -> State:
    """Return a model of the release, in early or later names, in ours."""
    result: State = {}
    for name, value in state.items():
        inner = name.removeprefix(HEAD)
        is_early = inner != name and not inner.startswith(("pixel_decoder.", "predictor."))
        if name != EMPTY_WEIGHT:
            result[PIXEL_DECODER + inner if is_early else name] = value
    return result


def write_pickle(state: Mapping[str, Tensor], author: str, file: Path, **extra: Any) -> None:
    """Write Detectron2's pickle: numpy arrays under "model", beside them "__author__" and `extra`."""
    arrays = {
        name: (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        for name, value in state.items()
    }
    with replacing(file) as partial, partial.open("wb") as stream:
        pickle.dump({"model": arrays, "__author__": author, **extra}, stream, protocol=4)
