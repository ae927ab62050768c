"""A training step: accumulation, mixed precision, and what happens when a loss is not finite."""

import itertools
import json

import pytest
import torch
from tiny_runs import run_steps, tiny_config

from mask_former.engine.step import TrainingData, TrainStep, step_seed
from mask_former.modeling.build import build_model


def make_step(cfg, batches=None) -> TrainStep:
    torch.manual_seed(0)
    model = build_model(cfg)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    step = TrainStep(cfg, model, TrainingData(cfg), optimizer)
    if batches is not None:
        step._data_loader_iter = iter(batches)
    return step


def gradients(step: TrainStep) -> dict[str, torch.Tensor]:
    run_steps(step)
    return {name: parameter.grad for name, parameter in step.model.named_parameters()}


def test_accumulated_parts_give_the_gradient_of_the_whole_batch(tmp_path):
    opts = ("SOLVER.IMS_PER_BATCH", "8", "SOLVER.CLIP_GRADIENTS.ENABLED", "False")
    whole = gradients(make_step(tiny_config(tmp_path, *opts)))
    parts = gradients(make_step(tiny_config(tmp_path, *opts, "SOLVER.ACCUMULATE", "4")))
    scale = max(gradient.abs().max() for gradient in whole.values())
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-5, atol=1e-5 * scale, msg=name)


def test_accumulated_parts_of_a_per_pixel_model_give_its_whole_gradient(tmp_path):
    opts = [
        *("MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.SEM_SEG_HEAD.NAME", "PerPixelBaselineHead"),
        *("INPUT.DATASET_MAPPER_NAME", "mask_former_semantic", "DATASETS.TRAIN", "('shapes_sem_seg_train',)"),
        *("SOLVER.IMS_PER_BATCH", "4", "SOLVER.CLIP_GRADIENTS.ENABLED", "False"),
    ]
    whole = gradients(make_step(tiny_config(tmp_path, *opts)))
    parts = gradients(make_step(tiny_config(tmp_path, *opts, "SOLVER.ACCUMULATE", "2")))
    scale = max(gradient.abs().max() for gradient in whole.values())
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-5, atol=1e-5 * scale, msg=name)


def test_a_batch_that_cannot_be_cut_is_refused_by_key(tmp_path):
    with pytest.raises(ValueError, match=r"SOLVER\.IMS_PER_BATCH is 8, expected a multiple of 3"):
        make_step(tiny_config(tmp_path, "SOLVER.IMS_PER_BATCH", "8", "SOLVER.ACCUMULATE", "3"))


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_mixed_precision_gives_nearly_the_gradient_of_full_precision(tmp_path, kind):
    opts = ("SOLVER.CLIP_GRADIENTS.ENABLED", "False")
    full = gradients(make_step(tiny_config(tmp_path, *opts)))
    amp = ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", kind)
    step = make_step(tiny_config(tmp_path, *opts, *amp))
    if kind == "float16":
        step.grad_scaler._init_scale = 64.0  # low enough that the first step does not overflow
    mixed = gradients(step)
    flat_full = torch.cat([g.flatten() for g in full.values()])
    flat_mixed = torch.cat([g.flatten() for g in mixed.values()])
    assert torch.cosine_similarity(flat_full, flat_mixed, dim=0) > 0.98
    assert torch.allclose(flat_mixed.norm(), flat_full.norm(), rtol=0.1)


def test_unknown_precision_is_refused_by_key(tmp_path):
    with pytest.raises(ValueError, match=r"SOLVER\.AMP\.DTYPE is 'int8'"):
        make_step(tiny_config(tmp_path, "SOLVER.AMP.DTYPE", "int8"))


def test_the_losses_are_logged(tmp_path):
    storage = run_steps(make_step(tiny_config(tmp_path)))
    names = {"loss_ce", "loss_mask", "loss_dice", "loss_ce_0", "loss_mask_0", "loss_dice_0"}
    latest = {name: value for name, (value, _) in storage.latest().items()}
    assert names < set(latest)
    assert latest["total_loss"] == pytest.approx(sum(latest[name] for name in names))


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(tmp_path):
    cfg = tiny_config(tmp_path)
    (tmp_path / "output").mkdir()
    step = make_step(cfg)
    # The bias of the class scores: the matching, which checks its costs, must not be what complains.
    with torch.no_grad():
        step.model.sem_seg_head.predictor.class_embed.bias.fill_(1e30)
        step.model.criterion.class_weight = float("inf")
    before = {name: value.clone() for name, value in step.model.state_dict().items()}
    with pytest.raises(FloatingPointError, match=r"at iteration 0: .* are in .*not_finite_0000000_rank0"):
        run_steps(step)
    report = json.loads((tmp_path / "output" / "not_finite_0000000_rank0.json").read_text())
    assert len(report["files"]) == 2
    assert all(name.endswith(".jpg") for name in report["files"])
    assert set(report) == {"iteration", "files", "losses", "learning_rates", "gradient_norm"}
    for name, value in step.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_step_seeds_differ_by_seed_rank_and_iteration():
    seeds = {step_seed(*key) for key in itertools.product(range(3), range(3), range(3))}
    assert len(seeds) == 27
