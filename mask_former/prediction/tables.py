"""Files with entries of many images: COCO's panoptic JSON, COCO's results JSON, and a CSV table of segments.

Entries are appended to a journal (`.<file>.journal`, one line of JSON per image) at once; the file itself is
written at the end, atomically. A journal that an interrupted run left behind is read by the next one.
"""

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from mask_former.formats import coco_box, encode_mask, replacing
from mask_former.prediction.classes import ClassTable
from mask_former.prediction.values import PredictedValues

Key = int | str
Entry = dict[str, Any]
Entries = dict[Key, list[Entry]]

CSV_COLUMNS = (
    *("image", "task", "segment_id", "category_id", "name", "is_thing", "score", "area"),
    *("x0", "y0", "x1", "y1"),
)


class ResultTable:
    """Entries by image, in one file."""

    def __init__(
        self, file: Path, parse: Callable[[str], Entries], render: Callable[[list[Entry]], str]
    ) -> None:
        """Read what an earlier run left; `parse` and `render` convert the file's text."""
        self.file = file
        self.journal = file.with_name(f".{file.name}.journal")
        self._render = render
        try:
            self.entries = parse(file.read_text(encoding="utf-8")) if file.exists() else {}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{file} exists and cannot be added to ({error}); move it away or choose another folder."
            ) from error
        self._read_journal()
        self._stream = open(self.journal, "ab", buffering=0)  # noqa: SIM115  (closed by `close`)

    def add(self, key: Key, entries: list[Entry]) -> None:
        """Set the entries of an image, replacing those it had."""
        self.entries[key] = entries
        try:
            self._stream.write(json.dumps([key, entries]).encode() + b"\n")
        except OSError as error:
            raise OSError(error.errno, f"cannot write: {error.strerror}", str(self.journal)) from error

    def close(self) -> None:
        """Write the file, then delete the journal."""
        if self._stream.closed:
            return
        content = self._render([entry for entries in self.entries.values() for entry in entries])
        with replacing(self.file) as partial_file:
            partial_file.write_text(content, encoding="utf-8")
        self._stream.close()
        self.journal.unlink(missing_ok=True)

    def _read_journal(self) -> None:
        data = self.journal.read_bytes() if self.journal.exists() else b""
        for line in data.splitlines():
            try:
                key, entries = json.loads(line)
            except ValueError:  # incomplete: the run was killed while it wrote this line
                continue
            self.entries[key] = entries
        if data and not data.endswith(b"\n"):
            with self.journal.open("ab") as stream:
                stream.write(b"\n")
                os.fsync(stream.fileno())


def panoptic_table(file: Path, classes: ClassTable) -> ResultTable:
    """Return COCO's panoptic JSON; its entries are `panoptic_entry`."""
    columns = zip(classes.dataset_ids, classes.names, classes.is_thing, classes.colors, strict=True)
    categories = [
        {"id": dataset_id, "name": name, "isthing": int(is_thing), "color": list(color)}
        for dataset_id, name, is_thing, color in columns
    ]
    return ResultTable(file, partial(_parse_panoptic, categories), partial(_render_panoptic, categories))


def _parse_panoptic(categories: list[Entry], text: str) -> Entries:
    content = json.loads(text)
    if content["categories"] != categories:
        raise ValueError("its classes differ from those of the new results")
    images = {image["id"]: image for image in content["images"]}
    keys = [annotation["image_id"] for annotation in content["annotations"]]
    return {
        key: [{"annotation": annotation, "image": images[key]}]
        for key, annotation in zip(keys, content["annotations"], strict=True)
    }


def _render_panoptic(categories: list[Entry], entries: list[Entry]) -> str:
    images = [entry["image"] for entry in entries]
    annotations = [entry["annotation"] for entry in entries]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories})


def coco_table(file: Path) -> ResultTable:
    """Return COCO's results JSON, one list with the instances of all images; see `coco_entries`."""
    return ResultTable(file, lambda text: _grouped(json.loads(text), "image_id"), json.dumps)


def csv_table(file: Path) -> ResultTable:
    """Return a table with a header; its entries are `csv_rows`."""
    return ResultTable(file, _parse_csv, _render_csv)


def _parse_csv(text: str) -> Entries:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if reader.fieldnames != list(CSV_COLUMNS):
        raise ValueError(f"its columns are {reader.fieldnames}, expected {list(CSV_COLUMNS)}")
    return _grouped(list(reader), CSV_COLUMNS[0])


def _render_csv(entries: list[Entry]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(entries)
    return text.getvalue()


def _grouped(entries: list[Entry], column: str) -> Entries:
    groups: Entries = {}
    for entry in entries:
        groups.setdefault(entry[column], []).append(entry)
    return groups


def panoptic_entry(result: PredictedValues, image_id: Key, file_name: str) -> Entry:
    """Return `annotation` and `image` of COCO's panoptic format, with scores."""
    segments = [
        {
            "id": segment.id,
            "category_id": result.classes.dataset_ids[segment.category_id],
            "isthing": int(segment.is_thing),
            "score": round(segment.score, 6),
            "area": segment.area,
            "bbox": coco_box(segment.box),
            "iscrowd": 0,
        }
        for segment in result.segments
    ]
    name = Path(result.image_name).name
    return {
        "annotation": {"image_id": image_id, "file_name": file_name, "segments_info": segments},
        "image": {"id": image_id, "file_name": name, "height": result.height, "width": result.width},
    }


def coco_entries(result: PredictedValues, image_id: Key) -> list[Entry] | None:
    """Return entries of COCO's results format: instances, else thing segments; None without both."""
    if result.instances is None and result.panoptic is None:
        return None
    return [
        {
            "image_id": image_id,
            "category_id": result.classes.dataset_ids[category_id],
            "score": round(score, 6),
            "bbox": coco_box(box),
            "segmentation": encode_mask(mask),
        }
        for mask, category_id, score, box in _thing_masks(result)
    ]


def _thing_masks(result: PredictedValues) -> Iterator[tuple[Any, int, float, Any]]:
    """Yield mask, class, score and box of each instance, or of each thing segment."""
    instances = result.instances
    if instances is None:
        for segment in result.segments:
            if segment.is_thing:
                yield result.panoptic == segment.id, segment.category_id, segment.score, segment.box
        return
    columns = (instances.classes, instances.scores, instances.boxes)
    yield from zip(instances.masks, *(column.tolist() for column in columns), strict=True)


def csv_rows(result: PredictedValues) -> list[Entry]:
    """Return the rows of an image: its panoptic segments, else its instances, else its semantic classes."""
    rows = []
    for segment in result:
        dataset_id = result.classes.dataset_ids[segment.category_id]
        names = (result.image_name, result.listed_task, segment.id, dataset_id, segment.name)
        score = "" if math.isnan(segment.score) else round(segment.score, 6)
        values = (*names, int(segment.is_thing), score, segment.area, *segment.box)
        rows.append(dict(zip(CSV_COLUMNS, values, strict=True)))
    return rows
