"""Results over pictures, through Detectron2's visualiser."""

import colorsys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
from detectron2.utils.visualizer import Visualizer
from numpy.typing import NDArray
from PIL import Image

from mask_former.classes import ClassTable, Color

if TYPE_CHECKING:
    from mask_former.results import Result

DRAWN_TASKS = ("panoptic", "semantic", "instance")
OPACITY = 0.6
EDGE = (1.0, 1.0, 240 / 255)
TEXT_HEIGHT = 12  # of a line, about, in pixels of the drawing
# Hue and brightness of the first, second, ... segment of a thing class against the colour of the class.
_SHADES = ((0.0, 1.0), (0.04, 0.8), (-0.04, 1.25), (0.08, 0.95), (-0.08, 0.7), (0.02, 1.4), (-0.02, 0.6))


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
    size = (result.width, result.height)
    pixels = np.asarray(image if image.shape[1::-1] == size else Image.fromarray(image).resize(size))
    canvas = Visualizer(pixels, scale=scale)
    if task == "panoptic":
        _draw_panoptic(canvas, result, colors or segment_colors(result), text)
    elif task == "semantic":
        assert result.semantic is not None
        draw_labels(canvas, result.semantic, result.classes, text)
    else:
        _draw_instances(canvas, result, score_threshold, text)
    return np.ascontiguousarray(canvas.output.get_image())


def _task_of(result: "Result", task: str | None) -> str:
    held = {"panoptic": result.panoptic, "semantic": result.semantic, "instance": result.instances}
    there = [name for name in DRAWN_TASKS if held[name] is not None]
    if (task is not None and task not in there) or not there:
        raise ValueError(
            f"{result.image_name}: the result holds {', '.join(there) or 'nothing to draw'}, not {task!r}; "
            "choose one of those, or name it in the predictor's `tasks`."
        )
    return task or there[0]


def _draw_panoptic(canvas: Visualizer, result: "Result", colors: Mapping[int, Color], text: bool) -> None:
    assert result.panoptic is not None
    # Stuff first, and large before small: what lies above is drawn later.
    for segment in sorted(result.segments, key=lambda segment: (segment.is_thing, -segment.area)):
        name = _text(segment.name, segment.score) if segment.is_thing else segment.name
        _draw_mask(canvas, result.panoptic == segment.id, colors[segment.id], name if text else None)


def draw_labels(
    canvas: Visualizer, labels: NDArray[np.integer], classes: ClassTable, text: bool = True
) -> None:
    """Draw each class of a label map (H, W) in its colour; void is left as it is."""
    present, areas = np.unique(labels, return_counts=True)
    for label in present[np.argsort(-areas, kind="stable")]:
        if label < len(classes):
            name = classes.names[label] if text else None
            _draw_mask(canvas, labels == label, classes.colors[label], name)


def _draw_instances(canvas: Visualizer, result: "Result", score_threshold: float, text: bool) -> None:
    assert result.instances is not None
    instances = result.instances
    shown = [index for index in range(len(instances)) if instances.scores[index] >= score_threshold]
    numbers = _numbers_in_class(instances.classes[shown].tolist())
    for index, number in sorted(zip(shown, numbers, strict=True), key=lambda pair: -instances.areas[pair[0]]):
        color = shade(result.classes.colors[instances.classes[index]], number)
        name = _text(instances.names[index], instances.scores[index])
        _draw_mask(canvas, instances.masks[index], color, name if text else None)


def _text(name: str, score: float) -> str:
    # Of truth, all scores are 1.
    return name if score >= 1 else f"{name} {score:.0%}"


def _numbers_in_class(labels: Sequence[int]) -> list[int]:
    return [labels[:index].count(label) for index, label in enumerate(labels)]


def _draw_mask(canvas: Visualizer, mask: NDArray[np.bool_], color: Color, text: str | None) -> None:
    pixels = mask.astype(np.uint8)
    channels = tuple(channel / 255 for channel in color)
    # Not Detectron2's panoptic or instance drawing, which fills the holes of rings.
    canvas.draw_binary_mask(pixels, color=channels, edge_color=EDGE, alpha=OPACITY)
    if text is not None and mask.any():
        # Where the mask is widest, so that the text of a ring is on the ring.
        depth = cv2.distanceTransform(np.pad(pixels, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
        y, x = np.unravel_index(int(depth.argmax()), depth.shape)
        bright = tuple(0.5 + channel / 2 for channel in channels)
        canvas.draw_text(text, (x + 0.5, max(0.0, y - TEXT_HEIGHT / 2 / canvas.output.scale)), color=bright)
