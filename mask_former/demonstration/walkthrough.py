"""From nothing to predictions that can be looked at: what `make demo` does.

Trains on the synthetic shapes, shows the scores, predicts on pictures and a video, and writes a page. Every
step leaves its results in the output folder and is not done again: interrupted and started anew, it goes on.

    model_final.pth, metrics.json, ...   as training writes them
    predictions/                         overlays, label maps, panoptic and COCO files, a table
    gallery/                             picture, truth and prediction, for the page
    shapes_video.mp4                     the video with predictions over it
    index.html                           the page
"""

import argparse
import json
import logging
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from numpy.typing import NDArray
from PIL import Image
from tabulate import tabulate

from mask_former.checkpoint import flat_metrics
from mask_former.config import load_config
from mask_former.data.root import datasets_root
from mask_former.demonstration import PredictorRecipe
from mask_former.demonstration.report import latest_scores, read_metrics, write_report
from mask_former.demonstration.video_prediction import predict_video
from mask_former.engine import argument_parser as train_arguments
from mask_former.engine import main as train_or_evaluate
from mask_former.engine.sample_pictures import truth_of
from mask_former.formats import replacing
from mask_former.prediction.results import KINDS, Result, ResultWriter

CONFIG_FILE = "configs/shapes/maskformer_panoptic.yaml"
OUTPUT = Path("output/demo")
# What is done already, and with which weights.
STATE = "walkthrough.json"
WEIGHTS = "model_final.pth"
# Small pictures are drawn larger, so that names can be read.
DRAWN_SIDE = 320
# A run that is stopped repeats at most so many iterations.
CHECKPOINT_PERIOD = 250


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m mask_former.demonstration.walkthrough",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", default=CONFIG_FILE, metavar="FILE", help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="DIR", help="(default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=12, metavar="N", help="on the page (%(default)s)")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes of the configuration"
    )
    return parser


def walk(config_file: str, output: Path, pictures: int = 12, opts: Sequence[str] = ()) -> Path:
    """Do every step that is not done yet, and return the page.

    Args:
        config_file: a recipe for panoptic results.
        output: folder of everything that is written.
        pictures: of the validation set, predicted on and shown.
        opts: `[key, value, ...]` for the configuration.
    """
    opts = ["SOLVER.CHECKPOINT_PERIOD", str(CHECKPOINT_PERIOD), *opts, "OUTPUT_DIR", str(output)]
    cfg = load_config(config_file, opts)
    output.mkdir(parents=True, exist_ok=True)
    train(config_file, cfg, opts)
    say(score_table(latest_scores(read_metrics(output / "metrics.json"))))
    once(output, f"{pictures} pictures", lambda: predict_gallery(cfg, output, pictures))
    video = datasets_root() / "shapes" / "shapes_video.mp4"
    if video.is_file():
        once(output, f"video {video.name}", lambda: draw_video(output, video))
    return write_report(output)


def train(config_file: str, cfg: CfgNode, opts: Sequence[str]) -> None:
    """Train to the end and evaluate, or go on with that, or do nothing if it is done."""
    output = Path(cfg.OUTPUT_DIR)
    arguments = train_arguments().parse_args(["--config-file", str(config_file), "--resume", *opts])
    if not (is_trained(cfg) and (output / WEIGHTS).is_file()):
        say(f"Training, {cfg.SOLVER.MAX_ITER} iterations ...")
        train_or_evaluate(arguments)
    if not is_scored(cfg):  # stopped between training and evaluation
        arguments.resume, arguments.eval_only = False, True
        arguments.opts = [*opts, "MODEL.WEIGHTS", str(output / WEIGHTS)]
        record = {"iteration": cfg.SOLVER.MAX_ITER, **flat_metrics(train_or_evaluate(arguments))}
        with (output / "metrics.json").open("a") as file:
            file.write("\n" + json.dumps(record) + "\n")


def is_trained(cfg: CfgNode) -> bool:
    """Return whether metrics.json says that the last iteration was done."""
    records = read_metrics(Path(cfg.OUTPUT_DIR) / "metrics.json")
    return any("total_loss" in r and r["iteration"] >= cfg.SOLVER.MAX_ITER - 1 for r in records)


def is_scored(cfg: CfgNode) -> bool:
    """Return whether metrics.json holds scores of the final weights."""
    records = read_metrics(Path(cfg.OUTPUT_DIR) / "metrics.json")
    return bool(latest_scores(r for r in records if r["iteration"] >= cfg.SOLVER.MAX_ITER - 1))


