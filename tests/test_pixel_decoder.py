import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from small_heads import ENCODER, SHAPES, backbone_maps, one_image, small_config
from torch import Tensor, nn

from mask_former.modeling.pixel_decoder import (
    PIXEL_DECODER_REGISTRY,
    BasePixelDecoder,
    TransformerEncoderPixelDecoder,
    build_pixel_decoder,
    decode_pixels,
)

BOTH = pytest.mark.parametrize("options", [{}, ENCODER], ids=["base", "encoder"])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def built(options: dict[str, object] | None = None) -> nn.Module:
    decoder = build_pixel_decoder(small_config(options), SHAPES)
    for parameter in decoder.parameters():
        if parameter.dim() == 1:  # new norms and biases would hide a missing one
            nn.init.normal_(parameter, std=0.5)
    return decoder


def group_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int = 32) -> Tensor:
    rows = x.flatten(2).unflatten(1, (groups, -1)).flatten(2)
    mean, variance = rows.mean(2, keepdim=True), rows.var(2, unbiased=False, keepdim=True)
    rows = (rows - mean) / (variance + 1e-5).sqrt()
    return rows.view_as(x) * weight[:, None, None] + bias[:, None, None]


def enlarge(x: Tensor, height: int, width: int) -> Tensor:
    """Repeat each pixel to the wanted size; index by index."""
    rows = [i * x.shape[2] // height for i in range(height)]
    columns = [j * x.shape[3] // width for j in range(width)]
    return x[:, :, rows][:, :, :, columns]


def top_down(state: dict[str, Tensor], maps: list[Tensor]) -> Tensor:
    """The decoder written out from its state dict; `maps` from fine to coarse."""

    def normed(name: str, x: Tensor, padding: int) -> Tensor:
        x = F.conv2d(x, state[f"{name}.weight"], padding=padding)
        return group_norm(x, state[f"{name}.norm.weight"], state[f"{name}.norm.bias"])

    merged = normed("layer_4", maps[3], 1).clamp(min=0)
    for level in (3, 2, 1):
        lateral = normed(f"adapter_{level}", maps[level - 1], 0)
        merged = normed(f"layer_{level}", lateral + enlarge(merged, *lateral.shape[2:]), 1).clamp(min=0)
    return F.conv2d(merged, state["mask_features.weight"], state["mask_features.bias"], padding=1)


@pytest.mark.parametrize("size", [(64, 96), (70, 101)])
def test_base_decoder_is_the_published_top_down_path(size: tuple[int, int]):
    decoder, maps = built(), backbone_maps(*size)
    mask_features, memory = decoder.forward_features(maps)
    assert memory is None
    assert mask_features.shape == (2, 24, *maps["res2"].shape[2:])
    expected = top_down(decoder.state_dict(), list(maps.values()))
    torch.testing.assert_close(mask_features, expected, atol=1e-4, rtol=1e-4)


def test_encoder_decoder_continues_from_the_memory_it_gives():
    decoder, maps = built(ENCODER).eval(), backbone_maps(70, 101)
    mask_features, memory = decoder.forward_features(maps)
    expected_memory = decoder.transformer["encoder"](decoder.input_proj(maps["res5"]))
    torch.testing.assert_close(memory, expected_memory)
    expected = top_down(decoder.state_dict(), [*list(maps.values())[:3], memory])
    torch.testing.assert_close(mask_features, expected, atol=1e-4, rtol=1e-4)


def test_decoder_tells_what_can_be_read_from_it():
    assert built().memory_channels is None
    assert built(ENCODER).memory_channels == 32


def test_coarsest_layer_has_the_width_of_what_it_reads():
    assert built().layer_4.weight.shape == (32, 20, 3, 3)
    assert built(ENCODER).layer_4.weight.shape == (32, 32, 3, 3)


@pytest.mark.parametrize(("norm", "has_bias"), [("GN", False), ("", True)])
def test_convolutions_have_a_bias_only_without_a_norm(norm: str, has_bias: bool):
    names = built({"MODEL.SEM_SEG_HEAD.NORM": norm}).state_dict()
    for layer in ("adapter_1", "layer_1", "layer_4"):
        assert (f"{layer}.bias" in names) is has_bias
        assert (f"{layer}.norm.weight" in names) is not has_bias
    assert "mask_features.bias" in names


def test_order_of_the_feature_names_does_not_matter():
    decoder = built()
    shuffled = built({"MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res4", "res2", "res5", "res3"]})
    shuffled.load_state_dict(decoder.state_dict())
    maps = backbone_maps(64, 96)
    assert torch.equal(shuffled.forward_features(maps)[0], decoder.forward_features(maps)[0])


def test_single_map_needs_no_lateral():
    decoder = built({"MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res3"]})
    assert {name.split(".")[0] for name in decoder.state_dict()} == {"layer_1", "mask_features"}
    assert decoder.forward_features(backbone_maps(64, 96))[0].shape == (2, 24, 8, 12)


