"""From one picture's logits to its `Result`: thresholds, class filter, and the copy to the host."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.structures import Instances
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from torch import Tensor

from mask_former import inference
from mask_former.inference.resizing import Sizes
from mask_former.prediction.classes import ClassTable
from mask_former.prediction.results import Box, InstanceResults, Logits, Segment
from mask_former.prediction.rules import Rules


def strongest_queries(class_logits: Tensor, mask_logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the logits of the `count` queries that are surest of a class, in their order."""
    surest = class_logits.float().softmax(-1)[:, :-1].amax(1)
    chosen = surest.topk(min(count, len(surest))).indices.sort().values
    return class_logits[chosen], mask_logits[chosen]


def form_result(
    class_logits: Tensor,
    mask_logits: Tensor,
    sizes: Sizes,
    *,
    rules: Rules,
    classes: ClassTable,
    return_scores: bool,
    return_logits: bool,
) -> dict[str, Any]:
    """Return the fields of a `Result` that a model's answer gives: (Q, K+1) and (Q, h, w) logits in."""
    fields: dict[str, Any] = {}
    if return_logits:
        fields["logits"] = Logits(class_logits.float().cpu(), mask_logits.float().cpu(), sizes)
    if return_scores:
        fields["scores"] = inference.semantic_scores(
            class_logits, mask_logits, sizes, resize_logits=rules.resize_logits
        ).cpu()
    if "semantic" in rules.tasks:
        labels = inference.semantic_labels(
            class_logits, mask_logits, sizes, resize_logits=rules.resize_logits
        )
        fields["semantic"] = kept_labels(labels, classes, rules.kept)
    # Where masks shall begin at another probability than one half, that one is moved to one half.
    shift = math.log(rules.mask_threshold / (1 - rules.mask_threshold))
    mask_logits = mask_logits if shift == 0 else mask_logits.float() - shift
    if "panoptic" in rules.tasks:
        fields |= _panoptic(class_logits, mask_logits, sizes, rules, classes)
    if "instance" in rules.tasks:
        fields["instances"] = _instances(class_logits, mask_logits, sizes, rules, classes)
    return fields


def kept_labels(labels: Tensor, classes: ClassTable, kept: frozenset[int] | None) -> NDArray[np.integer]:
    """Return class indices (H, W) as the smallest type on the host, void where the class is not kept."""
    table = np.arange(len(classes), dtype=np.uint8 if classes.void_label < 256 else np.uint16)
    if kept is not None:
        table[[index for index in range(len(classes)) if index not in kept]] = classes.void_label
    return table[labels.cpu().numpy()]


def _panoptic(
    class_logits: Tensor, mask_logits: Tensor, sizes: Sizes, rules: Rules, classes: ClassTable
) -> dict[str, Any]:
    threshold = rules.score_threshold
    panoptic_map, infos = inference.panoptic(
        class_logits,
        mask_logits,
        sizes,
        thing_ids=rules.thing_ids,
        object_mask_threshold=rules.default_score_threshold if threshold is None else threshold,
        overlap_threshold=rules.overlap_threshold,
    )
    kept = [info for info in infos if rules.kept is None or info["category_id"] in rules.kept]
    ids = panoptic_map.cpu().numpy()
    if len(kept) < len(infos):
        ids = np.where(np.isin(ids, [info["id"] for info in kept]), ids, 0).astype(np.int32)
    return {"panoptic": ids, "segments": segments_of_map(ids, kept, classes)}


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


def _instances(
    class_logits: Tensor, mask_logits: Tensor, sizes: Sizes, rules: Rules, classes: ClassTable
) -> InstanceResults:
    allowed = rules.thing_ids or frozenset(range(len(classes)))
    found = inference.instances(
        class_logits,
        mask_logits,
        sizes,
        top_k=rules.top_k,
        thing_ids=allowed if rules.kept is None else allowed & rules.kept,
    )
    if rules.score_threshold is not None:
        found = found[found.scores > rules.score_threshold]
    return instance_results(found, classes)


def instance_results(found: Instances, classes: ClassTable) -> InstanceResults:
    """Return Detectron2's instances on the host."""
    masks = found.pred_masks.cpu().numpy()
    labels = found.pred_classes.cpu().numpy()
    return InstanceResults(
        masks=masks,
        boxes=found.pred_boxes.tensor.cpu().numpy(),
        classes=labels,
        names=tuple(classes.name_of(int(label)) for label in labels),
        scores=found.scores.cpu().numpy(),
        areas=np.count_nonzero(masks, axis=(1, 2)),
    )
