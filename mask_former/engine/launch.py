"""Run a function in one process or several: spawned here, or started by torchrun or SLURM."""

import gc
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
    """Run `main(*args)` on every process, inside a process group if there are several.

    Under torchrun or SLURM the environment states the processes, and the numbers given here are not
    used. Otherwise `num_gpus` processes are spawned; without a GPU these are CPU processes (gloo).
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
    main(*args)
    if not dist.is_initialized():
        return
    comm.synchronize()
    # A group lives on while something refers to it, and a gloo thread that is still running when the
    # interpreter ends may abort the process ("terminate called without an active exception").
    comm._LOCAL_PROCESS_GROUP = None
    comm._get_global_gloo_group.cache_clear()
    gc.collect()  # models under DistributedDataParallel refer to the group too
    dist.destroy_process_group()


def processes_of_torchrun(environment: Any) -> tuple[int, int, int, int] | None:
    """Return rank, world size, local rank and local size as torchrun states them, or None."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if not all(name in environment for name in names):
        return None
    rank, world_size, local_rank, local_size = (int(environment[name]) for name in names)
    return rank, world_size, local_rank, local_size


def processes_of_slurm(environment: Any) -> tuple[int, int, int, int] | None:
    """Return the same as SLURM states it for a task started by srun, or None.

    Sets MASTER_ADDR and MASTER_PORT in `environment` if they are missing. A single task, such as an
    interactive shell inside an allocation, is not one of several processes.
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
    # The same for all tasks of a job, and rarely the same for two jobs on one machine.
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


def gpu_of_process(local_rank: int, local_size: int, visible: int) -> int:
    """Return the index of a process's GPU among the `visible` ones.

    SLURM can show each task its own GPU only (`--gpus-per-task=1`), which then has the index 0.
    """
    if visible == 1:
        return 0
    if local_size > visible:
        raise ValueError(
            f"{local_size} processes were started on a machine with {visible} GPUs: start one process a GPU"
        )
    return local_rank


def _join(rank: int, world_size: int, local_rank: int, local_size: int) -> None:
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(gpu_of_process(local_rank, local_size, torch.cuda.device_count()))
    dist.init_process_group("nccl" if has_gpu else "gloo", "env://", rank=rank, world_size=world_size)
    if hasattr(comm, "create_local_process_group"):  # Detectron2's main
        comm.create_local_process_group(local_size)
    else:
        for first in range(0, world_size, local_size):
            group = dist.new_group(list(range(first, first + local_size)))
            if first <= rank < first + local_size:
                comm._LOCAL_PROCESS_GROUP = group
    try:
        comm.synchronize()
    except dist.DistBackendError as error:
        if "Duplicate GPU" not in str(error):
            raise
        raise ValueError("Several processes were started on one GPU: start one process a GPU") from error
    logger.info("Process %d of %d joined", rank, world_size)
