"""Values in COCO's JSON files that are of another type than the format has."""

from collections.abc import Callable, Iterator, Mapping
from numbers import Real
from typing import Any

from .report import Fault


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_flag(value: Any) -> bool:
    return isinstance(value, int) and value in (0, 1)


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


# Key -> what its value is, if there is one, and in words.
Kinds = Mapping[str, tuple[Callable[[Any], bool], str]]
ID, FLAG, NUMBER = (_is_id, "a number or a text"), (_is_flag, "0 or 1"), (_is_number, "a number")
SIZE, TEXT = (_is_size, "a number of pixels"), (_is_text, "a text")
IMAGE: Kinds = {"id": ID, "file_name": TEXT, "width": SIZE, "height": SIZE}
CATEGORY: Kinds = {"id": ID, "name": TEXT, "isthing": FLAG}
ANNOTATION: Kinds = {
    **{"id": ID, "image_id": ID, "category_id": ID, "iscrowd": FLAG, "area": NUMBER},
    **{"bbox": (_is_box, "[x, y, width, height]"), "file_name": TEXT},
    "segments_info": (_is_list, "a list of segments"),
}
SEGMENT: Kinds = {"id": NUMBER, "category_id": ID, "iscrowd": FLAG, "area": NUMBER}


def type_faults(where: str, content: Mapping[str, list[Any]]) -> Iterator[Fault]:
    """Yield the values of the wrong type in a file that has COCO's three lists; null is a missing one."""
    for part, kinds in (("images", IMAGE), ("categories", CATEGORY), ("annotations", ANNOTATION)):
        for number, entry in enumerate(content[part]):
            yield from _entry_faults(entry, f"{where}, {part}[{number}]", kinds)
            segments = entry.get("segments_info") if isinstance(entry, Mapping) else None
            for place, segment in enumerate(segments if isinstance(segments, list) else ()):
                yield from _entry_faults(segment, f"{where}, {part}[{number}], segment {place}", SEGMENT)


def _entry_faults(entry: Any, where: str, kinds: Kinds) -> Iterator[Fault]:
    kind = "values of the wrong type"
    if not isinstance(entry, Mapping):
        yield Fault(kind, where, f"{entry!r:.60}", f"Expected an object with {', '.join(kinds)}.")
        return
    for key, (is_right, words) in kinds.items():
        value = entry.get(key)
        if value is not None and not is_right(value):
            yield Fault(kind, where, f"{key!r} is {value!r:.60}", f"Expected {words}.")
