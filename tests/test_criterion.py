"""The losses of a step against loops, and the same step cut up over parts and processes."""

import itertools
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from segment_scenes import leaves, random_scene

from mask_former.modeling.criterion import SetCriterion
from mask_former.modeling.matcher import HungarianMatcher
from mask_former.modeling.structures import Prediction, Target

CLASSES = 4
# Class weights are float32, in which 0.1 is off by 1.5e-8.
WEIGHT_ROUNDING = 1e-7


def build(**changes) -> SetCriterion:
    weights = {
        "class_weight": 1.5,
        "mask_weight": 20.0,
        "dice_weight": 0.7,
        "no_object_weight": 0.1,
    } | changes
    matcher = HungarianMatcher(mask_weight=weights["mask_weight"], dice_weight=weights["dice_weight"])
    return SetCriterion(num_classes=CLASSES, matcher=matcher, **weights)


def gradients(total: torch.Tensor, predictions: list[Prediction]) -> list[torch.Tensor]:
    return list(torch.autograd.grad(total, leaves(predictions)))


def images(predictions: list[Prediction], index: slice) -> list[Prediction]:
    return [Prediction(p.class_logits[index], p.mask_logits[index]) for p in predictions]


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def bilinear(grid: list[list[float]], row: float, column: float) -> float:
    """Value at a point in units of cells, the border repeated."""
    height, width = len(grid), len(grid[0])
    row, column = min(max(row, 0), height - 1), min(max(column, 0), width - 1)
    top, left = int(row), int(column)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = row - top, column - left
    upper = grid[top][left] * (1 - across) + grid[top][right] * across
    lower = grid[bottom][left] * (1 - across) + grid[bottom][right] * across
    return upper * (1 - down) + lower * down


def mask_losses_by_loop(grid: torch.Tensor, mask: torch.Tensor, valid: torch.Tensor) -> tuple[float, float]:
    (h, w), (H, W), cells = grid.shape, mask.shape, grid.tolist()
    focal = overlap = predicted = wanted = 0.0
    for i, j in itertools.product(range(H), range(W)):
        if not valid[i, j]:
            continue
        t = bool(mask[i, j])
        p = 1 / (1 + math.exp(-bilinear(cells, (i + 0.5) * h / H - 0.5, (j + 0.5) * w / W - 0.5)))
        focal += -0.25 * (1 - p) ** 2 * math.log(p) if t else -0.75 * p**2 * math.log(1 - p)
        overlap, predicted, wanted = overlap + p * t, predicted + p, wanted + t
    return focal / int(valid.sum()), 1 - (2 * overlap + 1) / (predicted + wanted + 1)


def losses_by_loop(prediction: Prediction, targets: list[Target], pairs, num_masks: int) -> dict[str, float]:
    class_sum = weight_sum = focal = dice = 0.0
    for image, (target, (queries, segments)) in enumerate(zip(targets, pairs, strict=True)):
        segment_of = dict(zip(queries.tolist(), segments.tolist(), strict=True))
        valid = torch.ones(target.masks.shape[-2:]) if target.valid is None else target.valid
        for query, logits in enumerate(prediction.class_logits[image].tolist()):
            label = int(target.labels[segment_of[query]]) if query in segment_of else CLASSES
            weight = 1.0 if query in segment_of else 0.1
            class_sum -= weight * math.log(math.exp(logits[label]) / sum(math.exp(z) for z in logits))
            weight_sum += weight
            if query in segment_of:
                mask = target.masks[segment_of[query]]
                one = mask_losses_by_loop(prediction.mask_logits[image, query], mask, valid)
                focal, dice = focal + one[0], dice + one[1]
    return {
        "loss_ce": 1.5 * class_sum / weight_sum,
        "loss_mask": 20.0 * focal / num_masks,
        "loss_dice": 0.7 * dice / num_masks,
    }


