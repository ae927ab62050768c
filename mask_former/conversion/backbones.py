"""ImageNet backbones of torchvision, timm and the Swin releases in our names, which are Detectron2's.

A backbone alone has no prefix, so `stem.conv1.weight`, not `backbone.stem.conv1.weight`.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

State = dict[str, Tensor]
Rules = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]

NORM = r"\.norm\.(weight|bias|running_mean|running_var)"
RESNET_NAMES = rf"(stem\.conv1|res\d\.\d+\.(conv\d|shortcut))(\.weight|{NORM})"
RESNET_RULES: Rules = (
    (r"^(conv1|bn1)\.", r"stem.\1."),
    (r"^layer(\d)\.", lambda found: f"res{int(found[1]) + 1}."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
)
RESNET_DROPPED = r"^fc\.|num_batches_tracked$"

BLOCK = r"norm[12]\.\w+|attn\.(relative_position_(bias_table|index)|(qkv|proj)\.\w+)|mlp\.fc[12]\.\w+"
SWIN_NAMES = (
    r"absolute_pos_embed|patch_embed\.(proj|norm)\.\w+|norm\d\.\w+"
    rf"|layers\.\d\.(blocks\.\d+\.({BLOCK})|downsample\.(reduction|norm)\.\w+)"
)
# The classifier with the norm before it, and masks that depend on the size of the picture.
SWIN_DROPPED = r"^(head|norm)\.|attn_mask$"

# Depth -> blocks of each stage; below 50 layers, blocks are basic ones.
RESNET_BLOCKS = {
    18: [2, 2, 2, 2],
    34: [3, 4, 6, 3],
    50: [3, 4, 6, 3],
    101: [3, 4, 23, 3],
    152: [3, 8, 36, 3],
}
SWIN_SIZES = {(96, 6): "Swin-T", (96, 18): "Swin-S", (128, 18): "Swin-B", (192, 18): "Swin-L"}


class Backbone(NamedTuple):
    """What the names and shapes of a backbone say of it; `keys` are the config keys that build it."""

    title: str
    keys: dict[str, object]


def rename_all(state: Mapping[str, Tensor], rules: Rules, dropped: str, expected: str, source: str) -> State:
    """Return the state in new names, without the entries whose old name has `dropped` in it.

    Args:
        state: what is renamed.
        rules: (regular expression, replacement), applied in their order.
        dropped: regular expression.
        expected: regular expression of all good new names; anything else is refused.
        source: what the error calls the layout.
    """
    result: State = {}
    for name, value in state.items():
        if not re.search(dropped, name):
            for pattern, replacement in rules:
                name = re.sub(pattern, replacement, name)
            result[name] = value
    refuse_unknown((name for name in result if not re.fullmatch(expected, name)), source)
    return result


class UnknownLayoutError(ValueError):
    """The names of weights are those of no layout that can be converted."""


def refuse_unknown(names: Iterable[str], source: str) -> None:
    """Raise UnknownLayoutError if there are any names."""
    unknown = list(names)
    if unknown:
        shown = ", ".join(unknown[:5]) + (" ..." if len(unknown) > 5 else "")
        raise UnknownLayoutError(
            f"{len(unknown)} entries are none of {source}: {shown}. The weights are of another architecture; "
            "converted are ResNets with one stem convolution, Swin (version 1), and MaskFormer with these."
        )


def resnet_to_ours(state: Mapping[str, Tensor]) -> State:
    """Return a ResNet of torchvision or timm, whose names are the same, in our names."""
    return rename_all(state, RESNET_RULES, RESNET_DROPPED, RESNET_NAMES, "a torchvision or timm ResNet's")


def swin_release_to_ours(state: Mapping[str, Tensor]) -> State:
    """Return a Swin release (ImageNet-1k or 22k) in our names: they are the same, for what is needed."""
    result = rename_all(state, (), SWIN_DROPPED, SWIN_NAMES, "a Swin release's")
    return _with_square_positions(result)


def timm_swin_to_ours(state: Mapping[str, Tensor]) -> State:
    """Return a Swin of timm, features-only or with its classifier, in our names."""
    flat = {re.sub(r"^layers_(\d)\.", r"layers.\1.", name): value for name, value in state.items()}
    # timm halves a map at the beginning of a stage since its version 0.9, the releases at the end.
    moves = not any(name.startswith("layers.0.downsample.") for name in flat)
    rules = _moved_downsampling(-1) if moves else ()
    return _with_square_positions(rename_all(flat, rules, SWIN_DROPPED, SWIN_NAMES, "a timm Swin's"))


def swin_to_timm(state: Mapping[str, Tensor]) -> State:
    """Return a Swin backbone of ours in timm's names, without what timm works out by itself."""
    dropped = r"relative_position_index$|^norm\d\."
    return rename_all(state, _moved_downsampling(1), dropped, SWIN_NAMES, "a Swin backbone's")


