"""Logits on the mask grid to results at the size of the picture, tile by tile.

A map of every query or class at that size never exists: bounds of the masks in a tile tell which queries or
classes can win there, and only those are resized.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray
# Cells of the mask grid along each side of a tile, about.
TILE = 12
# Differences of scores below it are rounding.
ROUNDING = 1e-5
# What masks that are not resized may change a score by, all together.
NEGLIGIBLE = 1e-6


class Sizes(NamedTuple):
    """Height and width of what the network saw (`padded`), of the picture in it, and of the result."""

    padded: tuple[int, int]
    image: tuple[int, int]
    output: tuple[int, int]


class _Part(NamedTuple):
    """Pixels of a tile along one axis, their cells, and weights: image x cells, output x image."""

    pixels: slice
    cells: slice
    of_image: Array
    of_output: Array


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


def _support(weights: Array) -> slice:
    columns = weights.any(0).nonzero()[0]
    return slice(columns[0], columns[-1] + 1)


def _parts(cells: int, padded: int, image: int, output: int, edge: int | None) -> list[_Part]:
    """Return the parts of one axis, `edge` cells each; None: one part."""
    of_image, of_output = _weights(cells, padded, image), _weights(image, output, output)
    step = max(1, round(edge * padded / cells * output / image)) if edge else output
    parts = []
    for start in range(0, output, step):
        pixels = slice(start, min(start + step, output))
        between = _support(of_output[pixels])
        own = _support(of_image[between])
        parts.append(_Part(pixels, own, of_image[between, own], of_output[pixels, between]))
    return parts


class _Tile(NamedTuple):
    """A rectangle of the output."""

    rows: _Part
    columns: _Part

    @property
    def place(self) -> tuple[slice, slice]:
        return self.rows.pixels, self.columns.pixels

    def cells(self, maps: Array) -> Array:
        """Return the cells (N, a, b) of maps (N, h, w) that the tile is made of."""
        return maps[:, self.rows.cells, self.columns.cells]

    def values(self, maps: Array, on_image: Callable[[Array], Array] | None = None) -> Array:
        """Return maps (N, h, w) at the pixels (N, r, c); `on_image` is applied before the second resizing."""
        rows, columns = self
        if on_image is None:
            return (rows.of_output @ rows.of_image) @ (
                self.cells(maps) @ (columns.of_output @ columns.of_image).T
            )
        image = on_image(rows.of_image @ (self.cells(maps) @ columns.of_image.T))
        return rows.of_output @ (image @ columns.of_output.T)


def _tiles(maps: Array, sizes: Sizes, edge: int | None = TILE) -> list[_Tile]:
    rows, columns = (_parts(maps.shape[1 + axis], *(s[axis] for s in sizes), edge) for axis in (0, 1))
    return [_Tile(row, column) for row in rows for column in columns]


def _bounds(maps: Array, tiles: list[_Tile]) -> tuple[Array, Array]:
    """Return the lowest and the highest value of each map in each tile, (N, T)."""
    cells = [tile.cells(maps) for tile in tiles]
    return np.stack([c.min((1, 2)) for c in cells], 1), np.stack([c.max((1, 2)) for c in cells], 1)


def _for_each(work: Callable[[int], None], count: int) -> None:
    with ThreadPoolExecutor(min(4, cpu_count() or 1)) as pool:
        list(pool.map(work, range(count)))


def sigmoid(values: Array) -> Array:
    """Return 1 / (1 + exp(-values))."""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-values))


def softmax(logits: Array) -> Array:
    """Return the softmax over the last axis."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


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
        probs = np.concatenate([np.pad(probs, ((0, 0), (0, 1))), np.float32([[0, 0.5]])])
        maps = np.concatenate([maps, np.full_like(maps[:1], 99)])
    tiles = _tiles(maps, sizes)
    low, high = map(sigmoid, _bounds(maps, tiles))
    middle, half = (low + high) / 2, (high - low) / 2
    scores = probs.T @ middle
    favourites = scores.argmax(0)
    competes = np.empty(scores.shape, bool)
    for favourite in np.unique(favourites):
        there = favourites == favourite
        reach = np.abs(probs - probs[:, [favourite]]).T @ half[:, there]
        competes[:, there] = scores[:, there] + reach >= scores[favourite, there] - ROUNDING
    labels = np.empty(sizes.output, np.int64)

    def label(number: int) -> None:
        classes = competes[:, number].nonzero()[0]
        if len(classes) == 1:
            labels[tiles[number].place] = classes[0]
            return
        weights = probs[:, classes]
        doubt = (weights.max(1) - weights.min(1)) * half[:, number]
        order = doubt.argsort()
        resized = np.zeros(len(doubt), bool)
        resized[order[doubt[order].cumsum() > NEGLIGIBLE]] = True
        rest = weights[~resized].T @ middle[~resized, number]
        if resize_logits or sizes.image == sizes.output:
            masks = sigmoid(tiles[number].values(maps[resized]))
        else:
            masks = tiles[number].values(maps[resized], sigmoid)
        scores = weights[resized].T @ masks.reshape(len(masks), -1) + rest[:, None]
        labels[tiles[number].place] = classes[scores.argmax(0)].reshape(masks.shape[1:])

    _for_each(label, len(tiles))
    return labels


