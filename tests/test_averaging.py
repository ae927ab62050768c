"""The moving average of the weights: its arithmetic, its files, resumed runs, and scores of both weights."""

import json
from pathlib import Path

import pytest
import torch
from tiny_runs import tiny_config
from torch import Tensor, nn

from mask_former.engine import Trainer
from mask_former.modeling.build import build_model

OPTS = ["SOLVER.EMA_DECAY", "0.25", "SOLVER.CHECKPOINT_PERIOD", "2", "MODEL.BACKBONE.FREEZE", "stages 1"]
OPTS += ["MODEL.RESNETS.NORM", "BN", "TEST.SAMPLE_PICTURES", "0", "SOLVER.BASE_LR", "0.01"]


def trainer_in(folder: Path, *opts: str, resume: bool = False) -> Trainer:
    (folder / "output").mkdir(exist_ok=True)
    trainer = Trainer(tiny_config(folder, *OPTS, *opts))
    trainer.resume_or_load(resume=resume)
    return trainer


def copy_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory):
    """A run of four steps: its folder, its trainer, and the weights before and after each step."""
    folder = tmp_path_factory.mktemp("run")
    trainer = trainer_in(folder, "TEST.BEST_METRIC", "sem_seg/mIoU")
    states = [copy_of(trainer.model)]
    step = trainer._trainer.run_step

    def recorded() -> None:
        step()
        states.append(copy_of(trainer.model))

    trainer._trainer.run_step = recorded
    trainer.train()
    return folder / "output", trainer, states


def test_average_is_the_sum_by_hand(unbroken):
    output, _, states = unbroken
    saved = torch.load(output / "model_final.pth", weights_only=True)["model"]
    for name in ("sem_seg_head.predictor.query_embed.weight", "backbone.res3.0.conv1.norm.running_mean"):
        expected = states[0][name].double()
        for number, state in enumerate(states[1:]):
            decay = min(0.25, (number + 2) / (number + 11))
            expected = decay * expected + (1 - decay) * state[name].double()
        torch.testing.assert_close(saved[name], expected.float())
        assert not torch.equal(saved[name], states[-1][name])


def test_frozen_weights_are_not_kept_twice(unbroken):
    output, trainer, _ = unbroken
    hooks = torch.load(output / "model_final.pth", weights_only=True)["trainer"]["hooks"]
    frozen = {name for name, value in trainer.model.named_parameters() if not value.requires_grad}
    assert frozen
    assert not frozen & hooks["WeightAverage"]["weights"].keys()


def test_training_goes_on_with_the_trained_weights_after_saving(unbroken):
    _, trainer, states = unbroken
    assert all(torch.equal(value, states[-1][name]) for name, value in copy_of(trainer.model).items())


def test_resumed_run_equals_an_unbroken_one_bit_for_bit(unbroken):
    output, trainer, states = unbroken
    (output / "last_checkpoint").write_text("model_0000001.pth")
    resumed = trainer_in(output.parent, "DATASETS.TEST", "()", resume=True)
    assert resumed.start_iter == 2
    assert all(torch.equal(value, states[2][name]) for name, value in copy_of(resumed.model).items())
    resumed.train()
    assert all(torch.equal(value, states[-1][name]) for name, value in copy_of(resumed.model).items())
    assert trainer.average.average.keys() == resumed.average.average.keys()
    for name, value in trainer.average.average.items():
        assert torch.equal(value, resumed.average.average[name]), name


def test_both_weights_are_scored_in_one_pass(unbroken):
    output, trainer, _ = unbroken
    rows = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    last = next(row for row in rows if "sem_seg/mIoU" in row)
    assert (output / "inference_raw").is_dir()
    best = json.loads((output / "model_best.json").read_text())
    assert best["value"] == last["sem_seg/mIoU"]
    cfg = trainer.cfg
    alone = Trainer.test(cfg, trainer.model)
    averaged = build_model(cfg, "cpu")
    averaged.load_state_dict(torch.load(output / "model_best.pth", weights_only=True)["model"])
    for suffix, scores in (("_raw", alone), ("", Trainer.test(cfg, averaged))):
        for task, values in scores.items():
            for name, value in values.items():
                assert last[f"{task}{suffix}/{name}"] == pytest.approx(value, nan_ok=True), (task, name)


def test_a_run_that_is_resumed_with_other_frozen_parts_is_refused(unbroken):
    output, _, _ = unbroken
    (output / "last_checkpoint").write_text("model_0000001.pth")
    with pytest.raises(ValueError, match=r"resume with the MODEL.BACKBONE.FREEZE that the run began with"):
        trainer_in(output.parent, "MODEL.BACKBONE.FREEZE", "none", resume=True)


def test_a_decay_of_one_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"SOLVER.EMA_DECAY is 1.0, expected 0 .* to below 1"):
        trainer_in(tmp_path, "SOLVER.EMA_DECAY", "1.0")
