"""Runs go on after damage, in a folder of their own, with the state of the parameters by name."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_runs import CONFIG, OPTS, tiny_command, tiny_config

from mask_former.checkpoint import read_checkpoint
from mask_former.checkpoint.reading import DamagedFileError
from mask_former.engine import RunOptions, Trainer, main
from mask_former.engine.recipe_changes import tell_changes
from mask_former.engine.run_folder import claim

RUN = ("DATASETS.TEST", "()", "SOLVER.CHECKPOINT_PERIOD", "2")


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    """The pictures are drawn once."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def files(data_folder):
    """The checkpoints of a run of four iterations: name -> bytes."""
    output = data_folder / "output"
    output.mkdir()
    Trainer(tiny_config(data_folder, *RUN)).train()
    return {file.name: file.read_bytes() for file in output.iterdir() if file.suffix in ("", ".pth")}


@pytest.fixture
def used(files, tmp_path) -> Path:
    """A folder with those files."""
    for moment, name in enumerate(sorted(files)):
        (tmp_path / name).write_bytes(files[name])
        os.utime(tmp_path / name, (moment, moment))
    return tmp_path


def resumed(data_folder: Path, output: Path, *opts: str) -> Trainer:
    trainer = Trainer(tiny_config(data_folder, *RUN, "OUTPUT_DIR", str(output), *opts))
    trainer.resume_or_load(resume=True)
    return trainer


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4  # within the weights
    file.write_bytes(content)


def replaced_by_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def emptied(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncated, flipped, Path.unlink, replaced_by_a_folder, emptied])
def test_a_damaged_newest_checkpoint_gives_way_to_the_newest_whole_one(data_folder, used, log_lines, damage):
    damage(used / "model_final.pth")
    trainer = resumed(data_folder, used)
    assert trainer.start_iter == 4
    told = [line for line in log_lines if "instead" in line]
    assert len(told) == 1
    assert told[0].startswith(f"Resuming from model_0000003.pth instead: {used}/model_final.pth ")
    assert len(told[0]) < 400
    assert "\n" not in told[0]


def garbled(file: Path) -> None:
    file.write_bytes(b"\xff\x00\x1b[31m" * 9)


def elsewhere(file: Path) -> None:
    file.write_text("../other/model_final.pth")


@pytest.mark.parametrize("damage", [Path.unlink, emptied, garbled, replaced_by_a_folder, elsewhere])
def test_without_the_name_of_the_last_checkpoint_the_newest_is_taken(data_folder, used, log_lines, damage):
    damage(used / "last_checkpoint")
    assert resumed(data_folder, used).start_iter == 4
    assert [line for line in log_lines if "instead" in line] == [
        f"Resuming from model_final.pth instead: {used}/last_checkpoint names no checkpoint."
    ]


def test_two_damaged_checkpoints_give_way_to_the_third(data_folder, used, log_lines):
    flipped(used / "model_final.pth")
    truncated(used / "model_0000003.pth")
    assert resumed(data_folder, used).start_iter == 2
    assert len([line for line in log_lines if "instead" in line]) == 2


def test_no_whole_checkpoint_is_refused_with_the_ways_out(data_folder, used):
    for file in used.glob("*.pth"):
        flipped(file)
    with pytest.raises(ValueError, match=r"none of the 3 checkpoints in .*--overwrite"):
        resumed(data_folder, used)


def test_weights_alone_are_nothing_to_resume_from(data_folder, used, log_lines):
    weights = read_checkpoint(used / "model_final.pth")["model"]
    torch.save({"model": weights}, used / "model_final.pth")
    assert resumed(data_folder, used).start_iter == 4
    assert any("holds no trainer" in line for line in log_lines)


def test_a_flipped_bit_of_a_weight_is_refused_at_every_door(used):
    flipped(used / "model_final.pth")
    with pytest.raises(DamagedFileError, match="was altered after it was written"):
        read_checkpoint(used / "model_final.pth")


def hold(folder: Path, is_held) -> None:
    claim(folder, resume=False, overwrite=False)
    is_held.set()
    signal.pause()


@pytest.fixture
def holder(tmp_path):
    """A process that has a lock on the folder "held"."""
    context = multiprocessing.get_context("fork")
    is_held = context.Event()
    process = context.Process(target=hold, args=(tmp_path / "held", is_held), daemon=True)
    process.start()
    assert is_held.wait(30)
    yield process
    process.kill()
    process.join()


def test_a_second_run_in_a_folder_is_refused_and_names_host_and_process(tmp_path, holder):
    with pytest.raises(ValueError, match=rf"is in use by a run .*\(host \S+, process {holder.pid}\)"):
        claim(tmp_path / "held", resume=True, overwrite=True)
    claim(tmp_path / "beside", resume=False, overwrite=False)


def test_the_lock_of_a_killed_run_is_stale_at_once(tmp_path, holder):
    holder.kill()
    holder.join()
    claim(tmp_path / "held", resume=False, overwrite=False)
    assert (tmp_path / "held" / "run.lock").read_text().endswith(f"process {os.getpid()}\n")


def run_program(output: Path, *opts: str, iterations: int = 4, **flags: bool) -> None:
    opts = (*OPTS, *RUN, "SOLVER.MAX_ITER", str(iterations), "OUTPUT_DIR", str(output), *opts)
    main(RunOptions(config_file=str(CONFIG), opts=opts, **flags))


