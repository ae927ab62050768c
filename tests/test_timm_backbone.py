"""Backbones of timm: maps, strides and sizes, against timm's own outputs and against sums by hand."""

import math
import sys

import pytest
import timm
import torch
from detectron2.modeling import build_backbone
from torch import Tensor

from mask_former.config import load_config
from mask_former.modeling.build import build_model
from mask_former.modeling.timm_backbone import TimmBackbone, resized_grid

NAMES = ["res2", "res3", "res4", "res5"]


def timm_config(name: str, *opts: str):
    return load_config(None, ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", name, *opts])


def odd_picture(height: int = 77, width: int = 130) -> Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_maps_of_a_hierarchical_net_are_those_of_timm():
    backbone = TimmBackbone("test_efficientnet").eval()
    theirs = timm.create_model("test_efficientnet", features_only=True, out_indices=(1, 2, 3, 4)).eval()
    theirs.load_state_dict(backbone.net.state_dict(), strict=False)
    picture = odd_picture(64, 96)
    maps = backbone(picture)
    assert list(maps) == NAMES
    for ours, expected in zip(maps.values(), theirs(picture), strict=True):
        torch.testing.assert_close(ours, expected)


@torch.no_grad()
def test_map_of_a_plain_net_is_its_last_tokens_without_the_class_token():
    backbone = TimmBackbone("test_vit", out_features=["res4"]).eval()
    theirs = timm.create_model("test_vit").eval()
    theirs.load_state_dict({**theirs.state_dict(), **backbone.net.state_dict()})
    picture = odd_picture(160, 160)
    tokens = theirs.forward_features(picture)[:, theirs.num_prefix_tokens :]  # (1, 100, C)
    torch.testing.assert_close(backbone(picture)["res4"].flatten(2), tokens.mT)


@pytest.mark.parametrize("name", ["test_convnext", "test_vit3", "efficientvit_m0"])
@torch.no_grad()
def test_maps_have_the_strides_of_the_picture_whatever_its_size(name: str):
    backbone = TimmBackbone(name).eval()
    for height, width in [(1, 1), (77, 130)]:
        maps = backbone(odd_picture(height, width))
        assert list(maps) == NAMES
        for level, shape in backbone.output_shape().items():
            rows, columns = math.ceil(height / shape.stride), math.ceil(width / shape.stride)
            assert maps[level].shape == (1, shape.channels, rows, columns)
    assert {level: shape.stride for level, shape in backbone.output_shape().items()} == {
        "res2": 4, "res3": 8, "res4": 16, "res5": 32,
    }  # fmt: skip


def test_14_pixel_patches_are_resized_to_where_16_pixel_cells_lie():
    centres = torch.arange(7) * 14 + 6.5  # of the patches in 98 columns
    resized = resized_grid(centres.expand(1, 1, 5, 7), 14, 16)
    torch.testing.assert_close(resized[..., :4, :6], (torch.arange(6) * 16 + 7.5).expand(1, 1, 4, 6))


@torch.no_grad()
def test_14_pixel_patches_give_maps_of_the_usual_strides():
    backbone = TimmBackbone("eva02_tiny_patch14_224").eval()
    picture, padded = odd_picture(), torch.zeros(1, 3, 96, 160)
    padded[..., :77, :130] = picture
    maps, expected = backbone(picture), backbone(padded)
    assert [tuple(features.shape[2:]) for features in maps.values()] == [(20, 33), (10, 17), (5, 9), (3, 5)]
    torch.testing.assert_close(maps["res3"], expected["res3"][..., :10, :17])


def test_only_what_the_wanted_maps_need_is_built():
    backbone = TimmBackbone("test_efficientnet", out_features=["res4", "res2"])
    maps = backbone(odd_picture())
    assert list(maps) == ["res2", "res4"]
    sum(features.square().sum() for features in maps.values()).backward()
    assert [name for name, parameter in backbone.named_parameters() if parameter.grad is None] == []
    assert len(backbone.net.blocks) < len(TimmBackbone("test_efficientnet").net.blocks)


def test_config_reaches_the_net():
    cfg = timm_config("test_vit", "MODEL.TIMM.DROP_PATH_RATE", "0.5", "MODEL.TIMM.OUT_FEATURES", "['res3']")
    backbone = build_backbone(cfg)
    assert list(backbone.output_shape()) == ["res3"]
    rates = [
        block.drop_path1.drop_prob for block in backbone.net.blocks if hasattr(block.drop_path1, "drop_prob")
    ]
    assert max(rates) == 0.5


@pytest.mark.parametrize(
    ("opts", "mean"),
    [
        (["INPUT.FORMAT", "RGB"], [0.485 * 255, 0.456 * 255, 0.406 * 255]),
        (["INPUT.FORMAT", "BGR"], [0.406 * 255, 0.456 * 255, 0.485 * 255]),
        (["MODEL.PIXEL_MEAN", "[1.0, 2.0, 3.0]"], [1.0, 2.0, 3.0]),
    ],
)
def test_pixel_mean_is_the_record_of_the_net_unless_the_recipe_has_one(opts: list[str], mean: list[float]):
    small = ["MODEL.SEM_SEG_HEAD.IN_FEATURES", "['res5']", "MODEL.SEM_SEG_HEAD.NAME", "MaskFormerHead"]
    cfg = timm_config("resnet10t.c3_in1k", "MODEL.META_ARCHITECTURE", "MaskFormer", *small, *opts)
    model = build_model(cfg, "cpu")
    record = timm.get_pretrained_cfg("resnet10t.c3_in1k")
    assert record.mean == (0.485, 0.456, 0.406)
    assert model.pixel_mean.flatten().tolist() == pytest.approx(mean)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("convnext_tinny", r"'convnext_tinny', which timm .* does not have; did you mean convnext_tiny"),
        ("beit_base_patch16_224", r"beit_base_patch16_224: .* pictures of any size"),
        ("convnext_tiny.in13k", r"but the tags are convnext_tiny.dinov3_lvd1689m, .*or give none"),
        ("", "MODEL.TIMM.NAME is ''"),
    ],
)
def test_unknown_and_unusable_nets_are_refused_by_name(name: str, message: str):
    with pytest.raises(ValueError, match=message):
        TimmBackbone(name)


def test_unknown_maps_are_refused():
    with pytest.raises(ValueError, match=r"MODEL.TIMM.OUT_FEATURES is .*res6.*expected some of res2 to res5"):
        TimmBackbone("test_vit", out_features=["res6"])


def test_absent_timm_is_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "timm", None)  # what import makes of an absent library
    with pytest.raises(ModuleNotFoundError, match=r"needs timm: pip install 'mask-former\[timm\]'"):
        TimmBackbone("test_vit")
