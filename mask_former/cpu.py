"""CPU threads on machines that PyTorch shares with other processes.

PyTorch's threads wait for each other by spinning. Where another process holds one of the cores, all others
spin until its turn is over, and a step takes several times as long; sleeping while waiting avoids that, but
costs a third more on a quiet machine (docs/performance.md). A container may also use less CPU time than the
cores it sees would give.
"""

import math
import os
import sys
import time
from collections.abc import MutableMapping
from pathlib import Path
from statistics import median

# Readings of the number of running processes, and seconds between them.
READINGS, PAUSE = 5, 0.01


def configure_threads(environment: MutableMapping[str, str] = os.environ) -> None:
    """Start no more threads than there are CPUs to use; let them sleep while they wait if others are busy.

    OpenMP reads the two variables when torch is loaded: nothing is changed after that, nor is what the user
    has set. What other processes do later is not taken into account.
    """
    if "torch" in sys.modules:
        return
    cpus, quota = len(os.sched_getaffinity(0)), cpu_quota()
    if quota is not None and quota < cpus:
        environment.setdefault("OMP_NUM_THREADS", str(quota))
    chosen = environment.get("OMP_NUM_THREADS", "")
    threads = int(chosen) if chosen.isdigit() else cpus
    if {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & environment.keys() or threads == 1:
        return
    if other_processes() + threads > (os.cpu_count() or 1):
        environment["OMP_WAIT_POLICY"] = "PASSIVE"


def other_processes(stat: Path = Path("/proc/stat")) -> float:
    """Return how many other threads are running now, the median of some readings; 0 if it is not known."""
    counts = []
    for reading in range(READINGS):
        time.sleep(PAUSE if reading else 0)
        try:
            lines = stat.read_text().splitlines()
        except OSError:
            return 0
        counts += [int(line.split()[1]) - 1 for line in lines if line.startswith("procs_running ")]
    return median(counts) if counts else 0


def cpu_quota(cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return how many CPUs the control group of this container may use, rounded up, or None if unlimited."""
    try:
        if (cgroup / "cpu.max").exists():
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text()
        return math.ceil(int(quota) / int(period)) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # no such file, "max"
        return None
