"""Measuring: stages of a run, runs of several variants in turn, and the peak memory of a process."""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

# Runs of each variant before measuring: the first ones allocate, choose kernels and fill caches.
WARM_UP = 2


class Stopwatch:
    """Seconds by stage of one run."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time that the block takes, with what it started on the device, to a stage."""
        start = self._now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - start

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


Run = Callable[[], dict[str, float]]


def interleaved(
    runs: Mapping[str, Run], rounds: int, warm_up: int = WARM_UP
) -> dict[str, list[dict[str, float]]]:
    """Return the seconds by stage of every variant in each round.

    Variants take turns, and each round begins with another, so that a machine that slows down for a while
    slows all of them down.
    """
    names = list(runs)
    times: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(warm_up + rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            seconds = runs[name]()
            if number >= warm_up:
                times[name].append(seconds)
    return times


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return median and 95th percentile (nearest rank) in milliseconds."""
    ordered = sorted(values)
    rank = max(0, -(-95 * len(ordered) // 100) - 1)
    return {"median_ms": 1e3 * statistics.median(ordered), "p95_ms": 1e3 * ordered[rank]}


def summaries(rounds: Sequence[Mapping[str, float]], totals: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return a summary of each stage, and of each total: name -> stages that it is the sum of."""
    found = {stage: summary([seconds[stage] for seconds in rounds]) for stage in rounds[0]}
    return found | {name: summary(_sums(rounds, stages)) for name, stages in totals.items()}


def ratios(
    rounds: Sequence[Mapping[str, float]], others: Sequence[Mapping[str, float]], stages: Sequence[str]
) -> dict[str, Any]:
    """Return the median of the ratios of two variants' sums over stages, round by round, and all of them."""
    pairs = [ours / theirs for ours, theirs in zip(_sums(rounds, stages), _sums(others, stages), strict=True)]
    return {"median": statistics.median(pairs), "pairs": pairs}


def _sums(rounds: Sequence[Mapping[str, float]], stages: Sequence[str]) -> list[float]:
    return [sum(seconds[stage] for stage in stages if stage in seconds) for seconds in rounds]


def peak_memory(device: torch.device) -> float:
    """Return the most memory that this process has held so far, in MiB: resident, or allocated on CUDA."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        # Of this program alone: the other counter begins with the peak of the process that started it.
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 2**10
    except (OSError, IndexError):
        pass
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def in_own_process(arguments: Sequence[str]) -> dict[str, Any]:
    """Return what `python -m mask_former.benchmark` writes as JSON when called with these arguments."""
    command = [sys.executable, "-m", "mask_former.benchmark", *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {finished.stderr.strip()[-2000:]}")
    answer: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return answer
