"""Files and folders of weights: tell their layout, read them in our names, and write them in any layout."""

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from torch import Tensor

from mask_former.checkpoint import read_checkpoint
from mask_former.checkpoint.checkpointer import save_safetensors, save_torch
from mask_former.checkpoint.description import class_names_of
from mask_former.checkpoint.fitting import HEAD, PIXEL_DECODER, current_names
from mask_former.conversion.backbones import (
    State,
    refuse_unknown,
    resnet_to_ours,
    swin_release_to_ours,
    timm_swin_to_ours,
)
from mask_former.conversion.hugging_face_config import (
    class_names,
    config_keys,
    model_config,
    processor_config,
)
from mask_former.conversion.hugging_face_names import from_hugging_face, to_hugging_face
from mask_former.formats import replacing

CLASSIFIER = f"{HEAD}predictor.class_embed.bias"
HUGGING_FACE_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
TITLES = {
    "mask_former": "MaskFormer",
    "published": "MaskFormer in the early names of the published files",
    "hugging_face": "Hugging Face MaskFormerForInstanceSegmentation",
    "resnet": "ResNet of torchvision or timm",
    "swin_release": "Swin release",
    "timm_swin": "Swin of timm",
    "backbone": "backbone in Detectron2's names",
}
BACKBONES = ("resnet", "swin_release", "timm_swin", "backbone")


class SourceWeights(NamedTuple):
    """Weights in our names, and what else is known.

    Fields:
        kind: a key of TITLES.
        original: the weights in the names of the file.
        state: the weights in our names; those of a backbone alone have no prefix.
        metadata: what the file says of itself, see `checkpoint.describe`; often empty.
        keys: config keys of the model, for folders that have them.
        names: class names, where known.
        author: who wrote the file, as Detectron2's files have it.
    """

    kind: str
    original: State
    state: State
    metadata: dict[str, Any]
    keys: dict[str, Any]
    names: list[str]
    author: str

    @property
    def is_backbone(self) -> bool:
        """Whether there is no head."""
        return self.kind in BACKBONES


def read_source(path: Path, allow_unsafe: bool = False) -> SourceWeights:
    """Return the weights of a file or a folder of Hugging Face's."""
    if path.is_dir():
        return _read_folder(path, allow_unsafe)
    data = read_checkpoint(path, allow_unsafe)
    original = {name.removeprefix("module."): value for name, value in data["model"].items()}
    metadata = data.get("metadata", {})
    named = current_names(original)
    kind = kind_of(named)
    if kind == "hugging_face":
        raise ValueError(
            f"{path} is the weight file of a Hugging Face model: give its folder, with config.json."
        )
    if kind == "mask_former" and named.keys() != original.keys():
        kind = "published"
    state = TO_OURS[kind](named)
    names = class_names_of(metadata) or []
    return SourceWeights(kind, original, state, metadata, {}, names, str(data.get("__author__", "")))


def kind_of(state: Mapping[str, Tensor]) -> str:
    """Return the kind of a state dict, a key of TITLES, by its names."""
    names = set(state)
    if any(name.startswith("model.pixel_level_module.") for name in names):
        return "hugging_face"
    if any(name.startswith(HEAD) for name in names):
        return "mask_former"
    if {"conv1.weight", "layer1.0.conv1.weight"} <= names:
        return "resnet"
    if {"stem.conv1.weight", "res2.0.conv1.weight"} <= names:
        return "backbone"
    if "patch_embed.proj.weight" in names:
        is_release = any(name.startswith("layers.0.downsample.") for name in names)
        return ("backbone" if "norm0.weight" in names else "swin_release") if is_release else "timm_swin"
    refuse_unknown(sorted(names), "a known layout's")
    raise ValueError("The file holds no weights.")


def _without_loss_weights(state: Mapping[str, Tensor]) -> State:
    return {name: value for name, value in state.items() if name != "criterion.empty_weight"}


TO_OURS: dict[str, Callable[[Mapping[str, Tensor]], State]] = {
    "mask_former": _without_loss_weights,
    "published": _without_loss_weights,
    "resnet": resnet_to_ours,
    "swin_release": swin_release_to_ours,
    "timm_swin": timm_swin_to_ours,
    "backbone": dict,
}


def _read_folder(folder: Path, allow_unsafe: bool) -> SourceWeights:
    config = _json(folder / "config.json", needed=True)
    processor = _json(folder / "preprocessor_config.json", needed=False)
    original = _read_shards(folder, allow_unsafe)
    keys = config_keys(config, processor)
    state = from_hugging_face(original)
    return SourceWeights(
        "hugging_face", original, state, {}, keys, class_names(config), "Hugging Face transformers"
    )


def _json(file: Path, needed: bool) -> dict[str, Any]:
    if not file.exists() and not needed:
        return {}
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{file.parent} has no {file.name}: expected a Hugging Face model."
        ) from error
    except ValueError as error:
        raise ValueError(f"{file} is no JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, expected an object.")
    return content


def _read_shards(folder: Path, allow_unsafe: bool) -> State:
    """Return the weights of a folder, in one file or several."""
    for name in HUGGING_FACE_WEIGHTS:
        index = _json(folder / f"{name}.index.json", needed=False)
        shards = sorted({Path(str(shard)).name for shard in index.get("weight_map", {}).values()})
        files = [folder / shard for shard in shards or [name]]
        if all(file.exists() for file in files):
            return {
                key: value
                for file in files
                for key, value in read_checkpoint(file, allow_unsafe)["model"].items()
            }
    raise FileNotFoundError(f"{folder} has none of {', '.join(HUGGING_FACE_WEIGHTS)}, nor all parts of one.")


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