def _moved_downsampling(stages: int) -> Rules:
    return ((r"^layers\.(\d)\.downsample\.", lambda m: f"layers.{int(m[1]) + stages}.downsample."),)


def _with_square_positions(state: State) -> State:
    """Lay an absolute position table (1, L, C) out as a map (1, C, H, W), as our backbone has it."""
    table = state.get("absolute_pos_embed")
    if table is None or table.ndim != 3:
        return state
    side = round(table.shape[1] ** 0.5)
    square = table.transpose(1, 2).reshape(1, table.shape[2], side, side)
    return {**state, "absolute_pos_embed": square.contiguous()}


def describe_backbone(state: Mapping[str, Tensor]) -> Backbone:
    """Return what a backbone in our names is, and the config keys that build it."""
    if "patch_embed.proj.weight" in state:
        return _describe_swin(state)
    if "stem.conv1.weight" in state:
        return _describe_resnet(state)
    refuse_unknown(state, "a ResNet's or a Swin backbone's")
    raise ValueError("The file holds no backbone.")


def _blocks(state: Mapping[str, Tensor], pattern: str) -> list[int]:
    """Return how many blocks there are in each stage; `pattern` finds stage and block in a name."""
    blocks = {match.groups() for name in state if (match := re.match(pattern, name))}
    counts = Counter(stage for stage, _ in blocks)
    return [counts[stage] for stage in sorted(counts)]


def resnet_depth(blocks: Sequence[int], is_basic: bool) -> int:
    """Return the depth of a ResNet with these blocks in its stages."""
    for depth, known in RESNET_BLOCKS.items():
        if list(blocks) == known and is_basic == (depth < 50):
            return depth
    raise ValueError(f"A ResNet of {list(blocks)} blocks: expected one of {list(RESNET_BLOCKS)} layers.")


def _describe_resnet(state: Mapping[str, Tensor]) -> Backbone:
    depth = resnet_depth(_blocks(state, r"res(\d)\.(\d+)\."), is_basic="res2.0.conv3.weight" not in state)
    deep_stem = "stem.conv2.weight" in state
    first = "shortcut" if "res2.0.shortcut.weight" in state else "conv1"
    keys: dict[str, object] = {
        "MODEL.BACKBONE.NAME": "build_resnet_deeplab_backbone" if deep_stem else "build_resnet_backbone",
        "MODEL.RESNETS.DEPTH": depth,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": len(state[f"res2.0.{first}.weight"]),
        "MODEL.RESNETS.STEM_OUT_CHANNELS": len(state[f"stem.conv{3 if deep_stem else 1}.weight"]),
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    }
    return Backbone(f"ResNet-{depth}{'c (three convolutions in the stem)' if deep_stem else ''}", keys)


def _describe_swin(state: Mapping[str, Tensor]) -> Backbone:
    depths = _blocks(state, r"layers\.(\d)\.blocks\.(\d+)\.")
    table = "layers.{}.blocks.0.attn.relative_position_bias_table"
    heads = [state[table.format(stage)].shape[1] for stage in range(len(depths))]
    channels, _, patch, _ = state["patch_embed.proj.weight"].shape
    window = (round(state[table.format(0)].shape[0] ** 0.5) + 1) // 2
    keys: dict[str, object] = {
        "MODEL.BACKBONE.NAME": "D2SwinTransformer",
        "MODEL.SWIN.EMBED_DIM": channels,
        "MODEL.SWIN.PATCH_SIZE": patch,
        "MODEL.SWIN.DEPTHS": depths,
        "MODEL.SWIN.NUM_HEADS": heads,
        "MODEL.SWIN.WINDOW_SIZE": window,
        # What the releases were pre-trained with; it matters for absolute positions alone.
        "MODEL.SWIN.PRETRAIN_IMG_SIZE": 384 if window == 12 else 224,
        "MODEL.SWIN.QKV_BIAS": "layers.0.blocks.0.attn.qkv.bias" in state,
        "MODEL.SWIN.PATCH_NORM": "patch_embed.norm.weight" in state,
        "MODEL.SWIN.APE": "absolute_pos_embed" in state,
    }
    size = SWIN_SIZES.get((channels, depths[2])) if len(depths) == 4 else None
    title = f"{size or 'Swin'} (width {channels}, depths {depths}, heads {heads}, window {window})"
    return Backbone(title, keys)
