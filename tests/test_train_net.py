"""train_net.py: what it says, refuses, imports, keeps, and how it ends."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from detectron2.engine import HookBase
from tiny_runs import CONFIG, OPTS, ROOT, tiny_config

import train_net
from mask_former.engine import RunOptions, Trainer, main
from mask_former.engine.start_weights import find_weights

NO_TEST = ("DATASETS.TEST", "()")


def error_of(capsys, *words: str) -> str:
    assert train_net.main(list(words)) == 1
    return capsys.readouterr().err


def test_the_help_needs_no_library():
    code = "import sys, train_net; train_net.argument_parser().format_help(); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "detectron2", "mask_former"} & set(re.findall(r"'(\w+)'", done.stdout))


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "give either --data"),
        (["--data", "town", "--config-file", "a.yaml"], "give either --data"),
        (["--config-file", "a.yaml", "--epochs", "3"], "--epochs is for --data"),
        (["--config-file", "a.yaml", "--ignore-faults"], "--ignore-faults is for --data"),
        (["--data", "town", "--epochs", "0"], "--epochs starts at 1"),
        (["--data", "town", "--num-gpus", "0"], "--num-gpus starts at 1"),
    ],
)
def test_arguments_that_cannot_be_are_refused(capsys, words, complaint):
    with pytest.raises(SystemExit) as stop:
        train_net.main(words)
    assert stop.value.code == 2
    assert complaint in capsys.readouterr().err


def test_an_error_is_one_line_and_a_traceback_with_debug(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = error_of(capsys, "--data", "nowhere")
    assert line == f"error: There is no folder {tmp_path}/nowhere; expected the folder of a data set.\n"
    assert "nowhere.yaml" in error_of(capsys, "--config-file", "nowhere.yaml")
    with pytest.raises(FileNotFoundError):
        train_net.main(["--data", "nowhere", "--debug"])


def test_a_module_is_imported_from_the_working_folder(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    Path("my_own_sets.py").write_text("raise ValueError('my module runs')")
    assert "my module runs" in error_of(capsys, "--config-file", str(CONFIG), "--import", "my_own_sets")
    missing = error_of(capsys, "--config-file", str(CONFIG), "--import", "my_lost_sets")
    assert f"--import my_lost_sets: there is no my_lost_sets.py in {tmp_path}" in missing


def test_random_weights_are_not_scored(tmp_path):
    cfg = tiny_config(tmp_path)
    options = RunOptions(config_file=str(CONFIG), opts=OPTS, output=str(tmp_path / "output"), eval_only=True)
    with pytest.raises(ValueError, match=r"--eval-only has no weights to score: give --weights FILE"):
        main(options)
    backbone = {f"backbone.{k}": v for k, v in Trainer.build_model(cfg).backbone.state_dict().items()}
    torch.save({"model": backbone}, tmp_path / "backbone.pth")
    with pytest.raises(ValueError, match=r"would score random weights: .*backbone\.pth lacks \d+ entries"):
        main(RunOptions(**{**vars(options), "weights": str(tmp_path / "backbone.pth")}))
    assert not (tmp_path / "output/config.yaml").exists()


def test_the_last_two_checkpoints_stay_also_over_a_resumption(tmp_path):
    (tmp_path / "output").mkdir()
    period = ("SOLVER.CHECKPOINT_PERIOD", "1", *NO_TEST)
    for iterations, kept in ((3, (1, 2)), (4, (2, 3))):
        trainer = Trainer(tiny_config(tmp_path, *period, "SOLVER.MAX_ITER", str(iterations)))
        trainer.resume_or_load(resume=True)
        trainer.train()
        names = {file.name for file in (tmp_path / "output").glob("*.pth")}
        assert names == {"model_final.pth", *(f"model_{number:07d}.pth" for number in kept)}


class Send(HookBase):
    """Sends a signal to this process during the second step."""

    def __init__(self, number: int) -> None:
        self.number = number

    def before_step(self) -> None:
        if self.trainer.iter == 1:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_closed_terminal_and_ctrl_c_save_as_sigterm_does(tmp_path, number):
    (tmp_path / "output").mkdir()
    before = signal.getsignal(number)
    trainer = Trainer(tiny_config(tmp_path, *NO_TEST))
    trainer.register_hooks([Send(number)])
    with pytest.raises(SystemExit) as stop:
        trainer.train()
    assert stop.value.code == 128 + number
    assert (tmp_path / "output/last_checkpoint").read_text() == "model_0000001.pth"
    assert (tmp_path / "output/model_0000001.pth").is_file()
    assert signal.getsignal(number) == before


def test_a_backbone_of_torchvision_is_found_and_put_into_our_names(tmp_path):
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "resnet18.pth")
    start = find_weights(str(tmp_path / "resnet18.pth"), tmp_path / "out")
    assert start.backbone["MODEL.RESNETS.DEPTH"] == 18
    assert start.file == tmp_path / "out/start_weights.pth"
    assert "stem.conv1.weight" in torch.load(start.file, weights_only=True)["model"]
    with pytest.raises(ValueError, match="'resnet18' is not in the zoo; did you mean"):
        find_weights("resnet18", tmp_path)
