"""Time from a picture in memory to its result, of an exported file and of torch in turns."""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mask_former.export.parity import Pixels, file_runners
from mask_former.prediction.predictor import Predictor

# Rounds in which everything takes its turn, after one to warm up.
ROUNDS = 7


def measure(
    predictor: Predictor, file: Path, size: tuple[int, int], threads: int, rounds: int = ROUNDS
) -> dict[str, dict[str, float]]:
    """Return medians, by runtime, of `network_ms`, `whole_ms` and `ratio`, that of `whole_ms` to torch's.

    Args:
        predictor: torch's part, the network as it is trained.
        file: .onnx (with onnxruntime and, where it is installed, OpenVINO) or .xml.
        size: height and width of the picture.
        threads: of each of them.
        rounds: in which each takes its turn.
    """
    torch.set_num_threads(threads)
    coarse = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))
    with tempfile.TemporaryDirectory() as folder:
        runners = file_runners(file, Path(folder), threads)
        calls: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
            "torch": _torch_calls(predictor, pixels)
        }
        for name, runner in runners.items():
            calls[name] = _runner_calls(runner, pixels)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
        for _ in range(rounds + 1):
            for name, (network, whole) in calls.items():
                times[name].append((_seconds(network), _seconds(whole)))
    return {
        name: {
            "network_ms": 1000 * statistics.median(network for network, _ in measured[1:]),
            "whole_ms": 1000 * statistics.median(whole for _, whole in measured[1:]),
            "ratio": statistics.median(
                own / plain for (_, own), (_, plain) in zip(measured[1:], times["torch"][1:], strict=True)
            ),
        }
        for name, measured in times.items()
    }


def _torch_calls(predictor: Predictor, pixels: Pixels) -> tuple[Callable[[], Any], Callable[[], Any]]:
    image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    batch = predictor.model.prepare_images([image]).tensor

    def network() -> None:
        with torch.no_grad():
            predictor.model.predict(batch)

    return network, lambda: predictor([pixels])


def _runner_calls(runner: Any, pixels: Pixels) -> tuple[Callable[[], Any], Callable[[], Any]]:
    image = runner.prepare(pixels)[None]
    return lambda: runner.graph(image), lambda: list(runner([pixels]))


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def print_times(times: dict[str, dict[str, float]]) -> None:
    """Print a table."""
    lines = ["runtime        network, ms   picture to result, ms   of torch's"]
    for name, row in times.items():
        lines.append(f"{name:<14} {row['network_ms']:<13.0f} {row['whole_ms']:<23.0f} {row['ratio']:.2f}")
    sys.stdout.write("\n".join(lines) + "\n")
