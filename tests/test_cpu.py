"""Choice of CPU threads, in processes that have not loaded torch yet."""

import os
import subprocess
import sys

import pytest

from mask_former.cpu import configure_threads, cpu_quota, other_processes


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_quota_of_the_control_group_is_rounded_up(tmp_path, files, expected):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert cpu_quota(tmp_path) == expected


@pytest.fixture
def busy_machine():
    """As many processes that compute as there are CPUs."""
    program = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(program) for _ in range(os.cpu_count() or 1)]
    yield
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, "PASSIVE"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
        ({"GOMP_SPINCOUNT": "100"}, None),
        ({"OMP_NUM_THREADS": "1"}, None),
    ],
)
def test_threads_sleep_beside_busy_processes_unless_the_user_decides(
    chosen, expected, monkeypatch, busy_machine
):
    monkeypatch.delitem(sys.modules, "torch")
    configure_threads(chosen)
    assert chosen.get("OMP_WAIT_POLICY") == expected


@pytest.mark.parametrize(("running", "others"), [("procs_running 1\n", 0), ("procs_running 4\n", 3), ("", 0)])
def test_other_running_processes_are_counted(tmp_path, running, others):
    (tmp_path / "stat").write_text(f"cpu  1 2 3\n{running}procs_blocked 7\n")
    assert other_processes(tmp_path / "stat") == others


def test_import_of_the_package_configures_threads_before_torch_is_loaded(busy_machine):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    report = "import os, mask_former; print(os.environ['OMP_WAIT_POLICY'])"
    done = subprocess.run(
        [sys.executable, "-c", report], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "PASSIVE\n"
