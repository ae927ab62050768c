import math

import pytest
import torch
from detectron2.modeling import build_model, build_sem_seg_head
from small_heads import ENCODER, SHAPES, backbone_maps, small_config
from torch import Tensor, nn

from mask_former.modeling.per_pixel import PerPixelBaselineHead, PerPixelBaselinePlusHead, per_pixel_losses

PLAIN = {"MODEL.SEM_SEG_HEAD.NAME": "PerPixelBaselineHead"}
PLUS = {"MODEL.SEM_SEG_HEAD.NAME": "PerPixelBaselinePlusHead", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 5}
BOTH = pytest.mark.parametrize("options", [PLAIN, PLUS], ids=["plain", "plus"])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def built(options: dict[str, object]) -> nn.Module:
    return build_sem_seg_head(small_config(options), SHAPES)


def labels(height: int, width: int, images: int = 2) -> Tensor:
    """Labels of five classes, with some pixels that have none."""
    targets = torch.randint(0, 5, (images, height, width))
    targets[torch.rand(targets.shape) < 0.2] = 255
    return targets


def score_at(plane: Tensor, y: int, x: int, height: int, width: int) -> float:
    """Read `plane` (h, w), enlarged bilinearly to (height, width), at one pixel."""
    h, w = plane.shape
    row = min(max((y + 0.5) * h / height - 0.5, 0), h - 1)
    column = min(max((x + 0.5) * w / width - 0.5, 0), w - 1)
    top, left = int(row), int(column)
    down, right = row - top, column - left
    bottom, far = min(top + 1, h - 1), min(left + 1, w - 1)
    upper = plane[top, left] * (1 - right) + plane[top, far] * right
    lower = plane[bottom, left] * (1 - right) + plane[bottom, far] * right
    return (upper * (1 - down) + lower * down).item()


def loss_by_loop(scores: Tensor, targets: Tensor, ignore_value: int) -> float:
    losses = []
    images, height, width = targets.shape
    for image in range(images):
        for y in range(height):
            for x in range(width):
                label = targets[image, y, x].item()
                if label != ignore_value:
                    values = [score_at(plane, y, x, height, width) for plane in scores[image]]
                    losses.append(math.log(sum(map(math.exp, values))) - values[label])
    return sum(losses) / len(losses)


@pytest.mark.parametrize("size", [(8, 12), (7, 10)], ids=["multiple_of_4", "any_size"])
def test_loss_is_the_mean_over_labelled_pixels_at_full_size(size: tuple[int, int]):
    scores, targets = torch.randn(2, 5, 2, 3), labels(*size)
    losses = per_pixel_losses([scores], targets, ignore_value=255, loss_weight=0.5)
    assert losses["loss_sem_seg"].item() == pytest.approx(0.5 * loss_by_loop(scores, targets, 255), rel=1e-5)


def test_earlier_layers_have_losses_of_their_own():
    scores, targets = [torch.randn(2, 5, 2, 3) for _ in range(3)], labels(8, 12)
    losses = per_pixel_losses(scores, targets, ignore_value=255, loss_weight=1.0)
    for name, layer in (("loss_sem_seg_0", 0), ("loss_sem_seg_1", 1), ("loss_sem_seg", 2)):
        assert losses.pop(name).item() == pytest.approx(loss_by_loop(scores[layer], targets, 255), rel=1e-5)
    assert not losses


def test_picture_without_labels_costs_nothing():
    scores = torch.randn(1, 5, 2, 3, requires_grad=True)
    losses = per_pixel_losses([scores], torch.full((1, 8, 12), 255), ignore_value=255, loss_weight=1.0)
    losses["loss_sem_seg"].backward()
    assert losses["loss_sem_seg"].item() == 0
    assert torch.equal(scores.grad, torch.zeros_like(scores))


def test_loss_is_computed_in_float32_whatever_the_scores():
    scores, targets = torch.randn(2, 5, 2, 3, dtype=torch.bfloat16), labels(8, 12)
    losses = per_pixel_losses([scores], targets, 255, 1.0)
    exact = per_pixel_losses([scores.float()], targets, 255, 1.0)
    assert losses["loss_sem_seg"].dtype == torch.float32
    assert torch.equal(losses["loss_sem_seg"], exact["loss_sem_seg"])


@BOTH
def test_training_without_labels_is_refused(options: dict[str, object]):
    with pytest.raises(ValueError, match=r"must give 'sem_seg'"):
        built(options)(backbone_maps(64, 96))


