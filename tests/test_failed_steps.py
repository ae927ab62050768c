"""Steps that fail: what is stepped, what is saved, what is recorded."""

import multiprocessing
import resource

import pytest
import torch
from detectron2.engine import HookBase
from tiny_runs import run_steps, tiny_config

from mask_former.checkpoint import Checkpointer, read_checkpoint
from mask_former.engine import Trainer
from mask_former.engine.step import TrainingData, TrainStep
from mask_former.modeling.build import build_model
from mask_former.modeling.transformer_decoder import (
    TRANSFORMER_DECODER_REGISTRY,
    StandardTransformerDecoder,
)
from mask_former.replay import Replay, report
from mask_former.replay import main as replay_main
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
        run_steps(step)
    assert torch.isfinite(torch.tensor(losses)).all()
    assert_same(step, before)
    assert not step.optimizer.state


def test_up_to_n_steps_in_a_row_are_skipped_and_the_run_goes_on(make_step, tmp_path):
    step = make_step("SOLVER.SKIP_NOT_FINITE", "2")
    poison(step, {0, 1, 3, 4})
    storage = run_steps(step, 6)
    assert {int(state["step"]) for state in step.optimizer.state.values()} == {2}
    assert all(value.isfinite().all() for value in step.model.state_dict().values())
    assert storage.latest()["total_loss"][1] == 5
    assert len(list(tmp_path.glob("not_finite_*.json"))) == 4


def test_one_skip_more_than_allowed_stops_the_run(make_step):
    step = make_step("SOLVER.SKIP_NOT_FINITE", "1")
    poison(step, {1, 2})
    with pytest.raises(FloatingPointError, match="at iteration 2"):
        run_steps(step, 4)


def test_overflows_of_the_gradient_scaler_are_its_own_until_its_scale_is_used_up(make_step):
    step = make_step("SOLVER.AMP.ENABLED", "True")
    step.grad_scaler._init_scale = 4.0
    poison(step, set(range(9)))
    before = clone_state(step)
    # Scales 4 and 2 are the scaler's business.
    with pytest.raises(FloatingPointError, match="at iteration 2"):
        run_steps(step, 9)
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
        run_steps(step)
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


