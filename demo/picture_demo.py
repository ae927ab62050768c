"""Predictions on pictures and folders, into files or windows."""

import functools
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from mask_former import model_zoo
from mask_former.config import load_config, merge_opts
from mask_former.formats import PICTURE_SUFFIXES, replacing
from mask_former.prediction.inputs import PictureError, expand
from mask_former.prediction.predictor import Predictor
from mask_former.prediction.results import Result
from mask_former.prediction.writing import ResultWriter

# The package's logger shows its messages.
logger = logging.getLogger("mask_former.demo")

# Tasks that each kind of file can be made from, the best first.
TASKS_OF_KIND = {
    "overlay": ("panoptic", "semantic", "instance"),
    "labels": ("semantic", "panoptic"),
    "panoptic": ("panoptic",),
    "coco": ("instance", "panoptic"),
    "csv": ("panoptic", "instance", "semantic"),
}
WINDOW_TITLE = "MaskFormer"
ESCAPE_KEY = 27

# Called with a device, or nothing for the default one.
PredictorBuilder = Callable[..., Predictor]


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

    Args:
        device: None: the configuration's.
        weights: a checkpoint, URL, or name in the zoo; None: MODEL.WEIGHTS of the configuration.
        config_file: None: the checkpoint describes itself.
        opts: `[key, value, ...]` over the configuration.
        kinds: of files to write.
        options: of `Predictor.from_checkpoint`.
    """
    options["device"] = device
    if config_file is not None:
        predictor = Predictor.from_config(load_config(config_file, opts), weights, **options)
    elif weights is None:
        raise ValueError("There is nothing to predict with: give --weights, or --config-file.")
    elif _is_zoo_name(weights):
        cfg = model_zoo.get_config(weights)
        merge_opts(cfg, opts)
        predictor = Predictor.from_config(cfg, model_zoo.weights_file(weights), **options)
    else:
        predictor = Predictor.from_checkpoint(weights, opts=opts, **options)
    return predictor.with_rules(tasks=needed_tasks(predictor.rules.tasks, kinds))


def _is_zoo_name(weights: str) -> bool:
    is_file = Path(weights).suffix in (".pth", ".pkl", ".pt", ".safetensors")
    return not is_file and "://" not in weights and not Path(weights).expanduser().exists()


def needed_tasks(model_tasks: Collection[str], kinds: Iterable[str]) -> tuple[str, ...]:
    """Return those of the model's tasks that files of these kinds are made from; all if none is."""
    needed = {next((task for task in TASKS_OF_KIND[kind] if task in model_tasks), None) for kind in kinds}
    return tuple(task for task in model_tasks if task in needed) or tuple(model_tasks)


@dataclass
class Outcome:
    """How many pictures or frames are done, and one line for each that was skipped."""

    done: int = 0
    skipped: list[str] = field(default_factory=list)

    def skip(self, error: PictureError) -> None:
        """Record and log a picture that cannot be read."""
        self.skipped.append(str(error))
        logger.warning("Skipped: %s", error)


def progress_bar(total: int | None, unit: str) -> Any:
    """Return a bar on stderr, drawn once the first picture takes a while."""
    return tqdm(total=total, unit=unit, file=sys.stderr, dynamic_ncols=True, delay=0.1)


def predict_pictures(
    build_predictor: PredictorBuilder,
    inputs: Sequence[str],
    output: Path | None,
    kinds: Sequence[str] = ("overlay",),
    batch_size: int = 1,
    workers: int = 1,
    **drawing: Any,
) -> Outcome:
    """Predict on files, folders and patterns, and write files of these kinds, or show windows.

    Whatever happens, files of the pictures that are done are complete.

    Args:
        build_predictor: see `build_predictor` of this module; for several workers, one that can be pickled.
        inputs: see `inputs.expand`.
        output: a folder, made if need be; or, for a single picture and overlays only, the overlay's file.
            None: windows.
        kinds: of `prediction.results.KINDS`.
        batch_size: most pictures in one batch.
        workers: processes that predict.
        drawing: see `drawing.draw_result`.
    """
    outcome = Outcome()
    files = [str(file) for file in expand(list(inputs), outcome.skip)]
    if not files:
        return outcome
    with ExitStack() as stack:
        # Before the model is loaded, which takes longer.
        write = _result_handler(output, kinds, files, drawing, stack)
        results: Any
        if workers > 1:
            from picture_workers import stream_in_processes

            results = stream_in_processes(build_predictor, files, workers, batch_size, outcome.skip)
        else:
            results = build_predictor().stream(files, batch_size, on_error=outcome.skip)
        bar = stack.enter_context(progress_bar(len(files), "picture"))
        for result in stack.enter_context(closing(results)):
            if not write(result):
                break
            outcome.done += 1
            bar.update(outcome.done + len(outcome.skipped) - bar.n)
    return outcome