def winners(
    maps: Array, sizes: Sizes, score: Callable[[Array, Array], Array], threshold: float = 0.0
) -> tuple[Array, Array]:
    """Return the map (H, W) with the highest score at each pixel, the first in a tie, and the areas (N,).

    Args:
        maps: (N, h, w).
        sizes: see `Sizes`.
        score: values (n, ...) of some maps, and their indices (n,), to scores that grow with the values.
        threshold: the area of a map counts the pixels whose value is not below it.
    """
    tiles, every = _tiles(maps, sizes), np.arange(len(maps))
    low, high = _bounds(maps, tiles)
    competes = score(high, every) >= score(low, every).max(0) - ROUNDING
    cut = (low < threshold) & (high >= threshold)
    winner = np.empty(sizes.output, np.int64)
    areas = np.zeros(low.shape, np.int64)

    def assign(number: int) -> None:
        pixels = winner[tiles[number].place]
        rivals = competes[:, number]
        areas[low[:, number] >= threshold, number] = pixels.size
        resized = (cut[:, number] | rivals).nonzero()[0]
        if len(resized) == 1 and not cut[resized, number].any():
            pixels[:] = resized[0]
            return
        values = tiles[number].values(maps[resized])
        is_cut, is_rival = cut[resized, number], rivals[resized]
        areas[resized[is_cut], number] = (values[is_cut] >= threshold).sum((1, 2))
        pixels[:] = resized[is_rival][score(values[is_rival], resized[is_rival]).argmax(0)]

    _for_each(assign, len(tiles))
    return winner, areas.sum(1)


def panoptic(
    class_logits: Array, maps: Array, sizes: Sizes, rules: dict[str, Any], kept: frozenset[int] | None
) -> tuple[Array, list[dict[str, Any]]]:
    """Return the map (H, W) int32 of segment ids, 0 for void, and `id`, `category_id`, `score` of each."""
    probs = softmax(class_logits)
    labels, scores = probs.argmax(1), probs.max(1)
    queries = ((labels < probs.shape[1] - 1) & (scores > rules["object_mask_threshold"])).nonzero()[0]
    if len(queries) == 0:
        return np.zeros(sizes.output, np.int32), []
    labels, scores = labels[queries], scores[queries]
    threshold = float(np.log(rules["mask_threshold"] / (1 - rules["mask_threshold"])))
    winner, areas = winners(maps[queries], sizes, lambda v, n: (sigmoid(v).T * scores[n]).T, threshold)
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
            if kept is None or label in kept:
                id_of_query[query] = segment["id"]
    infos = [info for info in segments.values() if kept is None or info["category_id"] in kept]
    return id_of_query[winner], infos


def instances(
    class_logits: Array, maps: Array, sizes: Sizes, rules: dict[str, Any], classes: list[int]
) -> Iterator[tuple[Array, int, float]]:
    """Yield mask (H, W) bool, class and score of the `top_k` likeliest pairs of query and class."""
    probs = softmax(class_logits)[:, classes]
    pairs = np.argsort(-probs.ravel(), kind="stable")[: rules["top_k"]]
    (whole,) = _tiles(maps, sizes, None)
    of_query: dict[int, tuple[Array, float]] = {}
    for pair in pairs.tolist():
        query, column = divmod(pair, len(classes))
        if query not in of_query:
            mask_probs = sigmoid(whole.values(maps[query : query + 1])[0])
            inside = mask_probs > 0.5
            mean = float(mask_probs[inside].mean()) if inside.any() else 0.0
            of_query[query] = mask_probs > rules["mask_threshold"], mean
        mask, mean = of_query[query]
        if mean > 0 and mask.any():
            yield mask, classes[column], float(probs[query, column]) * mean
