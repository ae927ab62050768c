"""From the logits of one image to its results: semantic scores or labels, panoptic map, instances.

Pure functions without parameters. Each takes

    class_logits: (Q, K+1), index K is "no object"
    mask_logits: (Q, h, w), on the mask grid of the padded image
    sizes: what the grid covers and the size of the results, see `Sizes`

in any float type and computes in float32, without gradients. Masks are resized in strips (some rows of all
queries at a time), so a full-size map of every query never exists.
"""

from collections.abc import Collection
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from mask_former.inference.label_maps import labels_of_rows, pruned_labels
from mask_former.inference.resizing import Sizes
from mask_former.inference.rules import NO_CLASS, ResultRules
from mask_former.inference.strips import mask_probs_at, strips_of
from mask_former.inference.tensor_ops import index_of_highest, product, side_by_side

# Products of query and class per pixel up to which a CPU computes all scores faster than it prunes.
FEW_PRODUCTS = 1000
# The score from which a pixel has the class, where there is only one.
ONE_CLASS_THRESHOLD = 0.5


@torch.no_grad()
def form_results(
    class_logits: Tensor, mask_logits: Tensor, sizes: Sizes, rules: ResultRules
) -> dict[str, Any]:
    """Return the results of one image that `rules` ask for, in Detectron2's form.

    Returns:
        `sem_seg`: (K, H, W) float32 scores, or (H, W) int64 labels, see `ResultRules`;
        `panoptic_seg`: see `panoptic`; `instances`: see `instances`.
    """
    results: dict[str, Any] = {}
    logits = (class_logits, mask_logits, sizes)
    if "semantic" in rules.tasks:
        form = semantic_scores if rules.semantic_form == "scores" else semantic_labels
        results["sem_seg"] = form(*logits, resize_logits=rules.resize_logits)
        if rules.semantic_form == "labels":
            num_classes = class_logits.shape[1] - 1
            results["sem_seg"] = keep_classes(results["sem_seg"], num_classes, rules.kept_classes)
    if "panoptic" in rules.tasks:
        results["panoptic_seg"] = panoptic(*logits, rules)
    if "instance" in rules.tasks:
        results["instances"] = instances(*logits, rules)
    return results


def labels_of_scores(scores: Tensor) -> Tensor:
    """Return the class (H, W) int64 of the highest of scores (K, H, W), the first in a tie.

    With one class there is no other to compare with: a pixel has it where the score is at least one half,
    else `NO_CLASS`.
    """
    if len(scores) == 1:
        return torch.where(scores[0] >= ONE_CLASS_THRESHOLD, 0, NO_CLASS)
    return index_of_highest(scores)


def keep_classes(labels: Tensor, num_classes: int, kept: Collection[int] | None) -> Tensor:
    """Return labels (H, W) with `NO_CLASS` in place of the classes that are not `kept`."""
    if kept is None:
        return labels
    # The last entry is that of NO_CLASS.
    table = torch.full((num_classes + 1,), NO_CLASS, dtype=torch.int64)
    table[sorted(kept)] = torch.tensor(sorted(kept), dtype=torch.int64)
    return table.to(labels.device)[labels]


@torch.no_grad()
def semantic_scores(
    class_logits: Tensor, mask_logits: Tensor, sizes: Sizes, *, resize_logits: bool = False
) -> Tensor:
    """Return the scores (K, H, W) float32 of each class at each pixel of the output, in [0, Q].

    The sum over queries of class probability times mask probability (section 3.4 of the paper). The scores of
    a pixel need not add up to one.

    Args:
        class_logits: (Q, K+1).
        mask_logits: (Q, h, w).
        sizes: see `Sizes`.
        resize_logits: bring mask logits (True) or scores (False) to the output size.
    """
    class_probs = _class_probs(class_logits)[:, :-1].t().contiguous()
    height, width = sizes.output
    scores = class_probs.new_empty(class_probs.shape[0], height, width)

    def score(rows: range) -> None:
        mask_probs = mask_probs_at(mask_logits, sizes, rows, resize_logits)
        pixels = slice(rows.start * width, rows.stop * width)
        product(class_probs, mask_probs.flatten(1), out=scores.flatten(1)[:, pixels])

    side_by_side(score, strips_of(mask_logits, sizes), scores.device)
    return scores


