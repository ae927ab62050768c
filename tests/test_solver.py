"""Parameter groups, clipping and schedules, against Detectron2's own and against sums by hand."""

import math

import pytest
import torch
from detectron2.projects.deeplab import build_lr_scheduler as build_deeplab_lr_scheduler
from torch import nn

from mask_former.config import load_config
from mask_former.solver import build_lr_scheduler, build_optimizer, parameter_groups


class SmallModel(nn.Module):
    """One parameter for each rule of the groups, and one that is frozen."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
        self.backbone.register_parameter("relative_position_bias_table", nn.Parameter(torch.ones(5)))
        self.query_embed = nn.Embedding(4, 2)
        self.head = nn.Linear(2, 7)
        self.tied = self.head
        self.frozen = nn.Parameter(torch.ones(11), requires_grad=False)


def solver_config(*opts):
    return load_config(None, ["SOLVER.BASE_LR", "0.01", "SOLVER.WEIGHT_DECAY", "0.1", *opts])


def test_each_parameter_gets_the_rate_and_decay_of_its_kind():
    model = SmallModel()
    cfg = solver_config("SOLVER.WEIGHT_DECAY_NORM", "0.2", "SOLVER.WEIGHT_DECAY_EMBED", "0.3")
    found = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in parameter_groups(cfg, model)
        for parameter in group["params"]
    }
    expected = {
        id(model.backbone[0].weight): (0.001, 0.1),
        id(model.backbone[0].bias): (0.001, 0.1),
        id(model.backbone[1].weight): (0.001, 0.2),
        id(model.backbone[1].bias): (0.001, 0.2),
        id(model.backbone.relative_position_bias_table): (0.001, 0.0),
        id(model.query_embed.weight): (0.01, 0.3),
        id(model.head.weight): (0.01, 0.1),
        id(model.head.bias): (0.01, 0.1),
    }
    assert {key: pytest.approx(value) for key, value in found.items()} == expected


def test_full_model_clipping_scales_all_gradients_by_one_factor():
    model = SmallModel()
    cfg = solver_config(
        *("SOLVER.OPTIMIZER", "SGD", "SOLVER.MOMENTUM", "0.0", "SOLVER.WEIGHT_DECAY", "0.0"),
        *("SOLVER.BACKBONE_MULTIPLIER", "1.0", "SOLVER.BASE_LR", "1.0"),
        *("SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model"),
        *("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.5"),
    )
    optimizer = build_optimizer(cfg, model)
    trained = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    for index, parameter in enumerate(trained):
        parameter.grad = torch.full_like(parameter, float(index + 1))
    norm = math.sqrt(sum((i + 1) ** 2 * p.numel() for i, p in enumerate(trained)))
    optimizer.step()
    for index, (old, new) in enumerate(zip(before, trained, strict=True)):
        torch.testing.assert_close(
            old - new, torch.full_like(old, (index + 1) * 0.5 / norm), rtol=1e-4, atol=0
        )


def test_unknown_optimizer_is_refused_by_key():
    with pytest.raises(ValueError, match=r"SOLVER\.OPTIMIZER is 'ADAM'"):
        build_optimizer(solver_config("SOLVER.OPTIMIZER", "ADAM"), SmallModel())


def rates(scheduler, optimizer, steps):
    for _ in range(steps):
        yield optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(("warmup", "ending"), [(0, 0.0), (0, 0.2), (7, 0.0), (7, 0.2)])
def test_poly_schedule_equals_detectron2s(warmup, ending):
    cfg = solver_config(
        *("SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR", "SOLVER.MAX_ITER", "20"),
        *("SOLVER.WARMUP_ITERS", str(warmup), "SOLVER.WARMUP_FACTOR", "0.01"),
        *("SOLVER.POLY_LR_CONSTANT_ENDING", str(ending)),
    )
    ours, theirs = (torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01) for _ in range(2))
    expected = list(rates(build_deeplab_lr_scheduler(cfg, theirs), theirs, 20))
    assert list(rates(build_lr_scheduler(cfg, ours), ours, 20)) == pytest.approx(expected)


def test_multistep_schedule_with_warmup():
    cfg = solver_config(
        *("SOLVER.MAX_ITER", "10", "SOLVER.STEPS", "(6,)", "SOLVER.WARMUP_ITERS", "2"),
        *("SOLVER.WARMUP_FACTOR", "0.5"),
    )
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
    expected = [0.005, 0.0075] + [0.01] * 4 + [0.001] * 4
    assert list(rates(build_lr_scheduler(cfg, optimizer), optimizer, 10)) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["WarmupPolyLR", "WarmupMultiStepLR"])
def test_resumed_schedule_may_run_longer(name):
    def build(last):
        cfg = solver_config("SOLVER.LR_SCHEDULER_NAME", name, "SOLVER.MAX_ITER", str(last))
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
        return build_lr_scheduler(cfg, optimizer), optimizer

    short, optimizer = build(10)
    list(rates(short, optimizer, 10))
    resumed, resumed_optimizer = build(30)
    resumed.load_state_dict(short.state_dict())
    unbroken, unbroken_optimizer = build(30)
    expected = list(rates(unbroken, unbroken_optimizer, 30))[11:]
    resumed_optimizer.step()
    resumed.step()
    assert list(rates(resumed, resumed_optimizer, 19)) == pytest.approx(expected)
