"""Logits on the mask grid to results at the size of the picture, tile by tile.

A map of every query or class at that size never exists: bounds of the masks in a tile tell which queries or
classes can win there, and only those are resized.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray
# Cells of the mask grid along each side of a tile, about.
TILE = 12
# Differences of scores below it are rounding.
ROUNDING = 1e-5
# What masks that are not resized may change a score by, all together.
NEGLIGIBLE = 1e-6


# Height and width of what the network saw ("padded"), of the image in it, and of the output.
Sizes = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


class _Part(NamedTuple):
    """Pixels of a tile along one axis, their cells, and weights: image x cells, output x image."""

    pixels: slice
    cells: slice
    of_image: Array
    of_output: Array


# Parts of the rows and of the columns.
_Tile = tuple[_Part, _Part]


def _weights(source: int, length: int, count: int) -> Array:
    """Return the weights (count, source) of bilinear resizing to `length`, for its first entries."""
    position = (np.arange(count, dtype=np.float32) + np.float32(0.5)) * np.float32(source / length)
    position = np.maximum(position - np.float32(0.5), 0)
    first = np.minimum(position.astype(np.int64), source - 1)
    weight = np.minimum(position - first, np.float32(1)) * (source != length)
    weights = np.zeros((count, source), np.float32)
    np.add.at(weights, (np.arange(count), first), 1 - weight)
    np.add.at(weights, (np.arange(count), np.minimum(first + 1, source - 1)), weight)
    return weights


def _tiles(maps: Array, sizes: Sizes, edge: int | None = TILE) -> list[_Tile]:
    """Return tiles of `edge` cells; None: one tile."""
    axes: list[list[_Part]] = []
    for cells, padded, image, output in zip(maps.shape[1:], *sizes, strict=True):
        of_image, of_output = _weights(cells, padded, image), _weights(image, output, output)
        step = max(1, round(edge * padded / cells * output / image)) if edge else output
        axes.append([])
        for start in range(0, output, step):
            between = of_output[start : start + step].any(0).nonzero()[0]
            between = slice(between[0], between[-1] + 1)
            own = of_image[between].any(0).nonzero()[0]
            own = slice(own[0], own[-1] + 1)
            pixels = slice(start, min(start + step, output))
            axes[-1].append(_Part(pixels, own, of_image[between, own], of_output[pixels, between]))
    return [(rows, columns) for rows in axes[0] for columns in axes[1]]


def _cells(maps: Array, tile: _Tile) -> Array:
    return maps[:, tile[0].cells, tile[1].cells]


def _resized(maps: Array, tile: _Tile, on_image: Callable[[Array], Array] | None = None) -> Array:
    """Return maps (N, h, w) at the pixels of a tile; `on_image` is applied before the second resizing."""
    rows, columns = tile
    if on_image is None:
        across = _cells(maps, tile) @ (columns.of_output @ columns.of_image).T
        return (rows.of_output @ rows.of_image) @ across
    image = on_image(rows.of_image @ (_cells(maps, tile) @ columns.of_image.T))
    return rows.of_output @ (image @ columns.of_output.T)


def _bounds(maps: Array, tiles: list[_Tile]) -> tuple[Array, Array]:
    """Return the lowest and the highest value of each map in each tile, (N, T)."""
    cells = [_cells(maps, tile) for tile in tiles]
    return np.stack([c.min((1, 2)) for c in cells], 1), np.stack([c.max((1, 2)) for c in cells], 1)


def sigmoid(values: Array) -> Array:
    """Return 1 / (1 + exp(-values))."""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-values))


def softmax(logits: Array) -> Array:
    """Return the softmax over the last axis."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def highest_sums(
    weights: Array,
    maps: Array,
    sizes: Sizes,
    act: Callable[[Array], Array] = sigmoid,
    *,
    act_first: bool = False,
    threshold: float = 0.5,
) -> tuple[Array, Array]:
    """Return at each pixel (H, W) the k of the highest sum over n of weights[n, k] * act(maps[n]), and areas.

    Args:
        weights: (N, K), not negative.
        maps: (N, h, w).
        sizes: see `Sizes`.
        act: grows with its argument.
        act_first: apply it before resizing from the image's to the output's size.
        threshold: the area (N,) of a map is the number of pixels where act(map) is not below it.
    """
    tiles, act_first = _tiles(maps, sizes), act_first and sizes[1] != sizes[2]
    low, high = map(act, _bounds(maps, tiles))
    middle, half = (low + high) / 2, (high - low) / 2
    scores = weights.T @ middle
    favourites, competes = scores.argmax(0), np.empty(scores.shape, bool)
    for favourite in np.unique(favourites):
        there = favourites == favourite
        reach = np.abs(weights - weights[:, [favourite]]).T @ half[:, there]
        competes[:, there] = scores[:, there] + reach >= scores[favourite, there] - ROUNDING
    winner, areas = np.empty(sizes[2], np.int64), np.zeros(low.shape, np.int64)

    def compete(number: int) -> None:
        pixels = winner[tiles[number][0].pixels, tiles[number][1].pixels]
        rivals = competes[:, number].nonzero()[0]
        doubt = (weights[:, rivals].max(1) - weights[:, rivals].min(1)) * half[:, number]
        order = doubt.argsort()
        chosen = (low[:, number] < threshold) & (high[:, number] >= threshold)
        chosen[order[doubt[order].cumsum() > NEGLIGIBLE]] |= len(rivals) > 1
        areas[low[:, number] >= threshold, number] = pixels.size
        values = _resized(maps[chosen], tiles[number], act if act_first else None)
        values = values if act_first else act(values)
        areas[chosen, number] = (values >= threshold).sum((1, 2))
        rest = weights[~chosen][:, rivals].T @ middle[~chosen, number]
        sums = np.tensordot(weights[chosen][:, rivals].T, values, 1) + rest[:, None, None]
        pixels[:] = rivals[sums.argmax(0)]

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compete, range(len(tiles))))
    return winner, areas.sum(1)


