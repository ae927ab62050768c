"""The assignment against brute force, its symmetries, and what it says when it cannot be made."""

import itertools
import math

import pytest
import torch
from detectron2.config import CfgNode
from segment_scenes import random_scene
from torch.utils._python_dispatch import TorchDispatchMode

from mask_former.config import load_config
from mask_former.modeling.criterion import SetCriterion
from mask_former.modeling.matcher import MATCHER_REGISTRY, HungarianMatcher, build_matcher
from mask_former.modeling.structures import Prediction, Target

WEIGHTS = {"class_weight": 1.5, "mask_weight": 20.0, "dice_weight": 0.7}
MATCHER = HungarianMatcher(**WEIGHTS)


def cost_by_loop(prediction: Prediction, image: int, query: int, target: Target, segment: int) -> float:
    """One entry of the cost matrix, pixel by pixel, from the published formulas."""
    exponentials = [math.exp(z) for z in prediction.class_logits[image, query].tolist()]
    probability = exponentials[int(target.labels[segment])] / sum(exponentials)
    (h, w), (H, W) = prediction.mask_logits.shape[-2:], target.masks.shape[-2:]
    focal = overlap = predicted = wanted = 0.0
    pixels = 0
    for i, j in itertools.product(range(h), range(w)):
        at = (i * H // h, j * W // w)
        if target.valid is not None and not target.valid[at]:
            continue
        t, p = (
            bool(target.masks[segment][at]),
            1 / (1 + math.exp(-prediction.mask_logits[image, query, i, j].item())),
        )
        focal += -0.25 * (1 - p) ** 2 * math.log(p) if t else -0.75 * p**2 * math.log(1 - p)
        overlap, predicted, wanted, pixels = overlap + p * t, predicted + p, wanted + t, pixels + 1
    dice = 1 - (2 * overlap + 1) / (predicted + wanted + 1)
    return -1.5 * probability + 20.0 * focal / pixels + 0.7 * dice


def costs_by_loop(prediction: Prediction, image: int, target: Target) -> torch.Tensor:
    queries, segments = prediction.class_logits.shape[1], len(target.labels)
    table = torch.zeros(queries, segments, dtype=torch.float64)
    for query, segment in itertools.product(range(queries), range(segments)):
        table[query, segment] = cost_by_loop(prediction, image, query, target, segment)
    return table


def cheapest_by_brute_force(costs: torch.Tensor) -> dict[int, int]:
    """Segment -> query (or query -> segment turned round) of the cheapest of all assignments."""
    table = costs.T.tolist() if costs.shape[1] <= costs.shape[0] else costs.tolist()
    columns = range(max(costs.shape))
    best = min(
        itertools.permutations(columns, len(table)),
        key=lambda chosen: sum(table[row][column] for row, column in enumerate(chosen)),
    )
    pairs = dict(enumerate(best))
    return pairs if costs.shape[1] <= costs.shape[0] else {column: row for row, column in pairs.items()}


def as_dict(pair: tuple[torch.Tensor, torch.Tensor]) -> dict[int, int]:
    query_index, segment_index = pair
    return dict(zip(segment_index.tolist(), query_index.tolist(), strict=True))


# A whole factor, and none: floor(i * 9 / 5), where rounding instead would take other pixels.
@pytest.mark.parametrize("size", [(20, 12), (9, 7)])
@pytest.mark.parametrize("with_void", [False, True])
def test_costs_are_the_published_formulas(size, with_void):
    predictions, targets = random_scene([3, 2], size=size)
    if with_void:
        targets = [t._replace(valid=torch.rand(size, generator=torch.manual_seed(3)) > 0.3) for t in targets]
    found = MATCHER.costs(predictions, targets)
    for layer, prediction in enumerate(predictions):
        for image, target in enumerate(targets):
            torch.testing.assert_close(
                found[layer][image], costs_by_loop(prediction, image, target), rtol=1e-12, atol=1e-12
            )


# No segment, fewer than queries, as many, more.
@pytest.mark.parametrize("counts", [[0, 3], [4, 1], [6, 2], [0, 0]])
def test_matching_is_the_cheapest_of_all_assignments(counts):
    predictions, targets = random_scene(counts, queries=4)
    matching = MATCHER(predictions, targets)
    assert len(matching) == len(predictions)
    for prediction, pairs in zip(predictions, matching, strict=True):
        assert len(pairs) == len(targets)
        for image, (target, pair) in enumerate(zip(targets, pairs, strict=True)):
            assert [len(index) for index in pair] == [min(4, len(target.labels))] * 2
            assert {index.dtype for index in pair} == {torch.int64}
            assert as_dict(pair) == cheapest_by_brute_force(costs_by_loop(prediction, image, target))


def test_permuting_targets_permutes_the_matching():
    predictions, targets = random_scene([4, 3])
    order = torch.tensor([2, 0, 3, 1])
    shuffled = [Target(targets[0].labels[order], targets[0].masks[order]), targets[1]]
    for before, after in zip(MATCHER(predictions, targets), MATCHER(predictions, shuffled), strict=True):
        assert as_dict(before[0]) == {int(order[s]): q for s, q in as_dict(after[0]).items()}
        assert as_dict(before[1]) == as_dict(after[1])


def test_permuting_queries_permutes_the_matching():
    predictions, targets = random_scene([4, 3])
    order = torch.tensor([5, 2, 0, 3, 1, 4])
    shuffled = [Prediction(p.class_logits[:, order], p.mask_logits[:, order]) for p in predictions]
    for before, after in zip(MATCHER(predictions, targets), MATCHER(shuffled, targets), strict=True):
        for pair, shuffled_pair in zip(before, after, strict=True):
            assert as_dict(pair) == {s: int(order[q]) for s, q in as_dict(shuffled_pair).items()}


def test_layers_are_matched_each_by_itself():
    predictions, targets = random_scene([4, 3], layers=3)
    together = MATCHER(predictions, targets)
    for prediction, pairs in zip(predictions, together, strict=True):
        (alone,) = MATCHER([prediction], targets)
        assert [as_dict(pair) for pair in pairs] == [as_dict(pair) for pair in alone]


def test_ignored_pixels_leave_the_costs_of_the_cropped_picture():
    predictions, targets = random_scene([3], grid=(5, 4), size=(20, 16))
    valid = torch.zeros(20, 16, dtype=torch.bool)
    valid[:12, :8] = True
    ignoring = [targets[0]._replace(valid=valid)]
    cropped = [Prediction(p.class_logits, p.mask_logits[..., :3, :2]) for p in predictions]
    cropped_targets = [Target(targets[0].labels, targets[0].masks[:, :12, :8])]
    for with_void, crop in zip(
        MATCHER.costs(predictions, ignoring), MATCHER.costs(cropped, cropped_targets), strict=True
    ):
        torch.testing.assert_close(with_void[0], crop[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_leaves_costs_finite_and_as_they_are_in_float32(dtype):
    predictions, targets = random_scene([2], layers=1, queries=3, grid=(320, 320), size=(320, 320))
    # Nearly all pixels positive, so that areas pass the largest float16.
    half = [Prediction(p.class_logits.to(dtype), (p.mask_logits.abs() + 3).to(dtype)) for p in predictions]
    with torch.autocast("cpu", dtype):
        (found,) = MATCHER.costs(half, targets)
        MATCHER(half, targets)
    (expected,) = MATCHER.costs([Prediction(*(x.float() for x in p)) for p in half], targets)
    assert found[0].dtype == torch.float32
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("label", [4, 255, -1])
def test_label_outside_the_classes_is_named_with_its_image(label):
    predictions, targets = random_scene([2, 3, 1])
    targets[1].labels[2] = label
    with pytest.raises(ValueError, match=rf"Image 1 .* label {label}; .* 0\.\.3.*NUM_CLASSES"):
        MATCHER(predictions, targets)


# A class logit of minus infinity is no case: a class may have probability 0, and the cost is finite.
@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        (0, "class", math.nan),
        (0, "class", math.inf),
        (1, "mask", math.nan),
        (1, "mask", math.inf),
        (1, "mask", -math.inf),
    ],
)
def test_cost_that_is_not_finite_names_image_layer_and_logits(part, name, value):
    predictions, targets = random_scene([2, 3], layers=3)
    predictions[1][part].data[1, 4].flatten()[2] = value
    with pytest.raises(ValueError, match=rf"image 1 .* layer 1 of 3 .* its {name} logits: 1 of .*SOLVER"):
        MATCHER(predictions, targets)


def test_image_without_segments_does_not_complain_of_its_logits():
    predictions, targets = random_scene([0, 3])
    predictions[0].mask_logits.data[0] = math.nan
    assert len(MATCHER(predictions, targets)[0][0][0]) == 0


class _Operations(TorchDispatchMode):
    """Notes every operation on tensors, those of the backward pass included."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.bool_index = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        if func.overloadpacket.__name__ in ("index", "index_put", "index_put_"):
            self.bool_index |= any(index is not None and index.dtype == torch.bool for index in args[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("with_void", [False, True])
def test_loss_asks_the_device_for_the_costs_once_and_for_nothing_else(with_void, monkeypatch):
    predictions, targets = random_scene([2, 0, 3], layers=3)
    if with_void:
        targets = [target._replace(valid=torch.ones(20, 12, dtype=torch.bool)) for target in targets]
    to_host, cpu = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: to_host.append(tensor.shape) or cpu(tensor))
    criterion = SetCriterion(
        num_classes=4, matcher=MATCHER, mask_weight=20.0, dice_weight=1.0, no_object_weight=0.1
    )
    with _Operations() as operations:
        torch.stack(list(criterion(predictions, targets).values())).sum().backward()
    assert to_host == [(3 * 6 * (2 + 0 + 3),)]
    # These wait for a CUDA device: a number, or a size that depends on values.
    waiting = {"_local_scalar_dense", "item", "nonzero", "masked_select", "is_nonzero", "equal", "unique_dim"}
    assert not operations.names & waiting
    assert not operations.bool_index


def test_matcher_is_built_from_its_name_and_weights_in_the_config():
    options = ["MODEL.MASK_FORMER.MASK_WEIGHT", 7.0, "MODEL.MASK_FORMER.DICE_WEIGHT", 3.0]
    matcher = build_matcher(load_config(opts=options))
    assert isinstance(matcher, HungarianMatcher)
    assert (matcher.class_weight, matcher.mask_weight, matcher.dice_weight) == (1.0, 7.0, 3.0)


def test_registered_matcher_is_found_by_its_name():
    @MATCHER_REGISTRY.register()
    class FirstComeMatcher:
        def __init__(self, cfg: CfgNode) -> None:
            self.weight = cfg.MODEL.MASK_FORMER.DICE_WEIGHT

    cfg = load_config(opts=["MODEL.MASK_FORMER.MATCHER_NAME", "FirstComeMatcher"])
    assert isinstance(build_matcher(cfg), FirstComeMatcher)


def test_unknown_matcher_lists_the_known_ones():
    cfg = load_config(opts=["MODEL.MASK_FORMER.MATCHER_NAME", "GreedyMatcher"])
    with pytest.raises(KeyError, match=r"GreedyMatcher.*one of: .*HungarianMatcher"):
        build_matcher(cfg)