def once(output: Path, step: str, action: Callable[[], None]) -> None:
    """Do a step unless it was done before, with the weights that are there now."""
    state_file, weights = output / STATE, (output / WEIGHTS).stat()
    state = json.loads(state_file.read_text()) if state_file.is_file() else {}
    stamp = f"{weights.st_size} {weights.st_mtime_ns}"
    if state.get(step) == stamp:
        return
    say(f"Predicting: {step} ...")
    action()
    with replacing(state_file) as partial:
        partial.write_text(json.dumps({**state, step: stamp}) + "\n")


def predict_gallery(cfg: CfgNode, output: Path, count: int) -> None:
    """Predict on the first validation pictures; write files of all kinds, and rows for the page."""
    for folder in ("gallery", "predictions"):
        shutil.rmtree(output / folder, ignore_errors=True)
    (output / "gallery").mkdir()
    entries = list(islice(DatasetCatalog.get(cfg.DATASETS.TEST[0]), count))
    predictor = PredictorRecipe(weights=str(output / WEIGHTS), kinds=KINDS)()
    results = predictor.stream([entry["file_name"] for entry in entries], batch_size=4)
    scale = max(1.0, DRAWN_SIDE / max(entries[0]["height"], entries[0]["width"]))
    with ResultWriter(output / "predictions", KINDS, predictor.classes, scale=scale) as writer:
        for entry, result in zip(entries, results, strict=True):
            writer.write(result)
            for panel, pixels in gallery_row(entry, result, scale).items():
                Image.fromarray(pixels).save(output / "gallery" / f"{_stem(entry)}_{panel}.png")


def gallery_row(entry: Mapping[str, Any], result: Result, scale: float) -> dict[str, NDArray[np.uint8]]:
    """Return picture, truth and prediction, each (H, W, 3) uint8."""
    assert result.image is not None
    truth = truth_of(dict(entry), result, "panoptic")
    predicted = result.draw(scale=scale)
    plain = Image.fromarray(result.image).resize(predicted.shape[1::-1])
    return {
        "picture": np.asarray(plain),
        "truth": truth.draw(result.image, scale=scale),
        "prediction": predicted,
    }


def _stem(entry: Mapping[str, Any]) -> str:
    return Path(entry["file_name"]).stem


def draw_video(output: Path, video: Path) -> None:
    """Predict on every frame; what an earlier walk made of this video is replaced."""
    for old in output.glob(f"{video.stem}*"):
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    predict_video(
        PredictorRecipe(weights=str(output / WEIGHTS)), str(video), output / video.name, batch_size=4
    )


def score_table(scores: Mapping[str, float]) -> str:
    """Return the scores of the final weights as a table."""
    rows = [
        [name, *(scores.get(f"{task}/{name}{group}") for group in ("", "_th", "_st"))]
        for task, name in (("panoptic_seg", "PQ"), ("panoptic_seg", "SQ"), ("panoptic_seg", "RQ"))
    ]
    rows += [["mIoU", scores.get("sem_seg/mIoU")], ["mask AP", scores.get("segm/AP")]]
    rows = [row for row in rows if row[1] is not None]
    return tabulate(rows, headers=["", "all", "things", "stuff"], tablefmt="simple", floatfmt=".1f")


def next_steps(output: Path, config_file: str) -> str:
    """Return where to look, and what to type next."""
    python, config_file = shlex.quote(os.path.relpath(sys.executable)), shlex.quote(config_file)
    weights = shlex.quote(str(output / WEIGHTS))
    return f"""
Look at {output / "index.html"} (open it in a browser), and at the files in {output / "predictions"}.

Next, your own pictures, your own video, and training on data of your own (datasets/README.md has my_data.py):

  {python} demo/demo.py --weights {weights} --input PICTURES --output results --save overlay,labels,csv
  {python} demo/demo.py --weights {weights} --video-input VIDEO.mp4 --output results
  {python} train_net.py --config-file {config_file} --import my_data DATASETS.TRAIN "('town_train',)" \\
      DATASETS.TEST "('town_val',)" MODEL.SEM_SEG_HEAD.NUM_CLASSES 2 MODEL.WEIGHTS {weights}
"""


def say(text: str) -> None:
    """Print what the user shall see, between the lines of the log."""
    sys.stdout.write(f"\n{text}\n")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Walk, say what comes next, and return the exit status."""
    arguments = argument_parser().parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    if arguments.pictures < 1:
        sys.stderr.write("error: --pictures starts at 1\n")
        return 2
    try:
        walk(arguments.config_file, arguments.output, arguments.pictures, arguments.opts)
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped; the same command goes on from here\n")
        return 130
    except (OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"error: {error.args[0] if isinstance(error, KeyError) else error}\n")
        return 1
    say(next_steps(arguments.output, arguments.config_file))
    return 0


if __name__ == "__main__":
    sys.exit(main())
