#!/usr/bin/env python
"""Predict on pictures, folders, videos or a camera; write drawings, label maps, COCO files and tables.

    demo.py --weights model_final.pth --input photos/ --output results --save overlay,labels,csv
    demo.py --weights model_final.pth --video-input walk.mp4 --output walk_drawn.mp4
    demo.py --config-file configs/... --weights model_final.pkl --webcam

A checkpoint that train_net.py has written describes itself. Published weights need --config-file, or
--weights with their name in the zoo. See README.md beside this file.

Exit status: 0 all done, 1 something was skipped or failed, 2 wrong arguments, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import functools
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import FrameType

# The libraries are imported where they are used, so that wrong arguments and --help take no seconds.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mask_former.prediction.predictor import Predictor
    from mask_former.prediction.results import Result

# The package's logger shows its messages.
logger = logging.getLogger("mask_former.demo")

SKIPPED, INTERRUPTED = 1, 130
# Kinds of files -> the tasks that each can be made from, the best first.
TASKS_OF_KIND = {
    "overlay": ("panoptic", "semantic", "instance"),
    "labels": ("semantic", "panoptic"),
    "panoptic": ("panoptic",),
    "coco": ("instance", "panoptic"),
    "csv": ("panoptic", "instance", "semantic"),
}


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument_group("model").add_argument
    add("--weights", metavar="FILE", help="checkpoint, URL, or name of a published model")
    add("--config-file", metavar="FILE", help="for weights that do not describe their model")
    opts_help = "changes of the configuration, at the end of the line, as MODEL.DEVICE cpu"
    add("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help=opts_help)
    add = parser.add_mutually_exclusive_group(required=True).add_argument
    input_help = "pictures, folders of pictures, patterns such as '*.jpg'"
    add("--input", nargs="+", metavar="PATH", help=input_help)
    add("--video-input", metavar="FILE", help="a video")
    camera_help = "a camera of this machine (default: %(const)s)"
    add("--webcam", nargs="?", type=int, const=0, metavar="INDEX", help=camera_help)
    add = parser.add_argument_group("results").add_argument
    output_help = "folder, made if need be; or file of one picture or video; without it: a window (Esc ends)"
    add("--output", type=Path, metavar="PATH", help=output_help)
    save_help = "of overlay,labels,panoptic,coco,csv, separated by commas (default: %(default)s)"
    add("--save", default="overlay", metavar="KINDS", help=save_help)
    threshold_help = "leave out segments and instances not surer than this (default: the model's own)"
    add("--confidence-threshold", type=float, metavar="X", help=threshold_help)
    add("--classes", metavar="NAMES", help="only these classes: names or numbers, separated by commas")
    add = parser.add_argument_group("speed").add_argument
    add("--batch", type=int, default=1, metavar="N", help="pictures at a time (%(default)s)")
    add("--workers", type=int, default=1, metavar="N", help="processes for --input (%(default)s)")
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
    unknown = [kind for kind in arguments.save if kind not in TASKS_OF_KIND]
    if unknown or not arguments.save:
        parser.error(f"--save {','.join(unknown) or 'is empty'}: choose of {','.join(TASKS_OF_KIND)}")
    if arguments.output is None and arguments.save != ("overlay",):
        parser.error("--save needs --output")


def build_predictor(
    device: str | None = None,
    *,
    weights: str | None = None,
    config_file: str | None = None,
    opts: Sequence[str] = (),
    kinds: Collection[str] = ("overlay",),
    **options: Any,
) -> Predictor:
    """Return a predictor of those tasks that files of these kinds need.

    `weights` are a checkpoint, URL, or name in the zoo (None: MODEL.WEIGHTS of the configuration), `opts`
    changes of the configuration, `options` those of `Predictor.from_checkpoint`.
    """
    from mask_former import model_zoo
    from mask_former.config import load_config, merge_opts
    from mask_former.prediction.predictor import Predictor

    options["device"] = device
    if config_file is not None:
        predictor = Predictor.from_config(load_config(config_file, opts), weights, **options)
    elif weights is None:
        raise ValueError("There is nothing to predict with: give --weights, or --config-file.")
    elif Path(weights).suffix or "://" in weights or Path(weights).expanduser().exists():
        predictor = Predictor.from_checkpoint(weights, opts=opts, **options)
    else:
        cfg = model_zoo.get_config(weights)
        merge_opts(cfg, opts)
        predictor = Predictor.from_config(cfg, model_zoo.weights_file(weights), **options)
    return predictor.with_rules(tasks=needed_tasks(predictor.rules.tasks, kinds))


def needed_tasks(model_tasks: Collection[str], kinds: Iterable[str]) -> tuple[str, ...]:
    """Return those of the model's tasks that files of these kinds are made from; all if none is."""
    needed = {next((task for task in TASKS_OF_KIND[kind] if task in model_tasks), None) for kind in kinds}
    return tuple(task for task in model_tasks if task in needed) or tuple(model_tasks)


