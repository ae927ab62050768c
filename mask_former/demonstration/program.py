"""Predictions on pictures, folders, videos and cameras, into files or windows: what demo/demo.py does."""

import logging
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mask_former import model_zoo
from mask_former.config import load_config, merge_opts
from mask_former.demonstration.parallel import stream_in_processes
from mask_former.demonstration.sinks import Sink, picture_sink
from mask_former.prediction.inputs import PictureError, expand
from mask_former.prediction.predictor import Predictor
from mask_former.prediction.results import Result

logger = logging.getLogger(__name__)

# Tasks that a kind of file can be made of, the best first.
TASKS_OF_KIND = {
    "overlay": ("panoptic", "semantic", "instance"),
    "labels": ("semantic", "panoptic"),
    "panoptic": ("panoptic",),
    "coco": ("instance", "panoptic"),
    "csv": ("panoptic", "instance", "semantic"),
}


@dataclass(frozen=True)
class PredictorRecipe:
    """What a predictor is built from, in any process.

    weights: a checkpoint, or a name of the zoo; None: MODEL.WEIGHTS of the configuration.
    config_file: None: the checkpoint describes itself.
    opts: `KEY VALUE` overrides of the configuration, also of one that comes from the checkpoint.
    options: of `Predictor.from_checkpoint`, without `tasks`.
    kinds: files that results are wanted for; other tasks are not computed.
    """

    weights: str | None = None
    config_file: str | None = None
    opts: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    kinds: tuple[str, ...] = ("overlay",)

    def __call__(self, device: str | None = None) -> Predictor:
        """Return the predictor, on `device` if given."""
        predictor = self._build({**self.options, "device": device} if device else dict(self.options))
        return predictor.with_rules(tasks=needed_tasks(predictor.rules.tasks, self.kinds))

    def _build(self, options: dict[str, Any]) -> Predictor:
        if self.config_file is not None:
            return Predictor.from_config(load_config(self.config_file, self.opts), self.weights, **options)
        if self.weights is None:
            raise ValueError("There is nothing to predict with: give --weights, or --config-file.")
        if _is_zoo_name(self.weights):
            cfg = model_zoo.get_config(self.weights)
            merge_opts(cfg, self.opts)
            return Predictor.from_config(cfg, model_zoo.weights_file(self.weights), **options)
        return Predictor.from_checkpoint(self.weights, opts=self.opts, **options)


def _is_zoo_name(weights: str) -> bool:
    is_file = (
        Path(weights).suffix in (".pth", ".pkl", ".pt", ".safetensors") or Path(weights).expanduser().exists()
    )
    return not is_file and "://" not in weights


def needed_tasks(possible: Collection[str], kinds: Iterable[str]) -> tuple[str, ...]:
    """Return those of the model's tasks that these kinds of files are made of; all if none is."""
    needed = {next((task for task in TASKS_OF_KIND[kind] if task in possible), None) for kind in kinds}
    return tuple(task for task in possible if task in needed) or tuple(possible)


@dataclass
class Outcome:
    """What came of a run: pictures or frames that are done, and one line for each that was skipped."""

    done: int = 0
    skipped: list[str] = field(default_factory=list)
    stopped: bool = False

    def skip(self, error: PictureError) -> None:
        """Note and tell what cannot be read."""
        self.skipped.append(str(error))
        logger.warning("Skipped: %s", error)


def predict_pictures(
    recipe: PredictorRecipe,
    inputs: Sequence[str],
    output: Path | None,
    batch_size: int = 1,
    workers: int = 1,
    show_progress: bool = True,
    **drawing: Any,
) -> Outcome:
    """Predict on files, folders and patterns, and write files of `recipe.kinds`, or show windows.

    Args:
        recipe: of the predictor.
        inputs: see `inputs.expand`.
        output: a folder, made if need be; or, for a single input and overlays only, the file of the overlay.
            None: windows.
        batch_size: most pictures in one batch.
        workers: processes that predict.
        show_progress: draw a bar.
        drawing: see `drawing.draw_result`.
    """
    outcome = Outcome()
    files = [str(file) for file in expand(list(inputs), outcome.skip)]
    if not files:
        return outcome
    sink = picture_sink(output, recipe.kinds, files, drawing)  # before the model: it is slow to load
    if workers > 1:
        results = stream_in_processes(recipe, files, workers, batch_size, outcome.skip)
    else:
        results = _lazily(recipe, files, batch_size, outcome)
    return _consume(results, sink, len(files), outcome, show_progress)


def _lazily(
    recipe: PredictorRecipe, files: Sequence[str], batch_size: int, outcome: Outcome
) -> Iterator[Result]:
    yield from recipe().stream(files, batch_size, on_error=outcome.skip)


def _consume(
    results: Iterator[Result], sink: Sink, total: int, outcome: Outcome, show_progress: bool
) -> Outcome:
    """Feed all results to the sink; whatever happens, what it has got is complete in the end."""
    bar = tqdm(
        total=total, unit="picture", disable=not show_progress, file=sys.stderr, dynamic_ncols=True, delay=0.1
    )
    try:
        for result in results:
            if not sink.write(result):
                outcome.stopped = True
                break
            outcome.done += 1
            bar.update(outcome.done + len(outcome.skipped) - bar.n)
    finally:
        bar.close()
        close = getattr(results, "close", None)
        if close is not None:
            close()
        sink.close()
    return outcome


def timed(action: Callable[[], Outcome], unit: str) -> Outcome:
    """Return what `action` returns, and log how much was done how fast."""
    start = time.perf_counter()
    outcome = action()
    seconds = time.perf_counter() - start
    skipped = f", {len(outcome.skipped)} skipped" if outcome.skipped else ""
    logger.info(
        "%d %s in %.1f s (%.2f a second)%s", outcome.done, unit, seconds, outcome.done / seconds, skipped
    )
    return outcome