@torch.no_grad()
def semantic_labels(
    class_logits: Tensor, mask_logits: Tensor, sizes: Sizes, *, resize_logits: bool = False
) -> Tensor:
    """Return `labels_of_scores` of `semantic_scores`, (H, W) int64.

    Memory hardly grows with the number of classes. On CPUs, bounds leave out most of the work, see
    `label_maps.py`; where there is little work, and on other devices, which would wait for the host, all
    scores are computed, for few pixels at a time.
    """
    class_probs = _class_probs(class_logits)[:, :-1]
    if class_probs.shape[1] == 1:
        return labels_of_scores(
            semantic_scores(class_logits, mask_logits, sizes, resize_logits=resize_logits)
        )
    if class_probs.device.type == "cpu" and class_probs.numel() > FEW_PRODUCTS:
        return pruned_labels(class_probs, mask_logits, sizes, resize_logits=resize_logits)
    return labels_of_rows(class_probs, mask_logits, sizes, range(sizes.output[0]), resize_logits)


@torch.no_grad()
def panoptic(
    class_logits: Tensor, mask_logits: Tensor, sizes: Sizes, rules: ResultRules
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Return the panoptic map (H, W) int32 and its segments; 0 in the map is void.

    A query takes part if its best class is not "no object" and has a probability above
    `object_mask_threshold`. Each pixel goes to the query with the highest class probability times mask
    probability, the first in a tie. The segment of a query is dropped, and its pixels stay void, if it wins
    no pixel, its mask has no pixel, or it wins less than the share `overlap_threshold` of its mask's area.
    All pixels that a query wins are painted, in its mask or not. Segments of one stuff class, one that is not
    among `thing_ids`, become one. At the end, segments of classes that are not kept become void.

    Args:
        class_logits: (Q, K+1).
        mask_logits: (Q, h, w).
        sizes: see `Sizes`.
        rules: see `ResultRules`.

    Returns:
        The map, and a list of dicts with `id` (its value in the map, from 1), `isthing`, `category_id` (in
        0..K-1), `score` (class probability, for merged stuff the highest) and `area` in pixels. Both are
        empty (all void, no dicts) when no segment is left.
    """
    scores, labels = _class_probs(class_logits).max(1)
    takes_part = (labels != class_logits.shape[1] - 1) & (scores > rules.object_mask_threshold)
    queries = takes_part.nonzero().squeeze(1)
    if len(queries) == 0:
        return torch.zeros(sizes.output, dtype=torch.int32, device=class_logits.device), []
    scores, labels = scores[queries], labels[queries]
    winner, mask_area = _winning_query(scores, mask_logits[queries], sizes, rules.mask_threshold)
    won_area = torch.bincount(winner.flatten(), minlength=len(queries))
    # One copy to the host for all queries: four numbers each. float64 holds areas and scores exactly.
    columns = torch.stack([column.double() for column in (labels, scores, won_area, mask_area)], dim=1)
    id_of_query, segments = _segments_of_queries(columns.tolist(), rules)
    if rules.kept_classes is not None:
        segments = [segment for segment in segments if segment["category_id"] in rules.kept_classes]
        kept_ids = {segment["id"] for segment in segments}
        id_of_query = [id_ if id_ in kept_ids else 0 for id_ in id_of_query]
    id_table = torch.tensor(id_of_query, dtype=torch.int32).to(winner.device, non_blocking=True)
    return id_table[winner], segments


@torch.no_grad()
def instances(class_logits: Tensor, mask_logits: Tensor, sizes: Sizes, rules: ResultRules) -> Instances:
    """Return the `top_k` best pairs of query and thing class as Detectron2 instances, best first.

    Pairs are chosen by class probability. The score of a pair is the class probability times the mean mask
    probability over the pixels above one half. Pairs without such pixels, or with an empty mask, are left
    out, so that fewer than `top_k` may be returned, and so are scores that do not exceed
    `instance_score_threshold`. A query may be returned with several classes.

    Args:
        class_logits: (Q, K+1).
        mask_logits: (Q, h, w).
        sizes: see `Sizes`.
        rules: see `ResultRules`.

    Returns:
        `Instances` of the output size with `pred_masks` (N, H, W) bool, `pred_boxes` (the smallest that hold
        the masks, in pixel edges: x1 = first column, x2 = last column + 1), `scores` (N,) float32 and
        `pred_classes` (N,) int64.
    """
    class_probs = _class_probs(class_logits)[:, :-1]
    allowed = set(range(class_probs.shape[1]))
    for choice in (rules.thing_ids, rules.kept_classes):
        allowed = allowed if choice is None else allowed.intersection(choice)
    classes = torch.tensor(sorted(allowed), dtype=torch.int64).to(class_probs.device, non_blocking=True)
    class_probs = class_probs[:, classes]
    pair_scores, pairs = class_probs.flatten().topk(min(rules.top_k, class_probs.numel()))
    # Several classes of one query share its mask: resize each query once.
    queries, query_of_pair = torch.unique(pairs // max(len(classes), 1), return_inverse=True)
    masks, mean_probs = _binary_masks(mask_logits[queries], sizes, rules.mask_threshold)
    boxes, has_pixels = _boxes_of_masks(masks)
    has_pixels &= mean_probs > 0

    scores = pair_scores * mean_probs[query_of_pair]
    order = scores.argsort(descending=True, stable=True)
    order = order[has_pixels[query_of_pair[order]]]
    if rules.instance_score_threshold is not None:
        order = order[scores[order] > rules.instance_score_threshold]
    query_of_pair = query_of_pair[order]
    result = Instances(sizes.output)
    result.pred_masks = masks[query_of_pair]
    result.pred_boxes = Boxes(boxes[query_of_pair])
    result.scores = scores[order]
    result.pred_classes = classes[pairs[order] % max(len(classes), 1)]
    return result


def _class_probs(class_logits: Tensor) -> Tensor:
    return class_logits.float().softmax(dim=-1)


def _winning_query(
    scores: Tensor, mask_logits: Tensor, sizes: Sizes, mask_threshold: float
) -> tuple[Tensor, Tensor]:
    """Return the query (H, W) that wins each pixel, and the area (Q,) of each mask."""
    winner = torch.empty(sizes.output, dtype=torch.int64, device=scores.device)

    def assign(rows: range) -> Tensor:
        mask_probs = mask_probs_at(mask_logits, sizes, rows, resize_logits=True)
        area = (mask_probs >= mask_threshold).flatten(1).sum(1)
        winner[rows.start : rows.stop] = index_of_highest(mask_probs.mul_(scores[:, None, None]))
        return area

    areas = side_by_side(assign, strips_of(mask_logits, sizes), scores.device)
    return winner, torch.stack(areas).sum(0)


def _segments_of_queries(
    queries: list[list[float]], rules: ResultRules
) -> tuple[list[int], list[dict[str, Any]]]:
    """Return the segment id of each query (0: dropped) and the segments.

    `queries` are the class, class probability, area won and mask area of each.
    """
    id_of_query: list[int] = []
    segments: list[dict[str, Any]] = []
    stuff_segments: dict[int, dict[str, Any]] = {}
    for label, score, won_area, mask_area in queries:
        if won_area == 0 or mask_area == 0 or won_area / mask_area < rules.overlap_threshold:
            id_of_query.append(0)
            continue
        category_id, area = int(label), int(won_area)
        segment = stuff_segments.get(category_id)
        if segment is not None:
            segment["score"] = max(segment["score"], score)
            segment["area"] += area
        else:
            isthing = category_id in (rules.thing_ids or ())
            segment = {
                "id": len(segments) + 1,
                "isthing": isthing,
                "category_id": category_id,
                "score": score,
                "area": area,
            }
            segments.append(segment)
            if not isthing:
                stuff_segments[category_id] = segment
        id_of_query.append(segment["id"])
    return id_of_query, segments


def _binary_masks(mask_logits: Tensor, sizes: Sizes, mask_threshold: float) -> tuple[Tensor, Tensor]:
    """Return (N, H, W) bool masks, and the mean probability (N,) over pixels above one half."""
    masks = torch.empty((len(mask_logits), *sizes.output), dtype=torch.bool, device=mask_logits.device)

    def cut(rows: range) -> Tensor:
        mask_probs = mask_probs_at(mask_logits, sizes, rows, resize_logits=True)
        masks[:, rows.start : rows.stop] = mask_probs > mask_threshold
        inside = mask_probs > 0.5
        prob_sum = (mask_probs * inside).flatten(1).sum(1)
        return torch.stack([prob_sum, inside.flatten(1).sum(1).to(prob_sum.dtype)])

    prob_sum, area = torch.stack(side_by_side(cut, strips_of(mask_logits, sizes), masks.device)).sum(0)
    return masks, prob_sum / area.clamp(min=1)


def _boxes_of_masks(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the boxes (N, 4) float32 of (N, H, W) masks, zeros for an empty one, and which are not empty."""
    x_first, x_end = _extent(masks.any(1))
    y_first, y_end = _extent(masks.any(2))
    boxes = torch.stack([x_first, y_first, x_end, y_end], dim=1).float()
    has_pixels = x_end > x_first
    return boxes * has_pixels[:, None], has_pixels


def _extent(line: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first index and one past the last index that is set in each row of (N, L) bool."""
    length = line.shape[1]
    index = torch.arange(length, device=line.device)
    return torch.where(line, index, length).amin(1), torch.where(line, index + 1, 0).amax(1)