# Some images without segments; more segments than queries, of which each still counts in the divisor.
@pytest.mark.parametrize("counts", [[3, 1], [0, 2], [8, 2]])
@pytest.mark.parametrize("with_void", [False, True])
def test_losses_are_the_published_formulas(counts, with_void):
    predictions, targets = random_scene(counts)
    if with_void:
        targets = [
            t._replace(valid=torch.rand(20, 12, generator=torch.manual_seed(3)) > 0.3) for t in targets
        ]
    criterion = build()
    found = criterion(predictions, targets)
    for prediction, pairs, suffix in zip(
        predictions, criterion.matcher(predictions, targets), ["_0", ""], strict=True
    ):
        for name, value in losses_by_loop(prediction, targets, pairs, sum(counts)).items():
            assert found[name + suffix].item() == pytest.approx(value, rel=WEIGHT_ROUNDING), name + suffix


def test_small_masks_together_cost_what_they_cost_image_by_image(monkeypatch):
    predictions, targets = random_scene([3, 0, 2])
    together = build()(predictions, targets)
    monkeypatch.setattr("mask_former.modeling.criterion.SMALL_MASKS", 0)
    predictions_again, _ = random_scene([3, 0, 2])
    apart = build()(predictions_again, targets)
    for name, loss in together.items():
        assert loss.item() == pytest.approx(apart[name].item(), rel=1e-12), name
    assert_same(
        gradients(sum(together.values()), predictions), gradients(sum(apart.values()), predictions_again)
    )


def test_losses_of_earlier_layers_are_numbered_and_the_answer_s_are_not():
    predictions, targets = random_scene([1, 2], layers=3)
    parts = ("loss_ce", "loss_mask", "loss_dice")
    assert set(build()(predictions, targets)) == {n + s for n in parts for s in ("", "_0", "_1")}


def test_criterion_has_nothing_to_save():
    assert build().state_dict() == {}


def test_batch_without_segments_has_zero_mask_losses_and_a_gradient_for_every_logit():
    predictions, targets = random_scene([0, 0])
    losses = build()(predictions, targets)
    for name in ("loss_mask", "loss_dice", "loss_mask_0", "loss_dice_0"):
        assert losses[name].item() == 0, name
    # All queries are unmatched: plain cross entropy against "no object".
    expected = -1.5 * predictions[1].class_logits.log_softmax(-1)[..., CLASSES].mean()
    assert losses["loss_ce"].item() == pytest.approx(expected.item(), rel=WEIGHT_ROUNDING)
    found = gradients(sum(losses.values()), predictions)
    assert all(class_gradient.abs().min() > 0 for class_gradient in found[0::2])
    assert all(mask_gradient.abs().max() == 0 for mask_gradient in found[1::2])


def test_class_loss_is_zero_where_no_query_weighs_anything():
    predictions, targets = random_scene([0, 0])
    assert build(no_object_weight=0.0)(predictions, targets)["loss_ce"].item() == 0


def test_permuting_targets_and_queries_changes_no_loss():
    predictions, targets = random_scene([4, 3])
    queries, segments = torch.tensor([5, 2, 0, 3, 1, 4]), torch.tensor([2, 0, 3, 1])
    shuffled = [Prediction(p.class_logits[:, queries], p.mask_logits[:, queries]) for p in predictions]
    others = [Target(targets[0].labels[segments], targets[0].masks[segments]), targets[1]]
    before, after = build()(predictions, targets), build()(shuffled, others)
    assert {k: v.item() for k, v in after.items()} == pytest.approx({k: v.item() for k, v in before.items()})
    assert_same(gradients(sum(after.values()), predictions), gradients(sum(before.values()), predictions))


def test_ignored_pixels_leave_the_losses_of_the_cropped_picture():
    predictions, targets = random_scene([3], grid=(5, 4), size=(20, 16))
    # Beyond the crop the border is repeated, so that upsampling sees the same on either side of it.
    repeated = [
        Prediction(p.class_logits, p.mask_logits[..., [0, 1, 2, 2, 2], :][..., [0, 1, 1, 1]])
        for p in predictions
    ]
    valid = torch.zeros(20, 16, dtype=torch.bool)
    valid[:12, :8] = True
    cropped = [Prediction(p.class_logits, p.mask_logits[..., :3, :2]) for p in predictions]
    found = build()(repeated, [targets[0]._replace(valid=valid)])
    expected = build()(cropped, [Target(targets[0].labels, targets[0].masks[:, :12, :8])])
    assert {k: v.item() for k, v in found.items()} == pytest.approx(
        {k: v.item() for k, v in expected.items()}
    )


