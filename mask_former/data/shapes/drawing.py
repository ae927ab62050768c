"""Pictures of simple shapes on textured ground, with exact labels: numpy and OpenCV, no download.

The form decides the class; the hue is drawn around the colour in the class table, and the hues of
neighbouring classes overlap. A pixel has the label of what covers most of it.
"""

import colorsys
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mask_former.data.shapes.ground import Map, paint_ground
from mask_former.formats import load_classes

VOID = 0  # segment id of pixels without a label

HUE_SPREAD = 0.055  # standard deviation of a class's hue, in turns; classes are about 1/6 apart
RADIUS = (10.0, 26.0)  # of things, in pixels of a picture whose shorter side is 96
LEAST_VISIBLE = 0.5  # share of a thing that stays visible
SUBPIXELS = 4  # a side, for anti-aliasing


class Scene(NamedTuple):
    """One picture and its labels.

    image: (H, W, 3) uint8, RGB.
    segments: (H, W) int32; 0 is void, n > 0 is the n-th entry of `classes`.
    classes: contiguous class of each segment; several stuff pixels of one class are one segment.
    """

    image: NDArray[np.uint8]
    segments: NDArray[np.int32]
    classes: list[int]


class Thing(NamedTuple):
    """Parameters of one shape: sizes in pixels, angle in radians, colour in 0..255."""

    class_index: int
    x: float
    y: float
    radius: float
    angle: float
    stretch: float  # height over width before rotation
    color: tuple[float, float, float]
    light: float  # direction that the light comes from, in radians
    has_void_outline: bool = False


@functools.cache
def shape_classes() -> tuple[dict, ...]:
    """Return the classes in contiguous order, things first: dicts of name, color, id, isthing."""
    return tuple(load_classes("shapes"))


def thing_count() -> int:
    """Return the number of thing classes; they are the contiguous classes below it."""
    return sum(entry["isthing"] for entry in shape_classes())


def draw_scene(rng: np.random.Generator, height: int, width: int) -> Scene:
    """Return a random picture of height x width pixels: 1 to 4 kinds of ground, 0 to 6 things, some void."""
    canvas = new_canvas(rng, height, width, parts=int(rng.choice(4, p=[0.12, 0.38, 0.35, 0.15])) + 1)
    previous = None
    for _ in range(rng.choice(7, p=[0.08, 0.17, 0.24, 0.22, 0.15, 0.09, 0.05])):
        for _attempt in range(10):
            thing = sample_thing(rng, height, width, neighbour=previous)
            if canvas.add(thing):
                previous = thing
                break
    if rng.random() < 0.15:
        canvas.add_void_spot(rng)
    return canvas.finish(rng)


def sample_thing(
    rng: np.random.Generator,
    height: int,
    width: int,
    neighbour: Thing | None = None,
    class_index: int | None = None,
) -> Thing:
    """Return a random shape, of a random class unless one is given.

    With probability 0.3 it has the class of `neighbour` instead, and touches or overlaps it.
    """
    scale = min(height, width) / 96
    radius = float(np.exp(rng.uniform(*np.log(RADIUS)))) * scale
    if class_index is None:
        class_index = int(rng.integers(thing_count()))
    x, y = rng.uniform(0.02, 0.98) * width, rng.uniform(0.02, 0.98) * height
    if neighbour is not None and rng.random() < 0.3:
        class_index = neighbour.class_index
        direction = rng.uniform(0, 2 * np.pi)
        distance = (radius + neighbour.radius) * rng.uniform(0.7, 1.0)
        x, y = neighbour.x + distance * np.cos(direction), neighbour.y + distance * np.sin(direction)
    return Thing(
        class_index,
        float(x),
        float(y),
        radius,
        angle=float(rng.uniform(0, 2 * np.pi)),
        stretch=float(rng.uniform(0.82, 1.0)),
        color=_sample_color(rng, class_index),
        light=float(rng.uniform(0, 2 * np.pi)),
        has_void_outline=bool(rng.random() < 0.1),
    )