def semantic_labels(class_logits: Array, maps: Array, sizes: Sizes, resize_logits: bool) -> Array:
    """Return at each pixel (H, W) the class with the highest sum of class times mask probability.

    Args:
        class_logits: (Q, K+1), the last being "no object"; for K = 1, 1 stands for a sum below one half.
        maps: mask logits (Q, h, w).
        sizes: see `Sizes`.
        resize_logits: bring mask logits, not probabilities, from the image's to the output's size.
    """
    probs = softmax(class_logits)[:, :-1]
    if probs.shape[1] == 1:
        # A second class that scores one half everywhere.
        probs = np.concatenate([np.pad(probs, ((0, 0), (0, 1))), np.array([[0, 0.5]], np.float32)])
        maps = np.concatenate([maps, np.full_like(maps[:1], 99)])
    return highest_sums(probs, maps, sizes, act_first=not resize_logits, threshold=2)[0]


def panoptic(
    class_logits: Array, maps: Array, sizes: Sizes, rules: dict[str, Any], kept: frozenset[int] | None
) -> tuple[Array, list[dict[str, Any]]]:
    """Return the map (H, W) int32 of segment ids, 0 for void, and `id`, `category_id`, `score` of each."""
    probs = softmax(class_logits)
    labels, scores = probs.argmax(1), probs.max(1)
    queries = ((labels < probs.shape[1] - 1) & (scores > rules["object_mask_threshold"])).nonzero()[0]
    if len(queries) == 0:
        return np.zeros(sizes[2], np.int32), []
    labels, scores = labels[queries], scores[queries]
    winner, areas = highest_sums(np.diag(scores), maps[queries], sizes, threshold=rules["mask_threshold"])
    won = np.bincount(winner.ravel(), minlength=len(queries))
    id_of_query = np.zeros(len(queries), np.int32)
    segments: dict[Any, dict[str, Any]] = {}
    for query, (label, score) in enumerate(zip(labels.tolist(), scores.tolist(), strict=True)):
        if won[query] and areas[query] and won[query] / areas[query] >= rules["overlap_threshold"]:
            # Things stay apart, the parts of a stuff class become one.
            key = (label, query) if label in (rules["thing_ids"] or ()) else label
            segment = {"id": len(segments) + 1, "category_id": label, "score": score}
            segment = segments.setdefault(key, segment)
            segment["score"] = max(segment["score"], score)
            id_of_query[query] = segment["id"] if kept is None or label in kept else 0
    infos = [info for info in segments.values() if kept is None or info["category_id"] in kept]
    return id_of_query[winner], infos


def instances(
    class_logits: Array, maps: Array, sizes: Sizes, rules: dict[str, Any], classes: list[int]
) -> Iterator[tuple[Array, int, float]]:
    """Yield mask (H, W) bool, class and score of the `top_k` likeliest pairs of query and class."""
    probs = softmax(class_logits)[:, classes]
    (whole,) = _tiles(maps, sizes, None)
    of_query: dict[int, tuple[Array, float]] = {}
    for pair in np.argsort(-probs.ravel(), kind="stable")[: rules["top_k"]].tolist():
        query, column = divmod(pair, len(classes))
        if query not in of_query:
            mask_probs = sigmoid(_resized(maps[[query]], whole)[0])
            inside = mask_probs[mask_probs > 0.5]
            of_query[query] = (
                mask_probs > rules["mask_threshold"],
                float(inside.mean()) if inside.size else 0.0,
            )
        mask, mean = of_query[query]
        if mean > 0 and mask.any():
            yield mask, classes[column], float(probs[query, column]) * mean