def test_ignored_pixels_get_no_gradient():
    predictions, targets = random_scene([3], grid=(5, 3), size=(20, 12))
    valid = torch.ones(20, 12, dtype=torch.bool)
    valid[8:] = False  # cells 3 and 4 touch these rows alone
    losses = build()(predictions, [targets[0]._replace(valid=valid)])
    for grads in gradients(sum(losses.values()), predictions)[1::2]:
        assert grads[..., 3:, :].abs().max() == 0
        assert grads[..., :2, :].abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_gives_the_losses_of_float32_and_finite_gradients(dtype):
    predictions, targets = random_scene([3, 2], grid=(80, 80), size=(320, 320), dtype=torch.float32)
    half = [Prediction(*(x.detach().to(dtype).requires_grad_() for x in p)) for p in predictions]
    wide = [Prediction(*(x.detach().float() for x in p)) for p in half]
    with torch.autocast("cpu", dtype):
        losses = build()(half, targets)
    expected = build()(wide, targets)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected[name], rtol=1e-5, atol=0)
    for grads in gradients(sum(losses.values()), half):
        assert grads.dtype == dtype
        assert grads.isfinite().all()


def test_predictions_of_another_class_count_are_refused():
    predictions, targets = random_scene([2], classes=CLASSES + 1)
    with pytest.raises(ValueError, match=r"have 5 classes, the criterion 4.*NUM_CLASSES"):
        build()(predictions, targets)


# Uneven parts, an empty one, and more segments than queries.
@pytest.mark.parametrize("counts", [[3, 1, 0, 5], [0, 0, 2, 8]])
def test_losses_and_gradients_of_parts_add_up_to_those_of_the_whole_step(counts):
    predictions, targets = random_scene(counts)
    criterion = build()
    whole = criterion(predictions, targets)
    normalizers = criterion.normalizers(counts, predictions[0].class_logits.shape[1])
    parts = [
        criterion(images(predictions, part), targets[part], normalizers)
        for part in (slice(0, 2), slice(2, 3), slice(3, 4))
    ]
    for name, loss in whole.items():
        assert sum(part[name].item() for part in parts) == pytest.approx(loss.item(), rel=1e-12), name
    total = sum(loss for part in parts for loss in part.values())
    assert_same(gradients(total, predictions), gradients(sum(whole.values()), predictions))


_PROCESS = """
import sys
sys.path.insert(0, sys.argv[3])
import torch
import torch.distributed as dist
from segment_scenes import leaves, random_scene
from test_criterion import PROCESS_COUNTS, build, images

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
predictions, targets = random_scene(PROCESS_COUNTS)
own = slice(2 * rank, 2 * rank + 2)
sum(build()(images(predictions, own), targets[own]).values()).backward()
for tensor in leaves(predictions):
    # What DistributedDataParallel does with the gradients.
    dist.all_reduce(tensor.grad)
    tensor.grad /= 2
torch.save([tensor.grad for tensor in leaves(predictions)], f"{folder}/{rank}.pt")
dist.barrier()
dist.destroy_process_group()
"""
# More segments in the first process than in the second.
PROCESS_COUNTS = [3, 1, 0, 2]


def test_two_processes_give_the_gradient_of_the_joint_batch(tmp_path):
    command = [sys.executable, "-c", _PROCESS]
    arguments = [str(tmp_path), str(Path(__file__).parent)]
    processes = [
        subprocess.Popen([*command, str(rank), *arguments], stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    predictions, targets = random_scene(PROCESS_COUNTS)
    joint = gradients(sum(build()(predictions, targets).values()), predictions)
    for rank in (0, 1):
        for found, expected in zip(torch.load(tmp_path / f"{rank}.pt"), joint, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
