"""The published models: name -> configuration, weights, hash, licence, score.

    model_zoo.get("maskformer_R50_ade20k", trained=True)

The weights are not ours. Others publish them, under CC BY-NC 4.0, and they are fetched from there.
"""

import builtins
import logging
import re
from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from detectron2.config import CfgNode
from torch import nn

from mask_former.checkpoint import Checkpointer, resolve
from mask_former.config import find_config, load_config
from mask_former.modeling.build import build_model

logger = logging.getLogger(__name__)

BASE_URL = "https://dl.fbaipublicfiles.com/maskformer"
LICENCE = "CC BY-NC 4.0 (no commercial use)"

_licence_logged = False


class Entry(NamedTuple):
    """One published model.

    name: short name.
    config: path of its configuration below configs/, without ".yaml".
    url: of its weights.
    hash_prefix: first six hexadecimal digits of the weights' MD5.
    metric: "mIoU" or "PQ", on the validation split (COCO-Stuff-10K: test).
    score: published, in percent.
    score_tta: published, with scales and flips; None where there is none.
    """

    name: str
    config: str
    url: str
    hash_prefix: str
    metric: str
    score: float
    score_tta: float | None


# (data set in short names, folder of configurations, folder of weights) -> rows: configuration, beginning of
# the hash, score, score with scales and flips.
_MODELS: dict[tuple[str, str, str], tuple[tuple[str, str, float, float | None], ...]] = {
    ("ade20k", "ade20k-150", "semantic-ade20k"): (
        ("per_pixel_baseline_R50_bs16_160k", "1043f3", 39.2, 40.9),
        ("per_pixel_baseline_plus_R50_bs16_160k", "833630", 41.9, 42.9),
        ("maskformer_R50_bs16_160k", "d8dbeb", 44.5, 46.7),
        ("maskformer_R101_bs16_160k", "1aeb94", 45.5, 47.2),
        ("maskformer_R101c_bs16_160k", "b432ea", 46.0, 48.1),
        ("swin/maskformer_swin_tiny_bs16_160k", "8657a5", 46.7, 48.8),
        ("swin/maskformer_swin_small_bs16_160k", "528157", 49.8, 51.0),
        ("swin/maskformer_swin_base_IN21k_384_bs16_160k_res640", "45388b", 52.7, 53.9),
        ("swin/maskformer_swin_large_IN21k_384_bs16_160k_res640", "aefa3b", 54.1, 55.6),
    ),
    ("coco_stuff_10k", "coco-stuff-10k-171", "semantic-coco-stuff-10k"): (
        ("per_pixel_baseline_R50_bs32_60k", "275ab0", 32.4, 34.4),
        ("per_pixel_baseline_plus_R50_bs32_60k", "1fa920", 34.2, 35.8),
        ("maskformer_R50_bs32_60k", "cb03eb", 37.1, 38.9),
        ("maskformer_R101_bs32_60k", "eb19bb", 38.1, 39.8),
        ("maskformer_R101c_bs32_60k", "bffd25", 38.0, 39.3),
    ),
    ("ade20k_full", "ade20k-full-847", "semantic-ade20k-full"): (
        ("per_pixel_baseline_R50_bs16_200k", "9f66a9", 12.4, None),
        ("per_pixel_baseline_plus_R50_bs16_200k", "4d31f2", 13.9, None),
        ("maskformer_R50_bs16_200k", "f4e3f6", 16.0, None),
        ("maskformer_R101_bs16_200k", "88df33", 16.8, None),
        ("maskformer_R101c_bs16_200k", "75d34e", 17.4, None),
    ),
    ("cityscapes", "cityscapes-19", "semantic-cityscapes"): (
        ("maskformer_R101_bs16_90k", "38c00c", 78.5, 80.3),
        ("maskformer_R101c_bs16_90k", "4f8ff9", 79.7, 81.4),
    ),
    ("mapillary", "mapillary-vistas-65", "semantic-mapillary-vistas"): (
        ("maskformer_R50_bs16_300k", "f3fc73", 53.1, 55.4),
    ),
    ("coco", "coco-panoptic", "panoptic-coco"): (
        ("maskformer_panoptic_R50_bs64_554k", "6f60dc", 46.5, None),
        ("maskformer_panoptic_R101_bs64_554k", "57b049", 47.6, None),
        ("swin/maskformer_panoptic_swin_tiny_bs64_554k", "539394", 47.7, None),
        ("swin/maskformer_panoptic_swin_small_bs64_554k", "5bf6b1", 49.7, None),
        ("swin/maskformer_panoptic_swin_base_IN21k_384_bs64_554k", "4b7f49", 51.8, None),
        ("swin/maskformer_panoptic_swin_large_IN21k_384_bs64_554k", "7505c4", 52.7, None),
    ),
    ("ade20k", "ade20k-150-panoptic", "panoptic-ade20k"): (
        ("maskformer_panoptic_R50_bs16_720k", "7aa977", 34.7, None),
        ("maskformer_panoptic_R101_bs16_720k", "0b3cc8", 35.7, None),
    ),
}


