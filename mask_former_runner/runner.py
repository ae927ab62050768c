"""From pictures to results: read, resize as at test time, run the graph, form results."""

import itertools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from mask_former_runner import masks
from mask_former_runner.graph import Graph
from mask_former_runner.results import InstanceResults, Result, Segment, box_of, label_type

PICTURES = set(".avif .bmp .gif .jfif .jp2 .jpeg .jpg .pbm .pgm .png .pnm .ppm .tga .tif .tiff .webp".split())
VIDEOS = set(".avi .m4v .mkv .mov .mp4 .mpeg .mpg .webm".split())


class Runner:
    """An exported model with its thresholds: `Runner("model.onnx")("photos/")`."""

    def __init__(self, file: str | Path, *, runtime: str | None = None, threads: int = 0, **rules: Any) -> None:
        """Load a model file.

        Args:
            file: written by mask_former.export.
            runtime: "onnxruntime" or "openvino"; None: what is installed.
            threads: of the runtime; 0: its own choice.
            rules: tasks, score_threshold, mask_threshold, overlap_threshold, top_k, classes (names or
                indices that results may have), over those of the file; meanings as in mask_former's Predictor.
        """
        self.graph = Graph(file, runtime, threads)
        self.metadata = self.graph.metadata
        self.classes = self.metadata["classes"]
        unknown = rules.keys() - {*self.metadata["rules"], "classes"}
        if unknown:
            raise ValueError(f"Unknown options {sorted(unknown)}; expected some of {sorted(self.metadata['rules'])}.")
        self.rules = self.metadata["rules"] | {key: value for key, value in rules.items() if value is not None}
        if set(self.rules["tasks"]) - set(self.metadata["possible_tasks"]):
            raise ValueError(f"Tasks are {self.rules['tasks']}; {file} gives {self.metadata['possible_tasks']}.")
        self.kept = None if rules.get("classes") is None else self._indices(rules["classes"])

    def __call__(
        self,
        inputs: Any,
        batch_size: int = 1,
        output_size: tuple[int, int] | None = None,
        return_logits: bool = False,
    ) -> Iterator[Result]:
        """Yield the results of pictures: a path of a file, folder or video, an array (H, W, 3), or several.

        Successive pictures of one size form batches of up to `batch_size`.
        """
        prepared = ((name, pixels, self.prepare(pixels)) for name, pixels in load(inputs))
        for _, same in itertools.groupby(prepared, lambda item: item[2].shape):
            while batch := list(itertools.islice(same, batch_size)):
                outputs = self.graph(np.stack([item[2] for item in batch]))
                for number, (name, pixels, image) in enumerate(batch):
                    values = {key: value[number] for key, value in outputs.items()}
                    height, width = output_size or pixels.shape[:2]
                    fields = self._fields(values, image.shape[1:], (height, width), return_logits)
                    yield Result(name, height, width, self.classes, pixels, **fields)

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        """Return what the graph takes of a picture (H, W, 3) RGB: (3, h, w) uint8, resized as at test time."""
        sizes = self.metadata["sizes"]
        height, width = pixels.shape[:2]
        if sizes["shortest_edge"]:
            # As Detectron2 rounds.
            scale = sizes["shortest_edge"] / min(height, width)
            new = (sizes["shortest_edge"], scale * width) if height < width else (scale * height, sizes["shortest_edge"])
            if max(new) > sizes["longest_edge"]:
                scale = sizes["longest_edge"] / max(new)
                new = new[0] * scale, new[1] * scale
            size = int(new[1] + 0.5), int(new[0] + 0.5)
            if min(size) < 4:
                raise ValueError(f"A picture of {width}x{height} shrinks to less than 4 pixels on a side: cut it.")
            pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
        pixels = pixels[:, :, ::-1] if self.metadata["channels"] == "BGR" else pixels
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def _fields(
        self, values: dict[str, np.ndarray], image: tuple[int, int], output: tuple[int, int], return_logits: bool
    ) -> dict[str, Any]:
        rules, labels = self.rules, values.get("labels")
        if labels is not None:
            picture = Image.fromarray(labels.astype(np.int32)).resize(output[::-1], Image.Resampling.NEAREST)
            return {"semantic": self._kept(np.asarray(picture))}
        maps = values["mask_logits"] if "mask_logits" in values else values["pixel_logits"]
        if "pixel_logits" in values:
            stride = self.metadata["sizes"]["stride"]
            sizes = masks.Sizes((maps.shape[1] * stride, maps.shape[2] * stride), image, output)
            return {"semantic": self._kept(masks.highest(maps, sizes))}
        divisor = max(1, self.metadata["sizes"]["divisor"])
        sizes = masks.Sizes(tuple(-(-side // divisor) * divisor for side in image), image, output)
        classes = values["class_logits"]
        fields: dict[str, Any] = {"logits": (classes, maps, sizes)} if return_logits else {}
        if "semantic" in rules["tasks"]:
            fields["semantic"] = self._kept(masks.semantic_labels(classes, maps, sizes, rules["resize_logits"]))
        maps = maps - np.float32(math.log(rules["mask_threshold"] / (1 - rules["mask_threshold"])))
        if "panoptic" in rules["tasks"]:
            fields |= self._panoptic(classes, maps, sizes)
        if "instance" in rules["tasks"]:
            fields["instances"] = self._instances(classes, maps, sizes)
        return fields

    def _kept(self, labels: np.ndarray) -> np.ndarray:
        table = np.arange(len(self.classes["names"]), dtype=label_type(self.classes))
        if self.kept is not None:
            table[[index for index in table if index not in self.kept]] = self.classes["void_label"]
        return table[labels]

    def _panoptic(self, classes: np.ndarray, maps: np.ndarray, sizes: masks.Sizes) -> dict[str, Any]:
        threshold = self.rules["score_threshold"]
        ids, infos = masks.panoptic(
            classes,
            maps,
            sizes,
            things=frozenset(self.rules["thing_ids"]),
            object_mask_threshold=self.rules["object_mask_threshold"] if threshold is None else threshold,
            overlap_threshold=self.rules["overlap_threshold"],
        )
        infos = [info for info in infos if self.kept is None or info["category_id"] in self.kept]
        ids = np.where(np.isin(ids, [info["id"] for info in infos]), ids, 0).astype(np.int32)
        areas = np.bincount(ids.ravel())
        segments = [
            Segment(
                name=self.classes["names"][info["category_id"]],
                is_thing=info["category_id"] in self.rules["thing_ids"],
                area=int(areas[info["id"]]),
                box=box_of(ids == info["id"]),
                **info,
            )
            for info in infos
        ]
        return {"panoptic": ids, "segments": segments}

    def _instances(self, classes: np.ndarray, maps: np.ndarray, sizes: masks.Sizes) -> InstanceResults:
        allowed = self.rules["thing_ids"] or range(len(self.classes["names"]))
        allowed = [index for index in allowed if self.kept is None or index in self.kept]
        found = masks.instances(classes, maps, sizes, classes=sorted(allowed), top_k=self.rules["top_k"])
        threshold = self.rules["score_threshold"]
        rows = [row for row in found if row[0].any() and (threshold is None or row[2] > threshold)]
        rows.sort(key=lambda row: -row[2])
        stacked = np.array([row[0] for row in rows], bool).reshape(-1, *sizes.output)
        return InstanceResults(
            masks=stacked,
            boxes=np.array([box_of(row[0]) for row in rows], np.float32).reshape(-1, 4),
            classes=np.array([row[1] for row in rows], np.int64),
            names=tuple(self.classes["names"][row[1]] for row in rows),
            scores=np.array([row[2] for row in rows], np.float32),
            areas=np.count_nonzero(stacked, axis=(1, 2)),
        )

    def _indices(self, wanted: Iterable[str | int]) -> frozenset[int]:
        names = [{name.lower(), *(part.strip().lower() for part in name.split(","))} for name in self.classes["names"]]
        found = set()
        for item in [wanted] if isinstance(wanted, str | int) else wanted:
            same = [index for index, own in enumerate(names) if str(item).lower() in (*own, str(index))]
            if not same:
                raise ValueError(f"No class {item!r}; the model has {', '.join(self.classes['names'][:8])}, ...")
            found.update(same)
        return frozenset(found)


def load(inputs: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Yield name and pixels (H, W, 3) uint8 RGB of all pictures; of a folder, of those directly in it."""
    many = [inputs] if isinstance(inputs, str | Path | np.ndarray) else inputs
    for number, source in enumerate(many):
        path = Path(source) if isinstance(source, str | Path) else None
        if path is None:
            yield f"array_{number:06d}", source
        elif path.is_dir():
            found = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES)
            if not found:
                raise ValueError(f"{path}: holds no pictures ({' '.join(sorted(PICTURES))}).")
            yield from ((str(file), _read(file)) for file in found)
        elif path.suffix.lower() in VIDEOS:
            frames = enumerate(_frames(path))
            yield from ((f"{path.with_suffix('')}_{frame:06d}", pixels) for frame, pixels in frames)
        else:
            yield str(path), _read(path)


def _read(file: Path) -> np.ndarray:
    try:
        picture = ImageOps.exif_transpose(Image.open(file))
    except Exception as error:  # decoders raise anything
        raise ValueError(f"{file}: cannot be read as a picture ({error}).") from error
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture).clip(0, 65535) >> 8).astype(np.uint8))
    return np.asarray(picture.convert("RGB"))


def _frames(file: Path) -> Iterator[np.ndarray]:
    try:
        import av
    except ImportError:
        av = None
    if av is not None:
        with av.open(str(file)) as video:
            yield from (frame.to_ndarray(format="rgb24") for frame in video.decode(video=0))
        return
    try:
        import cv2
    except ImportError as error:
        raise ValueError(f"{file}: reading videos needs av or OpenCV: pip install av") from error
    video = cv2.VideoCapture(str(file))
    while (frame := video.read())[0]:
        yield frame[1][:, :, ::-1]
