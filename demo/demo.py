#!/usr/bin/env python
"""Predict on pictures, folders, videos or a camera; write drawings, label maps, COCO files and tables.

    demo.py --weights model_final.pth --input photos/ --output results --save overlay,labels,csv
    demo.py --weights model_final.pth --video-input walk.mp4 --output walk_drawn.mp4
    demo.py --config-file configs/... --weights model_final.pkl --webcam

A checkpoint that train_net.py has written describes itself. Published weights need --config-file, or
--weights with their name in the zoo. See README.md beside this file.

Exit status: 0 all done, 1 something was skipped or failed, 2 wrong arguments, 130 stopped by Ctrl-C.
"""

import argparse
import functools
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

logger = logging.getLogger("mask_former.demo")

SKIPPED, INTERRUPTED = 1, 130


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    model = parser.add_argument_group("model")
    model.add_argument("--weights", metavar="FILE", help="checkpoint, URL, or name of a published model")
    model.add_argument("--config-file", metavar="FILE", help="for weights that do not describe their model")
    model.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="changes of the configuration, at the end of the line, as MODEL.DEVICE cpu",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input", nargs="+", metavar="PATH", help="pictures, folders of pictures, patterns such as '*.jpg'"
    )
    source.add_argument("--video-input", metavar="FILE", help="a video")
    source.add_argument(
        "--webcam",
        nargs="?",
        type=int,
        const=0,
        metavar="INDEX",
        help="a camera of this machine (default: %(const)s)",
    )
    results = parser.add_argument_group("results")
    results.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="folder, made if need be; or the file for one picture or video; without it: a window (Esc ends)",
    )
    results.add_argument(
        "--save",
        default="overlay",
        metavar="KINDS",
        help="of overlay,labels,panoptic,coco,csv, separated by commas (default: %(default)s)",
    )
    results.add_argument(
        "--confidence-threshold",
        type=float,
        metavar="X",
        help="leave out segments and instances that are not surer than this (default: the model's own)",
    )
    results.add_argument(
        "--classes", metavar="NAMES", help="only these classes: names or numbers, separated by commas"
    )
    speed = parser.add_argument_group("speed")
    speed.add_argument("--batch", type=int, default=1, metavar="N", help="pictures at a time (%(default)s)")
    speed.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes for --input (%(default)s)"
    )
    return parser


def check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Exit with one line about arguments that contradict each other or are out of range."""
    if arguments.weights is None and arguments.config_file is None:
        parser.error("give --weights, or --config-file with the weights it names")
    if arguments.batch < 1 or arguments.workers < 1:
        parser.error("--batch and --workers start at 1")
    if arguments.workers > 1 and arguments.input is None:
        parser.error("--workers is for --input; the frames of a video come one after the other")
    threshold = arguments.confidence_threshold
    if threshold is not None and not 0 <= threshold <= 1:
        parser.error(f"--confidence-threshold is {threshold}; it must be in 0..1")
    arguments.save = tuple(kind.strip() for kind in arguments.save.split(",") if kind.strip())
    kinds = ("overlay", "labels", "panoptic", "coco", "csv")
    unknown = [kind for kind in arguments.save if kind not in kinds]
    if unknown or not arguments.save:
        parser.error(f"--save {','.join(unknown) or 'is empty'}: choose of {','.join(kinds)}")
    if arguments.output is None and arguments.save != ("overlay",):
        parser.error("--save needs --output")


def run(arguments: argparse.Namespace) -> int:
    """Do what the arguments say and return the exit status."""
    from picture_demo import build_predictor, predict_pictures

    options: dict[str, Any] = {}
    drawing: dict[str, float] = {}
    if arguments.confidence_threshold is not None:
        options["score_threshold"] = drawing["score_threshold"] = arguments.confidence_threshold
    if arguments.classes is not None:
        options["classes"] = [name for name in map(str.strip, arguments.classes.split(",")) if name]
    build = functools.partial(
        build_predictor,
        weights=arguments.weights,
        config_file=arguments.config_file,
        opts=arguments.opts,
        kinds=arguments.save,
        **options,
    )
    output = None if arguments.output is None else arguments.output.expanduser()
    start = time.perf_counter()
    if arguments.input is not None:
        outcome = predict_pictures(
            build, arguments.input, output, arguments.save, arguments.batch, arguments.workers, **drawing
        )
    else:
        from video_demo import predict_video

        source = arguments.webcam if arguments.video_input is None else arguments.video_input
        outcome = predict_video(build, source, output, arguments.save, arguments.batch, **drawing)
    seconds = time.perf_counter() - start
    skipped = f", {len(outcome.skipped)} skipped" if outcome.skipped else ""
    unit = "frames" if arguments.input is None else "pictures"
    done, rate = outcome.done, outcome.done / seconds
    logger.info("%d %s in %.1f s (%.2f a second)%s", done, unit, seconds, rate, skipped)
    return SKIPPED if outcome.skipped else 0


def describe(error: BaseException) -> str:
    """Return an error as one line."""
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, predict, and return the exit status; every expected error is one line on stderr."""
    parser = argument_parser()
    arguments = parser.parse_args(argv)
    check(parser, arguments)
    # Silence what libraries warn of each other, also in worker processes.
    warnings.filterwarnings("ignore", category=FutureWarning)
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")
    import torch
    from tqdm.contrib.logging import logging_redirect_tqdm

    logging.basicConfig(format="%(levelname)s: %(message)s")
    logging.getLogger("mask_former").setLevel(logging.INFO)
    previous_handler = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with logging_redirect_tqdm():
            return run(arguments)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; what was done until now is complete\n")
        return INTERRUPTED
    except torch.OutOfMemoryError as error:
        sys.stderr.write(f"error: out of GPU memory; try --batch 1 or smaller pictures ({describe(error)})\n")
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.stderr.write(f"error: {describe(error)}\n")
    finally:
        signal.signal(signal.SIGTERM, previous_handler)
    return SKIPPED


if __name__ == "__main__":
    sys.exit(main())