@TRANSFORMER_DECODER_REGISTRY.register()
class DecoderWithBadGradient(StandardTransformerDecoder):
    """Gives NaN back through one layer, as a faulty kernel would."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        layer = self.transformer.decoder.layers[1].linear2
        layer.register_forward_hook(lambda _, __, out: NaNGradient.apply(out))


NAN = float("nan")
DECODER = "sem_seg_head.predictor.transformer.decoder.layers"


def spoil(name: str, value: float):
    """Return a fault: all values of a parameter."""

    def do(step: TrainStep) -> None:
        with torch.no_grad():
            step.model.get_parameter(name).fill_(value)

    return do


def wrong_label(step: TrainStep) -> None:
    """Let the second segment of the first picture have a class that is not there."""
    batch = next(step._data_loader_iter)
    batch[0]["instances"].gt_classes[1] = 99
    step._data_loader_iter = iter([batch])


BAD_GRADIENT = ("MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME", "DecoderWithBadGradient")
FLOAT16 = ("SOLVER.AMP.ENABLED", "True")


@pytest.mark.parametrize(
    ("fault", "opts", "expected"),
    [
        (
            spoil("backbone.stem.conv1.weight", NAN),
            (),
            "output that is not finite: backbone.stem.conv1",
        ),
        (
            spoil(f"{DECODER}.1.linear1.weight", NAN),
            (),
            f"output that is not finite: {DECODER}.1.linear1",
        ),
        (
            spoil("sem_seg_head.predictor.mask_embed.layers.2.bias", 1e38),
            (),
            "raised again: ValueError: ",  # the matching, of its costs
        ),
        (lambda step: None, BAD_GRADIENT, f"gradient that is not finite: the parameter {DECODER}.1.linear2"),
        (
            spoil(f"{DECODER}.0.linear1.bias", 1e5),
            FLOAT16,
            f"output that is not finite: {DECODER}.0.linear1",
        ),
        (wrong_label, (), "picture 0 of the batch"),
    ],
    ids=["forward", "decoder layer", "matcher cost", "backward", "float16", "label"],
)
def test_a_failed_step_is_recorded_and_its_replay_names_the_place(make_step, tmp_path, fault, opts, expected):
    step = make_step(*opts)
    fault(step)
    before = clone_state(step)
    with pytest.raises(Exception) as raised:  # noqa: PT011
        run_steps(step)
    (file,) = (tmp_path / "failed_steps").iterdir()
    record = read_checkpoint(file)
    assert record["failure"]["error"].startswith(type(raised.value).__name__)
    for name, value in record["model"].items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True, msg=name)
    lines, is_failure = report(Replay(str(file)))
    assert is_failure
    assert expected in "\n".join(lines)


def test_the_replay_of_a_wrong_label_names_picture_and_segment(make_step, tmp_path):
    step = make_step()
    wrong_label(step)
    picture = step._data_loader_iter
    with pytest.raises(Exception):  # noqa: B017, PT011
        run_steps(step)
    del picture
    (file,) = (tmp_path / "failed_steps").iterdir()
    (culprit,) = Replay(str(file)).culprits()
    assert culprit.endswith(".jpg: segment 1 (class 99)")


def test_float16_failures_end_well_in_float32(make_step, tmp_path):
    step = make_step(*FLOAT16)
    spoil(f"{DECODER}.0.linear1.bias", 1e5)(step)
    with pytest.raises(Exception):  # noqa: B017, PT011
        run_steps(step)
    (file,) = (tmp_path / "failed_steps").iterdir()
    assert Replay(str(file), float32=True).run().output is None


def test_the_newest_records_are_kept_and_zero_keeps_none(make_step, tmp_path):
    step = make_step("SOLVER.FAILED_STEPS_KEPT", "2")
    for step.iter in range(3):
        step.recorder.record(step, [{"image": torch.zeros(3, 4, 4)}], ValueError("x"), "before the update")
    names = sorted(file.name for file in (tmp_path / "failed_steps").iterdir())
    assert names == ["step_0000001_rank0.pth", "step_0000002_rank0.pth"]
    step = make_step("SOLVER.FAILED_STEPS_KEPT", "0")
    step.iter = 9
    step.recorder.record(step, [{"image": torch.zeros(3, 4, 4)}], ValueError("x"), "before the update")
    assert sorted(file.name for file in (tmp_path / "failed_steps").iterdir()) == names


def test_a_hook_that_raises_leaves_a_record_of_its_step(data_folder, tmp_path):
    class Broken(HookBase):
        def after_step(self):
            raise ZeroDivisionError("in a hook")

    trainer = Trainer(tiny_config(data_folder, "OUTPUT_DIR", str(tmp_path)))
    trainer.register_hooks([Broken()])
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    (file,) = (tmp_path / "failed_steps").iterdir()
    assert read_checkpoint(file)["failure"]["moment"] == "after the update"
    assert not report(Replay(str(file)))[1]


def test_a_full_disk_leaves_the_last_checkpoint_whole_and_the_error_visible(data_folder, tmp_path):
    opts = ("SOLVER.CHECKPOINT_PERIOD", "1", "OUTPUT_DIR", str(tmp_path), "DATASETS.TEST", "()")
    trainer = Trainer(tiny_config(data_folder, *opts))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Fill(HookBase):
        def before_step(self):
            if self.trainer.iter == 1:  # no file may grow beyond this
                resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))

    trainer.register_hooks([Fill()])
    try:
        with pytest.raises((OSError, RuntimeError)):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000000.pth"
    assert read_checkpoint(tmp_path / "model_0000000.pth")["trainer"]["iteration"] == 0
    assert [file.name for file in tmp_path.rglob("*.pth")] == ["model_0000000.pth"]


def test_a_dead_data_worker_ends_the_run_with_the_last_checkpoint_whole(data_folder, tmp_path):
    opts = ("SOLVER.CHECKPOINT_PERIOD", "1", "DATALOADER.NUM_WORKERS", "1", "DATASETS.TEST", "()")
    trainer = Trainer(tiny_config(data_folder, *opts, "OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_ITER", "99"))

    class Kill(HookBase):
        def before_step(self):
            if self.trainer.iter == 1:
                for child in multiprocessing.active_children():
                    child.kill()

    trainer.register_hooks([Kill()])
    with pytest.raises(RuntimeError, match=r"worker.*(killed|ended)"):
        trainer.train()
    last = (tmp_path / "last_checkpoint").read_text()
    assert read_checkpoint(tmp_path / last)["trainer"]["iteration"] == trainer.iter - 1


def test_the_program_prints_the_report_and_refuses_other_files(make_step, tmp_path, capsys):
    step = make_step()
    spoil("backbone.stem.conv1.weight", float("nan"))(step)
    with pytest.raises(ValueError, match="NaN"):
        run_steps(step)
    (file,) = (tmp_path / "failed_steps").iterdir()
    assert replay_main([str(file)]) == 0
    assert "backbone.stem.conv1" in capsys.readouterr().out
    Checkpointer(step.model, str(tmp_path)).save_weights(tmp_path / "weights.pth")
    assert replay_main([str(tmp_path / "weights.pth")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
