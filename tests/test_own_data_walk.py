"""A fresh user's walk: the commands of docs/own-data.md, word for word, on small generated sets."""

import json
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import own_sets
import pytest
import torch
import yaml

import demo
import train_net
from mask_former.data.check import main as check

ROOT = Path(__file__).parent.parent
# What is added to the commands that train, so that they take seconds.
SHORT = "SOLVER.MAX_ITER 1 SOLVER.IMS_PER_BATCH 2 TEST.SAMPLE_PICTURES 0"
SHORT += " MODEL.DEVICE cpu DATALOADER.NUM_WORKERS 0"
PROGRAMS: dict[str, Callable[[Sequence[str]], int]] = {
    "train_net.py": lambda words: train_net.main([*words, *SHORT.split()]),
    "demo/demo.py": demo.main,
    "-m mask_former.data.check": check,
}


def commands() -> list[str]:
    text = (ROOT / "docs" / "own-data.md").read_text()
    return re.findall(r"^    python (.*)$", text, re.M)


def run(command: str) -> None:
    program = next(name for name in PROGRAMS if command.startswith(name))
    assert PROGRAMS[program](shlex.split(command.removeprefix(program))) == 0, command


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """The folder in which every command of the document was run."""
    folder = tmp_path_factory.mktemp("walk")
    own_sets.semantic(folder / "town")
    own_sets.coco(folder / "cells")
    own_sets.panoptic(folder / "street")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        for command in commands():
            run(command)
    return folder


def test_the_document_has_a_walk_for_each_task():
    for name in ("town", "cells", "street"):
        assert f"train_net.py --data {name}" in commands()


def test_each_set_has_weights_scores_and_drawings(walked):
    for name, metric in (("town", "sem_seg/mIoU"), ("cells", "segm/AP"), ("street", "panoptic_seg/PQ")):
        output = walked / "output" / name
        assert json.loads((output / "model_best.json").read_text())["metric"] == metric
        assert metric in json.loads((output / "scores.json").read_text())
        assert (output / "model_final.pth").is_file()
        assert len(list((walked / "results" / name / "overlay").iterdir())) == 2
    assert (walked / "results/cells/coco_instances_results.json").is_file()
    assert (walked / "results/street/panoptic.json").is_file()
    assert (walked / "output/town.html").stat().st_size > 1000


def test_an_evaluation_has_a_folder_of_its_own(walked):
    run_folder, own = walked / "output/town", walked / "output/town/eval_model_best"
    scores = json.loads((own / "scores.json").read_text())
    assert scores == pytest.approx(json.loads((run_folder / "scores.json").read_text()), nan_ok=True)
    files = [folder / "config.yaml" for folder in (run_folder, own)]
    weights = [yaml.safe_load(file.read_text())["MODEL"]["WEIGHTS"] for file in files]
    assert weights == ["", "output/town/model_best.pth"]


def test_a_second_run_started_from_the_first(walked):
    text = (walked / "output/town_longer/recipe.yaml").read_text()
    assert f"WEIGHTS: {walked}/output/town/model_best.pth  # to start from" in text
    final = torch.load(walked / "output/town_longer/model_final.pth", weights_only=True)
    assert final["metadata"]["class_names"] == list(own_sets.CLASSES)
    assert "FOLDER" not in final["metadata"]["config"]


def test_the_first_progress_comes_early_and_nothing_of_others_is_shown(walked, capsys, monkeypatch):
    monkeypatch.chdir(walked)
    monkeypatch.setenv("XDG_CACHE_HOME", str(walked / "cache"))
    words = ["--data", "town", "--output", "output/again", *SHORT.split(), "SOLVER.MAX_ITER", "3"]
    assert train_net.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert next(number for number, line in enumerate(lines) if "iter 3/3" in line) < 40
    assert "semantic label maps, 3 classes from classes.txt, 3 training and 2 validation pictures" in lines[0]
    assert not [line for line in lines if "_C" in line or "Namespace(" in line]


def test_overwrite_does_not_delete_the_weights_to_start_from(walked, capsys, monkeypatch):
    monkeypatch.chdir(walked)
    monkeypatch.setenv("XDG_CACHE_HOME", str(walked / "cache"))
    words = ["--data", "town", "--overwrite", "--weights", "output/town/model_best.pth"]
    assert train_net.main([*words, *SHORT.split()]) == 1
    assert "is in the folder that --overwrite empties" in capsys.readouterr().err
    assert Path("output/town/model_best.pth").is_file()
    assert Path("output/town/model_final.pth").is_file()
