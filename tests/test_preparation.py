"""The network prepared for inference gives the answers of the plain one, within the tolerances it states."""

import copy

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling import build_model
from tiny_models import picture_of, tiny_config
from torch import nn

from mask_former.modeling.pixel_decoder import PIXEL_DECODER_REGISTRY, BasePixelDecoder, PixelFeatures
from mask_former.modeling.preparation import _linear, fold_norms, inference_type, prepare_for_inference

ENCODER = {
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "TransformerEncoderPixelDecoder",
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "transformer_encoder",
}
SWIN = {
    "MODEL.BACKBONE.NAME": "D2SwinTransformer",
    "MODEL.SWIN.EMBED_DIM": 16,
    "MODEL.SWIN.DEPTHS": [2, 2, 2, 2],
    "MODEL.SWIN.NUM_HEADS": [1, 2, 4, 4],
    "MODEL.SWIN.WINDOW_SIZE": 4,
}
MANY_QUERIES = {"MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 20, "MODEL.SEM_SEG_HEAD.MASK_DIM": 16}
KINDS = {
    "frozen norms": {},
    "batch norms": {"MODEL.RESNETS.NORM": "BN"},
    "no norms in the decoder": {"MODEL.SEM_SEG_HEAD.NORM": ""},
    "batch norms in the decoder": {"MODEL.SEM_SEG_HEAD.NORM": "BN"},
    "encoder": ENCODER,
    "swin": SWIN,
    "more queries than channels": MANY_QUERIES,
}


def model_of(options):
    cfg = tiny_config()
    cfg.merge_from_list([word for item in options.items() for word in item])
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        # Statistics as after training: norms that change nothing would hide a wrong fold.
        if isinstance(module, FrozenBatchNorm2d | nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 2.0),
            ):
                tensor.data.uniform_(low, high, generator=generator)
    return model


