"""Many small operations on several cores: threads for whole items, not for each operation."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(work: Callable[[Item], Result], items: Iterable[Item], device: torch.device) -> list[Result]:
    """Return `work` of each item, in their order, without gradients.

    On a CPU, as many threads as torch uses share the items, and torch uses one thread in each: for operations
    of a fraction of a millisecond, torch's own threads cost more than they save. On other devices the items
    are worked on one after the other.
    """
    items = list(items)
    threads = min(torch.get_num_threads(), len(items)) if device.type == "cpu" else 1
    if threads < 2:
        with torch.no_grad():
            return [work(item) for item in items]
    before = torch.get_num_threads()
    is_inference = torch.is_inference_mode_enabled()

    # Modes are local to a thread. `inference_mode(False)` enables gradients.
    def in_thread(item: Item) -> Result:
        with torch.inference_mode(is_inference), torch.no_grad():
            return work(item)

    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(in_thread, items))
    finally:
        # set_num_threads in a worker also changes the default of later threads.
        torch.set_num_threads(before)
