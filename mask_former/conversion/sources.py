"""What a file or folder of weights is, and its weights in our names."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from mask_former.checkpoint import read_checkpoint
from mask_former.checkpoint.description import class_names_of
from mask_former.conversion.backbones import resnet_to_ours, swin_release_to_ours, timm_swin_to_ours
from mask_former.conversion.hugging_face_config import class_names, config_keys
from mask_former.conversion.hugging_face_names import from_hugging_face
from mask_former.conversion.published import from_published
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


class Source(NamedTuple):
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


def read_source(path: Path, allow_unsafe: bool = False) -> Source:
    """Return the weights of a file or a folder of Hugging Face's."""
    if path.is_dir():
        return _read_folder(path, allow_unsafe)
    data = read_checkpoint(path, allow_unsafe)
    original = dict(data["model"])
    if original and all(name.startswith("module.") for name in original):
        original = {name.removeprefix("module."): value for name, value in original.items()}
    metadata = data.get("metadata", {})
    kind = kind_of(original)
    if kind == "hugging_face":
        raise ValueError(
            f"{path} is the weight file of a Hugging Face model: give its folder, with config.json."
        )
    state = TO_OURS[kind](original)
    names = class_names_of(metadata) or []
    return Source(kind, original, state, metadata, {}, names, str(data.get("__author__", "")))


def kind_of(state: Mapping[str, Tensor]) -> str:
    """Return the kind of a state dict, a key of TITLES, by its names."""
    names = set(state)
    if any(name.startswith("model.pixel_level_module.") for name in names):
        return "hugging_face"
    if any(name.startswith("sem_seg_head.") for name in names):
        inner = ("sem_seg_head.pixel_decoder.", "sem_seg_head.predictor.")
        is_early = any(name.startswith("sem_seg_head.") and not name.startswith(inner) for name in names)
        return "published" if is_early else "mask_former"
    if {"conv1.weight", "layer1.0.conv1.weight"} <= names:
        return "resnet"
    if {"stem.conv1.weight", "res2.0.conv1.weight"} <= names:
        return "backbone"
    if "patch_embed.proj.weight" in names:
        is_release = any(name.startswith("layers.0.downsample.") for name in names)
        return ("backbone" if "norm0.weight" in names else "swin_release") if is_release else "timm_swin"
    refuse_unknown(sorted(names), "a known layout's")
    raise ValueError("The file holds no weights.")


def _same(state: Mapping[str, Tensor]) -> State:
    return dict(state)


TO_OURS = {
    "mask_former": from_published,
    "published": from_published,
    "resnet": resnet_to_ours,
    "swin_release": swin_release_to_ours,
    "timm_swin": timm_swin_to_ours,
    "backbone": _same,
}


def _read_folder(folder: Path, allow_unsafe: bool) -> Source:
    config = _json(folder / "config.json", needed=True)
    processor = _json(folder / "preprocessor_config.json", needed=False)
    original = _read_shards(folder, allow_unsafe)
    keys = config_keys(config, processor)
    state = from_hugging_face(original)
    return Source("hugging_face", original, state, {}, keys, class_names(config), "Hugging Face transformers")


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
