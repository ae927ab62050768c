import ast
import logging
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_sem_seg_head
from small_heads import ENCODER, SHAPES, backbone_maps, one_image, small_config
from torch import Tensor, nn

from mask_former.config import load_config
from mask_former.modeling import head as head_module
from mask_former.modeling import per_pixel as per_pixel
from mask_former.modeling.head import MaskFormerHead, old_names

BASELINE = {"MODEL.SEM_SEG_HEAD.NAME": "PerPixelBaselineHead"}
BASELINE_PLUS = {
    "MODEL.SEM_SEG_HEAD.NAME": "PerPixelBaselinePlusHead",
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 5,
}
BOTH = pytest.mark.parametrize("options", [{}, ENCODER], ids=["base", "encoder"])
EVERY_HEAD = pytest.mark.parametrize(
    "options", [{}, ENCODER, BASELINE, BASELINE_PLUS], ids=["base", "encoder", "per_pixel", "per_pixel_plus"]
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def built(options: dict[str, object] | None = None) -> nn.Module:
    return build_sem_seg_head(small_config(options), SHAPES)


PUBLISHED = {
    "ade20k-150__maskformer_R50_bs16_160k": (17_799_831, {}),
    "ade20k-150-panoptic__maskformer_panoptic_R50_bs16_720k": (
        21_561_495,
        ENCODER | {"MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 6},
    ),
    "ade20k-150__per_pixel_baseline_R50_bs16_160k": (7_579_030, BASELINE),
    "ade20k-150__per_pixel_baseline_plus_R50_bs16_160k": (
        17_773_824,
        BASELINE_PLUS | {"MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 150},
    ),
}


@pytest.mark.parametrize("contract", PUBLISHED)
def test_head_has_the_published_names_shapes_and_size(contract: str):
    size, options = PUBLISHED[contract]
    options = {
        "MODEL.SEM_SEG_HEAD.NAME": "MaskFormerHead",
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": list(SHAPES),
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 150,
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": 256,
    } | options
    cfg = load_config(opts=[word for key, value in options.items() for word in (key, value)])
    widths = (256, 512, 1024, 2048)
    shapes = {
        name: ShapeSpec(channels=width, stride=spec.stride)
        for (name, spec), width in zip(SHAPES.items(), widths, strict=True)
    }
    head = build_sem_seg_head(cfg, shapes)

    lines = (Path(__file__).parent / "parameter_names" / f"{contract}.txt").read_text().splitlines()
    expected = {}
    for line in lines:
        if line.startswith("sem_seg_head."):
            name, rest = line.removeprefix("sem_seg_head.").split(" ", 1)
            expected[name] = ast.literal_eval(rest.rsplit(" ", 1)[0])
    assert {name: tuple(value.shape) for name, value in head.state_dict().items()} == expected
    assert sum(parameter.numel() for parameter in head.parameters()) == size


@BOTH
def test_head_predicts_on_a_quarter_of_any_size(options: dict[str, object]):
    head = built(options)
    predictions = head(backbone_maps(70, 101))
    assert len(predictions) == 3
    for prediction in predictions:
        assert prediction.class_logits.shape == (2, 7, 6)
        assert prediction.mask_logits.shape == (2, 7, 18, 26)
    assert len(head.eval()(backbone_maps(33, 1))) == 1


def test_head_tells_its_classes_and_its_ignored_label():
    head = built({"MODEL.SEM_SEG_HEAD.IGNORE_VALUE": 77})
    assert (head.num_classes, head.ignore_value) == (5, 77)


@pytest.mark.parametrize("memory", ["res5", "res3", "transformer_encoder"])
def test_transformer_decoder_reads_the_chosen_map(memory: str):
    head = built(ENCODER | {"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": memory}).eval()
    maps = backbone_maps(70, 101)
    mask_features, encoded = head.pixel_decoder.forward_features(maps)
    expected = head.predictor(encoded if memory == "transformer_encoder" else maps[memory], mask_features)
    assert all(map(torch.equal, head(maps)[0], expected[0]))
    assert head.predictor.input_proj.weight.shape[1] == {"res5": 20, "res3": 12}.get(memory, 32)


def test_map_outside_the_pixel_decoder_can_be_the_memory():
    head = built({"MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3"]}).eval()
    assert head.predictor.input_proj.weight.shape[1] == 20
    assert head(backbone_maps(64, 96))[0].mask_logits.shape == (2, 7, 16, 24)


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        ("transformer_encoder", r"'transformer_encoder', but there is no encoder in .*PIXEL_DECODER_NAME"),
        ("res9", r"'res9'; the backbone gives \['res2', 'res3', 'res4', 'res5'\]"),
    ],
)
@pytest.mark.parametrize("name", ["MaskFormerHead", "PerPixelBaselinePlusHead"])
def test_memory_that_nothing_gives_is_refused_when_the_head_is_built(name: str, memory: str, message: str):
    options = BASELINE_PLUS | {
        "MODEL.SEM_SEG_HEAD.NAME": name,
        "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": memory,
    }
    with pytest.raises(ValueError, match=rf"TRANSFORMER_IN_FEATURE is {message}"):
        built(options)