def _sample_color(rng: np.random.Generator, class_index: int) -> tuple[float, float, float]:
    red, green, blue = (channel / 255 for channel in shape_classes()[class_index]["color"])
    hue = colorsys.rgb_to_hsv(red, green, blue)[0] + rng.normal(0, HUE_SPREAD)
    shade = colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.55, 0.95), rng.uniform(0.6, 1.0))
    return shade[0] * 255, shade[1] * 255, shade[2] * 255


@dataclass
class Canvas:
    """A picture being drawn: colours, the segment of each pixel, the class of each segment."""

    picture: Map  # (H, W, 3) in 0..255
    segments: NDArray[np.int32]  # (H, W)
    classes: list[int]
    # Pixels that each segment must keep: a share of what it would show alone. 0 for stuff.
    least_areas: list[float] = field(default_factory=list)

    def add(self, thing: Thing, always: bool = False) -> bool:
        """Paint a shape unless it or one below it would be hidden too far; return whether it was painted."""
        place = cover(thing, *self.segments.shape)
        if place is None:
            return False
        window, covered, whole_area = place
        label = covered >= 0.5
        taken = cv2.dilate(label.view(np.uint8), np.ones((3, 3), np.uint8)) > 0
        hidden = taken if thing.has_void_outline else label
        if not always and (label.sum() < LEAST_VISIBLE * whole_area or not self._may_hide(window, hidden)):
            return False
        picture, segments = self.picture[window], self.segments[window]
        if thing.has_void_outline:
            segments[taken & ~label] = VOID
            picture[taken] = picture[taken] * np.float32(0.3) + np.float32(18)
        picture += covered[..., None] * (_shaded(thing, covered, window) - picture)
        self.classes.append(thing.class_index)
        self.least_areas.append(LEAST_VISIBLE * whole_area)
        segments[label] = len(self.classes)
        return True

    def add_void_spot(self, rng: np.random.Generator) -> None:
        """Paint a small grey spot without a label, unless it would hide a segment too far."""
        height, width = self.segments.shape
        scale = min(height, width) / 96
        x, y = rng.uniform(0.1, 0.9, 2) * (width, height)
        spot = Thing(0, float(x), float(y), float(rng.uniform(3, 6)) * scale, 0.0, 0.8, (128.0,) * 3, 0.0)
        place = cover(spot, height, width)
        if place is None or not self._may_hide(place[0], place[1] >= 0.5):
            return
        window, covered, _ = place
        grey = 118 + 26 * rng.standard_normal(covered.shape, dtype=np.float32)
        self.picture[window] += covered[..., None] * (grey[..., None] - self.picture[window])
        self.segments[window][covered >= 0.5] = VOID

    def finish(self, rng: np.random.Generator) -> Scene:
        """Return the scene with noise and exposure of a camera; segments without pixels are left out."""
        exposure = np.float32(rng.uniform(0.86, 1.12))
        noise = rng.standard_normal(self.picture.shape, dtype=np.float32) * np.float32(2.5)
        image = np.clip(self.picture * exposure + noise, 0, 255).astype(np.uint8)
        areas = np.bincount(self.segments.ravel(), minlength=len(self.classes) + 1)
        kept = [number for number in range(1, len(areas)) if areas[number]]
        new_number = np.zeros(len(areas), np.int32)
        new_number[kept] = np.arange(1, len(kept) + 1)
        return Scene(image, new_number[self.segments], [self.classes[number - 1] for number in kept])

    def _may_hide(self, window: tuple[slice, slice], hidden: NDArray[np.bool_]) -> bool:
        """Return whether each segment keeps enough pixels when those of `hidden` are covered."""
        count = len(self.classes) + 1
        lost = np.bincount(self.segments[window][hidden], minlength=count)[1:]
        left = np.bincount(self.segments.ravel(), minlength=count)[1:] - lost
        return bool(((lost == 0) | (left >= self.least_areas)).all())


