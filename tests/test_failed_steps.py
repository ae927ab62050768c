"""Steps that fail: what is stepped, what is saved, what is recorded."""

import pytest
import torch
from detectron2.utils.events import EventStorage
from tiny_runs import tiny_config

from mask_former.checkpoint import Checkpointer
from mask_former.engine import Trainer
from mask_former.engine.step import TrainingData, TrainStep
from mask_former.modeling.build import build_model
from mask_former.solver import build_optimizer


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    """The pictures are drawn once."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def make_step(data_folder, tmp_path):
    def make(*opts: str) -> TrainStep:
        cfg = tiny_config(data_folder, "OUTPUT_DIR", str(tmp_path), *opts)
        torch.manual_seed(0)
        model = build_model(cfg)
        return TrainStep(cfg, model, TrainingData(cfg), build_optimizer(cfg, model))

    return make


def run(step: TrainStep, iterations: int = 1) -> EventStorage:
    with EventStorage(0) as storage:
        for step.iter in range(iterations):
            storage.iter = step.iter
            step.run_step()
    return storage


class NaNGradient(torch.autograd.Function):
    """Passes values on, and NaN back."""

    @staticmethod
    def forward(context, values):
        return values.clone()

    @staticmethod
    def backward(context, gradient):
        return torch.full_like(gradient, float("nan"))


def poison(step: TrainStep, iterations: set[int]) -> list[float]:
    """Let steps of those iterations have finite losses and a NaN gradient; return the losses as they come."""
    layer = step.model.sem_seg_head.predictor.transformer.decoder.layers[0]
    losses = []

    def poisoned(_, __, out):
        return NaNGradient.apply(out) if step.iter in iterations else None

    layer.register_forward_hook(poisoned)
    step.model.register_forward_hook(lambda _, __, out: losses.append(sum(out.values()).item()))
    return losses


def clone_state(step: TrainStep) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in step.model.state_dict().items()}


def assert_same(step: TrainStep, before: dict[str, torch.Tensor]) -> None:
    state = step.model.state_dict()
    assert not [name for name, value in state.items() if not torch.equal(value, before[name])]


def test_a_gradient_that_is_not_finite_is_never_stepped_and_stops_the_run(make_step):
    step = make_step()
    losses = poison(step, {0})
    before = clone_state(step)
    with pytest.raises(FloatingPointError, match=r"norm nan at iteration 0.*SOLVER\.SKIP_NOT_FINITE"):
        run(step)
    assert torch.isfinite(torch.tensor(losses)).all()
    assert_same(step, before)
    assert not step.optimizer.state


def test_up_to_n_steps_in_a_row_are_skipped_and_the_run_goes_on(make_step, tmp_path):
    step = make_step("SOLVER.SKIP_NOT_FINITE", "2")
    poison(step, {0, 1, 3, 4})
    storage = run(step, 6)
    assert {int(state["step"]) for state in step.optimizer.state.values()} == {2}
    assert all(value.isfinite().all() for value in step.model.state_dict().values())
    assert storage.latest()["total_loss"][1] == 5
    assert len(list(tmp_path.glob("not_finite_*.json"))) == 4


def test_one_skip_more_than_allowed_stops_the_run(make_step):
    step = make_step("SOLVER.SKIP_NOT_FINITE", "1")
    poison(step, {1, 2})
    with pytest.raises(FloatingPointError, match="at iteration 2"):
        run(step, 4)


def test_overflows_of_the_gradient_scaler_are_its_own_until_its_scale_is_used_up(make_step):
    step = make_step("SOLVER.AMP.ENABLED", "True")
    step.grad_scaler._init_scale = 4.0
    poison(step, set(range(9)))
    before = clone_state(step)
    # Scales 4 and 2 are the scaler's business.
    with pytest.raises(FloatingPointError, match="at iteration 2"):
        run(step, 9)
    assert step.grad_scaler.get_scale() == 1.0
    assert_same(step, before)


def test_accumulated_parts_with_one_bad_part_are_not_stepped(make_step):
    step = make_step("SOLVER.ACCUMULATE", "2")
    before = clone_state(step)
    passes = []

    def poison_second(_, __, out):
        passes.append(1)
        return NaNGradient.apply(out) if len(passes) == 2 else None

    step.model.sem_seg_head.predictor.transformer.decoder.layers[0].register_forward_hook(poison_second)
    with pytest.raises(FloatingPointError, match="at iteration 0"):
        run(step)
    assert len(passes) == 2
    assert_same(step, before)


def test_weights_that_are_not_finite_are_never_saved(make_step, tmp_path):
    model = make_step().model
    checkpointer = Checkpointer(model, str(tmp_path))
    checkpointer.save("model_0000001")
    model.register_buffer("allowed", torch.tensor([0.0, -float("inf")]))  # a mask
    checkpointer.save("model_0000002")
    with torch.no_grad():
        model.sem_seg_head.predictor.class_embed.bias[0] = float("inf")
    with pytest.raises(FloatingPointError, match=r"model_0000003 is not saved: .*class_embed\.bias"):
        checkpointer.save("model_0000003")
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000002.pth"
    assert not (tmp_path / "model_0000003.pth").exists()


def test_a_run_whose_last_step_fails_has_no_final_checkpoint_and_no_scores(data_folder, tmp_path):
    opts = ("SOLVER.MAX_ITER", "2", "SOLVER.CHECKPOINT_PERIOD", "1")
    trainer = Trainer(tiny_config(data_folder, "OUTPUT_DIR", str(tmp_path), *opts))
    poison(trainer._trainer, {1})
    with pytest.raises(FloatingPointError, match="at iteration 1"):
        trainer.train()
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000000.pth"
    assert not (tmp_path / "model_final.pth").exists()
    assert not (tmp_path / "inference").exists()
