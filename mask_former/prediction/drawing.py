"""Drawings of results over images: masks and contours with numpy and OpenCV, text with Detectron2."""

import colorsys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from detectron2.utils.visualizer import Visualizer
from matplotlib.transforms import Bbox
from numpy.typing import NDArray
from PIL import Image

from mask_former.prediction.classes import Color
from mask_former.prediction.values import PredictedValues

DRAWN_TASKS = ("panoptic", "semantic", "instance")
OPACITY = 0.6
EDGE = (255, 255, 240)
TEXT_PADDING = 1  # pixels of the dark box around a text
# Change of hue and factor of brightness for the first, second, ... segment of a thing class.
SHADES = ((0.0, 1.0), (0.04, 0.8), (-0.04, 1.25), (0.08, 0.95), (-0.08, 0.7), (0.02, 1.4), (-0.02, 0.6))


class _Layer(NamedTuple):
    """A mask (H, W) bool to draw, its colour, and its text."""

    mask: NDArray[np.bool_]
    color: Color
    text: str


def shade(color: Color, number: int) -> Color:
    """Return the colour of the `number`-th segment of a class: a fixed variation of the class's colour."""
    hue_change, brightness = SHADES[number % len(SHADES)]
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in color))
    red, green, blue = colorsys.hsv_to_rgb((hue + hue_change) % 1.0, saturation, min(1.0, value * brightness))
    return round(255 * red), round(255 * green), round(255 * blue)


def segment_colors(result: PredictedValues) -> dict[int, Color]:
    """Return the colour of each panoptic segment by id: variations of the class's colour for things."""
    seen: dict[int, int] = {}
    colors = {}
    for segment in result.segments:
        number = seen.get(segment.category_id, 0)
        seen[segment.category_id] = number + 1
        class_color = result.classes.colors[segment.category_id]
        colors[segment.id] = shade(class_color, number) if segment.is_thing else class_color
    return colors


def draw_result(
    result: PredictedValues,
    image: NDArray[np.uint8] | None,
    *,
    task: str | None = None,
    score_threshold: float = 0.5,
    colors: Mapping[int, Color] | None = None,
    scale: float = 1.0,
    text: bool = True,
) -> NDArray[np.uint8]:
    """Return the image with the result over it: (H, W, 3) uint8 RGB, the size of the result times `scale`.

    Args:
        result: what to draw.
        image: (H', W', 3) uint8 RGB, resized if needed; None: `result.image`.
        task: "panoptic", "semantic" or "instance"; None: the first of them that the result contains.
        score_threshold: instances below it are left out; panoptic segments are not filtered again.
        colors: RGB of panoptic segments by id; by default `segment_colors`.
        scale: of the drawing. Text keeps its size, so small images need 2 or more to be legible.
        text: draw class names and scores.
    """
    task = _task_of(result, task)
    image = result.image if image is None else image
    if image is None:
        raise ValueError(f"{result.image_name}: there is no picture to draw on; pass it as `image`.")
    if task == "panoptic":
        layers = _panoptic_layers(result, colors or segment_colors(result))
    elif task == "semantic":
        layers = _semantic_layers(result)
    else:
        layers = _instance_layers(result, score_threshold)
    size = (max(1, round(result.width * scale)), max(1, round(result.height * scale)))
    painted = _painted(image, size, layers)
    return _with_texts(painted, layers, scale) if text else painted


def _task_of(result: PredictedValues, task: str | None) -> str:
    maps = {"panoptic": result.panoptic, "semantic": result.semantic, "instance": result.instances}
    available = [name for name in DRAWN_TASKS if maps[name] is not None]
    if (task is not None and task not in available) or not available:
        raise ValueError(
            f"{result.image_name}: the result holds {', '.join(available) or 'nothing to draw'}, not "
            f"{task!r}; choose one of those, or name it in the predictor's `tasks`."
        )
    return task or available[0]


def _panoptic_layers(result: PredictedValues, colors: Mapping[int, Color]) -> list[_Layer]:
    panoptic = result.panoptic
    assert panoptic is not None
    # Stuff first, then large before small, so that small things stay visible.
    ordered = sorted(result.segments, key=lambda segment: (segment.is_thing, -segment.area))
    return [
        _Layer(
            panoptic == segment.id,
            colors[segment.id],
            _text(segment.name, segment.score) if segment.is_thing else segment.name,
        )
        for segment in ordered
    ]


