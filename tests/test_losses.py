"""Focal and dice, paired, pairwise and streamed, against loops in double precision."""

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from mask_former.modeling import losses
from mask_former.modeling.losses import (
    focal_cost,
    mask_losses,
    paired_dice,
    paired_focal,
    pairwise_dice,
    pairwise_focal,
)

MASKS, TARGETS, PIXELS = 3, 5, 7
# Quarter of the input, an odd factor, two different factors, no whole factor, no upsampling at all.
GRIDS = [((5, 3), (20, 12)), ((4, 5), (12, 15)), ((3, 4), (6, 16)), ((5, 3), (18, 11)), ((4, 3), (4, 3))]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 3


def draw_bool(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.5


def focal_by_loop(logits: list[float], targets: list[bool], valid: list[bool]) -> float:
    total = 0.0
    for z, t, v in zip(logits, targets, valid, strict=True):
        p = 1 / (1 + math.exp(-z))
        if v:
            total += -0.25 * (1 - p) ** 2 * math.log(p) if t else -0.75 * p**2 * math.log(1 - p)
    return total / sum(valid)


def dice_by_loop(logits: list[float], targets: list[bool], valid: list[bool]) -> float:
    overlap = predicted = wanted = 0.0
    for z, t, v in zip(logits, targets, valid, strict=True):
        p = 1 / (1 + math.exp(-z))
        if v:
            overlap, predicted, wanted = overlap + p * t, predicted + p, wanted + t
    return 1 - (2 * overlap + 1) / (predicted + wanted + 1)


FORMS = [(paired_focal, pairwise_focal, focal_by_loop), (paired_dice, pairwise_dice, dice_by_loop)]


def upsampled(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(logits[:, None], size=size, mode="bilinear", align_corners=False).flatten(1)


@pytest.mark.parametrize(("paired", "pairwise", "by_loop"), FORMS)
@pytest.mark.parametrize("with_void", [False, True])
def test_pairwise_form_is_the_loop_over_pairs(paired, pairwise, by_loop, with_void):
    logits, targets = draw(MASKS, PIXELS), draw_bool(TARGETS, PIXELS)
    valid = torch.arange(PIXELS) % 3 != 1 if with_void else None
    counts = [True] * PIXELS if valid is None else valid.tolist()
    expected = [[by_loop(z, t, counts) for t in targets.tolist()] for z in logits.tolist()]
    torch.testing.assert_close(
        pairwise(logits, targets, valid), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize(("paired", "pairwise", "by_loop"), FORMS)
@pytest.mark.parametrize("with_void", [False, True])
def test_paired_form_is_the_diagonal_of_the_pairwise_form(paired, pairwise, by_loop, with_void):
    logits, targets = draw(MASKS, PIXELS), draw_bool(MASKS, PIXELS)
    valid = torch.arange(PIXELS) % 3 != 1 if with_void else None
    torch.testing.assert_close(
        paired(logits, targets, valid), pairwise(logits, targets, valid).diagonal(), rtol=1e-12, atol=1e-14
    )


def test_pairwise_focal_in_chunks_is_the_same(monkeypatch):
    logits, targets = draw(MASKS, PIXELS), draw_bool(TARGETS, PIXELS)
    whole = pairwise_focal(logits, targets)
    monkeypatch.setattr(losses, "CPU_CHUNK_PIXELS", 2 * PIXELS)
    torch.testing.assert_close(pairwise_focal(logits, targets), whole)


def test_focal_cost_keeps_its_digits_at_both_ends():
    logits = torch.tensor([-80.0, -20.0, -1e-3, 0.0, 1e-3, 8.0, 20.0])
    expected = [
        math.exp(-2 * math.log1p(math.exp(z))) * math.log1p(math.exp(-z)) for z in logits.double().tolist()
    ]
    torch.testing.assert_close(focal_cost(logits), torch.tensor(expected), rtol=1e-6, atol=0)


@pytest.mark.parametrize("logit", [-3.0, 0.0, 2.0])
def test_gradient_of_focal_cost_is_exact_also_at_zero(logit):
    z = torch.tensor(logit, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(focal_cost(z), z)
    step = 1e-5
    numeric = (focal_cost(z.detach() + step) - focal_cost(z.detach() - step)) / (2 * step)
    torch.testing.assert_close(slope, numeric, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("grid", "size"), GRIDS)
@pytest.mark.parametrize("with_void", [False, True])
def test_streamed_losses_and_gradients_are_the_plain_ones(grid, size, with_void, monkeypatch):
    # Two masks at a time, so that the last chunk is a short one.
    monkeypatch.setattr(losses, "CPU_CHUNK_PIXELS", 2 * size[0] * size[1])
    logits = draw(MASKS, *grid).requires_grad_()
    masks, segment_index = draw_bool(TARGETS, *size), torch.tensor([4, 0, 2])
    valid = draw_bool(*size, seed=2) if with_void else None
    pixel_valid = None if valid is None else valid.flatten()
    targets = masks[segment_index].flatten(1)

    streamed = mask_losses(logits, masks, segment_index, valid)
    for form, value in zip((paired_focal, paired_dice), streamed, strict=True):
        plain = form(upsampled(logits, size), targets, pixel_valid).sum()
        torch.testing.assert_close(value, plain, rtol=1e-12, atol=1e-14)
        (slope,) = torch.autograd.grad(value, logits, retain_graph=True)
        (plain_slope,) = torch.autograd.grad(plain, logits)
        torch.testing.assert_close(slope, plain_slope, rtol=1e-10, atol=1e-14)


def test_streamed_gradients_in_float32_are_the_plain_ones_within_1e_5():
    logits = draw(MASKS, 16, 24, dtype=torch.float32).requires_grad_()
    masks, segment_index = draw_bool(TARGETS, 64, 96), torch.tensor([4, 0, 2])
    focal, dice = mask_losses(logits, masks, segment_index)
    (slope,) = torch.autograd.grad(20 * focal + dice, logits)
    wide = logits.detach().double().requires_grad_()
    targets = masks[segment_index].flatten(1)
    plain = [form(upsampled(wide, (64, 96)), targets).sum() for form in (paired_focal, paired_dice)]
    (plain_slope,) = torch.autograd.grad(20 * plain[0] + plain[1], wide)
    torch.testing.assert_close(
        slope.double(), plain_slope, rtol=1e-5, atol=1e-5 * float(plain_slope.abs().max())
    )


def test_streamed_gradient_agrees_with_finite_differences():
    logits = draw(2, 3, 2).requires_grad_()
    masks, segment_index = draw_bool(2, 12, 8), torch.tensor([1, 0])
    assert torch.autograd.gradcheck(lambda z: mask_losses(z, masks, segment_index), (logits,))


def test_streamed_losses_without_gradient_are_the_same():
    logits, masks, index = draw(MASKS, 5, 3).requires_grad_(), draw_bool(MASKS, 20, 12), torch.arange(MASKS)
    with torch.no_grad():
        without = mask_losses(logits, masks, index)
    torch.testing.assert_close(without, tuple(v.detach() for v in mask_losses(logits, masks, index)))


def test_no_mask_gives_zero_with_a_graph():
    logits = draw(0, 5, 3).requires_grad_()
    focal, dice = mask_losses(logits, draw_bool(0, 20, 12), torch.zeros(0, dtype=torch.int64))
    (focal + dice).backward()
    assert (focal.item(), dice.item(), logits.grad.shape) == (0.0, 0.0, (0, 5, 3))


def test_picture_without_a_valid_pixel_gives_finite_losses():
    logits = draw(MASKS, 5, 3).requires_grad_()
    valid = torch.zeros(20, 12, dtype=torch.bool)
    focal, dice = mask_losses(logits, draw_bool(MASKS, 20, 12), torch.arange(MASKS), valid)
    (focal + dice).backward()
    # Nothing overlaps and nothing is left over: dice is 1 - 1 / 1.
    assert (focal.item(), dice.item(), logits.grad.abs().max().item()) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_lose_nothing_to_autocast(dtype):
    # In float16, sums over so many pixels overflow.
    logits = (draw(2, 320 * 320).abs() + 4).to(dtype)
    targets = draw_bool(2, 320 * 320)
    with torch.autocast("cpu", dtype):
        costs = [pairwise_focal(logits, targets), pairwise_dice(logits, targets)]
        losses_ = [paired_focal(logits, targets), paired_dice(logits, targets)]
    wide = logits.double()
    expected = [pairwise_focal(wide, targets), pairwise_dice(wide, targets)]
    for cost, loss, right in zip(costs, losses_, expected, strict=True):
        assert cost.dtype == loss.dtype == torch.float32
        torch.testing.assert_close(cost.double(), right, rtol=1e-5, atol=0)
        torch.testing.assert_close(loss.double(), right.diagonal(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_get_their_gradient_in_their_own_type(dtype):
    logits = draw(2, 80, 80).to(dtype).requires_grad_()
    masks, index = draw_bool(2, 320, 320), torch.arange(2)
    with torch.autocast("cpu", dtype):
        focal, dice = mask_losses(logits, masks, index)
    (focal + dice).backward()
    wide = logits.detach().double().requires_grad_()
    sum(mask_losses(wide, masks, index)).backward()
    assert (focal.dtype, logits.grad.dtype) == (torch.float32, dtype)
    # One rounding to the type of the logits; the smallest float16 numbers are 6e-8 apart.
    torch.testing.assert_close(logits.grad.double(), wide.grad, rtol=torch.finfo(dtype).eps, atol=6e-8)


_PEAK = """
import resource, torch
from mask_former.modeling.losses import mask_losses

def step(masks):
    logits = torch.zeros(masks, 64, 64, requires_grad=True)
    targets = torch.zeros(masks, 256, 256, dtype=torch.bool)
    sum(mask_losses(logits, targets, torch.arange(masks))).backward()

step(2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
step(256)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
def test_memory_does_not_grow_by_full_size_maps_with_the_number_of_masks():
    grown = int(
        subprocess.run([sys.executable, "-c", _PEAK], check=True, capture_output=True, text=True).stdout
    )
    # The masks themselves take 16 MiB, logits, gradients and what is kept on the grid 4 MiB each; a single
    # float32 map at full size for every mask would take 64 MiB.
    assert grown < 60 * 1024
