"""Faults of the label files of YOLO and labelme, one file a picture, and of YOLO's data.yaml."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import yaml

from mask_former.formats import picture_size

from .annotation_faults import polygon_faults
from .report import Fault, merged

# A unit square has this side for `polygon_faults`, so that its slack of pixels is half a percent.
YOLO_SIDE = 400
AREA_SHAPES = ("polygon", "rectangle", "circle", "mask")


def yolo_table_faults(path: Path) -> list[Fault]:
    """Return the faults of data.yaml."""
    kind, where = "faults of the class table", str(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return [Fault(kind, where, " ".join(f"it is not YAML: {error}".split()), "Correct this line.")]
    names = content.get("names") if isinstance(content, Mapping) else None
    if not names or not isinstance(names, Mapping | Sequence) or isinstance(names, str):
        return [Fault(kind, where, f"'names' is {names!r}", "Expected the list of class names.")]
    faults = []
    if isinstance(names, Mapping) and sorted(names) != list(range(len(names))):
        found = f"'names' has the numbers {', '.join(map(str, names))}"
        faults.append(Fault(kind, where, found, f"Expected 0 to {len(names) - 1}."))
    names = [str(name) for name in (names.values() if isinstance(names, Mapping) else names)]
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        found = f"'names' has {twice[0]!r} more than once"
        faults.append(Fault(kind, where, found, "Give each class a name of its own."))
    if content.get("nc", len(names)) != len(names):
        found = f"'nc' is {content['nc']}, but 'names' has {len(names)} names"
        faults.append(Fault(kind, where, found, f"Name the missing classes, or set nc to {len(names)}."))
    return faults


def yolo_faults(path: Path, num_classes: int) -> list[Fault]:
    """Return the faults of a YOLO label file: lines of a class and a polygon in parts of width and height."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        remedy = "Expected lines of text: class x1 y1 x2 y2 ...; get the file again."
        return [Fault("label files that cannot be read", str(path), "it is not text", remedy)]
    return merged(
        fault
        for number, line in enumerate(lines, start=1)
        if line.strip()
        for fault in _yolo_line_faults(line.split(), f"{path}, line {number}", num_classes)
    )


def _yolo_line_faults(words: Sequence[str], where: str, num_classes: int) -> Iterator[Fault]:
    try:
        label, *numbers = map(float, words)
    except ValueError:
        bad = next(word for word in words if not _is_number(word))
        yield Fault("label lines that are not numbers", where, f"{bad!r}", "Expected class x1 y1 x2 y2 ...")
        return
    if not label.is_integer() or not 0 <= label < num_classes:
        found = f"class {words[0]}"
        remedy = f"Expected 0 to {num_classes - 1}: classes count from 0 in the order of data.yaml's 'names'."
        yield Fault("unknown categories", where, found, remedy)
    if len(numbers) == 4:
        found, remedy = "a box (class and 4 numbers)", "Boxes train no masks: export for segmentation."
        yield Fault("annotations without a mask", where, found, remedy)
    elif numbers and len(numbers) % 2 == 0 and max(numbers) > 2:
        remedy = "Expected parts of width and height, 0 to 1: divide x by the width and y by the height."
        yield Fault("polygons in pixels", where, f"coordinates up to {max(numbers):g}", remedy)
    else:
        points = [YOLO_SIDE * number for number in numbers]
        yield from polygon_faults(points, where, (YOLO_SIDE, YOLO_SIDE), in_pixels=False)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def labelme_faults(path: Path, content: Mapping[str, Any], classes: Sequence[str]) -> list[Fault]:
    """Return the faults of a labelme file; `classes` may be empty, then any label is one."""
    where, name = str(path), content.get("imagePath")
    if not isinstance(content["shapes"], list) or not all(isinstance(s, Mapping) for s in content["shapes"]):
        remedy = "Expected a list of objects with 'label' and 'points': save the file again."
        return [Fault("values of the wrong type", where, "'shapes' is no list of shapes", remedy)]
    if not isinstance(name, str) or not name:
        return [Fault("label files without a picture", where, "no 'imagePath'", "Add the picture's name.")]
    picture = path.parent / name.replace("\\", "/")
    try:
        size = picture_size(picture)
    except (OSError, ValueError):
        if not content.get("imageData"):
            found = f"its picture {picture} is missing or cannot be read"
            return [
                Fault("label files without a picture", where, found, "Put it there, or correct imagePath.")
            ]
        size = (content.get("imageWidth", 0), content.get("imageHeight", 0))
    stated = (content.get("imageWidth") or size[0], content.get("imageHeight") or size[1])
    if stated != size:
        found = f"imageWidth x imageHeight is {stated[0]}x{stated[1]}, the picture is {size[0]}x{size[1]}"
        remedy = "Put the picture there that was labelled, or label it again."
        return [Fault("pictures of another size than stated", where, found, remedy)]
    return merged(
        fault
        for number, shape in enumerate(content["shapes"])
        for fault in _shape_faults(shape, f"{path}, shape {number}", size, classes)
    )


def _shape_faults(
    shape: Mapping[str, Any], where: str, size: tuple[int, int], classes: Sequence[str]
) -> Iterator[Fault]:
    label, kind, points = shape.get("label"), shape.get("shape_type") or "polygon", shape.get("points") or []
    if not label:
        yield Fault("shapes without a label", where, f"its label is {label!r}", "Name its class.")
    elif classes and label not in classes:
        found = f"label {label!r} is none of {', '.join(classes[:8])}"
        yield Fault("unknown categories", where, found, "Correct it, or add the class.")
    if kind not in AREA_SHAPES:
        found, remedy = f"a shape of type {kind!r}", "It covers no area and is left out."
        yield Fault("shapes that are no areas", where, found, remedy, stops=False, mended=True)
    elif not _are_points(points):
        found, remedy = f"its points are {points!r:.60}", "Expected [[x, y], ...]: draw it again."
        yield Fault("polygons that are not numbers", where, found, remedy)
    elif kind == "polygon":
        yield from polygon_faults([x for point in points for x in point], where, size)


def _are_points(points: Any) -> bool:
    return isinstance(points, list) and all(
        isinstance(point, list) and len(point) == 2 and all(isinstance(x, Real) for x in point)
        for point in points
    )
