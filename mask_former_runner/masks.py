"""Logits on the mask grid to results at the size of the picture, tile by tile.

A map of every query or class at that size never exists. Bounds of the masks in a tile say which queries or
classes can win there; only those are resized.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray
# Cells of the mask grid along each side of a tile, about.
TILE = 12
# What rounding may change a score by; differences below it decide nothing that another order would not.
ROUNDING = 1e-5
# What queries that are not resized may change a score by altogether.
NEGLIGIBLE = 1e-6


class Sizes(NamedTuple):
    """Height and width of what the network saw (`padded`), of the picture in it, and of the result."""

    padded: tuple[int, int]
    image: tuple[int, int]
    output: tuple[int, int]


class _Axis:
    """How pixels of the output are made of cells along one axis: bilinear to `padded`, crop, then to `output`."""

    def __init__(self, cells: int, padded: int, image: int, output: int) -> None:
        self.is_resized = image != output
        self.first, self.second, self.weight = _neighbours(image, output, output)
        self.cell_first, self.cell_second, weight = _neighbours(cells, padded, image)
        self.of_image = np.zeros((image, cells), np.float32)
        np.add.at(self.of_image, (np.arange(image), self.cell_first), 1 - weight)
        np.add.at(self.of_image, (np.arange(image), self.cell_second), weight)
        edge = max(1, round(TILE * padded / cells * output / image))
        self.spans = [(start, min(start + edge, output)) for start in range(0, output, edge)]

    def part(self, span: tuple[int, int]) -> "_Part":
        """Return what the pixels of a span are made of."""
        pixels = slice(*span)
        start, stop = int(self.first[pixels].min()), int(self.second[pixels].max()) + 1
        cells = slice(int(self.cell_first[start:stop].min()), int(self.cell_second[start:stop].max()) + 1)
        of_image = self.of_image[start:stop, cells]
        if not self.is_resized:
            return _Part(pixels, cells, of_image, None)
        of_output = np.zeros((span[1] - span[0], stop - start), np.float32)
        rows, weight = np.arange(len(of_output)), self.weight[pixels]
        np.add.at(of_output, (rows, self.first[pixels] - start), 1 - weight)
        np.add.at(of_output, (rows, self.second[pixels] - start), weight)
        return _Part(pixels, cells, of_image, of_output)


class _Part(NamedTuple):
    """Pixels and cells of a tile along one axis, and the weights: image x cells, output x image."""

    pixels: slice
    cells: slice
    of_image: Array
    of_output: Array | None


class _Tile(NamedTuple):
    """A rectangle of the output."""

    rows: _Part
    columns: _Part

    @property
    def place(self) -> tuple[slice, slice]:
        """Where it lies in the output."""
        return self.rows.pixels, self.columns.pixels

    def cells(self, maps: Array) -> Array:
        """Return the cells (N, a, b) of maps (N, h, w) that it is made of."""
        return maps[:, self.rows.cells, self.columns.cells]

    def values(self, maps: Array, between: Callable[[Array], Array] | None = None) -> Array:
        """Return maps (N, h, w) at its pixels, (N, H', W'); `between` acts on values of the image."""
        values = self.rows.of_image @ (self.cells(maps) @ self.columns.of_image.T)
        values = between(values) if between else values
        if self.columns.of_output is not None:
            values = values @ self.columns.of_output.T
        return values if self.rows.of_output is None else self.rows.of_output @ values


def _neighbours(source: int, length: int, count: int) -> tuple[Array, Array, Array]:
    """Return, for the first `count` of `length` entries, the two source entries and the second one's weight."""
    position = (np.arange(count, dtype=np.float32) + np.float32(0.5)) * np.float32(source / length)
    position = np.maximum(position - np.float32(0.5), 0)
    if source == length:
        position = np.arange(count, dtype=np.float32)
    first = np.minimum(position.astype(np.int64), source - 1)
    second = np.minimum(first + (source != length), source - 1)
    return first, second, np.minimum(position - first, np.float32(1))


def _tiles(maps: Array, sizes: Sizes) -> list[_Tile]:
    rows, columns = (_Axis(maps.shape[1 + axis], *(size[axis] for size in sizes)) for axis in (0, 1))
    parts = [[axis.part(span) for span in axis.spans] for axis in (rows, columns)]
    return [_Tile(row, column) for row in parts[0] for column in parts[1]]


def _bounds(maps: Array, tiles: list[_Tile]) -> tuple[Array, Array]:
    """Return the lowest and the highest value of maps (N, h, w) in each of T tiles, (N, T)."""
    cells = [tile.cells(maps) for tile in tiles]
    return np.stack([part.min((1, 2)) for part in cells], 1), np.stack([part.max((1, 2)) for part in cells], 1)


def _each(work: Callable[[int], Any], count: int) -> None:
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


