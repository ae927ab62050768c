"""Train on the synthetic shapes, predict on pictures and a video, write a page: what `make demo` does.

Every step leaves its results in the output folder and is not repeated: started again, an interrupted run
continues.

    model_final.pth, metrics.json, ...   as training writes them
    predictions/                         overlays, label maps, panoptic and COCO files, a table
    gallery/                             picture, truth and prediction: the worst, the best and others
    shapes_video.mp4                     the video with predictions over it
    index.html                           the page
"""

import argparse
import functools
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from detectron2.config import CfgNode
from gallery import write_gallery
from run_page import latest_scores, read_metrics, write_page
from tabulate import tabulate
from video_demo import predict_video

from demo import build_predictor
from mask_former.checkpoint import flat_metrics
from mask_former.config import load_config
from mask_former.data.datasets import datasets_root
from mask_former.engine import RunOptions
from mask_former.engine import main as train_or_evaluate
from mask_former.formats import replacing

CONFIG_FILE = "configs/shapes/maskformer_panoptic.yaml"
OUTPUT = Path("output/demo")
# Which steps are done, and with which weights.
STATE = "walkthrough.json"
WEIGHTS = "model_final.pth"
# An interrupted training repeats at most this many iterations.
CHECKPOINT_PERIOD = 250


def walk(config_file: str, output: Path, pictures: int = 12, opts: Sequence[str] = ()) -> Path:
    """Do every step that is not done yet, for so many validation pictures, and return the page."""
    opts = ["SOLVER.CHECKPOINT_PERIOD", str(CHECKPOINT_PERIOD), *opts, "OUTPUT_DIR", str(output)]
    cfg = load_config(config_file, opts)
    output.mkdir(parents=True, exist_ok=True)
    _train(config_file, cfg, opts)
    _say(_score_table(latest_scores(read_metrics(output / "metrics.json"))))
    _once(output, f"{pictures} pictures", lambda: write_gallery(output, output / WEIGHTS, cfg, pictures))
    video = datasets_root() / "shapes" / "shapes_video.mp4"
    if video.is_file():
        _once(output, f"video {video.name}", lambda: _predict_video(output, video))
    return write_page(output)


def _train(config_file: str, cfg: CfgNode, opts: Sequence[str]) -> None:
    """Train to the end and evaluate, continue that, or do nothing if it is done."""
    output = Path(cfg.OUTPUT_DIR)
    options = RunOptions(config_file=str(config_file), opts=opts, resume=True)
    last = cfg.SOLVER.MAX_ITER - 1
    records = read_metrics(output / "metrics.json")
    is_trained = any("total_loss" in r and r["iteration"] >= last for r in records)
    if not (is_trained and (output / WEIGHTS).is_file()):
        _say(f"Training, {cfg.SOLVER.MAX_ITER} iterations ...")
        train_or_evaluate(options)
        records = read_metrics(output / "metrics.json")
    if not latest_scores(r for r in records if r["iteration"] >= last):  # interrupted before evaluation
        options = replace(options, resume=False, eval_only=True, weights=str(output / WEIGHTS))
        record = {"iteration": cfg.SOLVER.MAX_ITER, **flat_metrics(train_or_evaluate(options))}
        with (output / "metrics.json").open("a") as file:
            file.write("\n" + json.dumps(record) + "\n")


def _once(output: Path, step: str, action: Callable[[], None]) -> None:
    """Do a step unless it is done with the current weights."""
    state_file, weights = output / STATE, (output / WEIGHTS).stat()
    state = json.loads(state_file.read_text()) if state_file.is_file() else {}
    stamp = f"{weights.st_size} {weights.st_mtime_ns}"
    if state.get(step) == stamp:
        return
    _say(f"Predicting: {step} ...")
    action()
    with replacing(state_file) as partial:
        partial.write_text(json.dumps({**state, step: stamp}) + "\n")


def _predict_video(output: Path, video: Path) -> None:
    """Predict on every frame, and replace the video of an earlier run."""
    (output / video.name).unlink(missing_ok=True)
    build = functools.partial(build_predictor, weights=str(output / WEIGHTS))
    predict_video(build, str(video), output / video.name, batch_size=4)


def _score_table(scores: Mapping[str, float]) -> str:
    """Return the scores of the final weights as a table."""
    rows = [
        [name, *(scores.get(f"panoptic_seg/{name}{group}") for group in ("", "_th", "_st"))]
        for name in ("PQ", "SQ", "RQ")
    ]
    rows += [["mIoU", scores.get("sem_seg/mIoU")], ["mask AP", scores.get("segm/AP")]]
    rows = [row for row in rows if row[1] is not None]
    return tabulate(rows, headers=["", "all", "things", "stuff"], tablefmt="simple", floatfmt=".1f")


def _next_steps(output: Path) -> str:
    python, weights = shlex.quote(os.path.relpath(sys.executable)), shlex.quote(str(output / WEIGHTS))
    return f"""
Look at {output / "index.html"} (open it in a browser), and at the files in {output / "predictions"}.

Next, your own pictures, your own video, and a model of your own data (docs/own-data.md). The model of the
demo knows shapes and nothing else: it sees shapes in photographs, too.

  {python} demo/demo.py --weights {weights} --input PICTURES --output results --save overlay,labels,csv
  {python} demo/demo.py --weights {weights} --video-input VIDEO.mp4 --output results
  {python} train_net.py --data FOLDER --weights {weights}
"""


def _say(text: str) -> None:
    """Print a message between the lines of the log."""
    sys.stdout.write(f"\n{text}\n")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Do all steps, print what to do next, and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default=CONFIG_FILE, metavar="FILE", help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="DIR", help="(default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=12, metavar="N", help="on the page (%(default)s)")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes of the configuration"
    )
    arguments = parser.parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    if arguments.pictures < 1:
        sys.stderr.write("error: --pictures starts at 1\n")
        return 2
    try:
        walk(arguments.config_file, arguments.output, arguments.pictures, arguments.opts)
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped; the same command continues from here\n")
        return 130
    except (OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"error: {error.args[0] if isinstance(error, KeyError) else error}\n")
        return 1
    _say(_next_steps(arguments.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
