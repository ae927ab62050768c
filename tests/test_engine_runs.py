"""Whole runs: stopped, killed, resumed, under several processes, and what they leave behind."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_runs import CONFIG, OPTS, SPEC, tiny_command, tiny_config

from mask_former.data.shapes import ensure_set
from mask_former.engine import RunOptions, Trainer, main

# Processes that start with everything imported. Forked from a server without threads of its own.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["tiny_runs", "mask_former.engine"])


def train(folder: Path, resume: bool, opts: tuple[str, ...]) -> None:
    cfg = tiny_config(folder, *opts)
    cfg.freeze()
    Path(cfg.OUTPUT_DIR).mkdir(exist_ok=True)
    torch.manual_seed(1)  # the first weights
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume)
    trainer.train()


def start_training(folder: Path, resume: bool, *opts: str):
    process = processes.Process(target=train, args=(folder, resume, opts))
    process.start()
    return process


def weights(folder: Path, name: str = "model_final.pth") -> dict[str, torch.Tensor]:
    return torch.load(folder / "output" / name, weights_only=True)["model"]


def assert_same_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    different = [name for name, value in first.items() if not torch.equal(value, second[name])]
    assert not different


RUN = ("SOLVER.MAX_ITER", "40", "SOLVER.CHECKPOINT_PERIOD", "4", "DATASETS.TEST", "()")
# Dropout makes the model draw random numbers, which a resumed run has to draw again.
RUN += ("MODEL.MASK_FORMER.DROPOUT", "0.1")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("unbroken")
    process = start_training(folder, False, *RUN)
    process.join()
    assert process.exitcode == 0
    return weights(folder)


def test_killed_and_resumed_ten_times_ends_with_the_same_weights(tmp_path, unbroken):
    moments = random.Random(5)
    output = tmp_path / "output"
    kills = 0
    while kills < 10:
        before = {path.name for path in output.glob("model_*.pth")}
        process = start_training(tmp_path, True, *RUN)
        # At a random moment after the first new checkpoint, so that the run gets on at all.
        while process.is_alive() and {path.name for path in output.glob("model_*.pth")} <= before:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.15))
        if not process.is_alive():
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
    process = start_training(tmp_path, True, *RUN)
    process.join()
    assert process.exitcode == 0
    assert kills >= 5, "the run ended before it was killed often enough to mean something"
    assert_same_weights(weights(tmp_path), unbroken)


def test_sigterm_saves_and_the_resumed_run_ends_with_the_same_weights(tmp_path, unbroken):
    process = start_training(tmp_path, False, *RUN)
    metrics = tmp_path / "output" / "model_0000003.pth"
    while process.is_alive() and not metrics.exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    process.join()
    assert process.exitcode == 128 + signal.SIGTERM
    saved = torch.load(
        tmp_path / "output" / (tmp_path / "output" / "last_checkpoint").read_text(), weights_only=True
    )
    assert 3 <= saved["trainer"]["iteration"] < 39
    resumed = start_training(tmp_path, True, *RUN)
    resumed.join()
    assert resumed.exitcode == 0
    assert_same_weights(weights(tmp_path), unbroken)


def test_resuming_what_is_complete_says_so_and_changes_nothing(tmp_path, log_lines):
    opts = ("SOLVER.MAX_ITER", "2", "DATASETS.TEST", "()")
    train(tmp_path, False, opts)
    before = (tmp_path / "output" / "model_final.pth").stat().st_mtime_ns
    train(tmp_path, True, opts)
    assert any("Nothing to train" in line for line in log_lines)
    assert (tmp_path / "output" / "model_final.pth").stat().st_mtime_ns == before


def test_a_run_killed_between_its_last_two_checkpoints_gets_its_final_one(tmp_path):
    opts = ("SOLVER.MAX_ITER", "2", "SOLVER.CHECKPOINT_PERIOD", "2", "DATASETS.TEST", "()")
    train(tmp_path, False, opts)
    (tmp_path / "output" / "last_checkpoint").write_text("model_0000001.pth")
    (tmp_path / "output" / "model_final.pth").unlink()
    train(tmp_path, True, opts)
    assert_same_weights(weights(tmp_path), weights(tmp_path, "model_0000001.pth"))
    final = torch.load(tmp_path / "output" / "model_final.pth", weights_only=True)
    assert final["trainer"]["iteration"] == 1


def test_resuming_where_nothing_is_says_so_and_trains(tmp_path, log_lines):
    train(tmp_path, True, ("SOLVER.MAX_ITER", "1", "DATASETS.TEST", "()"))
    assert any("Nothing to resume" in line for line in log_lines)
    assert (tmp_path / "output" / "model_final.pth").exists()


def test_a_resumed_run_may_be_longer(tmp_path):
    train(tmp_path, False, ("SOLVER.MAX_ITER", "2", "DATASETS.TEST", "()"))
    train(tmp_path, True, ("SOLVER.MAX_ITER", "4", "DATASETS.TEST", "()"))
    saved = torch.load(tmp_path / "output" / "model_final.pth", weights_only=True)
    assert saved["trainer"]["iteration"] == 3


def test_evaluation_in_between_changes_no_weight(tmp_path):
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    opts = ("MODEL.MASK_FORMER.DROPOUT", "0.1", "SOLVER.MAX_ITER", "4")
    train(tmp_path / "with", False, (*opts, "TEST.EVAL_PERIOD", "2"))
    train(tmp_path / "without", False, (*opts, "DATASETS.TEST", "()"))
    assert_same_weights(weights(tmp_path / "with"), weights(tmp_path / "without"))


def test_the_best_checkpoint_is_kept_with_its_score(tmp_path):
    train(tmp_path, False, ("TEST.EVAL_PERIOD", "2", "TEST.BEST_METRIC", "sem_seg/mIoU"))
    output = tmp_path / "output"
    record = json.loads((output / "model_best.json").read_text())
    assert (output / "samples" / "iter_0000001.png").exists()
    scores = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert record["value"] == pytest.approx(
        max(row["sem_seg/mIoU"] for row in scores if "sem_seg/mIoU" in row)
    )
    assert (output / "model_best.pth").exists()
    assert (output / "last_checkpoint").read_text() == "model_final.pth"
    final = torch.load(output / "model_final.pth", weights_only=True)
    assert final["metadata"]["metrics"]["sem_seg/mIoU"] == pytest.approx(scores[-1]["sem_seg/mIoU"])
    assert final["trainer"]["iteration"] == 3


def test_an_unknown_best_metric_is_refused_with_the_choices(tmp_path):
    with pytest.raises(KeyError, match=r"TEST\.BEST_METRIC is 'mIoU', expected one of \[.*'sem_seg/mIoU'"):
        train(tmp_path, False, ("TEST.BEST_METRIC", "mIoU"))


def test_eval_only_gives_the_scores_of_training_and_rows_for_tta(tmp_path):
    train(tmp_path, False, ())
    opts = [
        *OPTS,
        *("OUTPUT_DIR", str(tmp_path / "output"), "MODEL.WEIGHTS", str(tmp_path / "output/model_final.pth")),
        *("TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64, 96)"),
    ]
    prepared = main(RunOptions(config_file=str(CONFIG), eval_only=True, strict=True, opts=opts))
    opts += ["TEST.PRECISION", "plain"]
    results = main(RunOptions(config_file=str(CONFIG), eval_only=True, strict=True, opts=opts))
    last = json.loads((tmp_path / "output" / "metrics.json").read_text().splitlines()[-1])
    trained = {name: value for name, value in last.items() if "/" in name}
    for task in ("sem_seg", "panoptic_seg"):
        for name, value in results[task].items():
            if value == value:  # classes that do not occur have no score
                assert trained[f"{task}/{name}"] == pytest.approx(value, abs=1e-9)
                assert prepared[task][name] == pytest.approx(value, abs=0.01)
    assert "mIoU" in results["sem_seg_TTA"]
    assert "panoptic_seg_TTA" not in results


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs two CPU processes; with a GPU they use NCCL")
def test_two_processes_under_torchrun_train_evaluate_and_resume_like_one(tmp_path):
    opts = ["SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_ITER", "10"]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path), "OMP_NUM_THREADS": "1"}
    ensure_set(tmp_path, SPEC)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

    def run(launcher: list[str], output: str, *more: str) -> dict[str, float]:
        """Return the latest values in the log: medians of the losses, and scores."""
        folder = tmp_path / output
        folder.mkdir(exist_ok=True)
        script, *arguments = tiny_command(folder, *opts)
        done = subprocess.run(
            [*launcher, script, *more, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        latest: dict[str, float] = {}
        for line in (folder / "output" / "metrics.json").read_text().splitlines():
            latest.update(json.loads(line))
        return latest

    one = run([sys.executable], "one")
    two = run(torchrun, "two")
    for name in (
        "total_loss",
        "loss_ce",
        "loss_mask",
        "loss_dice",
        "loss_ce_0",
        "loss_mask_0",
        "loss_dice_0",
    ):
        assert two[name] == pytest.approx(one[name], rel=1e-4), name
    assert two["sem_seg/mIoU"] == pytest.approx(one["sem_seg/mIoU"], abs=0.1)
    opts += ["SOLVER.MAX_ITER", "14"]
    run([sys.executable], "one", "--resume")
    run(torchrun, "two", "--resume")
    assert (tmp_path / "two/output/last_checkpoint").read_text() == "model_final.pth"
    expected = weights(tmp_path / "one")
    for name, value in weights(tmp_path / "two").items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=2e-4, msg=name)
