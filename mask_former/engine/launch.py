"""Start a function on every process of a run: alone, spawned here, or under torchrun or SLURM."""

import logging
import os
import re
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm

logger = logging.getLogger(__name__)


def launch(
    main: Callable[..., Any],
    num_gpus: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple = (),
) -> None:
    """Run `main(*args)` on every process, with the process group set up where there is more than one.

    Processes that torchrun or SLURM has started are recognised by their environment, and the numbers
    given here are then not used. Otherwise `num_gpus` processes are spawned; without a GPU they are
    CPU processes that talk over gloo.
    """
    started = processes_of_torchrun(os.environ) or processes_of_slurm(os.environ)
    if started is None:
        detectron2_launch(_run, num_gpus, num_machines, machine_rank, dist_url, (main, args))
        return
    rank, world_size, local_rank, local_size = started
    if world_size == 1:
        main(*args)
        return
    _join(rank, world_size, local_rank, local_size)
    _run(main, args)


def _run(main: Callable[..., Any], args: tuple) -> None:
    """Run `main`, and leave the process group in order: gloo aborts a process whose peers just vanish."""
    main(*args)
    if dist.is_initialized():
        comm.synchronize()
        dist.destroy_process_group()


def processes_of_torchrun(environment: Any) -> tuple[int, int, int, int] | None:
    """Return rank, world size, local rank and local size as torchrun states them, or None."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if not all(name in environment for name in names):
        return None
    rank, world_size, local_rank, local_size = (int(environment[name]) for name in names)
    return rank, world_size, local_rank, local_size


def processes_of_slurm(environment: Any) -> tuple[int, int, int, int] | None:
    """Return the same as SLURM states it for a task that srun has started, or None.

    Sets MASTER_ADDR and MASTER_PORT in the environment where they are missing. An interactive shell
    inside an allocation (one task) is no such task.
    """
    if "SLURM_PROCID" not in environment or int(environment.get("SLURM_NTASKS", 1)) <= 1:
        return None
    world_size = int(environment["SLURM_NTASKS"])
    nodes = int(environment.get("SLURM_JOB_NUM_NODES", environment.get("SLURM_NNODES", 1)))
    if world_size % nodes:
        raise ValueError(
            f"SLURM_NTASKS is {world_size} on {nodes} nodes, expected the same number of tasks on each: "
            "start the job with --ntasks-per-node"
        )
    environment.setdefault("MASTER_ADDR", _first_host(environment["SLURM_JOB_NODELIST"]))
    # The same on every task, and rarely the same for two jobs on one machine.
    environment.setdefault("MASTER_PORT", str(20000 + int(environment["SLURM_JOB_ID"]) % 20000))
    return (
        int(environment["SLURM_PROCID"]),
        world_size,
        int(environment["SLURM_LOCALID"]),
        world_size // nodes,
    )


def _first_host(node_list: str) -> str:
    """Return the first name of a list in SLURM's notation: node[07-09,12]-x,other -> node07-x."""
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\]([^,\[]*))?", node_list)
    if match is None:
        raise ValueError(f"SLURM_JOB_NODELIST is {node_list!r}, expected host names: set MASTER_ADDR instead")
    return "".join(part for part in match.groups() if part)


def _join(rank: int, world_size: int, local_rank: int, local_size: int) -> None:
    has_gpu = torch.cuda.is_available()
    if has_gpu and local_size > torch.cuda.device_count():
        raise ValueError(
            f"{local_size} processes were started on a machine with {torch.cuda.device_count()} GPUs: "
            "start one process a GPU"
        )
    if has_gpu:
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if has_gpu else "gloo", "env://", rank=rank, world_size=world_size)
    if hasattr(comm, "create_local_process_group"):  # Detectron2's main
        comm.create_local_process_group(local_size)
    else:
        for first in range(0, world_size, local_size):
            group = dist.new_group(list(range(first, first + local_size)))
            if first <= rank < first + local_size:
                comm._LOCAL_PROCESS_GROUP = group
    comm.synchronize()
    logger.info("Process %d of %d joined", rank, world_size)
