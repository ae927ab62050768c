"""Every configuration key of the project: one declaration each, with meaning, unit and allowed values.

A choice that names a registered class says in its comment which file holds it. Keys that Detectron2
declares keep Detectron2's meaning and are not repeated here, except where the project adds to it.
"""

import copy
import difflib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg
from detectron2.projects.deeplab import add_deeplab_config

# Where configurations lie: in an installed package, in a checkout.
CONFIG_FOLDERS = (Path(__file__).parent / "configs", Path(__file__).parent.parent / "configs")

# Key -> published default.
DEFAULTS: dict[str, Any] = {
    # A user's own data (train_net.py --data writes these): folder whose splits are registered as
    # <folder name>_train, ..., for DATASETS.TRAIN and TEST; empty: none.
    "DATASETS.FOLDER": "",
    # Its layout, a name of data/own/dataset.py: LAYOUTS; empty: the one that fits.
    "DATASETS.LAYOUT": "",
    # Chooses the pictures for validation, where the folder itself has none.
    "DATASETS.SPLIT_SEED": 0,
    # Leave out pictures whose files or labels have faults, instead of stopping.
    "DATASETS.IGNORE_FAULTS": False,
    # Recipe of the training mapper (data/mapper.py): "mask_former_semantic", "mask_former_panoptic",
    # "mask_former_instance" (resize, crop, colour, flip) or "detr_panoptic" (flip, resize, and with
    # probability one half a crop between two resizes).
    "INPUT.DATASET_MAPPER_NAME": "mask_former_semantic",
    # Colour augmentation of SSD: brightness, contrast, saturation, hue.
    "INPUT.COLOR_AUG_SSD": False,
    # Largest share of a crop that one class may fill; at 1.0 every crop is taken as it comes.
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": 1.0,
    # The mapper pads images, right and below, up to a multiple of this many pixels. Below 1: no padding.
    "INPUT.SIZE_DIVISIBILITY": -1,
    # "ADAMW" or "SGD" (solver.py).
    "SOLVER.OPTIMIZER": "ADAMW",
    # Weight decay of embedding tables (the queries).
    "SOLVER.WEIGHT_DECAY_EMBED": 0.0,
    # Factor on the learning rate of every parameter of the backbone.
    "SOLVER.BACKBONE_MULTIPLIER": 0.1,
    # Further factor on the rate of a backbone's layer for each layer behind it: 0.8 or 0.9 is usual for
    # transformers. 1.0: the same rate for all. For backbones of timm and Swin.
    "SOLVER.LAYER_DECAY": 1.0,
    # Decay of a moving average of the weights over the steps; 0.999 is usual. All checkpoints then hold the
    # average as the model, and the trained weights beside it for --resume; evaluations score both, the
    # trained weights as `_raw`. 0: no average.
    "SOLVER.EMA_DECAY": 0.0,
    # Gradient accumulation: each step draws IMS_PER_BATCH pictures in this many equal parts, one after
    # the other, and gives the gradient of the whole batch.
    "SOLVER.ACCUMULATE": 1,
    # Activation checkpointing: the blocks of backbone and transformers keep only their inputs, and recompute
    # the rest in the backward pass. Same gradients, less memory, more time (docs/performance.md).
    # MODEL.SWIN.USE_CHECKPOINT, the published name, means the same.
    "SOLVER.RECOMPUTE_ACTIVATIONS": False,
    # Steps in a row that are skipped because their loss or gradient is not finite, before the run stops. No
    # such step changes a weight. The overflows that a float16 gradient scaler works with do not count.
    "SOLVER.SKIP_NOT_FINITE": 0,
    # Records of failed steps for `python -m mask_former.replay`, that each process keeps under
    # OUTPUT_DIR/failed_steps; one takes about three times the size of the weights. 0: none.
    "SOLVER.FAILED_STEPS_KEPT": 2,
    # Type of automatic mixed precision when SOLVER.AMP.ENABLED: "float16" (with a gradient scaler) or
    # "bfloat16" (without).
    "SOLVER.AMP.DTYPE": "float16",
    # Channels of the per-pixel embeddings, and of the mask embeddings they are multiplied with.
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 256,
    # "BasePixelDecoder" or "TransformerEncoderPixelDecoder" (modeling/pixel_decoder.py).
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "BasePixelDecoder",
    # Layers of the transformer encoder inside TransformerEncoderPixelDecoder.
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 0,
    # Losses (modeling/criterion.py). The mask and dice weights also weigh the matching costs.
    "MODEL.MASK_FORMER.DEEP_SUPERVISION": True,
    "MODEL.MASK_FORMER.NO_OBJECT_WEIGHT": 0.1,
    "MODEL.MASK_FORMER.DICE_WEIGHT": 1.0,
    "MODEL.MASK_FORMER.MASK_WEIGHT": 20.0,
    # What void and padding pixels are to matching and mask losses: "background" (as published: negative
    # for every mask) or "ignore" (they count nowhere).
    "MODEL.MASK_FORMER.VOID_IN_LOSS": "background",
    # Points of each mask that matching and mask losses look at instead of all pixels (modeling/points.py):
    # noisier losses, whose cost does not grow with the picture; 12544 is usual. It pays for crops larger than
    # 512x512 (docs/performance.md). 0: all pixels, as published.
    "MODEL.MASK_FORMER.LOSS_POINTS": 0,
    # "HungarianMatcher" (modeling/matcher.py).
    "MODEL.MASK_FORMER.MATCHER_NAME": "HungarianMatcher",
    # "StandardTransformerDecoder" (modeling/transformer_decoder.py).
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "StandardTransformerDecoder",
    "MODEL.MASK_FORMER.NHEADS": 8,
    "MODEL.MASK_FORMER.DROPOUT": 0.1,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 2048,
    "MODEL.MASK_FORMER.ENC_LAYERS": 0,
    "MODEL.MASK_FORMER.DEC_LAYERS": 6,
    # Layer norm before (True) or after (False) each attention and feed-forward layer.
    "MODEL.MASK_FORMER.PRE_NORM": False,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 256,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 100,
    # What the decoder reads: a backbone map by name, or "transformer_encoder" (the pixel decoder's encoder).
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "res5",
    # Keep the 1x1 projection in front of the decoder even where the channels agree without it.
    "MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ": False,
    # The model pads its batch, right and below, up to a multiple of this many pixels. 0 and 1: only to the
    # largest picture of the batch; negative: the backbone's own value.
    "MODEL.MASK_FORMER.SIZE_DIVISIBILITY": 32,
    # Inference (inference.py): which of the three results are computed.
    "MODEL.MASK_FORMER.TEST.SEMANTIC_ON": True,
    "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": False,
    "MODEL.MASK_FORMER.TEST.INSTANCE_ON": False,
    # Panoptic: a query is kept when its class score exceeds this.
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.0,
    # Panoptic: a segment is kept when at least this share of its mask is not covered by others.
    "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": 0.0,
    # Resize mask logits, not class scores, to the size of the original picture.
    "MODEL.MASK_FORMER.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE": False,
    # What of the pretrained backbone stays fixed, in evaluation mode and without gradients: "none"; "norms"
    # (scales and running statistics); "stages N" (the stem and the first N stages; in plain transformers,
    # quarters of the blocks); "all". What is new in a backbone, such as the pyramid of a plain transformer,
    # learns always. What MODEL.BACKBONE.FREEZE_AT (ResNet; Detectron2's default is 2) and
    # MODEL.SWIN.FROZEN_STAGES freeze is frozen as well; "stages N" is FREEZE_AT N+1, and FROZEN_STAGES N.
    "MODEL.BACKBONE.FREEZE": "none",
    # Swin backbone (modeling/swin.py), registered as "D2SwinTransformer".
    # Side in pixels of the pre-training pictures; sets the size of the absolute position table if APE.
    "MODEL.SWIN.PRETRAIN_IMG_SIZE": 224,
    "MODEL.SWIN.PATCH_SIZE": 4,
    "MODEL.SWIN.EMBED_DIM": 96,
    "MODEL.SWIN.DEPTHS": [2, 2, 6, 2],
    "MODEL.SWIN.NUM_HEADS": [3, 6, 12, 24],
    "MODEL.SWIN.WINDOW_SIZE": 7,
    "MODEL.SWIN.MLP_RATIO": 4.0,
    "MODEL.SWIN.QKV_BIAS": True,
    # Scale of the attention logits; None: 1 / sqrt(channels of a head).
    "MODEL.SWIN.QK_SCALE": None,
    "MODEL.SWIN.DROP_RATE": 0.0,
    "MODEL.SWIN.ATTN_DROP_RATE": 0.0,
    "MODEL.SWIN.DROP_PATH_RATE": 0.3,
    # Absolute position embeddings.
    "MODEL.SWIN.APE": False,
    "MODEL.SWIN.PATCH_NORM": True,
    "MODEL.SWIN.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    # The same as SOLVER.RECOMPUTE_ACTIVATIONS, whatever the backbone.
    "MODEL.SWIN.USE_CHECKPOINT": False,
    # Stages whose parameters stay fixed: -1 none, 0 the patch embedding, n that and the first n stages.
    "MODEL.SWIN.FROZEN_STAGES": -1,
    # Backbone of timm (modeling/timm_backbone.py), registered as "build_timm_backbone". MODEL.PIXEL_MEAN and
    # _STD are those of timm's record of the net, unless they differ from Detectron2's defaults.
    # Name of the net, with or without the tag of its weights.
    "MODEL.TIMM.NAME": "",
    # Stochastic depth. 0: none, for nets that have no such option.
    "MODEL.TIMM.DROP_PATH_RATE": 0.0,
    # Maps to give, of strides 4 to 32; what none of them needs is not built.
    "MODEL.TIMM.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    # The network that --eval-only scores: "plain", as it is trained; "float32", prepared for inference, which
    # differs by rounding; "bfloat16"; or "auto", see modeling/preparation.py.
    "TEST.PRECISION": "float32",
    # Metric by which the best checkpoint is kept as model_best.pth, as "task/name" (for example
    # "panoptic_seg/PQ"); higher is better. Empty: no best checkpoint.
    "TEST.BEST_METRIC": "",
    # Pictures drawn beside their ground truth at each evaluation, under OUTPUT_DIR/samples. 0: none.
    "TEST.SAMPLE_PICTURES": 4,
}