def difference(found, expected):
    """The largest difference, relative to the largest logit."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


@torch.inference_mode()
def differences(model, fast, height=70, width=101, images=2):
    pictures = [picture_of(height - 3 * i, width, seed=i) for i in range(images)]
    batch = model.prepare_images(pictures).tensor
    expected, found = model.predict(batch)[-1], fast.predict(batch)[-1]
    for logits, wanted in zip(found, expected, strict=True):
        assert logits.shape == wanted.shape
        assert logits.dtype == torch.float32
        assert logits.is_contiguous()
    return max(difference(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_float32_differs_by_rounding_alone(kind):
    model = model_of(KINDS[kind])
    assert differences(model, prepare_for_inference(model, "float32")) < 1e-4


@pytest.mark.parametrize("kind", ["frozen norms", "encoder", "swin", "more queries than channels"])
def test_bfloat16_differs_by_less_than_a_tenth(kind):
    model = model_of(KINDS[kind])
    found = differences(model, prepare_for_inference(model, "bfloat16"))
    # 8 bits: something, but no more than that of it.
    assert 1e-4 < found < 0.1


def test_the_model_itself_stays_as_it_was():
    model = model_of({})
    before = copy.deepcopy(model.state_dict())
    prepare_for_inference(model, "bfloat16")
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_in_place_changes_the_model_itself():
    model = model_of({})
    assert prepare_for_inference(model, "float32", in_place=True) is model
    assert not any(isinstance(module, FrozenBatchNorm2d) for module in model.modules())


def test_results_from_dicts_are_the_same():
    model = model_of({})
    fast = prepare_for_inference(model, "float32")
    pictures = [{"image": picture_of(64, 90), "height": 50, "width": 71}, {"image": picture_of(40, 64, 1)}]
    with torch.inference_mode():
        for expected, found in zip(model(pictures), fast(pictures), strict=True):
            assert difference(found["sem_seg"], expected["sem_seg"]) < 1e-4


def test_pictures_of_several_sizes_in_turn_are_the_same():
    model = model_of(SWIN)
    fast = prepare_for_inference(model, "float32")
    for height, width in ((64, 96), (33, 70), (64, 96)):
        assert differences(model, fast, height, width, images=1) < 1e-4


def test_norms_that_follow_in_a_sequence_are_folded():
    torch.manual_seed(0)
    sequence = nn.Sequential(nn.Conv2d(3, 4, 3, bias=True), nn.BatchNorm2d(4), nn.ReLU()).eval()
    sequence[1].running_mean.uniform_(-1, 1)
    sequence[1].running_var.uniform_(0.5, 2)
    picture = torch.randn(2, 3, 9, 8)
    expected = sequence(picture)
    assert fold_norms(sequence) == 1
    assert torch.allclose(sequence(picture), expected, atol=1e-5)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in sequence)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 3, 4, 7)])
def test_linear_layers_are_the_same_as_convolutions(bias, shape):
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(7, 6, bias=bias), torch.randn(shape)
    turned = torch.randn(*shape[::-1]).permute(*range(len(shape))[::-1])
    for some in (x, turned):
        expected = torch.nn.functional.linear(some, layer.weight, layer.bias)
        assert torch.allclose(_linear(layer, some), expected, atol=1e-6)


def test_group_norms_stay():
    model = model_of({})
    count = sum(isinstance(module, nn.GroupNorm) for module in model.modules())
    fold_norms(model)
    assert count == sum(isinstance(module, nn.GroupNorm) for module in model.modules()) > 0


def test_a_per_pixel_model_can_be_prepared():
    options = {
        "MODEL.META_ARCHITECTURE": "SemanticSegmentor",
        "MODEL.SEM_SEG_HEAD.NAME": "PerPixelBaselineHead",
    }
    model = model_of(options)
    fast = prepare_for_inference(model, "float32")
    pictures = [{"image": picture_of(64, 90), "height": 50, "width": 71}]
    with torch.inference_mode():
        assert difference(fast(pictures)[0]["sem_seg"], model(pictures)[0]["sem_seg"]) < 1e-4


def test_auto_is_one_of_the_two_types():
    assert inference_type("auto", torch.device("cpu")) in (torch.float32, torch.bfloat16)
    assert inference_type("float32", torch.device("cpu")) is torch.float32
    assert inference_type("auto", torch.device("meta")) is torch.float32


def test_unknown_precisions_are_refused_by_name():
    with pytest.raises(ValueError, match="'half', expected one of auto, float32, bfloat16"):
        prepare_for_inference(model_of({}), "half")


class SharperPixelDecoder(BasePixelDecoder):
    """A pixel decoder of a user's own, which changes what the masks are made with."""

    def forward(self, features):
        mask_features, memory = super().forward(features)
        return PixelFeatures(mask_features.tanh() * 3, memory)


class ScaledConv(Conv2d):
    """A convolution of a user's own, which does something between weights and norm."""

    def forward(self, x):
        return super().forward(x * x)


def test_subclasses_of_known_modules_stay_as_they_are():
    PIXEL_DECODER_REGISTRY.register(SharperPixelDecoder)
    try:
        model = model_of({"MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "SharperPixelDecoder"})
    finally:
        del PIXEL_DECODER_REGISTRY._obj_map["SharperPixelDecoder"]
    assert differences(model, prepare_for_inference(model, "float32")) < 1e-4


def test_norms_that_do_not_follow_the_product_directly_stay():
    norm = nn.BatchNorm2d(4)
    norm.running_mean.uniform_(0.5, 1)
    with_activation = nn.Sequential(Conv2d(3, 4, 3, activation=torch.relu), norm).eval()
    of_a_user = nn.Sequential(ScaledConv(3, 4, 3, norm=norm)).eval()
    picture = torch.randn(2, 3, 9, 8)
    for sequence in (with_activation, of_a_user):
        expected = sequence(picture)
        fold_norms(sequence)
        assert torch.allclose(sequence(picture), expected, atol=1e-5)


def test_norms_without_running_statistics_stay():
    sequence = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    picture = torch.randn(2, 3, 9, 8)
    expected = sequence(picture)
    assert fold_norms(sequence) == 0
    assert torch.equal(sequence(picture), expected)
