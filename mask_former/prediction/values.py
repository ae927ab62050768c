"""What is predicted for one image, as arrays and plain values in host memory."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from detectron2.structures import Instances
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from torch import Tensor

from mask_former.inference.ruled_model import QueryLogits
from mask_former.prediction.classes import ClassTable

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Segment:
    """One segment of a panoptic map; or an instance, or a class of a semantic map.

    id: value of its pixels in the map; of instances, a number from 1.
    category_id: class index in 0..K-1.
    score: class probability; for merged stuff the highest one; NaN for a class of a semantic map.
    area: number of pixels.
    box: x0, y0, x1, y1 in pixel edges, the smallest box that contains it.
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
    """N instances, sorted by descending score; masks may overlap.

    masks: (N, H, W) bool.
    boxes: (N, 4) float32, x0, y0, x1, y1 in pixel edges.
    classes: (N,) int64 in 0..K-1, with their `names`.
    scores: (N,) float32, class probability times mean mask probability.
    areas: (N,) int64, number of pixels.
    """

    masks: NDArray[np.bool_]
    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]
    names: tuple[str, ...]
    scores: NDArray[np.float32]
    areas: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.scores)

    def segments(self, classes: ClassTable) -> Iterator[Segment]:
        """Yield them one by one, numbered from 1."""
        columns = (self.classes, self.scores, self.areas, self.boxes)
        rows = zip(self.names, *(column.tolist() for column in columns), strict=True)
        for number, (name, label, score, area, box) in enumerate(rows, start=1):
            yield Segment(number, label, name, classes.is_thing[label], score, area, tuple(box))


@dataclass(frozen=True)
class PredictedValues:
    """The predictions for one image; what was not requested is None.

    image_name: file name, or the name of an array.
    height, width: size of the maps and masks below.
    classes: names and colours of the class indices.
    image: (H', W', 3) uint8 RGB, the image as read.
    semantic: (H, W) class indices, uint8 or uint16; `classes.void_label` where there is no class.
    panoptic: (H, W) int32 segment ids, 0 is void.
    segments: those of `panoptic`.
    instances: masks, boxes, classes, scores.
    scores: (K, H, W) float32, semantic scores.
    logits: output of the network, in host memory.
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

    @property
    def listed_task(self) -> str | None:
        """Where the segments of iteration come from: "panoptic", else "instance", else "semantic"."""
        maps = {"panoptic": self.panoptic, "instance": self.instances, "semantic": self.semantic}
        return next((task for task, values in maps.items() if values is not None), None)

    def __iter__(self) -> Iterator[Segment]:
        """Yield the panoptic segments; without a panoptic map the instances, else the semantic classes."""
        if self.panoptic is not None:
            yield from self.segments
        elif self.instances is not None:
            yield from self.instances.segments(self.classes)
        elif self.semantic is not None:
            present = [label for label in np.unique(self.semantic).tolist() if label < len(self.classes)]
            infos = [{"id": label + 1, "category_id": label, "score": math.nan} for label in present]
            for segment in segments_of_map(self.semantic.astype(np.int32) + 1, infos, self.classes):
                yield replace(segment, id=segment.category_id)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def masks(self) -> NDArray[np.bool_]:
        """Return the masks (N, H, W) of the segments in the order of iteration."""
        if self.panoptic is None and self.instances is not None:
            return self.instances.masks
        values = self.semantic if self.panoptic is None else self.panoptic
        masks = [values == segment.id for segment in self]
        return np.array(masks, bool).reshape(len(masks), self.height, self.width)

    def labels(self) -> NDArray[np.integer] | None:
        """Return `semantic`, else the class of each panoptic segment; (H, W), None without both."""
        if self.semantic is not None or self.panoptic is None:
            return self.semantic
        class_of_id = np.full(
            int(self.panoptic.max(initial=0)) + 1, self.classes.void_label, self.classes.label_type
        )
        for segment in self.segments:
            class_of_id[segment.id] = segment.category_id
        return class_of_id[self.panoptic]


def result_fields(results: Mapping[str, Any], classes: ClassTable) -> dict[str, Any]:
    """Return the fields of `PredictedValues` for the results of one image, see `inference.form_results`."""
    fields: dict[str, Any] = {}
    if "sem_seg" in results:
        # The index K is NO_CLASS.
        labels = np.arange(len(classes) + 1, dtype=classes.label_type)
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
    """Return the segments of a map (H, W) with ids from 1.

    Args:
        ids: the map; every id of `infos` occurs in it.
        infos: Detectron2's `segments_info`: `id`, `category_id`, optionally `isthing` and `score`.
        classes: names of the category ids.
    """
    slices = find_objects(ids)
    areas = np.bincount(ids.ravel())
    return [
        Segment(
            id=int(info["id"]),
            category_id=int(info["category_id"]),
            name=classes.name_of(int(info["category_id"])),
            is_thing=bool(info.get("isthing", classes.is_thing[info["category_id"]])),
            score=float(info.get("score", 1.0)),
            area=int(areas[info["id"]]),
            box=_box(*slices[info["id"] - 1]),
        )
        for info in infos
    ]


def _box(rows: slice, columns: slice) -> Box:
    return float(columns.start), float(rows.start), float(columns.stop), float(rows.stop)


def instance_results(instances: Instances, classes: ClassTable) -> InstanceResults:
    """Return Detectron2's instances as arrays in host memory."""
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
