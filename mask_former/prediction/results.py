"""What is predicted of one picture, as arrays and plain values on the host."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mask_former.inference.resizing import Sizes
from mask_former.prediction.classes import ClassTable, Color
from mask_former.prediction.drawing import draw_result
from mask_former.prediction.result_files import KINDS, ResultWriter

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Segment:
    """One segment of a panoptic map.

    id: its value in the map.
    category_id: class index in 0..K-1.
    score: class probability, of merged stuff the highest.
    area: pixels.
    box: x0, y0, x1, y1 in pixel edges, the smallest that holds it.
    """

    id: int
    category_id: int
    name: str
    is_thing: bool
    score: float
    area: int
    box: Box


@dataclass(frozen=True)
class InstanceResults:
    """N instances, best first; their masks may overlap.

    masks: (N, H, W) bool.
    boxes: (N, 4) float32, x0, y0, x1, y1 in pixel edges.
    classes: (N,) int64 in 0..K-1, called `names`.
    scores: (N,) float32, class probability times mean mask probability.
    areas: (N,) int64, pixels.
    """

    masks: NDArray[np.bool_]
    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]
    names: tuple[str, ...]
    scores: NDArray[np.float32]
    areas: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.scores)


class Logits(NamedTuple):
    """What the model says of one picture, on the host.

    class_logits: (Q, K+1) float32.
    mask_logits: (Q, h, w) float32, on the mask grid of the padded picture.
    sizes: what the grid stands for.
    """

    class_logits: Tensor
    mask_logits: Tensor
    sizes: Sizes


@dataclass(frozen=True)
class Result:
    """All that is predicted of one picture; what was not asked for is None.

    image_name: file name, or the name of an array.
    height, width: of the maps and masks below.
    classes: names and colours of the class indices.
    image: (H', W', 3) uint8 RGB, the picture as read.
    semantic: (H, W) class indices, uint8 or uint16; `classes.void_label` where a class filter took the class
        away.
    panoptic: (H, W) int32 segment ids, 0 is void.
    segments: of `panoptic`.
    instances: masks, boxes, classes, scores.
    scores: (K, H, W) float32, semantic scores.
    logits: see `Logits`.
    """

    image_name: str
    height: int
    width: int
    classes: ClassTable
    image: NDArray[np.uint8] | None = None
    semantic: NDArray[np.integer] | None = None
    panoptic: NDArray[np.int32] | None = None
    segments: list[Segment] = field(default_factory=list)
    instances: InstanceResults | None = None
    scores: Tensor | None = None
    logits: Logits | None = None

    def labels(self) -> NDArray[np.integer] | None:
        """Return `semantic`, or where there is none the class of each panoptic segment; (H, W)."""
        if self.semantic is not None or self.panoptic is None:
            return self.semantic
        dtype = np.uint8 if self.classes.void_label < 256 else np.uint16
        class_of_id = np.full(int(self.panoptic.max(initial=0)) + 1, self.classes.void_label, dtype)
        for segment in self.segments:
            class_of_id[segment.id] = segment.category_id
        return class_of_id[self.panoptic]

    def draw(
        self,
        image: NDArray[np.uint8] | None = None,
        *,
        task: str | None = None,
        score_threshold: float = 0.5,
        colors: Mapping[int, Color] | None = None,
        scale: float = 1.0,
        text: bool = True,
    ) -> NDArray[np.uint8]:
        """Return the picture with the result over it, see `drawing.draw_result`."""
        return draw_result(
            self,
            self.image if image is None else image,
            task=task,
            score_threshold=score_threshold,
            colors=colors,
            scale=scale,
            text=text,
        )

    def save(
        self,
        folder: str | Path,
        kinds: Collection[str] = KINDS,
        image: NDArray[np.uint8] | None = None,
    ) -> None:
        """Write files of these kinds into `folder`, beside what is there; see `ResultWriter`."""
        with ResultWriter(folder, kinds, self.classes) as writer:
            writer.write(self, image)
