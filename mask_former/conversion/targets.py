"""Weights in our names, written as a checkpoint, in the published layout, or as a Hugging Face folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from safetensors.torch import save_file

from mask_former.checkpoint.atomic_writing import save_atomically, save_safetensors
from mask_former.conversion.hugging_face_config import model_config, processor_config
from mask_former.conversion.hugging_face_names import to_hugging_face
from mask_former.conversion.published import to_published, write_pickle
from mask_former.conversion.renaming import State
from mask_former.formats import replacing

TARGETS = ("checkpoint", "published", "hugging_face")


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
        save_safetensors(state, metadata, file)
    else:
        is_whole = any(name.startswith("sem_seg_head.") for name in state)
        note = {} if is_whole else {"matching_heuristics": True}  # for Detectron2's own loader
        save_atomically({"model": state, "__author__": author, "metadata": dict(metadata), **note}, file)


def write_published(state: State, author: str, no_object_weight: float, file: Path) -> None:
    """Write the layout of the release; a backbone alone as Detectron2 publishes them."""
    if any(name.startswith("sem_seg_head.") for name in state):
        write_pickle(to_published(state, no_object_weight), author, file)
    else:
        write_pickle(state, author, file, matching_heuristics=True)


def write_hugging_face(
    state: State, cfg: CfgNode, names: list[str], ignore_value: int, reduce_labels: bool, folder: Path
) -> None:
    """Write a folder that `from_pretrained` loads; other files in it stay."""
    files = {
        "config.json": model_config(cfg, names),
        "preprocessor_config.json": processor_config(cfg, ignore_value, reduce_labels),
    }
    renamed = to_hugging_face(state, cfg.MODEL.MASK_FORMER.NO_OBJECT_WEIGHT)
    theirs = {name: value.contiguous().clone() for name, value in renamed.items()}
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "model.safetensors") as partial:
        save_file(theirs, str(partial), {"format": "pt"})
    for name, content in files.items():
        with replacing(folder / name) as partial:
            partial.write_text(json.dumps(content, indent=2) + "\n")
