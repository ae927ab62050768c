"""Many small operations on several cores: whole pieces of work in threads, not each operation by itself."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(work: Callable[[Item], Result], items: Iterable[Item], device: torch.device) -> list[Result]:
    """Return `work` of each item, in their order, without gradients.

    On a CPU the items are shared by as many threads as torch uses, and in each, torch uses one. Where an
    operation takes a fraction of a millisecond, its own threads would wait for each other longer than they
    work, above all on a busy machine. On other devices the items follow each other.
    """
    items = list(items)
    threads = min(torch.get_num_threads(), len(items)) if device.type == "cpu" else 1
    if threads < 2:
        with torch.no_grad():
            return [work(item) for item in items]
    before = torch.get_num_threads()
    is_inference = torch.is_inference_mode_enabled()

    # Modes belong to the thread that sets them. Switching inference mode off switches gradients on.
    def in_thread(item: Item) -> Result:
        with torch.inference_mode(is_inference), torch.no_grad():
            return work(item)

    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(in_thread, items))
    finally:
        # What a thread sets becomes the default of threads that are still to come.
        torch.set_num_threads(before)
