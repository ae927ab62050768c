"""Small real models and pictures for tests: ResNet-18, few channels, few queries."""

import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances

from mask_former.config import load_config

NUM_CLASSES = 5
NUM_QUERIES = 7

TINY = {
    "MODEL.META_ARCHITECTURE": "MaskFormer",
    "MODEL.DEVICE": "cpu",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.SEM_SEG_HEAD.NAME": "MaskFormerHead",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": NUM_CLASSES,
    # Two channels for each of the 32 groups: one value alone has no variance.
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 64,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 16,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
    "MODEL.MASK_FORMER.NHEADS": 4,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 48,
    "MODEL.MASK_FORMER.DEC_LAYERS": 2,
    "MODEL.MASK_FORMER.DROPOUT": 0.0,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": NUM_QUERIES,
    "INPUT.FORMAT": "RGB",
    "DATASETS.TRAIN": (),
    "DATASETS.TEST": (),
}


def tiny_config(**changes) -> CfgNode:
    """The tiny configuration; `changes` are keys below MODEL.MASK_FORMER, dots written as two underscores."""
    cfg = load_config()
    changes = {f"MODEL.MASK_FORMER.{name.replace('__', '.')}": value for name, value in changes.items()}
    for key, value in {**TINY, **changes}.items():
        cfg.merge_from_list([key, value])
    return cfg


def picture_of(height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def training_picture(height, width, segments, seed=0):
    """A picture with that many vertical stripes as segments."""
    masks = torch.zeros(segments, height, width, dtype=torch.bool)
    for index, columns in enumerate(torch.arange(width).chunk(max(segments, 1))[:segments]):
        masks[index, :, columns] = True
    instances = Instances((height, width))
    instances.gt_classes = torch.arange(segments) % NUM_CLASSES
    instances.gt_masks = masks
    return {"image": picture_of(height, width, seed), "instances": instances}
