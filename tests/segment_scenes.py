"""Random predictions and targets, uneven in every axis, for tests of matcher and criterion."""

from collections.abc import Sequence

import torch

from mask_former.modeling.structures import Prediction, Target


def random_scene(
    counts: Sequence[int],
    *,
    layers: int = 2,
    queries: int = 6,
    classes: int = 4,
    grid: tuple[int, int] = (5, 3),
    size: tuple[int, int] = (20, 12),
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> tuple[list[Prediction], list[Target]]:
    """Return `layers` predictions, whose tensors want gradients, and one target for each of `counts`."""
    generator = torch.Generator().manual_seed(seed)

    def logits(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator, dtype=dtype) * 2).requires_grad_()

    predictions = [
        Prediction(logits(len(counts), queries, classes + 1), logits(len(counts), queries, *grid))
        for _ in range(layers)
    ]
    targets = [
        Target(
            torch.randint(0, classes, (count,), generator=generator),
            torch.rand(count, *size, generator=generator) > 0.6,
        )
        for count in counts
    ]
    return predictions, targets


def leaves(predictions: Sequence[Prediction]) -> list[torch.Tensor]:
    """Return all tensors of the predictions."""
    return [tensor for prediction in predictions for tensor in prediction]
