"""Faults in the structure of COCO's JSON files, which the records made from them no longer show."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .annotation_faults import annotation_faults
from .json_types import type_faults
from .report import Fault, merged

Entries = Sequence[Mapping[str, Any]]
MENDED_KEYS = {
    "images": {"width": "taken from the picture", "height": "taken from the picture"},
    "annotations": {
        "id": "numbered anew",
        "area": "counted in the mask",
        "bbox": "taken from the mask",
        "iscrowd": "taken as 0",
    },
}
PARTS = ("images", "annotations", "categories")


def json_faults(path: Path, content: Any, with_masks: bool = False) -> list[Fault]:
    """Return the faults of a JSON file in COCO's instance or panoptic form, each kind once.

    Args:
        path, content: of the file.
        with_masks: also hold the masks against the sizes that the file states.
    """
    where = str(path)
    wrong = [
        part for part in PARTS if not isinstance(content, dict) or not isinstance(content.get(part), list)
    ]
    if wrong:
        found = f"there is no list {' and no list '.join(map(repr, wrong))}"
        remedy = "Expected COCO's 'images', 'annotations' and 'categories': export it again."
        return [Fault("annotation files without their lists", where, found, remedy)]
    images, annotations, categories = (content[part] for part in PARTS)
    if not annotations:
        remedy = "Expected the labels of the pictures: export it again."
        return [Fault("annotation files without annotations", where, "'annotations' is empty", remedy)]
    wrong_types = list(type_faults(where, content))
    if wrong_types:
        return wrong_types
    reading = _Reading(where, images, annotations, categories)
    return [*reading.faults(), *(merged(reading.mask_faults()) if with_masks else ())]


class _Reading:
    """One file, indexed."""

    def __init__(self, where: str, images: Entries, annotations: Entries, categories: Entries) -> None:
        self.where, self.images, self.annotations, self.categories = where, images, annotations, categories
        self.pictures = {image["id"]: image.get("file_name") for image in images if "id" in image}
        self.is_panoptic = any("segments_info" in annotation for annotation in annotations)

    def faults(self) -> Iterator[Fault]:
        yield from self._category_faults()
        yield from self._image_faults()
        yield from self._repeated("annotations", "id", remedy="They are numbered anew.", mended=True)
        yield from self._picture_faults()
        if self.is_panoptic:
            yield from self._panoptic_faults()
        else:
            yield from self._annotation_faults()

    def _one(
        self,
        kind: str,
        places: Sequence[str],
        what: str,
        remedy: str,
        *,
        mended: bool = False,
        annotations: Entries = (),
    ) -> Iterator[Fault]:
        """Yield one fault for all places; of a fault that stops, one for each picture of the annotations."""
        if places and not mended and annotations:
            by_picture: dict[str | None, list[str]] = defaultdict(list)
            for place, annotation in zip(places, annotations, strict=True):
                by_picture[self.pictures.get(annotation.get("image_id"))].append(place)
        else:
            by_picture = {None: [*places]} if places else {}
        for picture, alike in by_picture.items():
            many = f" ({len(alike)} times)" if len(alike) > 1 else ""
            name = f" (picture {picture})" if picture else ""
            yield Fault(
                kind, f"{self.where}, {alike[0]}{name}", what + many, remedy, not mended, mended, picture
            )

    def _lacking(self, part: str, key: str, remedy: str, entries: Entries | None = None) -> Iterator[Fault]:
        entries = getattr(self, part) if entries is None else entries
        lacking = [(number, entry) for number, entry in enumerate(entries) if entry.get(key) is None]
        mended = MENDED_KEYS.get(part, {}).get(key)
        yield from self._one(
            f"{part} without {key!r}",
            [f"{part}[{entry.get('id', number)}]" for number, entry in lacking],
            f"there is no {key!r}",
            f"It is {mended}." if mended else remedy,
            mended=bool(mended),
            annotations=[entry for _, entry in lacking] if part == "annotations" else (),
        )

    def _repeated(self, part: str, key: str, remedy: str, mended: bool = False) -> Iterator[Fault]:
        values = Counter(str(entry[key]) for entry in getattr(self, part) if key in entry)
        repeated = [value for value, times in values.items() if times > 1]
        what = f"{key} {', '.join(repeated[:4])} occurs more than once"
        places = [part] if repeated else []
        yield from self._one(f"{part} that share one {key!r}", places, what, remedy, mended=mended)

    def _category_faults(self) -> Iterator[Fault]:
        for key in ("id", "name", *(["isthing"] if self.is_panoptic else [])):
            hint = "1 for objects that are counted, 0 for areas" if key == "isthing" else "each needs its own"
            yield from self._lacking("categories", key, f"Add it: {hint}.")
        for key in ("id", "name"):
            yield from self._repeated("categories", key, f"Give each category a {key} of its own.")

    def _image_faults(self) -> Iterator[Fault]:
        yield from self._lacking("images", "id", "Add it: annotations name the picture by it.")
        yield from self._lacking("images", "file_name", "Add the name of the picture's file.")
        for key in ("width", "height"):
            yield from self._lacking("images", key, "")
        yield from self._repeated("images", "id", "Two pictures share their annotations: number them anew.")
        yield from self._repeated("images", "file_name", "List each picture once.")

    def _picture_faults(self) -> Iterator[Fault]:
        """Yield annotations that name no picture, or one that is not listed."""
        yield from self._lacking("annotations", "image_id", "Name the picture by its id.")
        texts = {str(image_id) for image_id in self.pictures}
        named = [a for a in self.annotations if "image_id" in a]
        orphans = [a for a in named if not _is_in(a["image_id"], self.pictures)]
        retyped = [a for a in orphans if str(a["image_id"]) in texts]
        lost = [a for a in orphans if str(a["image_id"]) not in texts]
        places = [f"annotation {a.get('id')}" for a in lost]
        what = f"image_id {lost[0]['image_id']!r} is none of the 'images'" if lost else ""
        mended = len(lost) < len(named) and not self.is_panoptic
        remedy = "They are left out." if mended else "Take 'images' and 'annotations' of one export."
        yield from self._one("orphan annotations", places, what, remedy, mended=mended)
        yield from self._retyped("image_id", retyped)

    def _retyped(self, key: str, entries: Entries) -> Iterator[Fault]:
        mended = key == "category_id" and not self.is_panoptic
        what = f"{key} {entries[0][key]!r} is of another type than the ids it names" if entries else ""
        places = [f"annotation {entry.get('id')}" for entry in entries]
        remedy = "It is taken as that number." if mended else "Write ids as numbers in all lists."
        kind = "ids as text in one list, as numbers in another"
        yield from self._one(kind, places, what, remedy, mended=mended)

    def _unknown_categories(self, entries: Entries, owners: Entries) -> Iterator[Fault]:
        """Yield the entries whose category is none; `owners` are their annotations."""
        ids: set[Any] = {category.get("id") for category in self.categories}
        texts = set(map(str, ids))
        pairs = [(e, o) for e, o in zip(entries, owners, strict=True) if "category_id" in e]
        unknown = [(e, o) for e, o in pairs if not _is_in(e["category_id"], ids)]
        yield from self._retyped("category_id", [e for e, _ in unknown if str(e["category_id"]) in texts])
        lost = [(e, o) for e, o in unknown if str(e["category_id"]) not in texts]
        values, known = sorted({str(e["category_id"]) for e, _ in lost}), sorted(texts)
        what = f"category_id {', '.join(values[:4])} is none of the categories {', '.join(known[:8])}"
        yield from self._one(
            "unknown categories",
            [f"annotation {e.get('id')}" for e, _ in lost],
            what,
            "Correct the id, or add the category.",
            annotations=[o for _, o in lost],
        )

    def _annotation_faults(self) -> Iterator[Fault]:
        yield from self._lacking("annotations", "category_id", "Add it: the id of a category.")
        for key in ("id", "area", "bbox", "iscrowd"):
            yield from self._lacking("annotations", key, "")
        yield from self._unknown_categories(self.annotations, self.annotations)
        seen: set[int] = set()
        twice = []
        for annotation in self.annotations:
            parts = [annotation.get(key) for key in ("image_id", "category_id", "segmentation")]
            if hash(str(parts)) in seen and parts[-1]:
                twice.append(f"annotation {annotation.get('id')}")
            seen.add(hash(str(parts)))
        what, remedy = "the same picture, category and mask as an earlier one", "Take one of each pair out."
        yield from self._one("annotations that occur twice", twice, what, remedy)

    def mask_faults(self) -> Iterator[Fault]:
        sizes = {image.get("id"): (image.get("width"), image.get("height")) for image in self.images}
        for annotation in () if self.is_panoptic else self.annotations:
            width, height = sizes.get(annotation.get("image_id"), (None, None))
            where = f"{self.where}, annotation {annotation.get('id')}"
            picture = self.pictures.get(annotation.get("image_id"))
            for fault in annotation_faults(annotation, where, (width, height)) if width and height else ():
                yield replace(fault, picture=picture)

    def _panoptic_faults(self) -> Iterator[Fault]:
        for key in ("file_name", "segments_info"):
            yield from self._lacking("annotations", key, "Add it: the PNG's name, and its segments.")
        yield from self._repeated("annotations", "image_id", "Keep one annotation for each picture.")
        annotated = {annotation.get("image_id") for annotation in self.annotations}
        bare = [str(name) for image_id, name in self.pictures.items() if image_id not in annotated]
        remedy = "They are left out."
        yield from self._one("pictures without a label", bare, "no annotation", remedy, mended=True)
        segments = [(s, a) for a in self.annotations for s in a.get("segments_info") or ()]
        entries, owners = [s for s, _ in segments], [a for _, a in segments]
        for key in ("id", "category_id"):
            yield from self._one(
                f"segments without {key!r}",
                [f"annotation {o.get('image_id')}" for e, o in segments if key not in e],
                f"a segment has no {key!r}",
                "Add it, or export again.",
                annotations=[o for e, o in segments if key not in e],
            )
        yield from self._unknown_categories(entries, owners)
        yield from self._segment_id_faults()

    def _segment_id_faults(self) -> Iterator[Fault]:
        wrong: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for annotation in self.annotations:
            ids = [segment.get("id") for segment in annotation.get("segments_info") or ()]
            if len(set(ids)) < len(ids):
                wrong["two segments of a picture share one id"].append(annotation)
            if 0 in ids:
                wrong["a segment has the id 0, which is void"].append(annotation)
        for what, owners in wrong.items():
            places = [f"annotation {owner.get('image_id')}" for owner in owners]
            remedy = "Give each segment an id of its own, from 1, in JSON and PNG."
            yield from self._one("wrong segment ids", places, what, remedy, annotations=owners)


def _is_in(value: Any, ids: Collection[Any]) -> bool:
    try:
        return value in ids
    except TypeError:  # a list or an object
        return False
