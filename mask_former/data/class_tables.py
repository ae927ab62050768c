"""Class tables: what the classes of a data set are called, how they are drawn, which of them are things."""

import colorsys
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# One JSON file a data set, one entry a line, in the order of the class ids.
CLASS_TABLES = Path(__file__).parent / "classes"


def load_classes(table: str | Path) -> list[dict[str, Any]]:
    """Return a class table: a list of `{"name", ...}`, in the order of the class ids.

    Args:
        table: name of a table of this package, such as "ade20k_150", or path of a JSON file.
    """
    path = Path(table) if str(table).endswith(".json") else CLASS_TABLES / f"{table}.json"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in CLASS_TABLES.glob("*.json")))
        raise ValueError(f"No class table {path}; known tables: {known}; or give the path of a JSON file.")
    return json.loads(path.read_text(encoding="utf-8"))


def distinct_colors(count: int) -> list[list[int]]:
    """Return `count` different RGB colours, always the same ones, for classes that have none."""
    colors: dict[tuple[int, ...], None] = {}
    step = 0
    while len(colors) < count:
        # Steps of the golden ratio spread the hues evenly, however many there are.
        hue, value = step * 0.618034 % 1.0, 1.0 - 0.15 * (step % 4)
        colors[tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.75, value))] = None
        step += 1
    return [list(color) for color in colors]


def panoptic_metadata(categories: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return Detectron2's panoptic metadata for categories whose class id is their place in the list.

    Both the thing and the stuff lists name every class, as Detectron2's drawing of panoptic results wants it;
    which class is a thing is told by the two id maps (data set id -> class id).

    Args:
        categories: `{"id", "name", "isthing"}` each, "color" ([R, G, B]) optional.
    """
    names = [category["name"] for category in categories]
    spare = distinct_colors(len(categories))
    colors = [list(category.get("color", spare[i])) for i, category in enumerate(categories)]
    things = {category["id"]: i for i, category in enumerate(categories) if category["isthing"]}
    stuff = {category["id"]: i for i, category in enumerate(categories) if not category["isthing"]}
    return {
        "thing_classes": names,
        "stuff_classes": list(names),
        "thing_colors": colors,
        "stuff_colors": list(colors),
        "thing_dataset_id_to_contiguous_id": things,
        "stuff_dataset_id_to_contiguous_id": stuff,
        "label_divisor": 1000,
    }
