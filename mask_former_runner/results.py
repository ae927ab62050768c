"""What is predicted of one picture, and its files; fields and files are those of mask_former's Predictor."""

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

Array = np.ndarray
KINDS = ("overlay", "labels", "panoptic", "coco", "csv")
COLUMNS = ("image", "task", "segment_id", "category_id", "name", "is_thing", "score", "area", "x0", "y0")


class Segment(NamedTuple):
    """One segment of a panoptic map: `id` in the map, class index, area in pixels, box x0, y0, x1, y1."""

    id: int
    category_id: int
    name: str
    is_thing: bool
    score: float
    area: int
    box: tuple[float, float, float, float]


class InstanceResults(NamedTuple):
    """N instances, best first: masks (N, H, W) bool, boxes (N, 4), class indices, names, scores, areas."""

    masks: Array
    boxes: Array
    classes: Array
    names: tuple[str, ...]
    scores: Array
    areas: Array


@dataclass(frozen=True)
class Result:
    """All that is predicted of one picture; what was not asked for is None.

    classes: lists `names`, `colors`, `is_thing`, `dataset_ids`, and `void_label`.
    semantic: (H, W) class indices. panoptic: (H, W) int32 ids of `segments`, 0 is void.
    """

    image_name: str
    height: int
    width: int
    classes: dict[str, Any]
    image: Array | None = None
    semantic: Array | None = None
    panoptic: Array | None = None
    segments: list[Segment] = field(default_factory=list)
    instances: InstanceResults | None = None

    def labels(self) -> Array | None:
        """Return `semantic`, or where there is none the class of each panoptic segment; (H, W)."""
        if self.semantic is not None or self.panoptic is None:
            return self.semantic
        table = np.full(int(self.panoptic.max(initial=0)) + 1, self.classes["void_label"])
        for segment in self.segments:
            table[segment.id] = segment.category_id
        return table[self.panoptic].astype(np.uint8 if self.classes["void_label"] < 256 else np.uint16)

    def draw(self, score_threshold: float = 0.5) -> Image.Image:
        """Return the picture with panoptic segments, else instances, else classes, over it."""
        assert self.image is not None
        picture, texts = Image.fromarray(self.image).resize((self.width, self.height)), []
        for task, _, label, score, area, _, mask in sorted(self.rows(), key=lambda row: -row[4]):
            if task != "instance" or score >= score_threshold:
                shown = Image.fromarray(mask().astype(np.uint8) * 153)
                picture.paste(tuple(self.classes["colors"][label]), mask=shown)
                ys, xs = mask().nonzero()
                texts.append(((xs[area // 2], ys[area // 2]), self.classes["names"][label]))
        for place, text in texts:
            ImageDraw.Draw(picture).text(place, text, "white", stroke_width=1, stroke_fill="black")
        return picture

    def rows(self, instances_first: bool = False) -> Iterator[tuple[Any, ...]]:
        """Yield task, number, class, score, area, box and a function that gives the mask (H, W).

        Of panoptic segments, else instances, else classes; or of instances where there are any.
        """
        if self.panoptic is not None and not (instances_first and self.instances is not None):
            for s in self.segments:
                facts = s.id, s.category_id, s.score, s.area, s.box
                yield "panoptic", *facts, lambda s=s: self.panoptic == s.id
        elif self.instances is not None:
            i = self.instances
            columns = (i.classes.tolist(), i.scores.tolist(), i.areas.tolist(), i.boxes.tolist(), i.masks)
            for number, (*values, mask) in enumerate(zip(*columns, strict=True), 1):
                yield "instance", number, *values, lambda mask=mask: mask
        elif self.semantic is not None:
            for label in np.unique(self.semantic[self.semantic < len(self.classes["names"])]).tolist():
                mask = self.semantic == label
                yield "semantic", label, label, "", int(mask.sum()), box_of(mask), lambda mask=mask: mask


def box_of(mask: Array) -> tuple[float, float, float, float]:
    """Return x0, y0, x1, y1 of a mask (H, W) that is not empty, in pixel edges."""
    (top, bottom), (left, right) = (mask.any(axis).nonzero()[0][[0, -1]] for axis in (1, 0))
    return float(left), float(top), float(right + 1), float(bottom + 1)


def run_lengths(mask: Array) -> dict[str, Any]:
    """Return COCO's compressed run lengths of a mask (H, W), column by column."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    ends = np.append((flat[1:] != flat[:-1]).nonzero()[0], mask.size)
    counts, text = np.diff(ends, prepend=0).tolist(), ""
    for number, count in enumerate(counts):
        value, more = count - (counts[number - 2] if number > 2 else 0), True
        while more:
            group, value = value & 31, value >> 5
            more = value != (-1 if group & 16 else 0)
            text += chr(group + 32 * more + 48)
    return {"size": list(mask.shape), "counts": text}


def write(results: Iterable[Result], folder: str | Path, kinds: Iterable[str] = KINDS) -> int:
    """Write files of some `KINDS` for all results, JSON and CSV at the end; return the number of pictures."""
    folder, names = Path(folder), dict[str, str]()
    panoptic: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": []}
    coco, table = list[Any](), list[Any]([[*COLUMNS, "x1", "y1"]])
    for kind in ("", *({"overlay", "labels", "panoptic"} & set(kinds))):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for result in results:
        classes, stem, number = result.classes, Path(result.image_name).stem, 1
        while names.setdefault(stem, result.image_name) != result.image_name:
            number += 1
            stem = f"{Path(result.image_name).stem}_{number}"
        _write_pictures(result, folder, stem, kinds)
        image_id = int(stem) if stem.isascii() and stem.isdigit() else stem
        for task, number, label, score, area, box, _ in result.rows():
            facts = (classes["dataset_ids"][label], classes["names"][label], classes["is_thing"][label])
            score = score if score == "" else round(score, 6)
            table.append([result.image_name, task, number, *facts, score, area, *box])
        if result.panoptic is not None:
            things = classes["is_thing"]
            extra = [{"id": r[1], "isthing": things[r[2]], "area": r[4], "iscrowd": 0} for r in result.rows()]
            infos = [_entry(result, row) | more for row, more in zip(result.rows(), extra, strict=True)]
            image = {"id": image_id, "file_name": Path(result.image_name).name}
            panoptic["images"].append(image | {"height": result.height, "width": result.width})
            entry = {"image_id": image_id, "file_name": f"{stem}.png", "segments_info": infos}
            panoptic["annotations"].append(entry)
        keys = {"id": "dataset_ids", "name": "names", "isthing": "is_thing", "color": "colors"}
        columns = zip(*(classes[key] for key in keys.values()), strict=True)
        panoptic["categories"] = [dict(zip(keys, column, strict=True)) for column in columns]
        for row in result.rows(instances_first=True) if "coco" in kinds else ():
            if row[0] == "instance" or (row[0] == "panoptic" and classes["is_thing"][row[2]]):
                mask = {"segmentation": run_lengths(row[6]())}
                coco.append({"image_id": image_id, **_entry(result, row), **mask})
    for kind, name, content in (("panoptic", "panoptic", panoptic), ("coco", "coco_instances_results", coco)):
        if kind in kinds:
            (folder / f"{name}.json").write_text(json.dumps(content))
    if "csv" in kinds:
        with open(folder / "segments.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(table)
    return len(names)


def _write_pictures(result: Result, folder: Path, stem: str, kinds: Iterable[str]) -> None:
    labels = result.labels()
    if "overlay" in kinds:
        result.draw().save(folder / "overlay" / f"{stem}.jpg", quality=92, subsampling=0)
    if "labels" in kinds and labels is not None:
        picture = Image.fromarray(np.ascontiguousarray(labels))
        if labels.dtype == np.uint8:
            colors = np.zeros((256, 3), np.uint8)
            colors[: len(result.classes["colors"])] = result.classes["colors"]
            picture.putpalette(colors.tobytes())
        picture.save(folder / "labels" / f"{stem}.png")
    if "panoptic" in kinds and result.panoptic is not None:
        rgb = np.stack([result.panoptic >> shift & 255 for shift in (0, 8, 16)], -1).astype(np.uint8)
        Image.fromarray(rgb).save(folder / "panoptic" / f"{stem}.png")


def _entry(result: Result, row: tuple[Any, ...]) -> dict[str, Any]:
    (x0, y0, x1, y1), category = row[5], result.classes["dataset_ids"][row[2]]
    return {"category_id": category, "score": round(row[3], 6), "bbox": [x0, y0, x1 - x0, y1 - y0]}
