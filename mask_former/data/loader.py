"""Data loaders: training in an order that can be resumed exactly, testing without work on labels."""

import logging
import random
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetFromList, MetadataCatalog, build_detection_test_loader
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.utils import comm
from detectron2.utils.serialize import PicklableWrapper
from torch.utils.data import DataLoader, Dataset, Sampler

from mask_former.formats import picture_size

from .mapper import Entry, Mapper, build_test_mapper, build_train_mapper

logger = logging.getLogger(__name__)


def build_train_loader(
    cfg: CfgNode, *, mapper: Mapper | None = None, start_iteration: int = 0, seed: int | None = None
) -> DataLoader[Entry]:
    """Return an endless loader of lists of samples: those of iteration `start_iteration`, of the next, ...

    The order of pictures and their augmentation depend on `seed` and the iteration alone, not on the number
    of workers, processes or resumptions.

    Args:
        cfg: a list has SOLVER.IMS_PER_BATCH samples, divided by the number of processes.
        mapper: makes a sample of an entry; by default that of INPUT.DATASET_MAPPER_NAME.
        start_iteration: iterations already trained.
        seed: not negative and the same in all processes; by default `training_seed(cfg)`.
    """
    loader = cfg.DATALOADER
    if loader.SAMPLER_TRAIN != "TrainingSampler" or loader.REPEAT_THRESHOLD > 0:
        raise ValueError(
            f"DATALOADER.SAMPLER_TRAIN is {loader.SAMPLER_TRAIN!r} and REPEAT_THRESHOLD "
            f"{loader.REPEAT_THRESHOLD}; expected TrainingSampler (every picture once an epoch) and 0.0, the "
            "only order that can be resumed exactly."
        )
    entries = load_training_entries(cfg)
    seed = training_seed(cfg) if seed is None else seed
    batches = TrainingBatches(
        _aspect_groups(cfg, entries),
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        seed=seed,
        start_iteration=start_iteration,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
    )
    logger.info("Training on %d pictures from iteration %d, seed %d", len(entries), start_iteration, seed)
    return DataLoader(
        AugmentedDataset(entries, mapper or build_train_mapper(cfg), seed),
        batch_sampler=batches,
        num_workers=loader.NUM_WORKERS,
        worker_init_fn=_ignore_signals,
        collate_fn=list,  # pictures differ in size, so a batch is the list of its samples
        # Without its own generator the loader would draw from the generator of the model's dropout.
        generator=torch.Generator().manual_seed(seed),
    )


def _ignore_signals(worker: int) -> None:
    """Leave Ctrl-C and a closed terminal, which reach every process, to the main one, which then saves."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def build_test_loader(cfg: CfgNode, dataset_name: str) -> DataLoader[Entry]:
    """Return Detectron2's loader over a data set, one picture a batch, each process its share."""
    return build_detection_test_loader(
        dataset=_load_entries(dataset_name),
        mapper=build_test_mapper(cfg),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def training_seed(cfg: CfgNode) -> int:
    """Return SEED, or where it is negative a random one that all processes share."""
    return cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()


def load_training_entries(cfg: CfgNode) -> list[Entry]:
    """Return the entries of all training sets, each with its "dataset_name" and, if any, "ignore_label".

    With DATALOADER.FILTER_EMPTY_ANNOTATIONS, pictures whose "annotations" are empty or all crowd are left
    out, as Detectron2 does; pictures of semantic and panoptic sets always stay.
    """
    names = list(cfg.DATASETS.TRAIN)
    if not names:
        raise ValueError("DATASETS.TRAIN is empty; name at least one registered data set to train on.")
    entries = [entry for name in names for entry in _load_entries(name)]
    _check_same_classes(names)
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS and all("annotations" in entry for entry in entries):
        entries = filter_images_with_only_crowd_annotations(entries)
    if not entries:
        raise ValueError(f"DATASETS.TRAIN {names} holds no picture to train on; expected at least one.")
    return entries


class Draw(NamedTuple):
    """A picture to train on: its index in the data set, and the number of the draw since iteration 0.

    Positions are unique in a run; everything random about a draw follows from the seed and its position.
    """

    number: int
    position: int


@dataclass(eq=False)
class TrainingBatches(Sampler[list[Draw]]):
    """Endless batches of one process: in each epoch every picture once, in a new order, batches of one group.

    A batch is complete as soon as its group (say, wide or tall pictures) has enough draws. Groups fill up
    over the batch of all processes together and each process takes every `world_size`-th draw of it, so the
    union of all batches does not depend on how many processes there are.
    """

    groups: Sequence[int]  # the number of each picture's group, from 0
    total_batch_size: int  # of all processes together
    seed: int
    start_iteration: int = 0  # batches that earlier parts of the run have consumed
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        """Refuse what gives no batch."""
        if not len(self.groups):
            raise ValueError("There is no picture to draw from; expected at least one in DATASETS.TRAIN.")
        if self.total_batch_size < 1 or self.total_batch_size % self.world_size:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH is {self.total_batch_size}; expected a positive multiple of the "
                f"number of processes, {self.world_size}."
            )

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


