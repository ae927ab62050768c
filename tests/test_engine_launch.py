"""How a run reads the processes that torchrun and SLURM state, starts them, and ends."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_runs import SPEC

from mask_former.data.shapes import ensure_set
from mask_former.engine.launch import gpu_of_process, processes_of_slurm, processes_of_torchrun

SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_NODELIST": "gpu[07-08]",
    "SLURM_JOB_ID": "123456",
}


def test_torchrun_states_rank_world_and_place_on_the_machine():
    environment = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert processes_of_torchrun(environment) == (3, 4, 1, 2)


def test_a_plain_shell_is_neither_torchrun_nor_slurm():
    assert processes_of_torchrun({"PATH": "/bin"}) is None
    assert processes_of_slurm({"PATH": "/bin"}) is None


def test_slurm_states_the_same_and_the_meeting_point():
    environment = dict(SLURM)
    assert processes_of_slurm(environment) == (5, 8, 1, 4)
    assert environment["MASTER_ADDR"] == "gpu07"
    assert 20000 <= int(environment["MASTER_PORT"]) < 40000


def test_a_meeting_point_that_the_user_has_set_is_kept():
    environment = {**SLURM, "MASTER_ADDR": "head", "MASTER_PORT": "1234"}
    processes_of_slurm(environment)
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("head", "1234")


def test_an_interactive_shell_inside_an_allocation_is_one_process():
    assert processes_of_slurm({**SLURM, "SLURM_NTASKS": "1"}) is None


def test_uneven_tasks_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"SLURM_NTASKS is 7 on 2 nodes, .*--ntasks-per-node"):
        processes_of_slurm({**SLURM, "SLURM_NTASKS": "7"})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("node1", "node1"), ("a12,b13", "a12"), ("rack[3,5-9]-x", "rack3-x"), ("n[001-004]", "n001")],
)
def test_the_first_host_of_a_node_list(nodes, first):
    environment = {**SLURM, "SLURM_JOB_NODELIST": nodes}
    processes_of_slurm(environment)
    assert environment["MASTER_ADDR"] == first


@pytest.mark.parametrize(
    ("local_rank", "local_size", "visible", "gpu"), [(0, 2, 2, 0), (3, 4, 4, 3), (1, 2, 8, 1), (3, 4, 1, 0)]
)
def test_each_process_has_a_gpu_of_its_own(local_rank, local_size, visible, gpu):
    assert gpu_of_process(local_rank, local_size, visible) == gpu


def test_more_processes_than_gpus_are_refused():
    with pytest.raises(ValueError, match=r"4 processes .* machine with 2 GPUs: start one process a GPU"):
        gpu_of_process(0, 4, 2)


def torchrun_environment(rank: int, port: int) -> dict[str, str]:
    place = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    return {**place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def slurm_environment(rank: int, port: int) -> dict[str, str]:
    place = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NTASKS": "2"}
    job = {"SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_ID": "1"}
    return {**SLURM, **place, **job, "MASTER_PORT": str(port)}


def run(program: Path, *environments: dict[str, str], returncode: int = 0) -> list[str]:
    """Run `program` once in each environment, all at the same time, and return what they print."""
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    # torch warns at its import; what counts as an error here is the exit status.
    common = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(program)],
            env={**common, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for environment in environments
    ]
    outputs = [process.communicate(timeout=400) for process in processes]
    assert [process.returncode for process in processes] == [returncode] * len(processes), outputs
    return [stderr if returncode else stdout for stdout, stderr in outputs]


def run_two(program: Path, environment_of_rank, returncode: int = 0) -> list[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    return run(program, *(environment_of_rank(rank, port) for rank in range(2)), returncode=returncode)


# Prints what a process knows of its place, and at the interpreter's end the number of threads it still runs.
SHOW_PLACE = """
import atexit
import os
from pathlib import Path
from detectron2.utils import comm
from mask_former.engine.launch import launch

def show(*values):
    os.write(1, (" ".join(map(str, values)) + "\\n").encode())  # at once: two processes share the pipe

