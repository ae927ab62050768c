"""What the configuration and the description in a weight file may say: sizes, types and lengths."""

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode
from torch import Tensor

from mask_former.config import leaves

# Key -> largest value, of each number where the value is a list. Far above every published model.
LIMITS = {
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 100_000,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 8192,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 8192,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 64,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 10_000,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 8192,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 65_536,
    "MODEL.MASK_FORMER.NHEADS": 1024,
    "MODEL.MASK_FORMER.ENC_LAYERS": 64,
    "MODEL.MASK_FORMER.DEC_LAYERS": 64,
    "MODEL.MASK_FORMER.SIZE_DIVISIBILITY": 4096,
    "MODEL.RESNETS.NUM_GROUPS": 256,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 1024,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 1024,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 1024,
    "MODEL.SWIN.PRETRAIN_IMG_SIZE": 4096,
    "MODEL.SWIN.PATCH_SIZE": 64,
    "MODEL.SWIN.EMBED_DIM": 2048,
    "MODEL.SWIN.DEPTHS": 64,
    "MODEL.SWIN.NUM_HEADS": 512,
    "MODEL.SWIN.WINDOW_SIZE": 64,
    "MODEL.SWIN.MLP_RATIO": 16,
    "INPUT.SIZE_DIVISIBILITY": 4096,
    "INPUT.MIN_SIZE_TEST": 8192,
    "INPUT.MAX_SIZE_TEST": 16_384,
    "TEST.DETECTIONS_PER_IMAGE": 10_000,
}
MOST_NUMBERS = 1000  # in a list
# Entry of a model -> the keys that its first axes are as long as, each with what is added to it.
AXES = {
    "sem_seg_head.predictor.query_embed.weight": (
        ("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 0),
        ("MODEL.MASK_FORMER.HIDDEN_DIM", 0),
    ),
    "sem_seg_head.predictor.class_embed.weight": (
        ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 1),
        ("MODEL.MASK_FORMER.HIDDEN_DIM", 0),
    ),
    "sem_seg_head.predictor.transformer.decoder.layers.0.linear1.weight": (
        ("MODEL.MASK_FORMER.DIM_FEEDFORWARD", 0),
        ("MODEL.MASK_FORMER.HIDDEN_DIM", 0),
    ),
    "sem_seg_head.pixel_decoder.mask_features.weight": (
        ("MODEL.SEM_SEG_HEAD.MASK_DIM", 0),
        ("MODEL.SEM_SEG_HEAD.CONVS_DIM", 0),
    ),
}
# A file of half precision takes half of a model's memory; the rest is for what the estimate leaves out.
MOST_FOR_FILE, MOST_BESIDE = 4, 256 * 2**20
# Longest text of a description, and of one of its class names.
LONGEST_TEXT, LONGEST_NAME = 1000, 200


