"""Losses and costs at sampled points, against the same at all pixels."""

import pytest
import torch
from segment_scenes import random_scene
from tiny_models import tiny_config, training_picture

from mask_former.modeling.build import build_model
from mask_former.modeling.criterion import SetCriterion
from mask_former.modeling.losses import mask_losses
from mask_former.modeling.matcher import HungarianMatcher
from mask_former.modeling.points import (
    IMPORTANCE_SAMPLE_RATIO,
    _uncertain_points,
    logits_at,
    mask_losses_at_points,
    masks_at,
    random_points,
)
from mask_former.modeling.structures import Target

CPU = torch.device("cpu")


def pixel_centres(height, width):
    row, column = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([column / width, row / height], dim=-1).flatten(0, 1)


def test_points_at_pixel_centres_see_the_upsampled_logits_and_the_masks():
    logits, masks = torch.randn(3, 5, 4), torch.rand(3, 20, 12) > 0.5
    points = pixel_centres(20, 12)
    upsampled = torch.nn.functional.interpolate(logits[None], size=(20, 12), mode="bilinear")[0]
    assert torch.allclose(logits_at(logits, points), upsampled.flatten(1), atol=1e-5)
    assert torch.allclose(logits_at(logits, points.expand(3, -1, -1)), upsampled.flatten(1), atol=1e-5)
    assert torch.equal(masks_at(masks, points), masks.flatten(1))


def test_each_mask_is_looked_at_in_its_own_points():
    logits, masks = torch.randn(2, 5, 4), torch.rand(2, 20, 12) > 0.5
    points = torch.rand(2, 7, 2)
    for number in (0, 1):
        alone = logits_at(logits[number : number + 1], points[number])
        assert torch.allclose(logits_at(logits, points)[number], alone[0])
        assert torch.equal(
            masks_at(masks, points)[number], masks_at(masks[number : number + 1], points[number])[0]
        )


def test_masks_and_logits_that_are_the_same_everywhere_give_the_loss_of_all_pixels():
    logits = torch.tensor([0.3, -2.0, 1.0])[:, None, None].expand(3, 4, 6).clone().requires_grad_()
    masks = torch.zeros(2, 16, 24, dtype=torch.bool)
    masks[1] = True
    index = torch.tensor([1, 0, 1])
    focal, _ = mask_losses_at_points(logits, masks, index, None, 50)
    expected, _ = mask_losses(logits, masks, index)
    assert float(focal.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    (gradient,) = torch.autograd.grad(focal, logits)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    assert torch.allclose(gradient.sum((1, 2)), expected_gradient.sum((1, 2)), rtol=1e-4)


def test_most_points_lie_where_the_mask_is_least_sure():
    ramp = torch.linspace(-10, 10, 64).expand(1, 64, 64)
    torch.manual_seed(0)
    points = _uncertain_points(ramp, 2000)
    assert points.shape == (1, 2000, 2)
    sureness = logits_at(ramp, points).abs()[0]
    # A quarter of three times as many points: those with the lowest quarter of all values.
    assert (sureness < 2.6).float().mean() > IMPORTANCE_SAMPLE_RATIO
    assert (sureness > 5).float().mean() > 0.08


def test_a_mask_that_is_as_sure_everywhere_is_looked_at_evenly():
    torch.manual_seed(0)
    points = _uncertain_points(torch.full((2, 8, 8), 10.0), 2000)
    in_frame = ((points < 1 / 16) | (points > 15 / 16)).any(-1).float().mean()
    assert abs(float(in_frame) - (1 - (14 / 16) ** 2)) < 0.03


def test_a_negative_number_of_points_is_refused():
    with pytest.raises(ValueError, match=r"LOSS_POINTS is -1, expected at least 0"):
        build_model(tiny_config(LOSS_POINTS=-1))


def test_many_points_give_the_costs_of_the_mask_grid():
    # Targets of whole cells and logits that differ little between cells, so that both see the same.
    predictions, targets = random_scene([3, 1], grid=(8, 8), size=(32, 32))
    smooth = [
        layer._replace(mask_logits=layer.mask_logits.mean((2, 3), keepdim=True).expand(-1, -1, 8, 8))
        for layer in predictions
    ]
    cells = [target.masks[:, ::4, ::4].repeat_interleave(4, 1).repeat_interleave(4, 2) for target in targets]
    targets = [Target(target.labels, mask, None) for target, mask in zip(targets, cells, strict=True)]
    # Without dice, whose 1 in numerator and denominator weighs less the more points there are.
    weights = {"mask_weight": 20.0, "dice_weight": 0.0}
    torch.manual_seed(0)
    sampled = HungarianMatcher(**weights, num_points=200_000).costs(smooth, targets)
    whole = HungarianMatcher(**weights).costs(smooth, targets)
    for layer, expected in zip(sampled, whole, strict=True):
        for cost, wanted in zip(layer, expected, strict=True):
            assert torch.allclose(cost, wanted, rtol=0.02, atol=0.02)


def test_what_lies_at_invalid_pixels_counts_for_nothing():
    logits = torch.randn(2, 4, 6)
    masks = torch.rand(2, 16, 24) > 0.5
    valid = torch.zeros(16, 24, dtype=torch.bool)
    valid[:, :12] = True
    other = masks.clone()
    other[:, :, 12:] = ~other[:, :, 12:]
    losses = []
    for some in (masks, other):
        torch.manual_seed(3)
        losses.append(mask_losses_at_points(logits, some, torch.tensor([0, 1]), valid, 100))
    assert torch.equal(*(torch.stack(pair) for pair in losses))
    torch.manual_seed(3)
    all_count = mask_losses_at_points(logits, other, torch.tensor([0, 1]), None, 100)
    assert not torch.allclose(torch.stack(all_count), torch.stack(losses[1]))


def test_no_segments_give_no_loss_with_a_graph():
    logits = torch.randn(0, 4, 6, requires_grad=True)
    focal, dice = mask_losses_at_points(
        logits, torch.zeros(0, 8, 8, dtype=torch.bool), torch.zeros(0).long(), None, 9
    )
    assert float(focal.detach()) == float(dice.detach()) == 0
    (focal + dice).backward()


def test_points_are_spread_over_the_whole_picture():
    points = random_points(10_000, CPU)
    assert points.shape == (10_000, 2)
    assert 0 <= float(points.min()) < 0.01 < 0.99 < float(points.max()) < 1


@pytest.mark.parametrize("void", ["background", "ignore"])
def test_a_model_learns_from_points(void):
    torch.manual_seed(0)
    model = build_model(tiny_config(LOSS_POINTS=112, VOID_IN_LOSS=void)).train()
    assert isinstance(model.criterion, SetCriterion)
    assert model.criterion.num_points == model.criterion.matcher.num_points == 112
    batch = [training_picture(64, 96, 3, seed=1), training_picture(64, 64, 0, seed=2)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    totals = []
    for _ in range(12):
        torch.manual_seed(1)
        loss = sum(model(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(float(loss.detach()))
    assert totals[-1] < 0.85 * totals[0]


def test_the_same_seed_gives_the_same_points():
    model = build_model(tiny_config(LOSS_POINTS=112)).train()
    batch = [training_picture(64, 96, 3, seed=1)]
    found = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        found.append(float(model(batch)["loss_mask"].detach()))
    assert found[0] == found[1] != found[2]