def output_of(head: nn.Module, maps: dict[str, Tensor]) -> list[Tensor]:
    """All that a head of any kind answers in evaluation."""
    answer = head(maps)
    return list(answer[0]) if isinstance(answer, list) else [answer[0]]


@EVERY_HEAD
def test_batch_of_two_equals_singles(options: dict[str, object]):
    head, maps = built(options).eval(), backbone_maps(70, 101)
    both = output_of(head, maps)
    for i in range(2):
        for part, single in zip(both, output_of(head, one_image(maps, i)), strict=True):
            torch.testing.assert_close(part[i : i + 1], single, atol=1e-4, rtol=1e-4)


def test_every_parameter_gets_a_finite_gradient():
    head = built(ENCODER | {"MODEL.MASK_FORMER.ENC_LAYERS": 1})
    predictions = head(backbone_maps(70, 101))
    sum(p.class_logits.square().mean() + p.mask_logits.square().mean() for p in predictions).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@EVERY_HEAD
@pytest.mark.parametrize("training", [True, False])
def test_nothing_in_the_network_depends_on_values(options: dict[str, object], training: bool):
    # A meta tensor has no values: reading one, which on a GPU would wait for it, raises.
    head = built(options).to("meta").train(training)
    maps = {name: features.to("meta") for name, features in backbone_maps(70, 101).items()}
    if "Baseline" in type(head).__name__:
        head(maps, torch.zeros(2, 70, 101, dtype=torch.int64, device="meta"))
    else:
        head(maps)


@EVERY_HEAD
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_stays_near_float32(options: dict[str, object], dtype: torch.dtype):
    head, maps = built(options).eval(), backbone_maps(70, 101)
    exact = output_of(head, maps)
    with torch.autocast("cpu", dtype):
        rough = output_of(head, maps)
    head.to(dtype)
    pure = output_of(head, {name: features.to(dtype) for name, features in maps.items()})
    # Some ten layers, each rounding to 8 (bfloat16) or 11 bits.
    tolerance = {torch.bfloat16: 0.05, torch.float16: 0.008}[dtype]
    for expected, autocast, cast in zip(exact, rough, pure, strict=True):
        scale = expected.abs().max()
        assert cast.dtype == dtype
        assert (autocast - expected).abs().max() < tolerance * scale
        assert (cast - expected).abs().max() < tolerance * scale