class AugmentedDataset(Dataset[Entry]):
    """Makes the sample of a draw, with all random numbers seeded by its position."""

    def __init__(self, entries: Sequence[Entry], mapper: Mapper, seed: int) -> None:
        # One block of bytes, which worker processes share instead of copying it.
        self.entries = DatasetFromList(list(entries), copy=False)
        self.mapper = PicklableWrapper(mapper)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, draw: Draw) -> Entry:
        """Return the sample; where the mapper refuses an entry by returning None, that of the next one."""
        with _seeded(self.seed, draw.position):
            for step in range(len(self)):
                sample = self.mapper(self.entries[(draw.number + step) % len(self)])
                if sample is not None:
                    return sample
        raise ValueError("The mapper returned None for every picture of DATASETS.TRAIN; expected samples.")


@contextmanager
def _seeded(seed: int, position: int) -> Iterator[None]:
    """Seed NumPy's, Python's and torch's CPU generators by (seed, position), and restore them at the end."""
    states = np.random.get_state(), random.getstate()
    words = np.random.SeedSequence((seed, position)).generate_state(4)
    with torch.random.fork_rng(devices=()):
        np.random.seed(words)
        random.seed(words.tobytes())
        torch.default_generator.manual_seed(int(words[0]))
        try:
            yield
        finally:
            np.random.set_state(states[0])
            random.setstate(states[1])


def _load_entries(dataset_name: str) -> list[Entry]:
    """Return copies of a registered set's entries, tagged, after a check that no picture is there twice."""
    entries = DatasetCatalog.get(dataset_name)
    tag: dict[str, Any] = {"dataset_name": dataset_name}
    ignore_label = MetadataCatalog.get(dataset_name).get("ignore_label", None)
    if ignore_label is not None:
        tag["ignore_label"] = ignore_label
    keys = [entry.get("image_id", entry["file_name"]) for entry in entries]
    repeated = [key for key, times in Counter(keys).items() if times > 1]
    if repeated:
        files = [entry["file_name"] for entry, key in zip(entries, keys, strict=True) if key == repeated[0]]
        raise ValueError(
            f"Data set {dataset_name} has {len(repeated)} image ids that belong to more than one picture; "
            f"the first is {repeated[0]!r}, of {' and '.join(files[:3])}. Give every picture its own id."
        )
    return [{**entry, **tag} for entry in entries]


def _check_same_classes(names: Sequence[str]) -> None:
    """Refuse to mix sets in whose labels one number means different classes."""
    for key in ("thing_classes", "stuff_classes"):
        listed = {name: MetadataCatalog.get(name).get(key, None) for name in names}
        known = {name: tuple(classes) for name, classes in listed.items() if classes is not None}
        if len(set(known.values())) > 1:
            counts = ", ".join(f"{name} ({len(classes)})" for name, classes in known.items())
            raise ValueError(
                f"DATASETS.TRAIN mixes sets whose {key} differ: {counts}. Sets that are trained together "
                "must have the same classes in the same order."
            )


def _aspect_groups(cfg: CfgNode, entries: Sequence[Entry]) -> list[int]:
    """Return for each entry 1 if it is wider than tall, else 0; all 0 where grouping is off or pointless."""
    crop = cfg.INPUT.CROP
    is_cropped = cfg.INPUT.DATASET_MAPPER_NAME.startswith("mask_former_") and crop.ENABLED
    has_one_size = crop.TYPE == "absolute" and max(crop.SIZE) <= cfg.INPUT.SIZE_DIVISIBILITY
    if not cfg.DATALOADER.ASPECT_RATIO_GROUPING or (is_cropped and has_one_size):
        return [0] * len(entries)
    if all("width" in entry and "height" in entry for entry in entries):
        return [int(entry["width"] > entry["height"]) for entry in entries]
    logger.info("Reading the sizes of %d pictures, to group them by aspect ratio", len(entries))
    with ThreadPoolExecutor(max_workers=16) as pool:
        sizes = pool.map(picture_size, [entry["file_name"] for entry in entries])
        return [int(width > height) for width, height in sizes]
