"""Weights that a run starts from, by whatever name a user knows them."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.utils import comm

from mask_former import model_zoo
from mask_former.checkpoint import described_config, read_checkpoint, resolve
from mask_former.checkpoint.fitting import HEAD
from mask_former.config import load_config
from mask_former.conversion.backbones import UnknownLayoutError, describe_backbone
from mask_former.conversion.files import TO_OURS, SourceWeights, read_source, write_checkpoint

# Kinds of files that the checkpointer cannot load as they are.
CONVERTED = (*TO_OURS, "hugging_face")


class StartWeights(NamedTuple):
    """A file that the checkpointer loads, and what it says of its model.

    is_whole: whether they are of a whole model, not of a backbone alone.
    cfg: configuration of a whole model; None if the file does not hold it.
    backbone: configuration keys of a backbone alone, where its layout is known.
    """

    file: Path
    is_whole: bool
    cfg: CfgNode | None = None
    backbone: Mapping[str, Any] = MappingProxyType({})


def find_weights(name: str, folder: Path, allow_unsafe: bool = False, is_timm: bool = False) -> StartWeights:
    """Return weights by name.

    Args:
        name: a path, URL or detectron2:// name of a checkpoint or of a backbone's file, a folder of Hugging
            Face's, or a name in the zoo.
        folder: where weights of another layout are written in ours, as start_weights.pth.
        allow_unsafe: read pickles without restriction.
        is_timm: the backbone is timm's, so that its own files are loaded as they are.
    """
    path = Path(name).expanduser()
    if not path.exists() and not path.suffix and "://" not in name:
        return StartWeights(model_zoo.weights_file(name), True, model_zoo.get_config(name))
    path = path if path.is_dir() else resolve(name)
    as_it_is = _as_it_is(path, allow_unsafe) if path.is_file() else None
    if as_it_is and (is_timm or as_it_is.is_whole):
        return as_it_is
    try:
        source = read_source(path, allow_unsafe)
    except UnknownLayoutError:
        if as_it_is is None:
            raise
        return as_it_is  # such as of a user's own backbone; the report of its loading will tell
    start = StartWeights(path, not source.is_backbone, _described(source))
    if source.is_backbone:
        start = start._replace(backbone=describe_backbone(source.state).keys)
    if source.kind not in CONVERTED:
        return start
    file = folder / "start_weights.pth"
    if comm.is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
        metadata = {**source.metadata, **({"class_names": source.names} if source.names else {})}
        write_checkpoint(source.state, metadata, source.author, file)
    comm.synchronize()
    return start._replace(file=file)


def _as_it_is(path: Path, allow_unsafe: bool) -> StartWeights:
    """Return a file that the checkpointer loads without a conversion."""
    checkpoint = read_checkpoint(path, allow_unsafe)
    is_whole = any(name.removeprefix("module.").startswith(HEAD) for name in checkpoint["model"])
    return StartWeights(path, is_whole, described_config(checkpoint.get("metadata", {}), path))


def _described(source: SourceWeights) -> CfgNode | None:
    """Return the configuration in a Hugging Face folder, over the defaults."""
    if not source.keys:
        return None
    cfg = load_config()
    for key, value in source.keys.items():
        cfg.merge_from_list([key, value])
    return cfg
