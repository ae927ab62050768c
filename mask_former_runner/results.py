"""What is predicted of one picture, and its files; fields and files are those of mask_former's Predictor."""

import colorsys
import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

Array = np.ndarray
KINDS = ("overlay", "labels", "panoptic", "coco", "csv")
COLUMNS = "image task segment_id category_id name is_thing score area x0 y0 x1 y1".split()
# Hue and brightness of the first, second, ... segment of a thing class against the colour of the class.
_SHADES = ((0.0, 1.0), (0.04, 0.8), (-0.04, 1.25), (0.08, 0.95), (-0.08, 0.7), (0.02, 1.4), (-0.02, 0.6))


@dataclass(frozen=True)
class Segment:
    """One segment of a panoptic map: `id` in the map, class index, area in pixels, box x0, y0, x1, y1."""

    id: int
    category_id: int
    name: str
    is_thing: bool
    score: float
    area: int
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class InstanceResults:
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

    `classes` are the metadata's: names, colors, is_thing, dataset_ids, void_label. `semantic` (H, W) holds
    class indices, `panoptic` (H, W) the ids of `segments`, `logits` the class logits, mask logits and sizes.
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
    scores: None = None
    logits: tuple[Any, ...] | None = None

    def labels(self) -> Array | None:
        """Return `semantic`, or where there is none the class of each panoptic segment; (H, W)."""
        if self.semantic is not None or self.panoptic is None:
            return self.semantic
        table = np.full(int(self.panoptic.max(initial=0)) + 1, self.classes["void_label"])
        table[[segment.id for segment in self.segments]] = [segment.category_id for segment in self.segments]
        return table[self.panoptic].astype(label_type(self.classes))

    def draw(self, score_threshold: float = 0.5) -> Image.Image:
        """Return the picture with panoptic segments, else classes, else instances, over it."""
        canvas = np.array(Image.fromarray(self.image).resize((self.width, self.height)), np.float32)
        texts, seen = [], {}
        for mask, label, is_thing, score in self._layers(score_threshold):
            seen[label] = seen.get(label, -1) + 1
            color = _shade(self.classes["colors"][label], seen[label] if is_thing else 0)
            canvas[mask] += 0.6 * (np.array(color) - canvas[mask])
            inner = mask.copy()
            inner[1:] &= mask[:-1]
            inner[:, 1:] &= mask[:, :-1]
            canvas[mask & ~inner] = (255, 255, 240)
            ys, xs = mask.nonzero()
            text = self.classes["names"][label] + (f" {score:.0%}" if score is not None and is_thing else "")
            texts.append((int(np.median(xs)), int(np.median(ys)), text))
        picture = Image.fromarray(canvas.round().astype(np.uint8))
        for x, y, text in texts:
            ImageDraw.Draw(picture).text((x, y), text, (255, 255, 255), anchor="mm", stroke_width=1, stroke_fill=0)
        return picture

    def _layers(self, threshold: float) -> Iterator[tuple[Array, int, bool, float | None]]:
        if self.panoptic is not None:
            for s in sorted(self.segments, key=lambda segment: (segment.is_thing, -segment.area)):
                yield self.panoptic == s.id, s.category_id, s.is_thing, s.score
        elif self.semantic is not None:
            for label in np.unique(self.semantic[self.semantic < len(self.classes["names"])]).tolist():
                yield self.semantic == label, label, False, None
        elif self.instances is not None:
            found = self.instances
            for number in (found.scores >= threshold).nonzero()[0]:
                yield found.masks[number], int(found.classes[number]), True, float(found.scores[number])


def label_type(classes: dict[str, Any]) -> type:
    """Return the type of label maps."""
    return np.uint8 if classes["void_label"] < 256 else np.uint16


def box_of(mask: Array) -> tuple[float, float, float, float]:
    """Return x0, y0, x1, y1 of a mask that is not empty, in pixel edges."""
    (top, bottom), (left, right) = (mask.any(axis).nonzero()[0][[0, -1]] for axis in (1, 0))
    return float(left), float(top), float(right + 1), float(bottom + 1)


def _shade(color: Iterable[int], number: int) -> tuple[int, ...]:
    turn, brightness = _SHADES[number % len(_SHADES)]
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in color))
    rgb = colorsys.hsv_to_rgb((hue + turn) % 1.0, saturation, min(1.0, value * brightness))
    return tuple(round(255 * channel) for channel in rgb)


