"""The order of training pictures."""

from itertools import islice

import numpy as np
import pytest

from mask_former.data.loader import TrainingBatches

GROUPS = [0, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1]


def batches(count, groups=GROUPS, total_batch_size=4, seed=3, **others):
    return list(
        islice(TrainingBatches(groups, total_batch_size=total_batch_size, seed=seed, **others), count)
    )


@pytest.mark.parametrize("total_batch_size", [1, 4, 24])
@pytest.mark.parametrize("groups", [[0] * 11, GROUPS, [1, 1, 0]])
def test_run_started_anywhere_continues_the_unbroken_one(groups, total_batch_size):
    whole = batches(60, groups, total_batch_size)
    for start in (1, 2, 7, 8, 23, 59):
        assert batches(60 - start, groups, total_batch_size, start_iteration=start) == whole[start:]


def test_every_epoch_holds_every_picture_once_in_a_new_order():
    draws = sorted((d for b in batches(200, total_batch_size=1) for d in b), key=lambda d: d.position)
    assert [d.position for d in draws] == list(range(200))
    epochs = [[d.number for d in draws[i : i + 11]] for i in range(0, 187, 11)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_batches_hold_one_group_and_no_draw_twice():
    drawn = batches(100)
    assert all(len(batch) == 4 for batch in drawn)
    assert all(len({GROUPS[d.number] for d in batch}) == 1 for batch in drawn)
    positions = [d.position for batch in drawn for d in batch]
    assert len(set(positions)) == 400
    # All but the few that wait for their batch have been drawn: nothing is lost on the way.
    assert len(set(range(max(positions))) - set(positions)) < 2 * 4


def test_processes_share_the_batches_of_one_process():
    shares = [batches(30, rank=rank, world_size=2) for rank in range(2)]
    assert all(len(batch) == 2 for share in shares for batch in share)
    both = [sorted(a + b) for a, b in zip(*shares, strict=True)]
    assert both == [sorted(batch) for batch in batches(30)]


def test_seed_decides_the_order():
    assert batches(5, seed=3) == batches(5, seed=3)
    assert batches(5, seed=3) != batches(5, seed=4)


def test_far_start_is_quick_because_nothing_is_replayed():
    groups = np.arange(1000) % 3 == 0
    (batch,) = batches(1, groups.astype(int), 16, start_iteration=10**9)
    assert 16 * 10**9 - 64 < max(d.position for d in batch) < 16 * 10**9 + 64


def test_impossible_batches_are_refused():
    with pytest.raises(ValueError, match=r"IMS_PER_BATCH is 5; .* multiple of the number of processes, 2"):
        TrainingBatches(GROUPS, total_batch_size=5, seed=0, world_size=2)
    with pytest.raises(ValueError, match="no picture to draw from"):
        TrainingBatches([], total_batch_size=4, seed=0)
