"""Prediction in several processes, one a GPU or several on the CPU; results keep the order of the files."""

import itertools
import logging
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from mask_former.prediction.inputs import ErrorHandler, PictureError
from mask_former.prediction.predictor import Predictor
from mask_former.prediction.results import Result

logger = logging.getLogger(__name__)

# Pieces of work that wait for each process, so that none is idle and memory stays bounded.
WAITING_PER_WORKER = 2

BuildPredictor = Callable[[str | None], Predictor]
Answer = tuple[list[Result], list[tuple[str, str]]]

# Of a worker process.
_predictor: Predictor | None = None


def stream_in_processes(
    build_predictor: BuildPredictor,
    files: Iterable[str],
    workers: int,
    batch_size: int = 1,
    on_error: ErrorHandler | None = None,
) -> Iterator[Result]:
    """Yield the result of each file, in the order of the files.

    Args:
        build_predictor: given a device or None, returns a predictor; a function that can be pickled.
        files: paths of pictures.
        workers: processes. Those beyond the number of GPUs share them.
        batch_size: files that one process predicts on at a time.
        on_error: told of pictures that cannot be read; None: raise.
    """
    context = multiprocessing.get_context("spawn")  # a process that has used CUDA cannot be forked
    numbers = context.Queue()
    for number in range(workers):
        numbers.put(number)
    waiting: deque[Future[Answer]] = deque()
    pieces = _pieces(files, batch_size)
    pool = ProcessPoolExecutor(workers, context, _start_worker, (build_predictor, numbers, workers))
    try:
        for piece in itertools.islice(pieces, workers * WAITING_PER_WORKER):
            waiting.append(pool.submit(_predict, piece))
        while waiting:
            results, problems = waiting.popleft().result()
            for piece in itertools.islice(pieces, 1):
                waiting.append(pool.submit(_predict, piece))
            for picture, message in problems:
                if on_error is None:
                    raise PictureError(picture, message)
                on_error(PictureError(picture, message))
            yield from results
    except BrokenProcessPool as error:
        raise OSError(
            f"One of {workers} worker processes ended by itself, most often for lack of memory: use fewer "
            "--workers, or a smaller --batch. What is written so far stays."
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _pieces(files: Iterable[str], size: int) -> Iterator[list[str]]:
    source = iter(files)
    while piece := list(itertools.islice(source, size)):
        yield piece


def _start_worker(build_predictor: BuildPredictor, numbers: Any, workers: int) -> None:
    global _predictor
    # Ctrl-C reaches all processes; the first one stops them in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    number, gpus = numbers.get(), torch.cuda.device_count()
    if gpus == 0:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    _predictor = build_predictor(f"cuda:{number % gpus}" if gpus else None)


def _predict(files: Sequence[str]) -> Answer:
    assert _predictor is not None
    problems: list[tuple[str, str]] = []
    results = _predictor(
        list(files),
        batch_size=len(files),
        on_error=lambda error: problems.append((error.picture, str(error))),
    )
    return results, problems