def write(results: Iterable[Result], folder: str | Path, kinds: Iterable[str] = KINDS) -> int:
    """Write files of these kinds for all results, JSON and CSV at the end; return how many pictures there were.

    Raises:
        ValueError: there is no such kind.
    """
    kinds, folder, classes, seen = set(kinds), Path(folder), {}, {}
    if kinds - set(KINDS):
        raise ValueError(f"Unknown kind of result file: {kinds - set(KINDS)}; choose of {', '.join(KINDS)}.")
    panoptic, coco, rows = {"images": [], "annotations": []}, [], []
    for result in results:
        classes, stem, number = result.classes, Path(result.image_name).stem, 1
        while seen.setdefault(stem, result.image_name) != result.image_name:
            number += 1
            stem = f"{Path(result.image_name).stem}_{number}"
        image_id = int(stem) if stem.isascii() and stem.isdigit() else stem
        if "overlay" in kinds:
            _save(result.draw(), folder / "overlay" / f"{stem}.jpg", quality=92, subsampling=0)
        if "labels" in kinds and result.labels() is not None:
            picture = Image.fromarray(np.ascontiguousarray(result.labels()))
            if picture.mode == "L":
                picture.putpalette([*np.ravel(classes["colors"]).tolist(), *[0] * (768 - 3 * len(classes["names"]))])
            _save(picture, folder / "labels" / f"{stem}.png")
        if "panoptic" in kinds and result.panoptic is not None:
            rgb = np.stack([result.panoptic >> shift & 255 for shift in (0, 8, 16)], -1).astype(np.uint8)
            _save(Image.fromarray(rgb), folder / "panoptic" / f"{stem}.png")
            size = {"height": result.height, "width": result.width}
            panoptic["images"].append({"id": image_id, "file_name": Path(result.image_name).name, **size})
            annotation = {"image_id": image_id, "file_name": f"{stem}.png"}
            panoptic["annotations"].append({**annotation, "segments_info": _segments_info(result)})
        coco += _coco_entries(result, image_id) if "coco" in kinds else []
        rows += _rows(result)
    folder.mkdir(parents=True, exist_ok=True)
    if "panoptic" in kinds and panoptic["images"]:
        keys = zip(*(classes[key] for key in ("dataset_ids", "names", "is_thing", "colors")), strict=True)
        panoptic["categories"] = [{"id": i, "name": n, "isthing": int(t), "color": list(c)} for i, n, t, c in keys]
        (folder / "panoptic.json").write_text(json.dumps(panoptic))
    if "coco" in kinds:
        (folder / "coco_instances_results.json").write_text(json.dumps(coco))
    if "csv" in kinds:
        with open(folder / "segments.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    return len(seen)


def _save(picture: Image.Image, file: Path, **options: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.save(file, **options)


def _coco_box(box: Iterable[float]) -> list[float]:
    x0, y0, x1, y1 = map(float, box)
    return [x0, y0, x1 - x0, y1 - y0]


def _segments_info(result: Result) -> list[dict[str, Any]]:
    ids = result.classes["dataset_ids"]
    return [
        {"id": s.id, "category_id": ids[s.category_id], "isthing": int(s.is_thing), "score": round(s.score, 6)}
        | {"area": s.area, "bbox": _coco_box(s.box), "iscrowd": 0}
        for s in result.segments
    ]


def _coco_entries(result: Result, image_id: int | str) -> list[dict[str, Any]]:
    """Return entries of COCO's results form: instances, else thing segments."""
    i, ids = result.instances, result.classes["dataset_ids"]
    if i is not None:
        rows = list(zip(i.masks, i.classes.tolist(), i.scores.tolist(), i.boxes, strict=True))
    else:
        things = [s for s in result.segments if s.is_thing]
        rows = [(result.panoptic == s.id, s.category_id, s.score, s.box) for s in things]
    return [
        {"image_id": image_id, "category_id": ids[label], "score": round(score, 6), "bbox": _coco_box(box)}
        | {"segmentation": {"size": [result.height, result.width], "counts": run_lengths(mask)}}
        for mask, label, score, box in rows
    ]


def run_lengths(mask: Array) -> str:
    """Return COCO's compressed run lengths of a mask (H, W), column by column."""
    flat = np.concatenate([[False], mask.ravel(order="F"), [mask[-1, -1] ^ True]])
    ends = (flat[1:] != flat[:-1]).nonzero()[0]
    counts = np.diff(ends, prepend=0).tolist()
    text = []
    for number, count in enumerate(counts):
        value = count - counts[number - 2] if number > 2 else count
        more = True
        while more:
            group, value = value & 31, value >> 5
            more = value != (-1 if group & 16 else 0)
            text.append(chr(group + 32 * more + 48))
    return "".join(text)


def _rows(result: Result) -> list[tuple[Any, ...]]:
    """Return rows of the table: of panoptic segments, else instances, else classes."""
    names, ids, is_thing = (result.classes[key] for key in ("names", "dataset_ids", "is_thing"))
    if result.panoptic is not None:
        rows = [("panoptic", s.id, s.category_id, round(s.score, 6), s.area, s.box) for s in result.segments]
    elif result.instances is not None:
        i = result.instances
        columns = zip(i.classes.tolist(), i.scores.tolist(), i.areas.tolist(), i.boxes.tolist(), strict=True)
        rows = [("instance", n, c, round(score, 6), area, box) for n, (c, score, area, box) in enumerate(columns, 1)]
    else:
        present = [] if result.semantic is None else np.unique(result.semantic[result.semantic < len(names)]).tolist()
        masks = {label: result.semantic == label for label in present}
        rows = [("semantic", c, c, "", int(mask.sum()), box_of(mask)) for c, mask in masks.items()]
    return [
        (result.image_name, task, number, ids[c], names[c], int(is_thing[c]), score, area, *box)
        for task, number, c, score, area, box in rows
    ]