def test_replaced_layer_takes_effect():
    decoder, maps = built(), backbone_maps(64, 96)

    class Zero(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.new_zeros(x.shape[0], 32, *x.shape[2:])

    for name in ("adapter_1", "adapter_2", "adapter_3", "layer_4"):
        setattr(decoder, name, Zero())
    nothing = decoder.forward_features({name: torch.zeros_like(m) for name, m in maps.items()})[0]
    assert torch.equal(decoder.forward_features(maps)[0], nothing)


@BOTH
def test_every_parameter_gets_a_finite_gradient(options: dict[str, object]):
    decoder = built(options)
    mask_features, memory = decoder.forward_features(backbone_maps(70, 101))
    (mask_features.square().mean() + (0 if memory is None else memory.square().mean())).backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@BOTH
def test_batch_of_two_equals_singles(options: dict[str, object]):
    decoder, maps = built(options).eval(), backbone_maps(70, 101)
    both = decoder.forward_features(maps)[0]
    for i in range(2):
        single = decoder.forward_features(one_image(maps, i))[0]
        torch.testing.assert_close(both[i : i + 1], single, atol=1e-4, rtol=1e-4)


@BOTH
def test_forward_and_forward_features_are_one(options: dict[str, object]):
    decoder, maps = built(options).eval(), backbone_maps(64, 96)
    assert torch.equal(decoder(maps).mask_features, decoder.forward_features(maps).mask_features)


def test_registry_holds_both_decoders_under_published_names():
    assert PIXEL_DECODER_REGISTRY.get("BasePixelDecoder") is BasePixelDecoder
    assert PIXEL_DECODER_REGISTRY.get("TransformerEncoderPixelDecoder") is TransformerEncoderPixelDecoder


def test_unknown_name_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"PIXEL_DECODER_NAME: 'Nothing'.*BasePixelDecoder.*TransformerEnc"):
        built({"MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "Nothing"})


def test_segmentation_head_that_is_no_pixel_decoder_is_refused():
    with pytest.raises(ValueError, match=r"'SemSegFPNHead' is no pixel decoder.*forward_features"):
        built({"MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "SemSegFPNHead"})


class PixelDecoderOfOthers(nn.Module):
    """As code for the reference release, or for Mask2Former, writes and registers them."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        self.conv = nn.Conv2d(input_shape["res2"].channels, cfg.MODEL.SEM_SEG_HEAD.MASK_DIM, 1)

    def forward_features(self, features):
        return self.conv(features["res2"]), features["res5"], [features["res5"]]


@pytest.fixture
def decoder_of_others():
    SEM_SEG_HEADS_REGISTRY.register(PixelDecoderOfOthers)
    yield "PixelDecoderOfOthers"
    del SEM_SEG_HEADS_REGISTRY._obj_map["PixelDecoderOfOthers"]


def test_decoder_registered_among_segmentation_heads_is_found(decoder_of_others: str):
    decoder = build_pixel_decoder(
        small_config({"MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": decoder_of_others}), SHAPES
    )
    maps = backbone_maps(64, 96)
    mask_features, memory = decode_pixels(decoder, maps)
    assert mask_features.shape == (2, 24, 16, 24)
    assert memory is maps["res5"]


@pytest.mark.parametrize("names", [["res2", "p9"], []])
def test_maps_that_the_backbone_does_not_give_are_refused(names: list[str]):
    with pytest.raises(
        ValueError, match=r"IN_FEATURES is \[.*the backbone gives \['res2', 'res3', 'res4', 'res5'\]"
    ):
        built({"MODEL.SEM_SEG_HEAD.IN_FEATURES": names})


def test_width_that_group_norm_cannot_divide_is_refused_by_key():
    with pytest.raises(ValueError, match=r"CONVS_DIM is 40.*NORM 'GN'.*multiple of 32"):
        built({"MODEL.SEM_SEG_HEAD.CONVS_DIM": 40})


def test_width_that_the_heads_cannot_divide_is_refused_by_key():
    with pytest.raises(ValueError, match=r"CONVS_DIM is 32.*NHEADS, which is 5"):
        built(ENCODER | {"MODEL.MASK_FORMER.NHEADS": 5})


def test_decoder_builds_without_a_config():
    shape = {"fine": ShapeSpec(channels=3, stride=2), "coarse": ShapeSpec(channels=5, stride=4)}
    decoder = BasePixelDecoder(input_shape=shape, conv_dim=32, mask_dim=6, norm="GN")
    maps = {"fine": torch.randn(1, 3, 7, 9), "coarse": torch.randn(1, 5, 4, 5)}
    assert decoder.forward_features(maps).mask_features.shape == (1, 6, 7, 9)
