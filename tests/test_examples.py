"""The examples run, on a small set of shapes, and learn."""

import subprocess
import sys

import torch
from tiny_runs import OPTS, ROOT, SPEC

from mask_former.data.shapes import register

EXAMPLE = ROOT / "examples" / "plain_train.py"


def test_the_plain_loop_is_short_enough_to_read():
    assert len(EXAMPLE.read_text().splitlines()) < 100


def test_the_plain_loop_learns_evaluates_and_saves(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    import plain_train

    torch.set_num_threads(1)
    register(tmp_path, SPEC)
    opts = [*OPTS, "SOLVER.MAX_ITER", "40", "SOLVER.WARMUP_ITERS", "0", "MODEL.DEVICE", "cpu"]
    losses, scores = plain_train.main(["--output", str(tmp_path / "output"), *opts])
    assert len(losses) == 40
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert {"panoptic_seg", "sem_seg"} <= set(scores)
    saved = torch.load(tmp_path / "output" / "model_final.pth", weights_only=True)["model"]
    assert "sem_seg_head.predictor.query_embed.weight" in saved


def test_the_plain_loop_says_how_it_is_used():
    done = subprocess.run([sys.executable, EXAMPLE, "--help"], capture_output=True, text=True, check=True)
    assert "--output" in done.stdout
