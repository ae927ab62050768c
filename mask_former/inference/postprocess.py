"""From one picture's logits to its results: semantic scores or labels, panoptic map, instances.

Pure functions; nothing here has parameters. Every function takes

    class_logits: (Q, K+1), index K is "no object"
    mask_logits: (Q, h, w), on the mask grid of the padded picture
    sizes: what the grid stands for, see `Sizes`

in any float type and computes in float32, without gradients. Masks are resized strip by strip (some rows of
all queries at a time), so no full-size map of every query ever exists, and only queries that can matter are
resized.
"""

from collections.abc import Collection
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from mask_former.inference.label_maps import pruned_labels
from mask_former.inference.parallel_items import side_by_side
from mask_former.inference.products import index_of_highest, product
from mask_former.inference.resizing import Sizes
from mask_former.inference.strips import mask_prob_strips, mask_probs_at, strip_numbers, strips_of

# Products of a query's mask with a class a pixel, up to which a CPU has all of them sooner than bounds.
FEW_PRODUCTS = 1000


@torch.no_grad()
def semantic_scores(
    class_logits: Tensor, mask_logits: Tensor, sizes: Sizes, *, resize_logits: bool = False
) -> Tensor:
    """Return the scores (K, H, W) float32 of each class at each pixel of the output, in [0, Q].

    Eq. of section 3.4 of the paper: the sum over queries of class probability times mask probability. The
    scores of a pixel need not add up to one.

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
    """Return the (H, W) int64 label map: at each pixel the class of the highest of `semantic_scores`.

    Memory hardly grows with the number of classes. On CPUs most of the work is left out where it cannot
    matter, with proof, see `label_maps.py`; elsewhere, since a device that waits for the host's choices gains
    nothing, and where there is little work, all scores are computed, for few pixels at a time.
    """
    class_probs = _class_probs(class_logits)[:, :-1]
    if class_probs.device.type == "cpu" and class_probs.numel() > FEW_PRODUCTS:
        return pruned_labels(class_probs, mask_logits, sizes, resize_logits=resize_logits)
    return _labels_of_all_scores(class_probs, mask_logits, sizes, resize_logits)


def _labels_of_all_scores(
    class_probs: Tensor, mask_logits: Tensor, sizes: Sizes, resize_logits: bool
) -> Tensor:
    weights = class_probs.t().contiguous()
    labels = torch.empty(sizes.output, dtype=torch.int64, device=class_probs.device)
    # As many numbers as a strip of masks has.
    chunk = max(1, strip_numbers(class_probs.device) // weights.shape[0])
    for rows, mask_probs in mask_prob_strips(mask_logits, sizes, resize_logits):
        pixels = mask_probs.flatten(1).split(chunk, dim=1)
        best = [index_of_highest(product(weights, some)) for some in pixels]
        labels[rows] = torch.cat(best).view(mask_probs.shape[1:])
    return labels


@torch.no_grad()
def panoptic(
    class_logits: Tensor,
    mask_logits: Tensor,
    sizes: Sizes,
    *,
    thing_ids: Collection[int],
    object_mask_threshold: float = 0.0,
    overlap_threshold: float = 0.0,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Return the panoptic map (H, W) int32 and its segments; 0 in the map is void.

    A query counts if its best class is not "no object" and scores above `object_mask_threshold`. Each pixel
    goes to the query with the highest score times mask probability, the first one in a tie. A query's
    segment is dropped, and its pixels stay void, if it wins no pixel, has no pixel of probability one half
    or more, or wins fewer than the share `overlap_threshold` of the number of those. All pixels that a query
    wins are painted, whatever their probability. Segments of the same stuff class become one.

    Args:
        class_logits: (Q, K+1).
        mask_logits: (Q, h, w).
        sizes: see `Sizes`.
        thing_ids: the classes, of 0..K-1, whose segments stay apart; all others are stuff.
        object_mask_threshold: in [0, 1].
        overlap_threshold: in [0, 1].

    Returns:
        The map, and a list of dicts with `id` (its value in the map, from 1), `isthing`, `category_id` (in
        0..K-1), `score` (class probability, for merged stuff the highest) and `area` in pixels. Both are
        empty (all void, no dicts) when no segment is left.
    """
    scores, labels = _class_probs(class_logits).max(1)
    counts = (labels != class_logits.shape[1] - 1) & (scores > object_mask_threshold)
    queries = counts.nonzero().squeeze(1)
    if len(queries) == 0:
        return torch.zeros(sizes.output, dtype=torch.int32, device=class_logits.device), []
    scores, labels = scores[queries], labels[queries]
    winner, mask_area = _winning_query(scores, mask_logits[queries], sizes)
    won_area = torch.bincount(winner.flatten(), minlength=len(queries))
    # One copy to the host for all queries: four numbers each. float64 holds areas and scores exactly.
    facts = torch.stack([column.double() for column in (labels, scores, won_area, mask_area)], dim=1).tolist()
    id_of_query, segments = _segments_of_queries(facts, thing_ids, overlap_threshold)
    id_table = torch.tensor(id_of_query, dtype=torch.int32).to(winner.device, non_blocking=True)
    return id_table[winner], segments


