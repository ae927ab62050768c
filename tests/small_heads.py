"""Heads small enough for a test, from the real configuration."""

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor

from mask_former.config import load_config

CHANNELS = {"res2": 8, "res3": 12, "res4": 16, "res5": 20}
STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
SHAPES = {name: ShapeSpec(channels=CHANNELS[name], stride=STRIDES[name]) for name in CHANNELS}

_OPTIONS = {
    "MODEL.SEM_SEG_HEAD.NAME": "MaskFormerHead",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": list(CHANNELS),
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 5,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 24,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 16,
    "MODEL.MASK_FORMER.NHEADS": 4,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 40,
    "MODEL.MASK_FORMER.DEC_LAYERS": 3,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 7,
}
ENCODER = {
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "TransformerEncoderPixelDecoder",
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 2,
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "transformer_encoder",
}


def small_config(options: dict[str, object] | None = None) -> CfgNode:
    """Return the default configuration of a small head, with `options` (key -> value) over it."""
    merged = _OPTIONS | (options or {})
    return load_config(opts=[word for key, value in merged.items() for word in (key, value)])


def backbone_maps(height: int, width: int, images: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Return random maps of a backbone that saw `images` pictures of this size."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(images, CHANNELS[name], -(-height // s), -(-width // s), generator=generator)
        for name, s in STRIDES.items()
    }


def one_image(maps: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    """Return the maps of one picture of a batch, as a batch of one."""
    return {name: features[index : index + 1] for name, features in maps.items()}
