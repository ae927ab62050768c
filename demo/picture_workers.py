"""Prediction in several processes, one per GPU or several on the CPU; results keep the order of the files."""

import itertools
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from mask_former.prediction.inputs import PictureError
from mask_former.prediction.predictor import Predictor
from mask_former.prediction.results import Result

# Batches that wait for each process: enough that none is idle, few enough to bound memory.
WAITING_PER_WORKER = 2

Answer = tuple[list[Result], list[tuple[str, str]]]

# The predictor of a worker process.
_predictor: Predictor | None = None


def stream_in_processes(
    build_predictor: Callable[..., Predictor],
    files: Sequence[str],
    workers: int,
    batch_size: int,
    on_error: Callable[[PictureError], None],
) -> Iterator[Result]:
    """Yield the result of each file, in the order of the files.

    Args:
        build_predictor: called with a device or None in each process; must be picklable.
        files: paths of pictures.
        workers: number of processes. Those beyond the number of GPUs share them.
        batch_size: files that a process predicts on at a time.
        on_error: called for each picture that cannot be read.
    """
    context = multiprocessing.get_context("spawn")  # a process that has used CUDA cannot be forked
    numbers = context.Queue()
    for number in range(workers):
        numbers.put(number)
    batches = (files[start : start + batch_size] for start in range(0, len(files), batch_size))
    pool = ProcessPoolExecutor(workers, context, _start_worker, (build_predictor, numbers, workers))
    waiting: deque[Future[Answer]] = deque()
    try:
        for batch in itertools.islice(batches, workers * WAITING_PER_WORKER):
            waiting.append(pool.submit(_predict, batch))
        while waiting:
            results, errors = waiting.popleft().result()
            for batch in itertools.islice(batches, 1):
                waiting.append(pool.submit(_predict, batch))
            for picture, message in errors:
                on_error(PictureError(picture, message))
            yield from results
    except BrokenProcessPool as error:
        raise OSError(
            f"One of {workers} worker processes ended by itself, most often for lack of memory: use fewer "
            "--workers, or a smaller --batch. What is written so far stays."
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _start_worker(build_predictor: Callable[..., Predictor], numbers: Any, workers: int) -> None:
    global _predictor
    # Ctrl-C reaches all processes; the main one stops them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    number, gpus = numbers.get(), torch.cuda.device_count()
    if gpus == 0:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    _predictor = build_predictor(f"cuda:{number % gpus}" if gpus else None)


def _predict(files: Sequence[str]) -> Answer:
    assert _predictor is not None
    errors: list[tuple[str, str]] = []
    results = _predictor(
        list(files),
        batch_size=len(files),
        on_error=lambda error: errors.append((error.picture, str(error))),
    )
    return results, errors