def refuse_large(values: Mapping[str, Any], file: object) -> None:
    """Raise ValueError if a configuration, key -> value, is of sizes or texts that no model has."""
    for key, value in values.items():
        texts = [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
        if any(len(text) > LONGEST_NAME or not text.isprintable() for text in texts):
            raise ValueError(f"{file} has a configuration with {key} {plain_text(texts[0], 40)!r}: no name.")
    for key, most in LIMITS.items():
        value = values[key]
        numbers = value if isinstance(value, list | tuple) else [value]
        if len(numbers) > MOST_NUMBERS or any(isinstance(n, int | float) and not n <= most for n in numbers):
            raise ValueError(
                f"{file} describes a model with {key} {str(value)[:40]}; expected at most {most}."
            )


def refuse_disagreement(cfg: CfgNode, state: Mapping[str, Tensor], file: object) -> None:
    """Raise ValueError if the weights of a file are not of the model that its configuration describes.

    Args:
        cfg: of the file.
        state: its weights under today's names, see `fitting.current_names`.
        file: for the message.
    """
    values = leaves(cfg)
    for name, axes in AXES.items():
        shape = tuple(state[name].shape) if name in state else ()
        for length, (key, more) in zip(shape, axes, strict=False):
            if length != values[key] + more:
                raise ValueError(
                    f"{file} contradicts itself: its configuration has {key} {values[key]}, but its entry "
                    f"{name} is {shape}. Fetch or write it again."
                )
    needed, held = 4 * least_parameters(cfg), sum(value.nbytes for value in state.values())
    if needed > MOST_FOR_FILE * held + MOST_BESIDE:
        raise ValueError(
            f"{file} contradicts itself: its configuration describes at least {needed >> 20} MiB of weights, "
            f"its entries are {held >> 20} MiB. Fetch or write it again."
        )


def least_parameters(cfg: CfgNode) -> int:
    """Return about the number of weights in the largest matrices of a model, rather less than more."""
    head, model, swin = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER, cfg.MODEL.SWIN
    width, wide = model.HIDDEN_DIM, model.DIM_FEEDFORWARD
    layers = model.ENC_LAYERS + 2 * model.DEC_LAYERS
    count = layers * 4 * width**2 + (model.ENC_LAYERS + model.DEC_LAYERS) * 2 * width * wide
    count += head.TRANSFORMER_ENC_LAYERS * (4 * head.CONVS_DIM**2 + 2 * head.CONVS_DIM * wide)
    count += width * (model.NUM_OBJECT_QUERIES + head.NUM_CLASSES) + 27 * head.CONVS_DIM**2
    if cfg.MODEL.BACKBONE.NAME == "D2SwinTransformer":
        widths = [swin.EMBED_DIM << stage for stage in range(min(len(swin.DEPTHS), 8))]
        blocks = zip(swin.DEPTHS, widths, strict=False)
        count += sum(int(depth * (4 + 2 * swin.MLP_RATIO) * wide**2) for depth, wide in blocks)
    if "resnet" in cfg.MODEL.BACKBONE.NAME:
        resnet = cfg.MODEL.RESNETS
        inner, outer = resnet.NUM_GROUPS * resnet.WIDTH_PER_GROUP, resnet.RES2_OUT_CHANNELS
        count += 85 * (2 * inner * outer + 9 * inner**2 // max(resnet.NUM_GROUPS, 1))  # 1 + 4 + 16 + 64
    return count


def cleaned(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of a file without what is of another type than `describe` writes.

    Texts lose what is not printable, such as the commands of a terminal, and their end if they are long.
    """
    checks = {
        "class_names": lambda v: _is_list(v, str),
        "class_colors": lambda v: _is_list(v, list) and all(len(c) == 3 and _is_list(c, int) for c in v),
        "class_dataset_ids": lambda v: _is_list(v, int),
        "thing_classes": lambda v: _is_list(v, int),
        "ignore_value": lambda v: isinstance(v, int),
        "license": lambda v: isinstance(v, str),
        "metrics": lambda v: (
            isinstance(v, dict) and _is_list(list(v), str) and _is_list([*v.values()], (int, float))
        ),
        "iteration": lambda v: v is None or isinstance(v, int),
        "config": lambda v: isinstance(v, str),
    }
    kept = {key: value for key, value in metadata.items() if key not in checks or checks[key](value)}
    return {key: value if key == "config" else _cleaned(value) for key, value in kept.items()}


def _is_list(value: Any, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _cleaned(value: Any, longest: int = LONGEST_TEXT) -> Any:
    if isinstance(value, str):
        return plain_text(value, longest)
    if isinstance(value, dict):
        return {_cleaned(key, LONGEST_NAME): _cleaned(item) for key, item in value.items()}
    return [_cleaned(item, LONGEST_NAME) for item in value] if isinstance(value, list) else value


def plain_text(text: str, longest: int = 300) -> str:
    """Return a text as one line of printable letters, cut where it is longer."""
    line = "".join(letter if letter.isprintable() else " " for letter in text[: 4 * longest])
    return line if len(line) <= longest else f"{line[: longest - 3]}..."
