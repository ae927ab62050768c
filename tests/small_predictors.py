"""A small checkpoint that describes itself, of a model whose decisions differ from pixel to pixel."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from detectron2.modeling import build_model
from PIL import Image
from tiny_models import NUM_CLASSES, tiny_config

import mask_former  # noqa: F401  (registers the model)
from mask_former.checkpoint import Checkpointer, describe

NAMES = ["circle", "car, auto", "sky", "grass", "sea"]
COLORS = [[200, 30, 30], [30, 30, 200], [120, 180, 240], [60, 140, 40], [20, 80, 130]]
THINGS = (0, 1)
CLASSES = SimpleNamespace(
    stuff_classes=NAMES,
    stuff_colors=COLORS,
    thing_dataset_id_to_contiguous_id={11: 0, 12: 1},
    ignore_label=255,
)
# Named by the configuration of the checkpoint, and registered nowhere.
UNKNOWN_SET = "no_such_set_train"


def small_config(**changes):
    cfg = tiny_config(
        TEST__PANOPTIC_ON=True,
        TEST__INSTANCE_ON=True,
        TEST__OBJECT_MASK_THRESHOLD=0.3,
        TEST__OVERLAP_THRESHOLD=0.2,
        **changes,
    )
    cfg.INPUT.MIN_SIZE_TEST = 64
    cfg.INPUT.MAX_SIZE_TEST = 160
    cfg.DATASETS.TRAIN = (UNKNOWN_SET,)
    return cfg


def decided_model(cfg, seed=1):
    """A model with random weights, so large at the end that queries are sure of classes and masks."""
    torch.manual_seed(seed)
    known = cfg.clone()
    known.DATASETS.TRAIN = ()
    known.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = False
    model = build_model(known).eval()
    head = model.sem_seg_head.predictor
    with torch.no_grad():
        head.class_embed.weight.mul_(4)
        head.query_embed.weight.mul_(6)
        for layer in head.mask_embed.layers:
            layer.weight.mul_(2)
    return model


def write_checkpoint(folder: Path, cfg=None, **extra) -> Path:
    cfg = cfg or small_config()
    metadata = {**describe(cfg, CLASSES), **extra}
    Checkpointer(decided_model(cfg), str(folder), metadata=metadata).save("model")
    return folder / "model.pth"


def picture(height, width, seed=0):
    """Blobs of colour, (H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


assert len(NAMES) == NUM_CLASSES
