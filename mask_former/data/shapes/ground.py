"""The stuff of the synthetic set: five textures, side by side with curved or oblique borders."""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float32]  # (H, W), or (H, W, 3) where it holds colours in 0..255

# Smallest share of the picture of a part of the ground, before things cover it.
SMALLEST_SHARE = 0.1


def paint_ground(
    rng: np.random.Generator, height: int, width: int, colors: list[list[int]], parts: int
) -> tuple[Map, NDArray[np.int32], list[int]]:
    """Return a picture of `parts` different stuff classes and the exact map of them.

    Args:
        rng: source of everything random here.
        height, width: size in pixels; patterns scale with the shorter side.
        colors: RGB colour of each texture, in the order of `TEXTURES`.
        parts: how many textures, 1 to `len(TEXTURES)`.

    Returns:
        The picture (H, W, 3) float in 0..255; part numbers (H, W) in 0..parts-1; the texture of each part.
    """
    kinds = [int(kind) for kind in rng.permutation(len(TEXTURES))[:parts]]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    covers = _part_covers(rng, x, y, parts)
    scale = min(height, width) / 96
    picture = np.zeros((height, width, 3), np.float32)
    part_of_pixel = np.zeros((height, width), np.int32)
    for part, (kind, cover) in enumerate(zip(kinds, covers, strict=True)):
        color = np.asarray(colors[kind], np.float32) + rng.uniform(-14, 14, 3).astype(np.float32)
        texture = TEXTURES[kind](rng, x / scale, y / scale, color)
        picture += cover[..., None] * (texture - picture)
        part_of_pixel[cover > 0.5] = part
    return picture, part_of_pixel, kinds


def _part_covers(rng: np.random.Generator, x: Map, y: Map, parts: int) -> list[Map]:
    """Cover, in 0..1, of each part over the parts before it; the first covers everything."""
    height, width = x.shape
    while True:
        borders = [_sample_border(rng, height, width) for _ in range(parts - 1)]
        # Every fourth row and column is enough to estimate the size of the parts.
        top = np.zeros(x[::4, ::4].shape, np.int64)
        for part, border in enumerate(borders, start=1):
            top[border(x[::4, ::4], y[::4, ::4]) > 0.5] = part
        if np.bincount(top.ravel(), minlength=parts).min() >= SMALLEST_SHARE * top.size:
            return [np.ones_like(x)] + [border(x, y) for border in borders]


def _sample_border(rng: np.random.Generator, height: int, width: int) -> Callable[[Map, Map], Map]:
    """An oblique line that bends and waves, as the cover of its one side at x, y: soft over about a pixel."""
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


def _soft_noise(rng: np.random.Generator, shape: tuple[int, ...], cells: int) -> Map:
    """Smooth noise, about -1..1, with `cells` bumps a side."""
    coarse = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC))


def _grain(rng: np.random.Generator, shape: tuple[int, ...]) -> Map:
    return rng.standard_normal(shape, dtype=np.float32)


def _rgb(red: float, green: float, blue: float) -> Map:
    return np.array([red, green, blue], np.float32)


def _sky(rng: np.random.Generator, x: Map, y: Map, color: Map) -> Map:
    """A vertical gradient with soft clouds."""
    down = y / y[-1, 0]
    blue = color - _rgb(70, 40, 12) * (1 - down)[..., None]
    clouds = np.clip(_soft_noise(rng, x.shape, 5) * 1.3 - 0.2, 0, 1)[..., None] * np.float32(0.75)
    return blue + clouds * (np.float32(250) - blue)


def _grass(rng: np.random.Generator, x: Map, y: Map, color: Map) -> Map:
    """Upright blades: noise smeared from top to bottom."""
    blades = cv2.blur(_grain(rng, x.shape), (1, 5)) * 52
    return color + (blades + 14 * _soft_noise(rng, x.shape, 4))[..., None] * _rgb(0.8, 1, 0.5)


def _water(rng: np.random.Generator, x: Map, y: Map, color: Map) -> Map:
    """Rows of waves, bright at their crests."""
    tilt, phase, sway = (np.float32(v) for v in rng.uniform((-0.25, 0, 0), (0.25, 6.28, 6.28)))
    rows = np.sin((y + tilt * x) * np.float32(0.9) + 1.6 * np.sin(x * np.float32(0.16) + sway) + phase)
    crests = np.clip(rows, -0.4, 1) ** 2 * np.sign(rows) * 42
    return color + (crests + 3 * _grain(rng, x.shape))[..., None] * _rgb(0.8, 1, 1.1)


def _bricks(rng: np.random.Generator, x: Map, y: Map, color: Map) -> Map:
    """Courses of bricks, each of its own shade, in light mortar."""
    tilt, shift_x, shift_y = (np.float32(v) for v in rng.uniform((-0.2, 0, 0), (0.2, 14, 7)))
    v = (y + tilt * x + shift_y) / 7
    course = np.floor(v)
    u = (x - tilt * y + shift_x) / 14 + 0.5 * (course % 2)
    shades = rng.uniform(-26, 26, 1024).astype(np.float32)
    brick = (course * 37 + np.floor(u)).astype(np.int64) % 1024
    mortar = ((v - course < 0.19) | (u - np.floor(u) < 0.1))[..., None]
    wall = np.where(mortar, _rgb(196, 186, 174), color + shades[brick][..., None])
    return wall + 4 * _grain(rng, x.shape)[..., None]


def _sand(rng: np.random.Generator, x: Map, y: Map, color: Map) -> Map:
    """Fine grains with dark specks, over slow dunes."""
    grains = _grain(rng, x.shape)
    specks = -52 * (_grain(rng, x.shape) > 1.7)
    return color + (11 * grains + specks + 13 * _soft_noise(rng, x.shape, 4))[..., None]


# In the order of the stuff classes in classes/shapes.json.
TEXTURES: list[Callable[[np.random.Generator, Map, Map, Map], Map]] = [_sky, _grass, _water, _bricks, _sand]
