"""Runs go on after damage, in a folder of their own, with the state of the parameters by name."""

import logging
import os
from pathlib import Path

import pytest
import torch
from tiny_runs import tiny_config

from mask_former.checkpoint import read_checkpoint
from mask_former.checkpoint.reading import DamagedFileError
from mask_former.engine import Trainer

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


@pytest.fixture
def log_lines():
    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    collector = Collector()
    loggers = [logging.getLogger(name) for name in ("mask_former", "fvcore")]
    for logger in loggers:
        logger.addHandler(collector)
    yield lines
    for logger in loggers:
        logger.removeHandler(collector)


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