def test_plain_baseline_classifies_each_pixel_embedding():
    head, maps = built(PLAIN).eval(), backbone_maps(64, 96)
    embeddings = head.pixel_decoder.forward_features(maps).mask_features
    weight, bias = head.predictor.weight[:, :, 0, 0], head.predictor.bias
    scores, losses = head(maps)
    assert (scores.shape, losses) == ((2, 5, 64, 96), {})
    quarter = (weight @ embeddings[1].flatten(1) + bias[:, None]).view(5, 16, 24)
    for label, y, x in [(0, 0, 0), (3, 17, 50), (4, 63, 95)]:
        expected = score_at(quarter[label], y, x, 64, 96)
        assert scores[1, label, y, x].item() == pytest.approx(expected, abs=1e-4)


def test_plus_baseline_scores_class_k_with_the_mask_of_query_k():
    head, maps = built(PLUS).eval(), backbone_maps(64, 96)
    masks = head.predictor(maps["res5"], head.pixel_decoder.forward_features(maps)[0])[-1].mask_logits
    scores, losses = head(maps)
    assert (scores.shape, losses) == ((2, 5, 64, 96), {})
    for label, y, x in [(0, 0, 0), (3, 17, 50), (4, 63, 95)]:
        expected = score_at(masks[1, label], y, x, 64, 96)
        assert scores[1, label, y, x].item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("finest", ["res3", "res4"])
@BOTH
def test_scores_have_the_size_of_the_input_whatever_the_finest_map(options: dict[str, object], finest: str):
    names = [name for name in SHAPES if name >= finest]
    head = built(options | {"MODEL.SEM_SEG_HEAD.IN_FEATURES": names}).eval()
    maps = backbone_maps(64, 96)
    embeddings = head.pixel_decoder.forward_features(maps).mask_features
    small = (
        head.predictor(embeddings) if options is PLAIN else head.predictor(maps["res5"], embeddings)[-1][1]
    )
    assert small.shape == (2, 5, 64 // SHAPES[finest].stride, 96 // SHAPES[finest].stride)
    scores, _ = head(maps)
    assert scores.shape == (2, 5, 64, 96)
    for label, y, x in [(0, 0, 0), (3, 17, 50), (4, 63, 95)]:
        expected = score_at(small[1, label], y, x, 64, 96)
        assert scores[1, label, y, x].item() == pytest.approx(expected, abs=1e-4)


def test_plus_baseline_supervises_every_layer_only_when_deep():
    maps, targets = backbone_maps(64, 96), labels(64, 96)
    assert set(built(PLUS)(maps, targets)[1]) == {"loss_sem_seg_0", "loss_sem_seg_1", "loss_sem_seg"}
    shallow = built(PLUS | {"MODEL.MASK_FORMER.DEEP_SUPERVISION": False})
    assert set(shallow(maps, targets)[1]) == {"loss_sem_seg"}


def test_plus_baseline_needs_one_query_per_class():
    with pytest.raises(ValueError, match=r"NUM_OBJECT_QUERIES is 9 and .*NUM_CLASSES is 5"):
        built(PLUS | {"MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 9})


@pytest.mark.parametrize("options", [PLAIN, PLUS, ENCODER | PLUS], ids=["plain", "plus", "plus_encoder"])
def test_every_parameter_gets_a_finite_gradient(options: dict[str, object]):
    head = built(options)
    _, losses = head(backbone_maps(70, 101), labels(70, 101))
    sum(losses.values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("options", "kind"), [(PLAIN, PerPixelBaselineHead), (PLUS, PerPixelBaselinePlusHead)]
)
def test_heads_serve_detectron2s_semantic_segmentor(options: dict[str, object], kind: type[nn.Module]):
    cfg = small_config(
        options
        | {
            "MODEL.META_ARCHITECTURE": "SemanticSegmentor",
            "MODEL.DEVICE": "cpu",
            "MODEL.BACKBONE.NAME": "build_resnet_backbone",
            "MODEL.RESNETS.DEPTH": 18,
            "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
            "MODEL.RESNETS.OUT_FEATURES": list(SHAPES),
        }
    )
    model = build_model(cfg)
    assert type(model.sem_seg_head) is kind
    pictures = [
        {"image": torch.randint(0, 256, (3, *size), dtype=torch.uint8), "sem_seg": labels(*size, images=1)[0]}
        for size in ((45, 70), (61, 38))
    ]
    losses = model(pictures)
    assert all(loss.isfinite() for loss in losses.values())
    with torch.no_grad():
        results = model.eval()([picture | {"height": 31, "width": 47} for picture in pictures])
    assert [tuple(result["sem_seg"].shape) for result in results] == [(5, 31, 47)] * 2
