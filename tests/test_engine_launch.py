"""How torchrun and SLURM state their processes, and how a run reads it."""

import pytest

from mask_former.engine.launch import processes_of_slurm, processes_of_torchrun

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