def add_mask_former_config(cfg: CN) -> None:
    """Add the project's keys, with the published defaults, to Detectron2's and DeepLab's."""
    cfg.MODEL.DEVICE = available_device(cfg.MODEL.DEVICE)
    for key, value in DEFAULTS.items():
        *path, name = key.split(".")
        node = cfg
        for part in path:
            node = node.setdefault(part, CN())
        node[name] = copy.copy(value)


# Keys of Detectron2 that would have no effect in training, and what to do instead.
UNSUPPORTED = {
    "TEST.PRECISE_BN.ENABLED": "leave it False; use norms that need no such pass, such as FrozenBN or GN.",
    "SOLVER.BIAS_LR_FACTOR": "leave it at 1.0; biases train like the weights beside them.",
    "SOLVER.WEIGHT_DECAY_BIAS": "leave it at Detectron2's default; biases decay by SOLVER.WEIGHT_DECAY.",
    "VIS_PERIOD": "leave it at 0; TEST.SAMPLE_PICTURES draws predictions at each evaluation.",
}


def refuse_unsupported(cfg: CN) -> None:
    """Raise ValueError if a key of Detectron2 is set that training would ignore."""
    values, defaults = dict(_items(cfg)), dict(_items(get_cfg()))
    for key, remedy in UNSUPPORTED.items():
        if values[key] != defaults[key]:
            raise ValueError(f"{key} is {values[key]!r}, but has no effect here: {remedy}")


