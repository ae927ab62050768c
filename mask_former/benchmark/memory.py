"""Peak memory of one variant, in a process of its own.

Not in `__main__`, which a process that is started does not import.
"""

import argparse
import multiprocessing
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from mask_former.benchmark import speed
from mask_former.benchmark.measuring import benchmark_config
from mask_former.engine.hooks import peak_memory


def memory_alone(arguments: argparse.Namespace, config_file: str | None, variant: str) -> float | None:
    """Return the peak memory in MiB of a new process that runs one variant alone; None if it fails."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_run, arguments, config_file, variant).result()
        except RuntimeError as error:  # also of a process that was killed
            sys.stderr.write(f"warning: no peak memory of {variant}: {error}\n")
            return None


def _run(arguments: argparse.Namespace, config_file: str | None, variant: str) -> float:
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        cfg = benchmark_config(config_file, arguments.opts)
        run = speed.build_run(cfg, arguments, variant, Path(folder))
        for _ in range(3):
            run()
    return peak_memory() / 2**20
