"""Results over pictures: masks painted here, texts through Detectron2's visualiser."""

import colorsys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
from detectron2.utils.visualizer import Visualizer
from numpy.typing import NDArray
from PIL import Image

from mask_former.prediction.classes import Color

if TYPE_CHECKING:
    from mask_former.prediction.results import Result

DRAWN_TASKS = ("panoptic", "semantic", "instance")
OPACITY = 0.6
EDGE = (255, 255, 240)
# Of a line, and of a letter, about, in pixels of the drawing.
TEXT_HEIGHT, TEXT_WIDTH = 12, 7
# Hue and brightness of the first, second, ... segment of a thing class against the colour of the class.
_SHADES = ((0.0, 1.0), (0.04, 0.8), (-0.04, 1.25), (0.08, 0.95), (-0.08, 0.7), (0.02, 1.4), (-0.02, 0.6))


class _Layer(NamedTuple):
    """A mask (H, W) bool to paint, its colour, and its text."""

    mask: NDArray[np.bool_]
    color: Color
    text: str


def shade(color: Color, number: int) -> Color:
    """Return the colour of the `number`-th segment of a class: near the class's own, always the same."""
    turn, brightness = _SHADES[number % len(_SHADES)]
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in color))
    red, green, blue = colorsys.hsv_to_rgb((hue + turn) % 1.0, saturation, min(1.0, value * brightness))
    return round(255 * red), round(255 * green), round(255 * blue)


def segment_colors(result: "Result") -> dict[int, Color]:
    """Return the colour of each panoptic segment by its id: shades of a class's colour for its things."""
    seen: dict[int, int] = {}
    colors = {}
    for segment in result.segments:
        number = seen.get(segment.category_id, 0)
        seen[segment.category_id] = number + 1
        own = result.classes.colors[segment.category_id]
        colors[segment.id] = shade(own, number) if segment.is_thing else own
    return colors


def draw_result(
    result: "Result",
    image: NDArray[np.uint8] | None,
    *,
    task: str | None = None,
    score_threshold: float = 0.5,
    colors: Mapping[int, Color] | None = None,
    scale: float = 1.0,
    text: bool = True,
) -> NDArray[np.uint8]:
    """Return the picture with the result over it: (H, W, 3) uint8 RGB, H and W of the result times `scale`.

    Args:
        result: what to draw.
        image: (H', W', 3) uint8 RGB; resized where the result has another size.
        task: "panoptic", "semantic" or "instance"; None: the first of them that the result holds.
        score_threshold: instances below it are left out. Panoptic segments were chosen before.
        colors: RGB of panoptic segments by id; by default `segment_colors`.
        scale: of the drawing; text keeps its size, so that small pictures need 2 or more to be read.
        text: write class names and scores.
    """
    task = _task_of(result, task)
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


def _task_of(result: "Result", task: str | None) -> str:
    held = {"panoptic": result.panoptic, "semantic": result.semantic, "instance": result.instances}
    there = [name for name in DRAWN_TASKS if held[name] is not None]
    if (task is not None and task not in there) or not there:
        raise ValueError(
            f"{result.image_name}: the result holds {', '.join(there) or 'nothing to draw'}, not {task!r}; "
            "choose one of those, or name it in the predictor's `tasks`."
        )
    return task or there[0]


def _panoptic_layers(result: "Result", colors: Mapping[int, Color]) -> list[_Layer]:
    panoptic = result.panoptic
    assert panoptic is not None
    # Stuff first, and large before small: what lies above is drawn later.
    ordered = sorted(result.segments, key=lambda segment: (segment.is_thing, -segment.area))
    return [
        _Layer(
            panoptic == segment.id,
            colors[segment.id],
            _text(segment.name, segment.score) if segment.is_thing else segment.name,
        )
        for segment in ordered
    ]


def _semantic_layers(result: "Result") -> list[_Layer]:
    labels, classes = result.semantic, result.classes
    assert labels is not None
    present, areas = np.unique(labels, return_counts=True)
    ordered = present[np.argsort(-areas, kind="stable")].tolist()
    # What is no class is void, and left as it is.
    known = [label for label in ordered if label < len(classes)]
    return [_Layer(labels == label, classes.colors[label], classes.names[label]) for label in known]


def _instance_layers(result: "Result", score_threshold: float) -> list[_Layer]:
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
    # Of truth, all scores are 1.
    return name if score >= 1 else f"{name} {score:.0%}"


def _numbers_in_class(labels: Sequence[int]) -> list[int]:
    return [labels[:index].count(label) for index, label in enumerate(labels)]


def _painted(image: NDArray[np.uint8], size: tuple[int, int], layers: Sequence[_Layer]) -> NDArray[np.uint8]:
    """Return the picture in `size` (width, height) with all masks over it, and a line around each.

    Detectron2's visualiser would fill the holes of rings, and take several times as long for its polygons.
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
    canvas = Visualizer(painted)
    for layer in layers:
        if not layer.mask.any():
            continue
        # Where the mask is widest, so that the text of a ring is on the ring.
        depth = cv2.distanceTransform(np.pad(layer.mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
        y, x = np.unravel_index(int(depth.argmax()), depth.shape)
        bright = tuple(0.5 + channel / 510 for channel in layer.color)
        # Texts stay inside the picture, if they are not wider.
        half = min(TEXT_WIDTH * len(layer.text), painted.shape[1]) / 2
        left = min(max((x + 0.5) * scale, half), painted.shape[1] - half)
        canvas.draw_text(layer.text, (left, max(0.0, (y + 0.5) * scale - TEXT_HEIGHT / 2)), color=bright)
    return np.ascontiguousarray(canvas.output.get_image())