def recomputes_activations(cfg: CN) -> bool:
    """Return whether activation checkpointing is on, under either of its two names."""
    return cfg.SOLVER.RECOMPUTE_ACTIVATIONS or cfg.MODEL.SWIN.USE_CHECKPOINT


def available_device(wanted: str) -> str:
    """Return `wanted`, or "cpu" where `wanted` is a CUDA device and this machine has none."""
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        return "cpu"
    return wanted


def find_config(name: str | Path) -> str:
    """Return the path of a configuration: the file `name`, else the one of that name in `configs/`."""
    relative = str(name).removeprefix("configs/")
    candidates = [Path(name).expanduser(), *(folder / relative for folder in CONFIG_FOLDERS)]
    path = next((path for path in candidates if path.is_file()), None)
    if path is not None or "://" in str(name):  # an address, which Detectron2 opens
        return str(path or name)
    known = sorted({str(f.relative_to(folder)) for folder in CONFIG_FOLDERS for f in folder.rglob("*.yaml")})
    close = difflib.get_close_matches(relative, known, n=3) or ["shapes/maskformer_panoptic.yaml"]
    raise FileNotFoundError(
        f"{name} is neither a file nor one of the {len(known)} configurations that come with mask_former, "
        f"such as {', '.join(close)}."
    )


