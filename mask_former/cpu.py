"""CPU threads on machines that PyTorch shares with other processes.

PyTorch's threads wait for each other by spinning. Where another process holds one of the cores, all others
spin until its turn is over, and a step takes many times as long (docs/performance.md). A container may
also use less CPU time than the cores it sees would give.
"""

import math
import os
import sys
from collections.abc import MutableMapping
from pathlib import Path


def configure_threads(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let threads sleep while they wait, and start no more of them than there are CPUs to use.

    OpenMP reads the two variables when torch is loaded: nothing is changed after that, nor is what the user
    has set.
    """
    if "torch" in sys.modules:
        return
    if "GOMP_SPINCOUNT" not in environment:
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    quota = cpu_quota()
    if quota is not None and quota < len(os.sched_getaffinity(0)):
        environment.setdefault("OMP_NUM_THREADS", str(quota))


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