def test_a_used_folder_is_refused_and_left_as_it_is(data_folder, used):
    before = {file: file.read_bytes() for file in used.glob("*.pth")}
    with pytest.raises(ValueError, match=r"--resume goes on .* another OUTPUT_DIR .* --overwrite deletes"):
        run_program(used)
    assert {file: file.read_bytes() for file in used.glob("*.pth")} == before
    assert not (used / "config.yaml").exists()


def test_overwrite_deletes_the_earlier_run(data_folder, used):
    (used / "notes.txt").write_text("mine")
    run_program(used, iterations=1, overwrite=True)
    assert {file.name for file in used.glob("model_*")} == {"model_final.pth"}
    assert read_checkpoint(used / "model_final.pth")["trainer"]["iteration"] == 0
    assert (used / "notes.txt").read_text() == "mine"


def test_resume_and_evaluation_may_use_the_folder(data_folder, used):
    run_program(used, resume=True)
    run_program(used, eval_only=True, resume=True)


@pytest.mark.parametrize(
    ("opts", "told"),
    [
        (("SOLVER.BACKBONE_MULTIPLIER", "0.5"), "SOLVER.BACKBONE_MULTIPLIER was 1.0 and is 0.5"),
        (("SOLVER.WEIGHT_DECAY_NORM", "0.03"), "SOLVER.WEIGHT_DECAY_NORM was 0.0 and is 0.03"),
        (("MODEL.BACKBONE.FREEZE_AT", "2"), "MODEL.BACKBONE.FREEZE_AT was 0 and is 2"),
    ],
)
def test_a_changed_recipe_is_told_and_the_optimizer_state_follows_the_names(
    data_folder, used, log_lines, opts, told
):
    saved = read_checkpoint(used / "model_final.pth")["trainer"]["_trainer"]
    states = {
        name: saved["optimizer"]["state"][index]
        for group, names in zip(saved["optimizer"]["param_groups"], saved["parameter_names"], strict=True)
        for index, name in zip(group["params"], names, strict=True)
    }
    trainer = resumed(data_folder, used, *opts)
    fresh = Trainer(tiny_config(data_folder, *RUN, *opts))
    loaded = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert 0 < len(loaded) <= len(states)
    for name, parameter in loaded.items():
        state = trainer.optimizer.state[parameter]
        assert torch.equal(state["exp_avg_sq"], states[name]["exp_avg_sq"]), name
        assert state["step"] == 4
    for group, expected in zip(trainer.optimizer.param_groups, fresh.optimizer.param_groups, strict=True):
        assert group["weight_decay"] == expected["weight_decay"]
        assert group["initial_lr"] == expected["initial_lr"]
        factor = trainer.scheduler.lr_lambdas[0](4)
        assert group["lr"] == pytest.approx(expected["initial_lr"] * factor, rel=1e-12)
    tell_changes(trainer.cfg)
    assert [line for line in log_lines if "changed recipe" in line] == [
        f"Resuming with a changed recipe: {told}"
    ]


def test_parameters_that_are_trained_again_start_without_a_state(data_folder, tmp_path):
    frozen = Trainer(
        tiny_config(data_folder, *RUN, "OUTPUT_DIR", str(tmp_path), "MODEL.BACKBONE.FREEZE_AT", "2")
    )
    frozen.train()
    trainer = resumed(data_folder, tmp_path, "SOLVER.MAX_ITER", "5")
    new = [p for p in trainer.model.backbone.stem.parameters()]
    assert new
    assert not any(parameter in trainer.optimizer.state for parameter in new)
    trainer.train()
    assert {int(trainer.optimizer.state[parameter]["step"]) for parameter in new} == {1}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "9"),
        ("MODEL.MASK_FORMER.HIDDEN_DIM", "32"),
        ("SOLVER.OPTIMIZER", "SGD"),
    ],
)
def test_another_model_or_optimizer_is_refused_before_anything_is_built(
    data_folder, used, monkeypatch, key, value
):
    monkeypatch.delattr("mask_former.engine.run.Trainer.__init__")
    with pytest.raises(ValueError, match=rf"^Cannot resume in .*: {key} was \S+ and is '?{value}'?\. Set it"):
        run_program(used, key, value, resume=True)


def test_another_model_that_no_key_names_is_refused_by_its_entries(data_folder, used):
    trainer = Trainer(tiny_config(data_folder, *RUN, "OUTPUT_DIR", str(used)))
    trainer.model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"^Cannot resume, .* another one: .*2 re-initialised"):
        trainer.resume_or_load(resume=True)


def catches_sigterm(process: subprocess.Popen) -> bool:
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = int(status.split("SigCgt:")[1].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def test_sigterm_before_the_first_step_is_an_orderly_end(data_folder, tmp_path):
    # While the libraries are imported, and later, when the model is built or the data are read.
    environment = {**os.environ, "DETECTRON2_DATASETS": str(data_folder), "PYTHONWARNINGS": "ignore"}
    script, *arguments = tiny_command(tmp_path)
    moments = (0.0, 0.3, 4.0)
    runs = [
        subprocess.Popen(
            [sys.executable, script, *arguments, "OUTPUT_DIR", str(tmp_path / str(moment))],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for moment in moments
    ]
    for moment, process in zip(moments, runs, strict=True):
        while not catches_sigterm(process):
            time.sleep(0.01)
        time.sleep(moment)
        process.send_signal(signal.SIGTERM)
    for process in runs:
        lines = process.communicate(timeout=60)[1].splitlines()
        assert process.returncode == 128 + signal.SIGTERM
        assert "topped by SIGTERM" in lines[-1]
        assert "Traceback" not in lines
