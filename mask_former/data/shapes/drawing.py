"""Pictures of simple shapes on textured ground, with exact labels, by numpy and OpenCV.

The form decides the class; the hue is drawn around the colour in the class table, and the hues of
neighbouring classes overlap. A pixel has the label of what covers most of it.
"""

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mask_former.formats import load_classes

Rng = np.random.Generator
Map = NDArray[np.float32]  # (H, W), or (H, W, 3) where it holds colours in 0..255

CLASSES = load_classes("shapes")  # in contiguous order, things first: dicts of name, color, id, isthing
THING_COUNT = sum(entry["isthing"] for entry in CLASSES)
VOID = 0  # segment id of pixels without a label
HUE_SPREAD = 0.055  # standard deviation of a class's hue, in turns; classes are about 1/6 apart
RADIUS = (10.0, 26.0)  # of things, in pixels of a picture whose shorter side is 96
LEAST_VISIBLE = 0.5  # share of a thing that stays visible
SMALLEST_SHARE = 0.1  # of the picture, of each kind of ground before things cover it
SUBPIXELS = 4  # a side, for anti-aliasing


class Scene(NamedTuple):
    """One picture and its labels."""

    image: NDArray[np.uint8]  # (H, W, 3), RGB
    segments: NDArray[np.int32]  # (H, W); 0 is void, n > 0 is the n-th entry of `classes`
    classes: list[int]  # contiguous class of each segment


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


def draw_scene(rng: Rng, height: int, width: int) -> Scene:
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
    rng: Rng, height: int, width: int, neighbour: Thing | None = None, class_index: int | None = None
) -> Thing:
    """Return a random shape, of a random class unless one is given.

    With probability 0.3 it has the class of `neighbour` instead, and touches or overlaps it.
    """
    radius = float(np.exp(rng.uniform(*np.log(RADIUS)))) * (min(height, width) / 96)
    if class_index is None:
        class_index = int(rng.integers(THING_COUNT))
    x, y = rng.uniform(0.02, 0.98) * width, rng.uniform(0.02, 0.98) * height
    if neighbour is not None and rng.random() < 0.3:
        class_index = neighbour.class_index
        direction = rng.uniform(0, 2 * np.pi)
        distance = (radius + neighbour.radius) * rng.uniform(0.7, 1.0)
        x, y = neighbour.x + distance * np.cos(direction), neighbour.y + distance * np.sin(direction)
    angle, stretch = rng.uniform(0, 2 * np.pi), rng.uniform(0.82, 1.0)
    class_hue = colorsys.rgb_to_hsv(*(channel / 255 for channel in CLASSES[class_index]["color"]))[0]
    hue = (class_hue + rng.normal(0, HUE_SPREAD)) % 1
    color = colorsys.hsv_to_rgb(hue, rng.uniform(0.55, 0.95), rng.uniform(0.6, 1.0))
    red, green, blue = (channel * 255 for channel in color)
    light, has_void_outline = rng.uniform(0, 2 * np.pi), bool(rng.random() < 0.1)
    place = float(x), float(y)
    return Thing(class_index, *place, radius, angle, stretch, (red, green, blue), light, has_void_outline)


