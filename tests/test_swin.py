"""Swin against loops; test_huggingface_parity.py holds it against an independent implementation."""

import itertools
import math
import re

import pytest
import torch
from detectron2.modeling import build_backbone
from torch import Tensor, nn

from mask_former.config import load_config
from mask_former.modeling.swin import D2SwinTransformer, DropPath, SwinBlock
from mask_former.modeling.window_attention import BlockOptions, relative_position_index, shift_masks

TINY = {"embed_dim": 8, "depths": [2, 2, 3, 2], "num_heads": [1, 2, 4, 8], "drop_path_rate": 0.0}


def randomize(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.3)
    return module


def attention_by_loops(block: SwinBlock, features: Tensor) -> Tensor:
    """Attention of one image (H, W, C), pixel by pixel, from the paper's definition."""
    attn, side, shift, heads = block.attn, block.window_size, block.shift, block.attn.num_heads
    H, W, C = features.shape
    rows, columns = math.ceil(H / side) * side, math.ceil(W / side) * side
    padded = torch.zeros(rows, columns, C)
    padded[:H, :W] = features
    query, key, value = attn.qkv(padded).view(rows, columns, 3, heads, C // heads).unbind(2)

    def home(y: int, x: int) -> tuple[int, int, bool, bool]:  # window, and whether the shift wrapped it round
        return (y - shift) % rows // side, (x - shift) % columns // side, y < shift, x < shift

    def place(position: int, size: int) -> int:
        return (position - shift) % size % side

    result = torch.zeros(H, W, C)
    for y, x, head in itertools.product(range(H), range(W), range(heads)):
        logits, values = [], []
        for v, u in itertools.product(range(rows), range(columns)):
            if home(y, x) == home(v, u):
                down, right = place(y, rows) - place(v, rows), place(x, columns) - place(u, columns)
                row = (down + side - 1) * (2 * side - 1) + right + side - 1
                bias = attn.relative_position_bias_table[row, head]
                logits.append(query[y, x, head] @ key[v, u, head] / math.sqrt(C // heads) + bias)
                values.append(value[v, u, head])
        weights = torch.stack(logits).softmax(0)
        result[y, x, head * C // heads : (head + 1) * C // heads] = weights @ torch.stack(values)
    return attn.proj(result)


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("size", [(5, 8), (6, 3), (2, 1)])
@torch.no_grad()
def test_block_attends_as_the_definition_by_loops(size: tuple[int, int], shift: int):
    torch.manual_seed(1)
    options = BlockOptions(3, 2.0, True, None, 0.0, 0.0)
    block = randomize(SwinBlock(6, 2, shift, 0.0, options)).eval()
    features = torch.randn(2, *size, 6)
    rows, columns = math.ceil(size[0] / 3), math.ceil(size[1] / 3)
    kind = [2 * (y == rows - 1) + (x == columns - 1) for y in range(rows) for x in range(columns)]
    mask = shift_masks(3, shift)[kind]
    expected = torch.stack([attention_by_loops(block, block.norm1(image)) for image in features]) + features
    expected = expected + block.mlp(block.norm2(expected))
    torch.testing.assert_close(block(features, mask), expected, rtol=1e-5, atol=1e-5)


def test_index_names_the_offset_of_each_pair():
    index = relative_position_index(3)
    for first, second in itertools.product(range(9), repeat=2):
        down, right = first // 3 - second // 3, first % 3 - second % 3
        assert index[first, second] == (down + 2) * 5 + right + 2


def test_any_size_gives_maps_rounded_up():
    backbone = D2SwinTransformer(**TINY).eval()
    for height, width in [(1, 1), (31, 66), (5, 129)]:
        maps = backbone(torch.zeros(1, 3, height, width))
        for name, stride in backbone._out_feature_strides.items():
            channels = backbone.output_shape()[name].channels
            rows, columns = math.ceil(height / stride), math.ceil(width / stride)
            assert maps[name].shape == (1, channels, rows, columns)
    assert backbone.size_divisibility == 32


@torch.no_grad()
def test_position_table_is_added_to_the_patches():
    torch.manual_seed(3)
    with_table = randomize(D2SwinTransformer(**TINY, ape=True, pretrain_img_size=32)).eval()
    plain = D2SwinTransformer(**TINY).eval()
    state = with_table.state_dict()
    table = state.pop("absolute_pos_embed")
    assert table.shape == (1, 8, 8, 8)
    plain.load_state_dict(state)
    plain.patch_embed.register_forward_hook(
        lambda _module, _input, patches: patches + table.permute(0, 2, 3, 1)
    )
    image = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(with_table(image)["res5"], plain(image)["res5"])


@torch.no_grad()
def test_position_table_stretches_over_larger_pictures():
    torch.manual_seed(3)
    backbone = randomize(D2SwinTransformer(**TINY, ape=True, pretrain_img_size=32)).eval()
    backbone.absolute_pos_embed.fill_(0.5)  # stretched, a constant table is the same constant
    image = torch.randn(1, 3, 61, 90)
    stretched = backbone(image)["res2"]
    backbone.absolute_pos_embed = nn.Parameter(torch.full((1, 8, 16, 23), 0.5))
    torch.testing.assert_close(stretched, backbone(image)["res2"])


def test_linear_layers_and_tables_are_initialised():
    torch.manual_seed(4)
    backbone = D2SwinTransformer(embed_dim=32, num_heads=[1, 2, 4, 8], ape=True)
    for name, parameter in backbone.named_parameters():
        if re.search(r"qkv\.weight|fc\d\.weight|reduction|attn\.proj\.weight|_table|pos_embed", name):
            assert abs(parameter.std().item() - 0.02) < 0.003, name
        elif re.search(r"(qkv|fc\d|attn\.proj)\.bias", name):
            assert parameter.abs().max() == 0, name


def test_train_and_eval_return_the_backbone():
    backbone = D2SwinTransformer(**TINY)
    assert backbone.eval() is backbone
    assert not backbone.training
    assert backbone.train() is backbone
    assert backbone.training


def test_only_what_the_wanted_maps_need_is_built():
    torch.manual_seed(5)
    backbone = D2SwinTransformer(**TINY, out_features=["res4", "res2"])
    norms = {name.split(".")[0] for name, _ in backbone.named_parameters() if re.match(r"norm\d", name)}
    assert norms == {"norm0", "norm2"}
    maps = backbone(torch.randn(1, 3, 45, 70))
    assert list(maps) == ["res2", "res4"]
    sum(features.square().sum() for features in maps.values()).backward()
    assert [name for name, parameter in backbone.named_parameters() if parameter.grad is None] == []


def test_frozen_stages_neither_learn_nor_drop():
    options = ["MODEL.BACKBONE.NAME", "D2SwinTransformer", "MODEL.SWIN.EMBED_DIM", 24, "MODEL.SWIN.APE", True]
    options += ["MODEL.SWIN.FROZEN_STAGES", 2, "MODEL.SWIN.DROP_RATE", 0.1]
    backbone = build_backbone(load_config(opts=options))
    backbone.eval()
    backbone.train()
    fixed = {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
    expected = {
        name
        for name, _ in backbone.named_parameters()
        if re.match(r"absolute_pos_embed|patch_embed|layers\.[01]\.", name)
    }
    assert fixed == expected
    assert [stage.training for stage in backbone.layers] == [False, False, True, True]
    assert not backbone.pos_drop.training
    assert not backbone.layers[1].blocks[1].drop_path.training
    sum(features.sum() for features in backbone(torch.randn(1, 3, 33, 50)).values()).backward()
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is None) == (name in fixed), name


def test_config_reaches_the_backbone():
    options = ["MODEL.BACKBONE.NAME", "D2SwinTransformer", "MODEL.SWIN.DEPTHS", [1, 2, 1, 1]]
    options += ["MODEL.SWIN.NUM_HEADS", [1, 2, 4, 8], "MODEL.SWIN.WINDOW_SIZE", 5, "MODEL.SWIN.EMBED_DIM", 16]
    options += [
        "MODEL.SWIN.QKV_BIAS",
        False,
        "MODEL.SWIN.PATCH_NORM",
        False,
    ]
    options += ["MODEL.SWIN.MLP_RATIO", 2.0, "MODEL.SWIN.OUT_FEATURES", ["res3", "res5"]]
    options += [
        "MODEL.SWIN.DROP_PATH_RATE",
        0.4,
        "MODEL.SWIN.ATTN_DROP_RATE",
        0.2,
        "MODEL.SWIN.QK_SCALE",
        0.5,
    ]
    backbone = build_backbone(load_config(opts=options))
    shapes = {name: tuple(tensor.shape) for name, tensor in backbone.state_dict().items()}
    assert shapes["layers.1.blocks.1.attn.relative_position_bias_table"] == (81, 2)
    assert shapes["layers.1.blocks.1.mlp.fc1.weight"] == (64, 32)
    assert "layers.1.blocks.1.attn.qkv.bias" not in shapes
    assert "patch_embed.norm.weight" not in shapes
    assert {name: (s.stride, s.channels) for name, s in backbone.output_shape().items()} == {
        "res3": (8, 32),
        "res5": (32, 128),
    }
    drops = [block.drop_path.probability for stage in backbone.layers for block in stage.blocks]
    assert drops == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert backbone.layers[0].blocks[0].attn.attn_drop == 0.2
    assert backbone.layers[0].blocks[0].attn.scale == 0.5


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(7)
    dropped = DropPath(0.25)(torch.ones(4000, 2, 3))
    per_sample = dropped.flatten(1)
    assert (per_sample == per_sample[:, :1]).all()
    assert sorted(set(per_sample[:, 0].tolist())) == pytest.approx([0, 4 / 3])
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)  # 5 standard errors


def test_a_backbone_used_in_inference_mode_can_be_trained():
    torch.manual_seed(8)
    backbone = D2SwinTransformer(**{**TINY, "window_size": 9})
    image = torch.randn(1, 3, 40, 40)
    with torch.inference_mode():
        backbone(image)
    backbone(image)["res5"].sum().backward()


def test_a_trace_leaves_nothing_behind():
    torch.manual_seed(9)
    backbone = D2SwinTransformer(**{**TINY, "window_size": 6}).eval()
    image, larger = torch.randn(1, 3, 32, 48), torch.randn(1, 3, 100, 50)
    exported = torch.export.export(backbone, (image,))
    torch.testing.assert_close(exported.module()(image)["res4"], backbone(image)["res4"])
    assert backbone(larger)["res4"].shape == (1, 32, 7, 4)


def test_half_precision_autocast_stays_near_float32():
    torch.manual_seed(10)
    backbone = D2SwinTransformer(**TINY).eval()
    image = torch.randn(1, 3, 70, 100)
    with torch.no_grad():
        expected = backbone(image)["res5"]
        with torch.autocast("cpu", torch.bfloat16):
            rough = backbone(image)["res5"]
    torch.testing.assert_close(rough.float(), expected, rtol=0.1, atol=0.1)  # bfloat16 keeps 8 bits


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_heads": [1, 2]}, r"DEPTHS.*\[2, 2, 3, 2\].*NUM_HEADS.*\[1, 2\]"),
        ({"num_heads": [1, 2, 3, 8]}, r"NUM_HEADS\[2\] = 3"),
        ({"out_features": ["res2", "res6"]}, r"OUT_FEATURES.*res6"),
        ({"out_features": []}, "OUT_FEATURES"),
        ({"frozen_stages": 5}, "FROZEN_STAGES is 5"),
    ],
)
def test_impossible_choices_are_named_by_their_key(wrong: dict, message: str):
    with pytest.raises(ValueError, match=message):
        D2SwinTransformer(**{**TINY, **wrong})