def predict_pictures(
    build: Callable[..., Predictor],
    inputs: Sequence[str],
    output: Path | None,
    kinds: Sequence[str] = ("overlay",),
    batch_size: int = 1,
    workers: int = 1,
    **drawing: Any,
) -> tuple[int, list[str]]:
    """Predict on files, folders and patterns, and write files of these kinds, or show windows.

    Whatever happens, files of the pictures that are done are complete.

    Args:
        build: called with a device or nothing; for several workers, one that can be pickled.
        inputs: see `inputs.expand`.
        output: a folder, or, for a single picture and overlays only, the overlay's file; None: windows.
        kinds: of `prediction.writing.KINDS`.
        drawing: see `drawing.draw_result`.

    Returns:
        How many pictures are done, and one line for each that was skipped.
    """
    from tqdm import tqdm

    from mask_former.prediction.inputs import PictureError, expand

    skipped: list[str] = []

    def skip(error: PictureError) -> None:
        skipped.append(str(error))
        logger.warning("Skipped: %s", error)

    files = [str(file) for file in expand(inputs, skip)]
    if not files:
        return 0, skipped
    with ExitStack() as stack:
        # Before the model is loaded, which takes longer.
        write = open_output(output, kinds, files, drawing, stack)
        if workers > 1:
            from picture_workers import stream_in_processes

            results: Any = stream_in_processes(build, files, workers, batch_size, skip)
        else:
            results = build().stream(files, batch_size, on_error=skip)
        options: Any = {"file": sys.stderr, "dynamic_ncols": True, "delay": 0.1}
        bar = stack.enter_context(tqdm(total=len(files), unit="picture", **options))
        done = 0
        for result in stack.enter_context(closing(results)):
            if not write(result):
                break
            done += 1
            bar.update(done + len(skipped) - bar.n)
    return done, skipped


def open_output(
    output: Path | None,
    kinds: Sequence[str],
    files: Sequence[str],
    drawing: dict[str, Any],
    stack: ExitStack,
) -> Callable[[Result], bool]:
    """Return a function that shows or writes a result, and returns False once the user ends the program."""
    from mask_former.formats import PICTURE_SUFFIXES
    from mask_former.prediction.writing import ResultWriter

    if output is None or (output.suffix.lower() in PICTURE_SUFFIXES and not output.is_dir()):
        from display import Window

        if output is not None:
            if len(files) > 1 or tuple(kinds) != ("overlay",):
                raise ValueError(
                    f"--output {output} names one file, but there are {len(files)} pictures and --save "
                    f"{','.join(kinds)}: name a folder."
                )

            def save(result: Result) -> bool:
                result.save(output, **drawing)
                return True

            return save
        window = stack.enter_context(Window())
        return lambda result: window.show(result.draw(**drawing))
    output.mkdir(parents=True, exist_ok=True)
    # Files list the classes, which the model knows.
    writer = functools.cache(
        lambda classes: stack.enter_context(ResultWriter(output, kinds, classes, **drawing))
    )

    def write(result: Result) -> bool:
        writer(result.classes).write(result)
        return True

    return write


def run(arguments: argparse.Namespace) -> int:
    """Do what the arguments say and return the exit status."""
    options: dict[str, Any] = {"weights": arguments.weights, "config_file": arguments.config_file}
    options |= {"opts": arguments.opts, "kinds": arguments.save}
    drawing: dict[str, Any] = {}
    if arguments.confidence_threshold is not None:
        options["score_threshold"] = drawing["score_threshold"] = arguments.confidence_threshold
    if arguments.classes is not None:
        options["classes"] = [name for name in map(str.strip, arguments.classes.split(",")) if name]
    build = functools.partial(build_predictor, **options)
    output = None if arguments.output is None else arguments.output.expanduser()
    target = (output, arguments.save, arguments.batch)
    start = time.perf_counter()
    if arguments.input is not None:
        done, skipped = predict_pictures(build, arguments.input, *target, arguments.workers, **drawing)
    else:
        from video_demo import predict_video

        source = arguments.webcam if arguments.video_input is None else arguments.video_input
        done, skipped = predict_video(build, source, *target, **drawing)
    seconds = time.perf_counter() - start
    note = f", {len(skipped)} skipped" if skipped else ""
    unit = "frames" if arguments.input is None else "pictures"
    logger.info("%d %s in %.1f s (%.2f a second)%s", done, unit, seconds, done / seconds, note)
    return SKIPPED if skipped else 0


def describe(error: BaseException) -> str:
    """Return an error as one line."""
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    if isinstance(error, FileExistsError | NotADirectoryError) and error.filename:
        return f"{error.filename} cannot be a folder, since a file has that name: name another --output."
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
    except ImportError as error:  # perhaps of what the next import needs
        sys.stderr.write(f"error: {error}\n")
    except (OSError, ValueError, KeyError, TypeError) as error:
        from mask_former.checkpoint.limits import plain_text

        sys.stderr.write(f"error: {plain_text(describe(error))}\n")
    finally:
        signal.signal(signal.SIGTERM, previous_handler)
    return SKIPPED


if __name__ == "__main__":
    sys.exit(main())