def _semantic_layers(result: PredictedValues) -> list[_Layer]:
    labels, classes = result.semantic, result.classes
    assert labels is not None
    present, areas = np.unique(labels, return_counts=True)
    ordered = present[np.argsort(-areas, kind="stable")].tolist()
    # Void pixels keep the colours of the image.
    return [
        _Layer(labels == label, classes.colors[label], classes.names[label])
        for label in ordered
        if label < len(classes)
    ]


def _instance_layers(result: PredictedValues, score_threshold: float) -> list[_Layer]:
    instances = result.instances
    assert instances is not None
    shown = [index for index in range(len(instances)) if instances.scores[index] >= score_threshold]
    numbers = _numbers_in_class(instances.classes[shown].tolist())
    ordered = sorted(zip(shown, numbers, strict=True), key=lambda pair: -instances.areas[pair[0]])
    return [
        _Layer(
            instances.masks[index],
            shade(result.classes.colors[instances.classes[index]], number),
            _text(instances.names[index], instances.scores[index]),
        )
        for index, number in ordered
    ]


def _text(name: str, score: float) -> str:
    # All scores of ground truth are 1.
    return name if score >= 1 else f"{name} {score:.0%}"


def _numbers_in_class(labels: Sequence[int]) -> list[int]:
    return [labels[:index].count(label) for index, label in enumerate(labels)]


def _painted(image: NDArray[np.uint8], size: tuple[int, int], layers: Sequence[_Layer]) -> NDArray[np.uint8]:
    """Return the image in `size` (width, height) with all masks over it and a contour around each.

    Detectron2's visualiser draws polygons, which fills holes and takes several times as long.
    """
    painted = np.array(image if image.shape[1::-1] == size else Image.fromarray(image).resize(size))
    masks = [_resized(layer.mask, size) for layer in layers]
    for mask, layer in zip(masks, layers, strict=True):
        inside = painted[mask]
        painted[mask] = (inside + OPACITY * (np.array(layer.color) - inside)).round()
    for mask in masks:
        lines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(painted, lines, -1, EDGE, 1, cv2.LINE_AA)
    return painted


def _resized(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    if mask.shape[1::-1] == size:
        return mask
    return cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_LINEAR) >= 0.5


def _with_texts(painted: NDArray[np.uint8], layers: Sequence[_Layer], scale: float) -> NDArray[np.uint8]:
    """Return the drawing with the text of each layer; a text that finds no free place is left out."""
    canvas = Visualizer(painted)
    placed: list[Bbox] = []
    # Those in front are the small ones, whose place is on them.
    for layer in reversed(layers):
        if not layer.mask.any():
            continue
        # The text is centred where the mask is widest, which also suits masks with holes.
        depth = cv2.distanceTransform(np.pad(layer.mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
        y, x = np.unravel_index(int(depth.argmax()), depth.shape)
        bright = tuple(0.5 + channel / 510 for channel in layer.color)
        canvas.draw_text(layer.text, ((x + 0.5) * scale, (y + 0.5) * scale), color=bright)
        text = canvas.output.ax.texts[-1]
        box = _free_place(text.get_window_extent().padded(TEXT_PADDING), placed, painted.shape[1::-1])
        if box is None:
            text.remove()
            continue
        placed.append(box)
        text.set_position(((box.x0 + box.x1) / 2, painted.shape[0] - box.y1 + TEXT_PADDING))
    return np.ascontiguousarray(canvas.output.get_image())


def _free_place(box: Bbox, placed: Sequence[Bbox], size: tuple[int, ...]) -> Bbox | None:
    """Return the box (y upwards) moved into the picture and off those placed, the nearest way up or down."""
    width, height = size
    # Centred upright; a text that is wider than the picture is cut off at both sides.
    half = min(box.width, width) / 2
    middle = min(max((box.x0 + box.x1) / 2, half), width - half)
    for step in (0, 1, -1, 2, -2, 3, -3):
        y0 = box.y0 + (0.5 + step) * box.height
        y0 = min(max(y0, 0), height - box.height)
        moved = Bbox.from_bounds(middle - box.width / 2, y0, box.width, box.height)
        if not any(moved.overlaps(other) for other in placed):
            return moved
    return None
