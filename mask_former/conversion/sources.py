"""Tell the layout of a file or folder of weights, and return its weights in our names."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from mask_former.checkpoint import read_checkpoint
from mask_former.checkpoint.description import class_names_of
from mask_former.checkpoint.fitting import HEAD, current_names
from mask_former.conversion.backbones import resnet_to_ours, swin_release_to_ours, timm_swin_to_ours
from mask_former.conversion.hugging_face_config import class_names, config_keys
from mask_former.conversion.hugging_face_names import from_hugging_face
from mask_former.conversion.renaming import State, refuse_unknown

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