def other_threads():
    return len(list(Path("/proc/self/task").iterdir())) - 1

def main():
    ranks = comm.all_gather(comm.get_rank())
    assert other_threads() >= 2  # gloo's
    atexit.register(lambda: show("other threads at the end:", other_threads()))
    show(comm.get_rank(), comm.get_local_rank(), comm.get_local_size(), ranks)

if __name__ == "__main__":
    launch(main, num_gpus=2, dist_url="auto")
"""
ENDED = "other threads at the end: 0"
needs_gloo = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, launch uses NCCL")


@needs_gloo
@pytest.mark.parametrize("environment", [torchrun_environment, slurm_environment])
def test_started_processes_meet_and_leave_no_thread_of_gloo(tmp_path, environment):
    program = tmp_path / "show_place.py"
    program.write_text(SHOW_PLACE)
    first, second = run_two(program, environment)
    assert first.splitlines() == ["0 0 2 [0, 1]", ENDED]
    assert second.splitlines() == ["1 1 2 [0, 1]", ENDED]


@needs_gloo
def test_spawned_processes_meet_and_leave_no_thread_of_gloo(tmp_path):
    program = tmp_path / "show_place.py"
    program.write_text(SHOW_PLACE)
    (output,) = run(program, {})
    assert sorted(output.splitlines()) == ["0 0 2 [0, 1]", "1 1 2 [0, 1]", ENDED, ENDED]


# Two functions of Detectron2's main branch behave in ways that 0.5 does not. `create_ddp_model` hands
# `device_ids` to DistributedDataParallel, which refuses that for a model on the CPU.
TRAIN_AS_ON_DETECTRON2_MAIN = (
    """
import sys
import torch
import detectron2.engine
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

def create_ddp_model(model, *, fp16_compression=False, **kwargs):
    if comm.get_world_size() == 1:
        return model
    return DistributedDataParallel(model, **{"device_ids": [comm.get_local_rank()], **kwargs})

def create_local_process_group(num_workers_per_machine):
    assert comm._LOCAL_PROCESS_GROUP is None
    for first in range(0, comm.get_world_size(), num_workers_per_machine):
        group = torch.distributed.new_group(list(range(first, first + num_workers_per_machine)))
        if first <= comm.get_rank() < first + num_workers_per_machine:
            comm._LOCAL_PROCESS_GROUP = group

detectron2.engine.create_ddp_model = create_ddp_model
detectron2.engine.defaults.create_ddp_model = create_ddp_model
comm.create_local_process_group = create_local_process_group
"""
    + SHOW_PLACE.partition("def main")[0]
    + """
from mask_former.engine import Trainer
from tiny_runs import tiny_config

def main():
    folder = Path(__file__).parent
    trainer = Trainer(tiny_config(folder, "SOLVER.MAX_ITER", "2", "DATASETS.TEST", "()"))
    trainer.train()
    weights = torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])
    show(trainer.iter, *(other == float(weights.sum()) for other in comm.all_gather(float(weights.sum()))))

launch(main)
show("other threads at the end:", other_threads())
"""
)


@needs_gloo
def test_two_cpu_processes_train_as_on_detectron2_main(tmp_path):
    ensure_set(tmp_path, SPEC)
    (tmp_path / "output").mkdir()
    program = tmp_path / "train.py"
    program.write_text(TRAIN_AS_ON_DETECTRON2_MAIN)
    for output in run_two(program, torchrun_environment):
        assert output.splitlines()[-2:] == ["2 True True", ENDED]


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() == 0, reason="needs a CUDA device")
def test_two_processes_on_one_gpu_are_refused_in_one_line(tmp_path):
    program = tmp_path / "show_place.py"
    program.write_text(SHOW_PLACE)
    one_gpu = {"CUDA_VISIBLE_DEVICES": "0"}
    outputs = run_two(program, lambda rank, port: {**slurm_environment(rank, port), **one_gpu}, returncode=1)
    for output in outputs:
        assert "ValueError: Several processes were started on one GPU: start one process a GPU" in output