@dataclass
class Canvas:
    """A picture being drawn: colours, the segment of each pixel, the class of each segment."""

    picture: Map  # (H, W, 3) in 0..255
    segments: NDArray[np.int32]  # (H, W)
    classes: list[int]
    least_areas: list[float]  # pixels that each segment must keep; 0 for stuff

    def add(self, thing: Thing, always: bool = False) -> bool:
        """Paint a shape unless it or one below it would be hidden too far; return whether it was painted."""
        place = cover(thing, *self.segments.shape)
        if place is None:
            return False
        window, covered, whole_area = place
        label = covered >= 0.5
        outlined = cv2.dilate(label.view(np.uint8), np.ones((3, 3), np.uint8)) > 0
        hidden = outlined if thing.has_void_outline else label
        if not always and (label.sum() < LEAST_VISIBLE * whole_area or not self._may_hide(window, hidden)):
            return False
        picture, segments = self.picture[window], self.segments[window]
        if thing.has_void_outline:
            segments[outlined & ~label] = VOID
            picture[outlined] = picture[outlined] * np.float32(0.3) + np.float32(18)
        picture += covered[..., None] * (_shaded(thing, covered, window) - picture)
        self.classes.append(thing.class_index)
        self.least_areas.append(LEAST_VISIBLE * whole_area)
        segments[label] = len(self.classes)
        return True

    def add_void_spot(self, rng: Rng) -> None:
        """Paint a small grey spot without a label, unless it would hide a segment too far."""
        height, width = self.segments.shape
        x, y = rng.uniform(0.1, 0.9, 2) * (width, height)
        radius = float(rng.uniform(3, 6)) * (min(height, width) / 96)
        place = cover(Thing(0, float(x), float(y), radius, 0.0, 0.8, (128.0,) * 3, 0.0), height, width)
        if place is None or not self._may_hide(place[0], place[1] >= 0.5):
            return
        window, covered, _ = place
        grey = 118 + 26 * rng.standard_normal(covered.shape, dtype=np.float32)
        self.picture[window] += covered[..., None] * (grey[..., None] - self.picture[window])
        self.segments[window][covered >= 0.5] = VOID

    def finish(self, rng: Rng) -> Scene:
        """Return the scene with noise and exposure of a camera; segments without pixels are left out."""
        exposure = np.float32(rng.uniform(0.86, 1.12))
        noise = rng.standard_normal(self.picture.shape, dtype=np.float32) * np.float32(2.5)
        image = np.clip(self.picture * exposure + noise, 0, 255).astype(np.uint8)
        is_kept = np.bincount(self.segments.ravel(), minlength=len(self.classes) + 1) > 0
        is_kept[VOID] = False
        new_number = (np.cumsum(is_kept) * is_kept).astype(np.int32)
        classes = [class_index for class_index, kept in zip(self.classes, is_kept[1:], strict=True) if kept]
        return Scene(image, new_number[self.segments], classes)

    def _may_hide(self, window: tuple[slice, slice], hidden: NDArray[np.bool_]) -> bool:
        """Return whether each segment keeps enough pixels when those of `hidden` are covered."""
        count = len(self.classes) + 1
        lost = np.bincount(self.segments[window][hidden], minlength=count)[1:]
        left = np.bincount(self.segments.ravel(), minlength=count)[1:] - lost
        return bool(((lost == 0) | (left >= self.least_areas)).all())


def cover(
    thing: Thing, height: int, width: int
) -> tuple[tuple[slice, slice], NDArray[np.float32], float] | None:
    """Return where a shape lies in a picture of height x width pixels; None if it lies outside.

    That is the window (rows, columns) around it, two pixels larger; the covered share of its pixels, 0..1;
    and the area in pixels that the whole shape has, cut off or not.
    """
    cos, sin = np.cos(thing.angle), np.sin(thing.angle)
    turn = np.array([[cos, sin], [-sin * thing.stretch, cos * thing.stretch]]) * thing.radius
    outlines = [outline @ turn + (thing.x, thing.y) for outline in OUTLINES[thing.class_index]]
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
    """Return points at these distances from the centre, at equal angles."""
    angles = 2 * np.pi * (np.arange(len(radii)) / len(radii)) + turn
    return np.asarray(radii)[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)


def _cross() -> NDArray[np.float64]:
    arm, end = 0.34, 1.02
    corner = np.array([[arm, -end], [arm, -arm], [end, -arm]])
    quarter = np.array([[0.0, 1.0], [-1.0, 0.0]])
    return np.concatenate([corner @ np.linalg.matrix_power(quarter, k) for k in (0, 1, 2, 3)])


# Outlines of radius about 1, in the order of the things in classes/shapes.json; a second one is a hole.
OUTLINES = [
    [_around([0.92] * 48)],
    [_around([1.12] * 4, np.pi / 4)],
    [_around([1.2] * 3)],
    [_around([1.18, 0.5] * 5)],
    [_around([1.0] * 48), _around([0.5] * 32)],
    [_cross()],
]


def new_canvas(rng: Rng, height: int, width: int, parts: int) -> Canvas:
    """Return a canvas with ground of `parts` different stuff classes, and no thing."""
    kinds = [int(kind) for kind in rng.permutation(len(TEXTURES))[:parts]]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    scale = min(height, width) / 96
    classes = [THING_COUNT + kind for kind in kinds]
    canvas = Canvas(
        np.zeros((height, width, 3), np.float32), np.ones((height, width), np.int32), classes, [0.0] * parts
    )
    for number, (kind, share) in enumerate(zip(kinds, _part_covers(rng, x, y, parts), strict=True), start=1):
        class_color = np.asarray(CLASSES[THING_COUNT + kind]["color"], np.float32)
        color = class_color + rng.uniform(-14, 14, 3).astype(np.float32)
        texture = TEXTURES[kind](rng, x / scale, y / scale, color)
        canvas.picture += share[..., None] * (texture - canvas.picture)
        canvas.segments[share > 0.5] = number
    return canvas


