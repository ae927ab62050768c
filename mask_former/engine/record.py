"""Where, when and by which command the results in a folder were made."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm

import mask_former
from mask_former.formats import replacing

RECORD = "run.json"


@contextmanager
def recorded(folder: Path) -> Iterator[None]:
    """Add an entry to run.json in a folder: command, date, machine and version; at the end also the time.

    The file holds a list, since a run may be continued.
    """
    if not comm.is_main_process():
        yield
        return
    file, start = folder / RECORD, time.monotonic()
    try:
        earlier = json.loads(file.read_text())
    except (OSError, ValueError):
        earlier = []
    entry: dict[str, Any] = {
        "command": shlex.join(sys.argv),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "hardware": hardware(),
        "version": mask_former.__version__,
        "commit": commit(),
        "seconds": None,  # unknown of a run that was killed
    }
    _write(file, [*earlier, entry])
    try:
        yield
    finally:
        entry["seconds"] = round(time.monotonic() - start, 1)
        _write(file, [*earlier, entry])


def _write(file: Path, entries: list[dict[str, Any]]) -> None:
    with replacing(file) as partial:
        partial.write_text(json.dumps(entries, indent=1) + "\n")


def hardware() -> str:
    """Return the names of GPUs, processor and the number of its threads that are used."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = os.uname().machine
    return ", ".join([*gpus, f"{processor} ({torch.get_num_threads()} of {os.cpu_count()} threads)"])


def commit() -> str | None:
    """Return the commit that the package was checked out at, None if it is installed without git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