@torch.no_grad()
def instances(
    class_logits: Tensor,
    mask_logits: Tensor,
    sizes: Sizes,
    *,
    top_k: int,
    thing_ids: Collection[int] | None = None,
) -> Instances:
    """Return the `top_k` best pairs of query and thing class as Detectron2 instances, best first.

    A pair's score is the class probability times the mean mask probability inside the mask, where a mask is
    the pixels of probability above one half. Pairs are chosen by class probability; those with an empty mask
    are left out, so fewer than `top_k` may come back, or none. A query may come back with several classes.

    Args:
        class_logits: (Q, K+1).
        mask_logits: (Q, h, w).
        sizes: see `Sizes`.
        top_k: most instances to return.
        thing_ids: the classes, of 0..K-1, that instances may have; None allows all.

    Returns:
        `Instances` of the output size with `pred_masks` (N, H, W) bool, `pred_boxes` (the smallest that hold
        the masks, in pixel edges: x1 = first column, x2 = last column + 1), `scores` (N,) float32 and
        `pred_classes` (N,) int64.
    """
    class_probs = _class_probs(class_logits)[:, :-1]
    if thing_ids is not None:
        classes = torch.tensor(sorted(thing_ids), dtype=torch.int64).to(class_probs.device, non_blocking=True)
        class_probs = class_probs[:, classes]
    else:
        classes = torch.arange(class_probs.shape[1], device=class_probs.device)
    pair_scores, pairs = class_probs.flatten().topk(min(top_k, class_probs.numel()))
    # Several classes of one query share its mask: resize each query once.
    queries, query_of_pair = torch.unique(pairs // max(len(classes), 1), return_inverse=True)
    masks, mean_probs = _binary_masks(mask_logits[queries], sizes)
    boxes, has_pixels = _boxes_of_masks(masks)

    scores = pair_scores * mean_probs[query_of_pair]
    order = scores.argsort(descending=True, stable=True)
    order = order[has_pixels[query_of_pair[order]]]
    query_of_pair = query_of_pair[order]
    found = Instances(sizes.output)
    found.pred_masks = masks[query_of_pair]
    found.pred_boxes = Boxes(boxes[query_of_pair])
    found.scores = scores[order]
    found.pred_classes = classes[pairs[order] % max(len(classes), 1)]
    return found


def _class_probs(class_logits: Tensor) -> Tensor:
    return class_logits.float().softmax(dim=-1)


def _winning_query(scores: Tensor, mask_logits: Tensor, sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Return the query (H, W) that wins each pixel, and how many pixels of each have probability >= 0.5."""
    winner = torch.empty(sizes.output, dtype=torch.int64, device=scores.device)

    def assign(rows: range) -> Tensor:
        mask_probs = mask_probs_at(mask_logits, sizes, rows, resize_logits=True)
        area = (mask_probs >= 0.5).flatten(1).sum(1)
        winner[rows.start : rows.stop] = index_of_highest(mask_probs.mul_(scores[:, None, None]))
        return area

    areas = side_by_side(assign, strips_of(mask_logits, sizes), scores.device)
    return winner, torch.stack(areas).sum(0)


def _segments_of_queries(
    facts: list[list[float]], thing_ids: Collection[int], overlap_threshold: float
) -> tuple[list[int], list[dict[str, Any]]]:
    """Return each query's segment id (0: dropped) and the segments; see `panoptic` for what `facts` hold."""
    id_of_query: list[int] = []
    segments: list[dict[str, Any]] = []
    stuff_segments: dict[int, dict[str, Any]] = {}
    for label, score, won_area, mask_area in facts:
        if won_area == 0 or mask_area == 0 or won_area / mask_area < overlap_threshold:
            id_of_query.append(0)
            continue
        category_id, area = int(label), int(won_area)
        segment = stuff_segments.get(category_id)
        if segment is not None:
            segment["score"] = max(segment["score"], score)
            segment["area"] += area
        else:
            isthing = category_id in thing_ids
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


def _binary_masks(mask_logits: Tensor, sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Return (N, H, W) bool masks and the mean probability (N,) inside each, 0 for an empty one."""
    masks = torch.empty((len(mask_logits), *sizes.output), dtype=torch.bool, device=mask_logits.device)

    def cut(rows: range) -> Tensor:
        mask_probs = mask_probs_at(mask_logits, sizes, rows, resize_logits=True)
        inside = mask_probs > 0.5
        masks[:, rows.start : rows.stop] = inside
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
