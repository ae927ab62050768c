"""The order of training pictures, as a pure function of seed and iteration, so that a run can be resumed."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


class Draw(NamedTuple):
    """A picture to train on: its index in the data set, and the number of the draw since iteration 0.

    Positions are unique in a run; everything random about a draw follows from the seed and its position.
    """

    number: int
    position: int


class TrainingBatches(Sampler[list[Draw]]):
    """Endless batches of one process: in each epoch every picture once, in a new order, batches of one group.

    A batch is complete as soon as its group (say, wide or tall pictures) has enough draws. Groups fill up
    over the batch of all processes together and each process takes every `world_size`-th draw of it, so the
    union of all batches does not depend on how many processes there are.
    """

    def __init__(
        self,
        groups: Sequence[int],
        *,
        total_batch_size: int,
        seed: int,
        start_iteration: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Prepare to draw.

        Args:
            groups: for each picture the number of its group, from 0.
            total_batch_size: draws in a batch of all processes together.
            seed: not negative.
            start_iteration: batches that earlier parts of the run have consumed.
            rank: of this process.
            world_size: number of processes.
        """
        if not len(groups):
            raise ValueError("There is no picture to draw from; expected at least one in DATASETS.TRAIN.")
        if total_batch_size < 1 or total_batch_size % world_size:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH is {total_batch_size}; expected a positive multiple of the number of "
                f"processes, {world_size}."
            )
        self.groups = np.asarray(groups, dtype=np.int64)
        self.total_batch_size = total_batch_size
        self.seed = seed
        self.start_iteration = start_iteration
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[list[Draw]]:
        """Yield the draws of each iteration from `start_iteration` on; no picture is opened to get there."""
        sizes = np.bincount(self.groups).tolist()
        # By the start of epoch e, floor(e * size / batch) batches of a group are complete, whatever the
        # orders were. Over all groups that is at most start_iteration in the epoch taken here, and near it.
        epoch = self.start_iteration * self.total_batch_size // len(self.groups)
        surplus = self.start_iteration - sum(epoch * size // self.total_batch_size for size in sizes)
        waiting = [self._waiting(group, size, epoch) for group, size in enumerate(sizes)]
        while True:
            for draw in self._epoch(epoch):
                batch = waiting[self.groups[draw.number]]
                batch.append(draw)
                if len(batch) == self.total_batch_size:
                    if surplus:
                        surplus -= 1
                    else:
                        yield batch[self.rank :: self.world_size]
                    batch.clear()
            epoch += 1

    def _epoch(self, epoch: int) -> list[Draw]:
        # The legacy generator, because NumPy promises that its stream never changes.
        order = np.random.RandomState([self.seed, epoch]).permutation(len(self.groups)).tolist()
        return [Draw(number, epoch * len(order) + place) for place, number in enumerate(order)]

    def _waiting(self, group: int, size: int, epoch: int) -> list[Draw]:
        """Return the draws of a group from before `epoch` that are not yet part of a complete batch."""
        count = epoch * size % self.total_batch_size
        draws: list[Draw] = []
        while len(draws) < count:
            epoch -= 1
            draws = [draw for draw in self._epoch(epoch) if self.groups[draw.number] == group] + draws
        return draws[len(draws) - count :]