def _part_covers(rng: Rng, x: Map, y: Map, parts: int) -> list[Map]:
    """Return the cover, 0..1, of each part over the parts before it; the first covers everything."""
    height, width = x.shape
    while True:
        borders = [_sample_border(rng, height, width) for _ in range(parts - 1)]
        # Every fourth row and column is enough to estimate the size of the parts.
        top = np.zeros(x[::4, ::4].shape, np.int64)
        for part, border in enumerate(borders, start=1):
            top[border(x[::4, ::4], y[::4, ::4]) > 0.5] = part
        if np.bincount(top.ravel(), minlength=parts).min() >= SMALLEST_SHARE * top.size:
            return [np.ones_like(x)] + [border(x, y) for border in borders]


def _sample_border(rng: Rng, height: int, width: int) -> Callable[[Map, Map], Map]:
    """Return an oblique, bent and wavy line as a function: the cover of its one side at x, y."""
    side = min(height, width)
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    middle_x, middle_y = ((0.5 + rng.uniform(-0.3, 0.3, 2)) * (width, height)).astype(np.float32)
    bend = np.float32(rng.uniform(-0.7, 0.7) / side)
    wave = np.float32(rng.uniform(0, 0.06) * side)
    period = np.float32(rng.uniform(0.4, 0.9) * side / (2 * np.pi))
    phase = np.float32(rng.uniform(0, 2 * np.pi))

    def side_cover(x: Map, y: Map) -> Map:
        along = cos * (x - middle_x) + sin * (y - middle_y)
        across = cos * (y - middle_y) - sin * (x - middle_x)
        return np.clip(across + bend * along**2 + wave * np.sin(along / period + phase) + 0.5, 0, 1)

    return side_cover


def _grain(rng: Rng, like: Map) -> Map:
    return rng.standard_normal(like.shape, dtype=np.float32)


def _soft_noise(rng: Rng, like: Map, cells: int) -> Map:
    """Return smooth noise, about -1..1, with `cells` bumps a side."""
    coarse = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, like.shape[::-1], interpolation=cv2.INTER_CUBIC))


def _sky(rng: Rng, x: Map, y: Map, color: Map) -> Map:
    """Return a vertical gradient with soft clouds."""
    blue = color - np.array([70, 40, 12], np.float32) * (1 - y / y[-1, 0])[..., None]
    clouds = np.clip(_soft_noise(rng, x, 5) * 1.3 - 0.2, 0, 1)[..., None] * np.float32(0.75)
    return blue + clouds * (np.float32(250) - blue)


def _grass(rng: Rng, x: Map, y: Map, color: Map) -> Map:
    """Return upright blades: noise smeared from top to bottom."""
    blades = cv2.blur(_grain(rng, x), (1, 5)) * 52 + 14 * _soft_noise(rng, x, 4)
    return color + blades[..., None] * np.array([0.8, 1, 0.5], np.float32)


def _water(rng: Rng, x: Map, y: Map, color: Map) -> Map:
    """Return rows of waves, bright at their crests."""
    tilt, phase, sway = rng.uniform((-0.25, 0, 0), (0.25, 6.28, 6.28)).astype(np.float32)
    rows = np.sin((y + tilt * x) * np.float32(0.9) + 1.6 * np.sin(x * np.float32(0.16) + sway) + phase)
    crests = np.clip(rows, -0.4, 1) ** 2 * np.sign(rows) * 42 + 3 * _grain(rng, x)
    return color + crests[..., None] * np.array([0.8, 1, 1.1], np.float32)


def _bricks(rng: Rng, x: Map, y: Map, color: Map) -> Map:
    """Return courses of bricks, each of its own shade, in light mortar."""
    tilt, shift_x, shift_y = rng.uniform((-0.2, 0, 0), (0.2, 14, 7)).astype(np.float32)
    v = (y + tilt * x + shift_y) / 7
    course = np.floor(v)
    u = (x - tilt * y + shift_x) / 14 + 0.5 * (course % 2)
    shades = rng.uniform(-26, 26, 1024).astype(np.float32)
    brick = (course * 37 + np.floor(u)).astype(np.int64) % 1024
    mortar = ((v - course < 0.19) | (u - np.floor(u) < 0.1))[..., None]
    wall = np.where(mortar, np.array([196, 186, 174], np.float32), color + shades[brick][..., None])
    return wall + 4 * _grain(rng, x)[..., None]


def _sand(rng: Rng, x: Map, y: Map, color: Map) -> Map:
    """Return fine grains with dark specks, over slow dunes."""
    grains = 11 * _grain(rng, x) - 52 * (_grain(rng, x) > 1.7)
    return color + (grains + 13 * _soft_noise(rng, x, 4))[..., None]


# In the order of the stuff classes in classes/shapes.json.
TEXTURES: list[Callable[[Rng, Map, Map, Map], Map]] = [_sky, _grass, _water, _bricks, _sand]
