"""The same segment in one frame of a video and the next."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

# Masks are compared on a grid of about so many rows and columns at most.
GRID = 240


class Track(NamedTuple):
    """A segment that was seen: its number, its class, its mask on the grid, how many frames ago."""

    number: int
    class_index: int
    mask: NDArray[np.bool_]
    age: int


class SegmentTracker:
    """Numbers segments so that one which stays in the picture keeps its number.

    A segment is taken for the one before that has the same class and overlaps it most, all of them together
    as well as possible. Numbers count up from 0 in each class.
    """

    def __init__(self, min_iou: float = 0.2, patience: int = 10) -> None:
        """Keep what identifies segments.

        Args:
            min_iou: intersection over union below which two masks are two segments.
            patience: frames for which a segment may be missing and still be known afterwards.
        """
        self.min_iou = min_iou
        self.patience = patience
        self._tracks: list[Track] = []
        self._next: dict[int, int] = {}

    def update(self, classes: Sequence[int], masks: NDArray[np.bool_]) -> list[int]:
        """Return the number of each segment of the next frame.

        Args:
            classes: class of each of N segments.
            masks: (N, H, W) bool.
        """
        grids = _on_grid(masks)
        if any(track.mask.shape != grids.shape[1:] for track in self._tracks):
            self._tracks = []  # frames of another size: another video
        numbers = [-1] * len(classes)
        for class_index in sorted(set(classes)):
            rows = [row for row, found in enumerate(classes) if found == class_index]
            for row, number in zip(rows, self._numbers(class_index, grids[rows]), strict=True):
                numbers[row] = number
        seen = [Track(n, c, grid, 0) for n, c, grid in zip(numbers, classes, grids, strict=True)]
        known = {(track.class_index, track.number) for track in seen}
        missed = [track._replace(age=track.age + 1) for track in self._tracks]
        missed = [t for t in missed if t.age <= self.patience and (t.class_index, t.number) not in known]
        self._tracks = seen + missed
        return numbers

    def _numbers(self, class_index: int, grids: NDArray[np.bool_]) -> list[int]:
        """The numbers of all segments (N, h, w) of one class."""
        tracks = [track for track in self._tracks if track.class_index == class_index]
        numbers = [-1] * len(grids)
        if tracks:
            iou = _pairwise_iou(grids, np.stack([track.mask for track in tracks]))
            for row, column in zip(*linear_sum_assignment(-iou), strict=True):
                if iou[row, column] >= self.min_iou:
                    numbers[row] = tracks[column].number
        for row, number in enumerate(numbers):
            if number < 0:
                numbers[row] = self._next.get(class_index, 0)
                self._next[class_index] = numbers[row] + 1
        return numbers


def _on_grid(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Every so-many-th row and column of masks (N, H, W)."""
    step = max(1, max(masks.shape[1:]) // GRID)
    return masks[:, ::step, ::step]


def _pairwise_iou(masks: NDArray[np.bool_], others: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Intersection over union (N, M) of masks (N, h, w) and (M, h, w); 0 between empty ones."""
    flat, other = (m.reshape(len(m), -1).astype(np.float32) for m in (masks, others))
    common = flat @ other.T
    union = flat.sum(1)[:, None] + other.sum(1)[None] - common
    return common / np.maximum(union, 1)