def load_config(
    config_file: str | Path | None = None,
    opts: Sequence[str] = (),
    allow_unsafe_yaml: bool = False,
) -> CN:
    """Return the configuration of a YAML file with `KEY VALUE` overrides, on a device that exists.

    Args:
        config_file: YAML in Detectron2's form, `_BASE_` included, see `find_config`; None: the defaults.
        opts: `[key, value, key, value, ...]`, as a command line has them.
        allow_unsafe_yaml: accept Python tags, which can run code; some files published elsewhere have them.
    """
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_mask_former_config(cfg)
    if config_file is not None:
        try:
            cfg.merge_from_file(find_config(config_file), allow_unsafe=allow_unsafe_yaml)
        except yaml.constructor.ConstructorError as error:
            raise ValueError(
                f"{config_file} needs Python tags in YAML, which can run code ({error.problem}). "
                "Write plain values instead, or allow unsafe YAML if you trust the file."
            ) from error
    merge_opts(cfg, opts)
    cfg.MODEL.DEVICE = available_device(cfg.MODEL.DEVICE)
    return cfg


def merge_opts(cfg: CN, opts: Sequence[Any]) -> None:
    """Apply `[key, value, key, value, ...]` to a configuration."""
    if len(opts) % 2:
        raise ValueError(
            f"The overrides {' '.join(map(str, opts))!r} are {len(opts)} words, expected pairs KEY VALUE: "
            "give each key its value, and put options that begin with -- before the overrides."
        )
    for key in opts[::2]:
        known = {name for name, _ in _items(cfg)}
        if key not in known and not cfg.key_is_deprecated(key) and not cfg.key_is_renamed(key):
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]}?" if close else "see mask_former/config.py and Detectron2's."
            raise ValueError(f"{key} is no configuration key; {hint}")
    cfg.merge_from_list(list(opts))


def leaves(cfg: CN) -> dict[str, Any]:
    """Return every value of a configuration by its full key; tuples as lists, as YAML has them."""
    values = {key: value for key, value in _items(cfg) if not isinstance(value, CN)}
    return json.loads(json.dumps(values))


def _items(cfg: CN, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in cfg.items():
        yield prefix + name, value
        if isinstance(value, CN):
            yield from _items(value, f"{prefix}{name}.")