class Exported(nn.Module):
    """The network as a function of tensors."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, *maps: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.head(dict(zip(SHAPES, maps, strict=True)))[-1])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.*:FutureWarning")
def test_traced_head_serves_other_sizes():
    exported = Exported(built(ENCODER).eval())
    traced = torch.jit.trace(exported, tuple(backbone_maps(70, 101).values()), check_trace=False)
    other = tuple(backbone_maps(97, 61, images=1, seed=1).values())
    torch.testing.assert_close(traced(*other), exported(*other))


def test_exported_head_serves_other_sizes():
    exported = Exported(built(ENCODER).eval())
    maps = tuple(backbone_maps(70, 101).values())
    any_size = tuple({axis: torch.export.Dim.AUTO for axis in (0, 2, 3)} for _ in maps)
    program = torch.export.export(exported, maps, dynamic_shapes=(any_size,), strict=False)
    other = tuple(backbone_maps(97, 61, images=3, seed=1).values())
    torch.testing.assert_close(program.module()(*other), exported(*other))


def test_old_names_are_those_that_lack_the_pixel_decoder():
    names = [
        "backbone.res2.weight",
        "head.layer_1.weight",
        "head.transformer.encoder.layers.0.linear1.bias",
        "head.predictor.transformer.decoder.norm.weight",
        "head.pixel_decoder.mask_features.weight",
        "headless.layer_1.weight",
    ]
    assert old_names(names, "head.") == {
        "head.layer_1.weight": "head.pixel_decoder.layer_1.weight",
        "head.transformer.encoder.layers.0.linear1.bias": (
            "head.pixel_decoder.transformer.encoder.layers.0.linear1.bias"
        ),
    }


def test_old_name_whose_new_one_is_present_is_left_alone():
    assert old_names(["a.layer_1.bias", "a.pixel_decoder.layer_1.bias"], "a.") == {}


class Model(nn.Module):
    """A head where checkpoints have it."""

    def __init__(self, options: dict[str, object]) -> None:
        super().__init__()
        self.backbone = nn.Linear(2, 3)
        self.sem_seg_head = built(options)


@pytest.mark.parametrize("with_metadata", [True, False], ids=["metadata", "plain"])
@pytest.mark.parametrize("layout", ["old", "new"])
@EVERY_HEAD
def test_both_layouts_load_completely(
    options: dict[str, object], layout: str, with_metadata: bool, caplog: pytest.LogCaptureFixture
):
    source, model = Model(options), Model(options)
    saved = source.state_dict()
    checkpoint = OrderedDict(
        (name.replace(".pixel_decoder.", ".") if layout == "old" else name, value)
        for name, value in saved.items()
    )
    if with_metadata:
        checkpoint._metadata = saved._metadata
        checkpoint._metadata["sem_seg_head"] = {} if layout == "old" else {"version": 2}
    names = list(checkpoint)
    with caplog.at_level(logging.INFO, logger=head_module.__name__):
        model.load_state_dict(checkpoint, strict=True)
    for name, value in saved.items():
        assert torch.equal(model.state_dict()[name], value), name
    assert list(checkpoint) == names, "the caller's dict is the caller's"
    assert len(caplog.records) == (1 if layout == "old" else 0)


def test_head_loads_old_names_by_itself():
    source, head = built(), built()
    saved = source.state_dict()
    head.load_state_dict({name.removeprefix("pixel_decoder."): value for name, value in saved.items()})
    assert all(torch.equal(head.state_dict()[name], value) for name, value in saved.items())


def test_saved_head_tells_others_that_its_names_are_new():
    # Published code renames what says no version, or one below 2.
    assert built().state_dict()._metadata[""]["version"] == 2


def test_head_is_built_from_its_parts_without_a_config():
    parts = built()
    head = MaskFormerHead(
        pixel_decoder=parts.pixel_decoder,
        predictor=parts.predictor,
        transformer_in_feature="res5",
        num_classes=5,
        ignore_value=255,
    )
    maps = backbone_maps(64, 96)
    assert torch.equal(head.eval()(maps)[0].mask_logits, parts.eval()(maps)[0].mask_logits)
