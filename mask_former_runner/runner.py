"""From pictures to results: read, resize as at test time, run the graph, form results."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from mask_former_runner import masks
from mask_former_runner.graph import Graph
from mask_former_runner.results import InstanceResults, Result, Segment, box_of

PICTURES = {".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm"}
PICTURES |= {".tga", ".tif", ".tiff", ".webp"}
VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")


class Runner:
    """An exported model with its rules: `for result in Runner("model.onnx")("photos/"): ...`."""

    def __init__(self, file: str | Path, threads: int = 0, classes: Any = None, **rules: Any) -> None:
        """Load a model file.

        Args:
            file: written by mask_former.export.
            threads: of the runtime; 0: its own choice.
            classes: names or indices that results may have; None: all.
            rules: tasks, score_threshold, mask_threshold, overlap_threshold, top_k, instead of the file's.
        """
        self.graph = Graph(file, threads)
        self.metadata = self.graph.metadata
        self.classes = self.metadata["classes"]
        score = rules.pop("score_threshold", None)
        rules |= {"object_mask_threshold": score, "instance_score_threshold": score}
        self.rules = self.metadata["rules"] | {key: v for key, v in rules.items() if v is not None}
        unknown = self.rules.keys() - self.metadata["rules"].keys()
        if unknown or set(self.rules["tasks"]) - set(self.metadata["possible_tasks"]):
            raise ValueError(
                f"{file}: expected options {sorted(self.metadata['rules'])} and tasks "
                f"{self.metadata['possible_tasks']}, got {sorted(rules)} and tasks {self.rules['tasks']}."
            )
        self.kept = None if classes is None else self._indices(classes)

    def __call__(
        self, inputs: Any, batch_size: int = 1, output_size: tuple[int, int] | None = None
    ) -> Iterator[Result]:
        """Yield the results of a file, folder, video, array (H, W, 3) uint8 RGB, or of an iterable of them.

        Successive pictures of one size form batches of up to `batch_size`.
        """
        prepared = ((name, pixels, self.prepare(pixels)) for name, pixels in load(inputs))
        for _, same in itertools.groupby(prepared, lambda item: item[2].shape):
            while batch := list(itertools.islice(same, batch_size)):
                outputs = self.graph(np.stack([item[2] for item in batch]))
                for number, (name, pixels, image) in enumerate(batch):
                    values = {key: value[number] for key, value in outputs.items()}
                    height, width = output_size or pixels.shape[:2]
                    fields = self._fields(values, image.shape[1:], (height, width))
                    yield Result(name, height, width, self.classes, pixels, **fields)

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        """Return the input (C, h, w) uint8 for a picture (H, W, 3) RGB, resized as at test time."""
        shortest, longest = (self.metadata["sizes"][key] for key in ("shortest_edge", "longest_edge"))
        picture, size = Image.fromarray(pixels), np.array(pixels.shape[:2], float)
        if self.metadata["channels"] == "L":
            picture = picture.convert("L")
        if shortest:
            scale = min(shortest / size.min(), longest / size.max())
            height, width = (size * scale + 0.5).astype(int).tolist()
            if min(height, width) < 4:
                raise ValueError(f"A picture of {pixels.shape[:2]} pixels gets too narrow: cut it.")
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        image = np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1)
        return np.ascontiguousarray(image[::-1] if self.metadata["channels"] == "BGR" else image)

    def _fields(
        self, values: dict[str, np.ndarray], image: tuple[int, int], output: tuple[int, int]
    ) -> dict[str, Any]:
        rules, divisor = self.rules, self.metadata["sizes"]["divisor"]
        if "labels" in values:
            picture = Image.fromarray(values["labels"].astype(np.int32))
            labels = np.asarray(picture.resize(output[::-1], Image.Resampling.NEAREST))
            return {"semantic": self._kept(labels)}
        height, width = (-(-side // divisor) * divisor for side in image)
        sizes = ((height, width), image, output)
        if (logits := values.get("pixel_logits")) is not None:
            labels = masks.highest_sums(np.eye(len(logits)), logits, sizes, np.array)[0]
            return {"semantic": self._kept(labels)}
        queries = values["class_logits"], values["mask_logits"], sizes
        fields: dict[str, Any] = {}
        if "semantic" in rules["tasks"]:
            fields["semantic"] = self._kept(masks.semantic_labels(*queries, rules["resize_logits"]))
        if "panoptic" in rules["tasks"]:
            fields["panoptic"], infos = masks.panoptic(*queries, rules, self.kept)
            fields["segments"] = [self._segment(fields["panoptic"], **info) for info in infos]
        if "instance" in rules["tasks"]:
            fields["instances"] = self._instances(*queries)
        return fields

    def _kept(self, labels: np.ndarray) -> np.ndarray:
        count, void = len(self.classes["names"]), self.classes["void_label"]
        table = np.arange(count + 1, dtype=np.uint8 if void < 256 else np.uint16)
        table[[i for i in range(count + 1) if i == count or not (self.kept is None or i in self.kept)]] = void
        return table[labels]

    def _segment(self, ids: np.ndarray, id: int, category_id: int, score: float) -> Segment:
        mask, name = ids == id, self.classes["names"][category_id]
        is_thing = category_id in (self.rules["thing_ids"] or ())
        return Segment(id, category_id, name, is_thing, score, int(mask.sum()), box_of(mask))

    def _instances(self, class_logits: np.ndarray, maps: np.ndarray, sizes: masks.Sizes) -> InstanceResults:
        names, things = self.classes["names"], self.rules["thing_ids"]
        allowed = range(len(names)) if things is None else things
        allowed = sorted(set(allowed) & (set(allowed) if self.kept is None else self.kept))
        threshold = self.rules["instance_score_threshold"]
        found = masks.instances(class_logits, maps, sizes, self.rules, allowed) if allowed else ()
        rows = [row for row in found if threshold is None or row[2] > threshold]
        rows.sort(key=lambda row: -row[2])
        stacked = np.array([row[0] for row in rows], bool).reshape(-1, *sizes[2])
        return InstanceResults(
            masks=stacked,
            boxes=np.array([box_of(row[0]) for row in rows], np.float32).reshape(-1, 4),
            classes=np.array([row[1] for row in rows], np.int64),
            names=tuple(names[row[1]] for row in rows),
            scores=np.array([row[2] for row in rows], np.float32),
            areas=np.count_nonzero(stacked, axis=(1, 2)),
        )

    def _indices(self, wanted: Any) -> frozenset[int]:
        names, found = [name.lower() for name in self.classes["names"]], set()
        for item in [wanted] if isinstance(wanted, str | int) else wanted:
            text = str(item).strip().lower()
            same = [i for i, name in enumerate(names) if text in (name, str(i))]
            # A class of several names, as "car, auto", goes by each of them.
            same = same or [i for i, n in enumerate(names) if text in map(str.strip, n.split(","))]
            if not same:
                raise ValueError(f"No class {item!r}; this model has {', '.join(names[:8])}, ...")
            found.update(same)
        return frozenset(found)


def load(inputs: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Yield name and pixels (H, W, 3) uint8 RGB of all pictures; of a folder, of those directly in it."""
    for number, source in enumerate([inputs] if isinstance(inputs, str | Path | np.ndarray) else inputs):
        if isinstance(source, np.ndarray):
            yield f"array_{number:06d}", source
        elif Path(source).is_dir():
            files = sorted(file for file in Path(source).iterdir() if file.suffix.lower() in PICTURES)
            if not files:
                raise ValueError(f"{source}: holds no pictures ({' '.join(sorted(PICTURES))}).")
            yield from ((str(file), _read(file)) for file in files)
        elif Path(source).suffix.lower() in VIDEOS:
            for frame, pixels in enumerate(_frames(str(source))):
                yield f"{Path(source).with_suffix('')}_{frame:06d}", pixels
        else:
            yield str(source), _read(source)


def _read(file: str | Path) -> np.ndarray:
    try:
        picture = ImageOps.exif_transpose(Image.open(file))
    except Exception as error:  # decoders raise anything
        raise ValueError(f"{file}: cannot be read as a picture ({error}).") from error
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture).clip(0, 65535) >> 8).astype(np.uint8))
    return np.asarray(picture.convert("RGB"))


def _frames(file: str) -> Iterator[np.ndarray]:
    try:
        import cv2
    except ImportError as error:
        raise ValueError(f"{file}: OpenCV reads videos: pip install opencv-python-headless") from error
    video, count = cv2.VideoCapture(file), 0
    while (frame := video.read()[1]) is not None:
        yield frame[:, :, ::-1]
        count += 1
    if count == 0:
        raise ValueError(f"{file}: cannot be read as a video.")