def _result_handler(
    output: Path | None,
    kinds: Sequence[str],
    files: Sequence[str],
    drawing: dict[str, Any],
    stack: ExitStack,
) -> Callable[[Result], bool]:
    """Return a function that shows or writes a result, and returns False once the user ends the program."""
    if output is None:
        window = stack.enter_context(Window())
        return lambda result: window.show(result.draw(**drawing))
    if output.suffix.lower() in PICTURE_SUFFIXES and not output.is_dir():
        _check_single_file(output, kinds, files)
        make_folder(output.parent)
        return lambda result: _write_overlay(result, output, drawing)
    make_folder(output)
    open_writer = functools.cache(
        lambda classes: stack.enter_context(ResultWriter(output, kinds, classes, **drawing))
    )

    def write(result: Result) -> bool:
        open_writer(result.classes).write(result)  # files list the classes, which the model knows
        return True

    return write


def _check_single_file(output: Path, kinds: Sequence[str], files: Sequence[str]) -> None:
    if len(files) > 1 or tuple(kinds) != ("overlay",):
        raise ValueError(
            f"--output {output} names one file, but there are {len(files)} pictures and --save "
            f"{','.join(kinds)}: name a folder."
        )
    if output.exists() and os.path.samefile(output, files[0]):
        raise ValueError(f"--output {output} is the picture itself, which would be lost: name another file.")


def _write_overlay(result: Result, file: Path, drawing: dict[str, Any]) -> bool:
    """Write an overlay in the format of the file's suffix."""
    Image.init()  # fills the table of suffixes
    with replacing(file) as partial:
        Image.fromarray(result.draw(**drawing)).save(partial, Image.EXTENSION[file.suffix.lower()])
    return True


def make_folder(folder: Path) -> None:
    """Make a folder with its parents; ValueError where a file has its name."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(
            f"{folder} cannot be a folder, since a file has that name: name another --output."
        ) from error


class Window:
    """A window that shows one picture after the other."""

    def __init__(self, wait_ms: int = 0) -> None:
        """Check that windows can be opened; `wait_ms` is the time to wait for a key, 0: until one comes."""
        check_display()
        self.wait_ms = wait_ms

    def show(self, picture: NDArray[np.uint8]) -> bool:
        """Show a picture (H, W, 3) RGB, and return whether the user wants to see more: Esc ends."""
        cv2.namedWindow(WINDOW_TITLE, cv2.WINDOW_NORMAL)
        cv2.imshow(WINDOW_TITLE, np.ascontiguousarray(picture[..., ::-1]))
        return cv2.waitKey(self.wait_ms) != ESCAPE_KEY

    def __enter__(self) -> "Window":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        cv2.destroyAllWindows()


def check_display() -> None:
    """Raise ValueError where no window can be opened."""
    has_display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform.startswith("linux") and not has_display:
        raise ValueError("There is no display for a window: give --output FOLDER.")
    # In another process: OpenCV aborts where Qt finds no display, and its headless package has no windows.
    trial = subprocess.run(
        [sys.executable, "-c", "import cv2; cv2.namedWindow('trial')"], capture_output=True
    )
    if trial.returncode != 0:
        display = os.environ.get("DISPLAY", "")
        raise ValueError(
            f"OpenCV opens no window (DISPLAY is {display!r}): give --output FOLDER. If there is one: is "
            "opencv-python installed, and not its headless twin?"
        )