def new_canvas(rng: np.random.Generator, height: int, width: int, parts: int) -> Canvas:
    """Return a canvas with ground of `parts` kinds and no thing."""
    first_stuff = thing_count()
    colors = [entry["color"] for entry in shape_classes()[first_stuff:]]
    picture, part_of_pixel, kinds = paint_ground(rng, height, width, colors, parts)
    return Canvas(picture, part_of_pixel + 1, [first_stuff + kind for kind in kinds], [0.0] * parts)


def cover(
    thing: Thing, height: int, width: int
) -> tuple[tuple[slice, slice], NDArray[np.float32], float] | None:
    """Return where a shape lies in a picture of height x width pixels; None if it lies outside.

    Returns:
        The window (rows, columns) around it, two pixels larger; the covered share of its pixels, 0..1; and
        the area in pixels that the whole shape has, cut off or not.
    """
    cos, sin = np.cos(thing.angle), np.sin(thing.angle)
    turn = np.array([[cos, sin], [-sin * thing.stretch, cos * thing.stretch]]) * thing.radius
    outlines = [outline @ turn + (thing.x, thing.y) for outline in OUTLINES[thing.class_index]()]
    low = np.floor(outlines[0].min(0)).astype(int) - 2
    high = np.ceil(outlines[0].max(0)).astype(int) + 2
    left, top = np.maximum(low, 0)
    right, bottom = np.minimum(high, (width, height))
    if left >= right or top >= bottom:
        return None
    # OpenCV puts integer coordinates on pixel centres and reads 4 fractional bits.
    points = [np.round(((o - (left, top)) * SUBPIXELS - 0.5) * 16).astype(np.int32) for o in outlines]
    rows, columns = int(bottom - top), int(right - left)
    fine = np.zeros((rows * SUBPIXELS, columns * SUBPIXELS), np.float32)
    cv2.fillPoly(fine, points, 1.0, shift=4)
    covered = fine.reshape(rows, SUBPIXELS, columns, SUBPIXELS).mean(axis=(1, 3))
    area = _polygon_area(outlines[0]) - sum(_polygon_area(hole) for hole in outlines[1:])
    return (slice(top, bottom), slice(left, right)), covered, area


def _shaded(thing: Thing, covered: NDArray[np.float32], window: tuple[slice, slice]) -> Map:
    """Return the colour of each pixel of the window: lit from one side, with a dark rim."""
    y, x = np.ogrid[window]
    towards_light = (x - thing.x) * np.cos(thing.light) + (y - thing.y) * np.sin(thing.light)
    light = 1 + 0.16 / thing.radius * towards_light.astype(np.float32)
    rim = np.clip(1.9 * cv2.blur(covered, (3, 3), borderType=cv2.BORDER_REPLICATE) - 0.9, 0.45, 1)
    return np.clip((light * rim)[..., None] * np.array(thing.color, np.float32), 0, 255)


def _polygon_area(points: NDArray[np.float64]) -> float:
    x, y = points.T
    return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2


def _around(radii: list[float], turn: float = 0.0) -> NDArray[np.float64]:
    """Points at these distances from the centre, at equal angles."""
    angles = 2 * np.pi * (np.arange(len(radii)) / len(radii)) + turn
    return np.asarray(radii)[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)


def _cross() -> NDArray[np.float64]:
    arm, end = 0.34, 1.02
    corner = np.array([[arm, -end], [arm, -arm], [end, -arm]])
    quarter = np.array([[0.0, 1.0], [-1.0, 0.0]])
    return np.concatenate([corner @ np.linalg.matrix_power(quarter, k) for k in (0, 1, 2, 3)])


# Outlines of radius about 1, in the order of the things in classes/shapes.json; a second one is a hole.
OUTLINES: list[Callable[[], list[NDArray[np.float64]]]] = [
    lambda: [_around([0.92] * 48)],
    lambda: [_around([1.12] * 4, np.pi / 4)],
    lambda: [_around([1.2] * 3)],
    lambda: [_around([1.18, 0.5] * 5)],
    lambda: [_around([1.0] * 48), _around([0.5] * 32)],
    lambda: [_cross()],
]
