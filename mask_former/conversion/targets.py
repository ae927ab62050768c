"""Write weights in our names as a checkpoint, in the published layout, or as a Hugging Face folder."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor

from mask_former.checkpoint.fitting import HEAD, PIXEL_DECODER
from mask_former.checkpoint.writing import save_safetensors, save_torch
from mask_former.conversion.hugging_face_config import model_config, processor_config
from mask_former.conversion.hugging_face_names import to_hugging_face
from mask_former.conversion.renaming import State
from mask_former.formats import replacing

CLASSIFIER = f"{HEAD}predictor.class_embed.bias"


def target_of(path: Path) -> str:
    """Return what a destination asks for: a file's ending tells, and a name without one is a folder."""
    if path.suffix == ".pkl":
        return "published"
    if path.suffix in (".pth", ".pt", ".safetensors"):
        return "checkpoint"
    if path.suffix and not path.is_dir():
        raise ValueError(f"{path}: expected .pth, .safetensors, .pkl (the published layout), or a folder.")
    return "hugging_face"


def write_checkpoint(state: State, metadata: Mapping[str, Any], author: str, file: Path) -> None:
    """Write our form; a backbone alone finds its place in a model when it is loaded."""
    if file.suffix == ".safetensors":
        save_safetensors(state, file, metadata)
    else:
        is_whole = any(name.startswith(HEAD) for name in state)
        note = {} if is_whole else {"matching_heuristics": True}  # for Detectron2's own loader
        save_torch({"model": state, "__author__": author, "metadata": dict(metadata), **note}, file)


def to_published(state: Mapping[str, Tensor], no_object_weight: float = 0.1) -> State:
    """Return a model in the early names, which have the pixel decoder's entries under the head itself."""
    result = {name.replace(PIXEL_DECODER, HEAD, 1): value for name, value in state.items()}
    if CLASSIFIER in state:
        weights = torch.ones(len(state[CLASSIFIER]))
        weights[-1] = no_object_weight
        result.setdefault("criterion.empty_weight", weights)
    return result


def write_published(state: State, author: str, no_object_weight: float, file: Path) -> None:
    """Write Detectron2's pickle of numpy arrays, a whole model in the layout of the release."""
    is_whole = any(name.startswith(HEAD) for name in state)
    tensors = to_published(state, no_object_weight) if is_whole else state
    arrays = {
        name: (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        for name, value in tensors.items()
    }
    note = {} if is_whole else {"matching_heuristics": True}
    with replacing(file) as partial, partial.open("wb") as stream:
        pickle.dump({"model": arrays, "__author__": author, **note}, stream, protocol=4)


def write_hugging_face(
    state: State, cfg: CfgNode, names: list[str], ignore_value: int, reduce_labels: bool, folder: Path
) -> None:
    """Write a folder that `from_pretrained` loads; other files in it stay."""
    files = {
        "config.json": model_config(cfg, names),
        "preprocessor_config.json": processor_config(cfg, ignore_value, reduce_labels),
    }
    folder.mkdir(parents=True, exist_ok=True)
    no_object_weight = cfg.MODEL.MASK_FORMER.NO_OBJECT_WEIGHT
    save_safetensors(to_hugging_face(state, no_object_weight), folder / "model.safetensors")
    for name, content in files.items():
        with replacing(folder / name) as partial:
            partial.write_text(json.dumps(content, indent=2) + "\n")