def entries() -> builtins.list[Entry]:
    """Return all published models."""
    result = []
    for (dataset, folder, group), rows in _MODELS.items():
        metric = "PQ" if group.startswith("panoptic") else "mIoU"
        for config, digits, score, score_tta in rows:
            stem = config.rpartition("/")[2]
            # Batch size, iterations and pre-training tell no two models of a data set apart.
            name = re.sub(r"(_IN21k_384)?_bs.*", "", stem) + f"_{dataset}"
            url = f"{BASE_URL}/{group}/{stem}/model_final_{digits}.pkl"
            result.append(Entry(name, f"{folder}/{config}", url, digits, metric, score, score_tta))
    return result


def find(name: str) -> Entry:
    """Return a published model.

    Args:
        name: its short name, or its configuration: the path below configs/, or the file's name where only
            one data set has it; ".yaml" may stay.
    """
    path = name.removesuffix(".yaml").removeprefix("configs/")
    known = entries()
    matches = [entry for entry in known if path in (entry.name, entry.config)]
    matches = matches or [entry for entry in known if path == entry.config.rpartition("/")[2]]
    if len(matches) == 1:
        return matches[0]
    names = [entry.name for entry in matches or known]
    if not matches:
        names = get_close_matches(path, names, n=5, cutoff=0.3) or names
    problem = "is ambiguous" if matches else "is not in the zoo"
    raise ValueError(f"{name!r} {problem}; did you mean {', '.join(names)}? model_zoo.list() shows all.")


def config_file(name: str) -> Path:
    """Return the file of a published model's configuration."""
    return Path(find_config(f"{find(name).config}.yaml"))


def get_config(name: str, num_classes: int | None = None) -> CfgNode:
    """Return a published model's configuration; see `find` for names.

    Args:
        name: of the model.
        num_classes: classes of your own data; then the per-pixel baseline with queries gets as many queries.
    """
    cfg = load_config(config_file(name))
    if num_classes is not None:
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; it must be at least 1.")
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = num_classes
        if cfg.MODEL.SEM_SEG_HEAD.NAME == "PerPixelBaselinePlusHead":
            cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES = num_classes
    return cfg


def weights_file(name: str) -> Path:
    """Return the file of a published model's weights, downloaded if necessary, and log their licence once."""
    global _licence_logged
    entry = find(name)
    if not _licence_logged:
        _licence_logged = True
        logger.warning("The published weights are under %s; see the licence before you use them.", LICENCE)
    return resolve(entry.url, f"md5:{entry.hash_prefix}")


def get(
    name: str,
    trained: bool = False,
    num_classes: int | None = None,
    *,
    thing_ids: Collection[int] | None = None,
    device: str | None = None,
) -> nn.Module:
    """Return a published model, in training mode.

    Args:
        name: see `find`.
        trained: with the published weights; otherwise with random ones.
        num_classes: classes of your own data; with `trained`, what depends on their number stays random, and
            is reported.
        thing_ids: those of your classes that are things, for panoptic models; None: with `num_classes` none,
            without it those of the data set.
        device: as "cpu" or "cuda:1"; None: a GPU where there is one.
    """
    cfg = get_config(name, num_classes)
    file = weights_file(name) if trained else None
    if num_classes is not None and thing_ids is None:
        thing_ids = frozenset()
    model = build_model(cfg, device, thing_ids)
    if file is not None:
        Checkpointer(model).load(str(file))
    return model


def list() -> str:
    """Return a table of all published models: name, metric, scores, configuration."""
    header = ("name", "metric", "score", "with TTA", "configuration")
    rows = [
        (e.name, e.metric, f"{e.score:.1f}", f"{e.score_tta:.1f}" if e.score_tta else "-", e.config)
        for e in entries()
    ]
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    line = "  ".join(f"{{:<{width}}}" for width in widths)
    lines = [line.format(*row).rstrip() for row in (header, *rows)]
    return "\n".join([*lines, f"Weights: {LICENCE}"])
