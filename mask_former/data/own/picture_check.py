"""One picture and its label: what is measured and what is wrong, as plain values that a cache can hold."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from detectron2.structures import BoxMode
from numpy.typing import NDArray
from PIL import Image

from mask_former.data.labels import abbreviated
from mask_former.formats import (
    box_of_mask,
    coco_box,
    read_panoptic_map,
    read_picture,
    read_semantic_label,
    semantic_label_files,
)

from .annotation_faults import annotation_faults, is_box_of, mask_of
from .label_faults import all_void_fault, file_fault, format_fault, mask_fault, size_fault, value_fault
from .report import Fault, merged

Record = Mapping[str, Any]
DIGEST_BYTES = 16
# What readers raise at files whose content is of other types than expected.
CONTENT_ERRORS = (OSError, ValueError, LookupError, TypeError, AttributeError)
LABEL_KEYS = {"panoptic": "pan_seg_file_name", "instance": "annotations"}


def has_label(record: Record, task: str) -> bool:
    """Return whether a record has a label of the task."""
    return bool(semantic_label_files(record)) if task == "semantic" else LABEL_KEYS[task] in record


class Job(NamedTuple):
    """A picture to be checked.

    Attributes:
        record: Detectron2's dataset dict.
        raw: the picture's annotations as they stand in their file, if the record's were made from one.
        split: "train", "val" or "test"; only the pictures of a test set may be without labels.
    """

    record: dict[str, Any]
    raw: Sequence[Mapping[str, Any]] | None
    split: str


class PictureCheck:
    """Checks the records of one data set; it can be sent to another process."""

    def __init__(self, task: str, num_classes: int, ignore_label: int) -> None:
        self.task, self.num_classes, self.ignore_label = task, num_classes, ignore_label

    def __call__(self, job: Job) -> dict[str, Any]:
        """Return the measures of a picture, JSON throughout.

        Returns:
            "faults"; and of a readable picture "size" (width, height), "digest", "brightness", "contrast";
            with a label "pixels" and "segments" ([class id, count] each), "void" pixels; of a palette file
            "palette" ([index, r, g, b] of the indices in use); to be mended "boxes" ([number, x, y, width,
            height]) and "empty" (ids of segments).
        """
        record = job.record
        self.faults: list[Fault] = []
        self.found: dict[str, Any] = {}
        size = self._check_picture(record)
        if has_label(record, self.task):
            if size is not None:
                self._check_label(job, size)
        elif job.split != "test":
            remedy = "It is left out; add a label with the picture's name, or take it out."
            what = "pictures without a label"
            self._add(Fault(what, record["file_name"], "it has no label", remedy, stops=False, mended=True))
        faults = merged(self.faults)
        return {**self.found, "faults": [{**f.to_dict(), "picture": record["file_name"]} for f in faults]}

    def _check_label(self, job: Job, size: tuple[int, int]) -> None:
        try:
            getattr(self, f"_check_{self.task}")(job, size)
        except CONTENT_ERRORS as error:
            remedy = "Export the label again."
            found = f"{type(error).__name__}: {error}"
            self._add(Fault("labels that cannot be used", job.record["file_name"], found, remedy))

    def _add(self, *faults: Fault) -> None:
        self.faults += faults

    def _count(self, pixels: Mapping[int, int], segments: Mapping[int, int], void: int) -> None:
        self.found |= {"pixels": sorted(pixels.items()), "segments": sorted(segments.items()), "void": void}

    def _check_picture(self, record: Record) -> tuple[int, int] | None:
        path = record["file_name"]
        try:
            picture = read_picture(path, "RGB")
        except FileNotFoundError:
            self._add(file_fault(path, "picture"))
            return None
        except (OSError, ValueError) as error:
            self._add(file_fault(path, "picture", error))
            return None
        height, width = picture.shape[:2]
        digest = hashlib.blake2b(picture.tobytes(), digest_size=DIGEST_BYTES)
        digest.update(f"{width}x{height}".encode())
        some = picture[:: max(1, height // 128), :: max(1, width // 128)]
        self.found |= {"size": [width, height], "digest": digest.hexdigest()}
        self.found |= {"brightness": float(some.mean()), "contrast": float(some.std())}
        stated = (record.get("width", width), record.get("height", height))
        if stated != (width, height):
            turned = " It is turned by a quarter in EXIF." if stated == (height, width) else ""
            found = f"the labels' file says {stated[0]}x{stated[1]}, the picture is {width}x{height}"
            remedy = f"Correct width and height, or put the picture there that was labelled.{turned}"
            self._add(Fault("pictures of another size than stated", path, found, remedy))
        return width, height

    def _is_usable(self, path: str, expected: str) -> bool:
        try:
            fault = format_fault(path, expected)
        except FileNotFoundError:
            fault = file_fault(path, "label")
        except Exception as error:  # decoders raise anything
            fault = file_fault(path, "label", error)
        self._add(*([fault] if fault else []))
        return fault is None

    def _check_semantic(self, job: Job, size: tuple[int, int]) -> None:
        record = job.record
        paths = semantic_label_files(record)
        usable = [self._is_usable(path, self._expected(record)) for path in paths]
        if not all(usable):
            return
        try:
            label = read_semantic_label(record)
        except ValueError as error:
            if (
                error.__cause__ is not None
            ):  # of the decoder; else values have no class, or masks several sizes
                self._add(file_fault(paths[0], "label", error))
                return
            found, remedy = str(error).removeprefix(f"{paths[0]}: ").rstrip("."), "See the table of classes."
            self._add(Fault("label values that are no class", paths[0], found, remedy))
            return
        if label.shape != size[::-1]:
            self._add(size_fault(paths[0], label.shape, record["file_name"], size))
        values, counts = _counted(label)
        if "sem_seg_masks" in record:
            self._add(*filter(None, map(mask_fault, paths)))
        elif "sem_seg_values" not in record:
            fault = value_fault(paths[0], values, self.num_classes, self.ignore_label)
            self._add(*([fault] if fault else []))
            self._keep_palette(paths[0], values)
        is_class = (values >= 0) & (values < self.num_classes) & (values != self.ignore_label)
        pixels = dict(zip(values[is_class].tolist(), counts[is_class].tolist(), strict=True))
        self._count(pixels, dict.fromkeys(pixels, 1), int(counts[values == self.ignore_label].sum()))
        if (values == self.ignore_label).all():
            self._add(all_void_fault(paths[0]))

    def _expected(self, record: Record) -> str:
        keys = record.get("sem_seg_values") or (0,)
        return "colors" if isinstance(next(iter(keys)), tuple) else "index"

    def _keep_palette(self, path: str, values: NDArray[np.int64]) -> None:
        with Image.open(path) as label:
            palette = label.getpalette() if label.mode == "P" else None
        if palette:
            colors = ((int(v), palette[3 * v : 3 * v + 3]) for v in values if v != self.ignore_label)
            self.found["palette"] = [[value, *color] for value, color in colors]

    def _check_panoptic(self, job: Job, size: tuple[int, int]) -> None:
        record = job.record
        path = record["pan_seg_file_name"]
        if not self._is_usable(path, "panoptic"):
            return
        try:
            ids = read_panoptic_map(path)
        except ValueError as error:
            self._add(file_fault(path, "label", error))
            return
        if ids.shape != size[::-1]:
            self._add(size_fault(path, ids.shape, record["file_name"], size))
        areas = dict(zip(*(part.tolist() for part in np.unique(ids, return_counts=True)), strict=True))
        void = areas.pop(0, 0)
        listed = {segment["id"]: segment for segment in record.get("segments_info", ())}
        unlisted, empty = sorted(areas.keys() - listed.keys()), sorted(listed.keys() - areas.keys() - {0})
        if unlisted:
            found = f"segment ids {abbreviated(unlisted)} of the PNG are not in the JSON's segments_info"
            remedy = "Take JSON and PNG files of one release, or write 0 (void) for these pixels."
            self._add(Fault("segments that the JSON does not list", path, found, remedy))
        if empty:
            found = f"segment ids {abbreviated(empty)} of the JSON have no pixel in the PNG"
            fault = Fault("segments without a pixel", path, found, "They are left out.", False, True)
            self._add(fault)
            self.found["empty"] = empty
        pixels, segments = Counter[int](), Counter[int]()
        for number, area in areas.items():
            if number in listed and not listed[number].get("iscrowd", 0):
                pixels[listed[number]["category_id"]] += area
                segments[listed[number]["category_id"]] += 1
        self._count(pixels, segments, void)
        if not areas:
            self._add(all_void_fault(path))

    def _check_instance(self, job: Job, size: tuple[int, int]) -> None:
        record, raw = job.record, job.record["annotations"] if job.raw is None else job.raw
        for number, annotation in enumerate(raw):
            place = f"annotation {annotation.get('id', number)}"
            self._add(*annotation_faults(annotation, f"{record['file_name']}, {place}", size))
        pixels, segments, void = Counter[int](), Counter[int](), np.ones(size[::-1], dtype=bool)
        boxes = []
        for number, annotation in enumerate(record["annotations"]):
            mask = mask_of(annotation.get("segmentation"), size)
            if mask is None or not mask.any():
                continue
            void &= ~mask
            if not annotation.get("iscrowd", 0) and 0 <= annotation["category_id"] < self.num_classes:
                pixels[annotation["category_id"]] += int(mask.sum())
                segments[annotation["category_id"]] += 1
            if not is_box_of(mask, _coco_box_of(annotation)):
                boxes.append([number, *coco_box(box_of_mask(mask))])
        if boxes:
            self.found["boxes"] = boxes
        self._count(pixels, segments, int(void.sum()))


def _counted(label: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the distinct values, sorted, and how often each occurs."""
    if label.dtype == np.uint8:  # several times faster than sorting
        counts = np.bincount(label.ravel(), minlength=256)
        values = np.flatnonzero(counts)
        return values, counts[values]
    values, counts = np.unique(label, return_counts=True)
    return values.astype(np.int64), counts


def _coco_box_of(annotation: Mapping[str, Any]) -> Any:
    box, mode = annotation.get("bbox"), annotation.get("bbox_mode", BoxMode.XYWH_ABS)
    if box is None or len(box) != 4 or mode == BoxMode.XYWH_ABS:
        return box
    return BoxMode.convert(list(box), mode, BoxMode.XYWH_ABS)
