"""Matrix products in full precision, and a fast argmax."""

import torch
from torch import Tensor


def product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the matrix product in the type of the operands, even under autocast."""
    with torch.autocast(left.device.type, enabled=False):
        return torch.mm(left, right, out=out)


def index_of_highest(values: Tensor) -> Tensor:
    """Return the first index (...) of the highest of (N, ...) values: `argmax(0)`, some four times faster.

    If a column contains NaN, returns the last index.
    """
    return index_of_first(values == values.amax(0))


def index_of_first(is_chosen: Tensor) -> Tensor:
    """Return the first index (...) along N at which (N, ...) bool is set, the last index where none is."""
    count = len(is_chosen)
    # Descending, so that the maximum marks the first index.
    kind = torch.int16 if count < 2**15 else torch.int32
    marks = torch.arange(count, 0, -1, dtype=kind, device=is_chosen.device)
    marked = is_chosen.to(kind).mul_(marks.view(-1, *[1] * (is_chosen.ndim - 1)))
    return (count - marked.amax(0).long()).clamp_(max=count - 1)