def semantic_labels(class_logits: Array, mask_logits: Array, sizes: Sizes, resize_logits: bool) -> Array:
    """Return at each pixel the class (H, W) with the highest sum of class times mask probability.

    Args:
        class_logits: (Q, K+1), the last being "no object".
        mask_logits: (Q, h, w).
        sizes: see `Sizes`.
        resize_logits: bring mask logits, not probabilities, from the image's to the output's size.
    """
    class_probs = softmax(class_logits)[:, :-1]
    tiles = _tiles(mask_logits, sizes)
    low, high = map(sigmoid, _bounds(mask_logits, tiles))
    middle, half = (low + high) / 2, (high - low) / 2
    scores = class_probs.T @ middle
    best = scores.argmax(0)
    competes = np.empty(scores.shape, bool)
    for favourite in np.unique(best):
        there = best == favourite
        reach = np.abs(class_probs - class_probs[:, [favourite]]).T @ half[:, there]
        competes[:, there] = scores[:, there] + reach >= scores[favourite, there] - ROUNDING
    labels = np.empty(sizes.output, np.int64)

    def label(number: int) -> None:
        classes = competes[:, number].nonzero()[0]
        if len(classes) == 1:
            labels[tiles[number].place] = classes[0]
            return
        weights = class_probs[:, classes]
        doubt = (weights.max(1) - weights.min(1)) * half[:, number]
        order = doubt.argsort()
        matters = np.sort(order[doubt[order].cumsum() > NEGLIGIBLE])
        fixed = weights.T @ np.where(np.isin(np.arange(len(doubt)), matters), 0, middle[:, number])
        maps = mask_logits[matters]
        if resize_logits:
            masks = sigmoid(tiles[number].values(maps))
        else:
            masks = tiles[number].values(maps, sigmoid)
        scores = weights[matters].T @ masks.reshape(len(matters), -1) + fixed[:, None]
        labels[tiles[number].place] = classes[scores.argmax(0)].reshape(masks.shape[1:])

    _each(label, len(tiles))
    return labels


def highest(maps: Array, sizes: Sizes) -> Array:
    """Return which of maps (N, h, w) is highest at each pixel (H, W) of the output, the first in a tie."""
    return _winners(maps, sizes, lambda values: values)[0]


def _winners(maps: Array, sizes: Sizes, score: Callable[[Array], Array]) -> tuple[Array, Array]:
    """Return the map (H, W) that scores highest at each pixel, and in how many pixels each is not negative.

    Args:
        maps: (N, h, w).
        sizes: see `Sizes`.
        score: values (N, ...) to scores; for each map monotonous.
    """
    tiles = _tiles(maps, sizes)
    low, high = _bounds(maps, tiles)
    competes = score(high) >= score(low).max(0) - ROUNDING
    is_cut = (low < 0) & (high >= 0)
    winner = np.empty(sizes.output, np.int64)
    areas = np.zeros((len(maps), len(tiles)), np.int64)

    def assign(number: int) -> None:
        tile = tiles[number]
        pixels = winner[tile.place]
        areas[low[:, number] >= 0, number] = pixels.size
        rivals = competes[:, number]
        if rivals.sum() == 1:
            pixels[:] = rivals.argmax()
        for_areas = is_cut[:, number]
        resized = (for_areas | (rivals if rivals.sum() > 1 else False)).nonzero()[0]
        if len(resized) == 0:
            return
        values = tile.values(maps[resized])
        areas[resized[for_areas[resized]], number] = (values[for_areas[resized]] >= 0).sum((1, 2))
        if rivals.sum() > 1:
            scores = np.full((len(maps), 1, 1), -np.inf, np.float32) + np.zeros(pixels.shape, np.float32)
            scores[resized] = values
            chosen = rivals.nonzero()[0]
            pixels[:] = chosen[score(scores)[chosen].argmax(0)]

    _each(assign, len(tiles))
    return winner, areas.sum(1)


def panoptic(
    class_logits: Array,
    mask_logits: Array,
    sizes: Sizes,
    *,
    things: frozenset[int],
    object_mask_threshold: float,
    overlap_threshold: float,
) -> tuple[Array, list[dict[str, Any]]]:
    """Return the map (H, W) int32 of segment ids, 0 for void, and `id`, `category_id`, `score` of each."""
    probs = softmax(class_logits)
    labels, scores = probs.argmax(1), probs.max(1)
    queries = ((labels != probs.shape[1] - 1) & (scores > object_mask_threshold)).nonzero()[0]
    if len(queries) == 0:
        return np.zeros(sizes.output, np.int32), []
    labels, scores = labels[queries], scores[queries]
    winner, mask_areas = _winners(mask_logits[queries], sizes, lambda values: (sigmoid(values).T * scores).T)
    won_areas = np.bincount(winner.ravel(), minlength=len(queries))
    id_of_query = np.zeros(len(queries), np.int32)
    segments: list[dict[str, Any]] = []
    stuff: dict[int, dict[str, Any]] = {}
    for query, (label, score) in enumerate(zip(labels.tolist(), scores.tolist(), strict=True)):
        if 0 in (won_areas[query], mask_areas[query]):
            continue
        if won_areas[query] / mask_areas[query] < overlap_threshold:
            continue
        segment = stuff.get(label)
        if segment is None:
            segment = {"id": len(segments) + 1, "category_id": label, "score": score}
            segments.append(segment)
            if label not in things:
                stuff[label] = segment
        segment["score"] = max(segment["score"], score)
        id_of_query[query] = segment["id"]
    return id_of_query[winner], segments


def instances(
    class_logits: Array, mask_logits: Array, sizes: Sizes, *, classes: list[int], top_k: int
) -> Iterator[tuple[Array, int, float]]:
    """Yield mask (H, W) bool, class and score of the `top_k` likeliest pairs of query and class."""
    probs = softmax(class_logits)[:, classes]
    pairs = np.argsort(-probs.ravel(), kind="stable")[:top_k]
    rows, columns = (_Axis(mask_logits.shape[1 + axis], *(size[axis] for size in sizes)) for axis in (0, 1))
    whole = _Tile(rows.part((0, sizes.output[0])), columns.part((0, sizes.output[1])))
    masks: dict[int, tuple[Array, float]] = {}
    for query, column in zip(pairs // max(len(classes), 1), pairs % max(len(classes), 1), strict=True):
        if query not in masks:
            values = whole.values(mask_logits[query : query + 1])[0]
            mask = values > 0
            masks[query] = mask, float(sigmoid(values[mask]).mean()) if mask.any() else 0.0
        mask, mean = masks[query]
        yield mask, classes[column], float(probs[query, column]) * mean
