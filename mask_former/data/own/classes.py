"""The classes of a user's data set, from the file that names them."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mask_former.formats import distinct_colors, read_json

Color = tuple[int, int, int]
VOID_NAMES = frozenset(("void", "unlabeled", "unlabelled", "ignore", "ignored"))
CLASS_FILES = (
    *("classes.json", "classes.txt", "labelmap.txt", "label_colors.txt", "class_dict.csv", "classes.csv"),
    "labels.txt",
)
# A name and its colour, in either order; what follows a colon is for other programs.
_COLOR = r"(?P<red>\d+)[\s,;]+(?P<green>\d+)[\s,;]+(?P<blue>\d+)"
_COLOR_LINES = tuple(
    re.compile(form)
    for form in (rf"(?P<name>.+?)[\s,;:]+{_COLOR}\s*(?:[,;:].*)?", rf"{_COLOR}[\s,;]+(?P<name>.+)")
)


class Classes(NamedTuple):
    """Names of classes in the order of their values, their colours if any, and where they come from."""

    names: list[str]
    colors: list[Color] | None
    source: str


def find_classes(folder: Path) -> Classes | None:
    """Return the classes that a file of the folder names; None if there is no such file."""
    path = next((folder / name for name in CLASS_FILES if (folder / name).is_file()), None)
    if path is None:
        return None
    classes = _from_json(path) if path.suffix == ".json" else _from_lines(path)
    check_names(classes.names, path)
    return classes


def check_names(names: Sequence[str], source: Path | str) -> None:
    """Raise ValueError for names of classes that are none or not distinct."""
    if not names:
        raise ValueError(f"{source} has no class; name at least one.")
    repeated = first_repeated(names)
    if repeated is not None:
        raise ValueError(f"{source} has two classes {repeated!r}; give each a name of its own.")


def first_repeated(values: Iterable[Any]) -> Any:
    """Return the first value that is there more than once, or None."""
    return next((value for value, times in Counter(values).items() if times > 1), None)


def colors_of(colors: Sequence[Sequence[int]] | None, count: int) -> tuple[Color, ...]:
    """Return the colours, or where there are none distinct ones."""
    return tuple((int(red), int(green), int(blue)) for red, green, blue in colors or distinct_colors(count))


def _from_lines(path: Path) -> Classes:
    """Read names, a line each; or a table of colours, a name and three numbers a line in either order."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    rows = [next(filter(None, (form.fullmatch(line) for form in _COLOR_LINES)), None) for line in lines]
    if len(rows) > 1 and rows[0] is None and all(rows[1:]):
        rows = rows[1:]  # without the heads of the columns
    table = [row for row in rows if row is not None]
    if not table or len(table) < len(rows):
        return Classes(lines, None, path.name)
    colors = [(int(row["red"]), int(row["green"]), int(row["blue"])) for row in table]
    return Classes([row["name"] for row in table], _checked(colors, path), path.name)


def _from_json(path: Path) -> Classes:
    """Read a list of names or of {"name", "color"}, alone or as "classes", or names by value."""
    content = read_json(path)
    if isinstance(content, dict):
        content = content.get("classes", content)
    if isinstance(content, dict) and all(key.isdigit() for key in content):
        if sorted(map(int, content)) != list(range(len(content))):
            raise ValueError(
                f"{path}: has the values {', '.join(content)}; expected 0 to {len(content) - 1}."
            )
        content = [content[key] for key in sorted(content, key=int)]
    entries = [{"name": entry} if isinstance(entry, str) else entry for entry in content]
    if not isinstance(content, list) or not all(isinstance(e, dict) and "name" in e for e in entries):
        raise ValueError(
            f'{path}: expected a list such as [{{"name": "road", "color": [128, 64, 128]}}, ...] or '
            '["road", ...] in the order of the values.'
        )
    colors = [entry["color"] for entry in entries] if all("color" in entry for entry in entries) else None
    names = [str(entry["name"]) for entry in entries]
    return Classes(names, _checked(colors, path) if colors else None, path.name)


def _checked(colors: Sequence[Sequence[Any]], path: Path) -> list[Color]:
    for color in colors:
        if len(color) != 3 or not all(isinstance(part, int) and 0 <= part < 256 for part in color):
            raise ValueError(f"{path}: has the colour {color}; expected three numbers of 0 to 255.")
    triples = [(color[0], color[1], color[2]) for color in colors]
    repeated = first_repeated(triples)
    if repeated:
        raise ValueError(f"{path}: two classes have the colour {repeated}; give each a colour of its own.")
    return triples
