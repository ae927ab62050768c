"""What is predicted of one picture, as arrays and plain values on the host."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.structures import Instances
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from torch import Tensor

from mask_former.inference.logits import QueryLogits
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


@dataclass(frozen=True)
class Result:
    """All that is predicted of one picture; what was not asked for is None.

    image_name: file name, or the name of an array.
    height, width: of the maps and masks below.
    classes: names and colours of the class indices.
    image: (H', W', 3) uint8 RGB, the picture as read.
    semantic: (H, W) class indices, uint8 or uint16; `classes.void_label` where there is no class or one that
        was not to be kept.
    panoptic: (H, W) int32 segment ids, 0 is void.
    segments: of `panoptic`.
    instances: masks, boxes, classes, scores.
    scores: (K, H, W) float32, semantic scores.
    logits: those of the network, float32 on the host.
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
    logits: QueryLogits | None = None

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


def result_fields(results: Mapping[str, Any], classes: ClassTable) -> dict[str, Any]:
    """Return the fields of a `Result` for the results of one image, see `inference.form_results`."""
    fields: dict[str, Any] = {}
    if "sem_seg" in results:
        # The last entry is that of NO_CLASS.
        labels = np.arange(len(classes) + 1, dtype=np.uint8 if classes.void_label < 256 else np.uint16)
        labels[len(classes)] = classes.void_label
        fields["semantic"] = labels[results["sem_seg"].cpu().numpy()]
    if "panoptic_seg" in results:
        panoptic_map, infos = results["panoptic_seg"]
        ids = panoptic_map.cpu().numpy()
        fields |= {"panoptic": ids, "segments": segments_of_map(ids, infos, classes)}
    if "instances" in results:
        fields["instances"] = instance_results(results["instances"], classes)
    return fields


def segments_of_map(
    ids: NDArray[np.int32], infos: Sequence[Mapping[str, Any]], classes: ClassTable
) -> list[Segment]:
    """Return the segments of a map (H, W) with ids from 1, given `id`, `category_id`, `score` of each."""
    places = find_objects(ids)
    areas = np.bincount(ids.ravel())
    return [
        Segment(
            id=int(info["id"]),
            category_id=int(info["category_id"]),
            name=classes.name_of(int(info["category_id"])),
            is_thing=bool(info.get("isthing", classes.is_thing[info["category_id"]])),
            score=float(info.get("score", 1.0)),
            area=int(areas[info["id"]]),
            box=_box(places[info["id"] - 1]),
        )
        for info in infos
    ]


def _box(place: tuple[slice, slice]) -> Box:
    rows, columns = place
    return float(columns.start), float(rows.start), float(columns.stop), float(rows.stop)


def instance_results(instances: Instances, classes: ClassTable) -> InstanceResults:
    """Return Detectron2's instances on the host."""
    masks = instances.pred_masks.cpu().numpy()
    labels = instances.pred_classes.cpu().numpy()
    return InstanceResults(
        masks=masks,
        boxes=instances.pred_boxes.tensor.cpu().numpy(),
        classes=labels,
        names=tuple(classes.name_of(int(label)) for label in labels),
        scores=instances.scores.cpu().numpy(),
        areas=np.count_nonzero(masks, axis=(1, 2)),
    )
