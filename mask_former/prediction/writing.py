"""Files of results: drawings, label maps, panoptic and COCO JSON, a table of segments.

    overlay/<name>.jpg             the image with the result over it
    labels/<name>.png              class indices, 8 bits with a palette, 16 bits for more than 255 classes
    panoptic/<name>.png, panoptic.json    COCO's panoptic format, segment id = R + 256 G + 65536 B
    coco_instances_results.json    COCO's results format, masks as run lengths
    segments.csv                   one row per segment

JSON and CSV files use the category ids of the data set (`ClassTable.dataset_ids`).
"""

import logging
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mask_former.formats import id_to_rgb, replacing
from mask_former.prediction.classes import ClassTable
from mask_former.prediction.drawing import draw_result
from mask_former.prediction.tables import (
    ResultTable,
    coco_entries,
    coco_table,
    csv_rows,
    csv_table,
    panoptic_entry,
    panoptic_table,
)
from mask_former.prediction.values import PredictedValues

logger = logging.getLogger(__name__)

# Kind of file -> the results that it is made of.
REQUIRED_RESULTS = {
    "overlay": "any result",
    "labels": "semantic or panoptic results",
    "panoptic": "panoptic results",
    "coco": "instance or panoptic results",
    "csv": "any result",
}
KINDS = tuple(REQUIRED_RESULTS)


class ResultWriter:
    """Writes results into one folder, image by image; each file is written atomically.

    Entries of JSON and CSV files are appended to journals at once, and go into the files themselves in
    `close`. Entries of an interrupted run and of existing files are kept; an entry of an image with the same
    name is replaced. Use it as a context manager.
    """

    def __init__(
        self,
        folder: str | Path,
        kinds: Collection[str] = KINDS,
        classes: ClassTable | None = None,
        *,
        image_ids: Mapping[str, int | str] | None = None,
        **drawing: Any,
    ) -> None:
        """Create the folder, and read the entries of earlier runs.

        Args:
            folder: created if needed.
            kinds: of `KINDS`.
            classes: of the results to come; required for panoptic files.
            image_ids: ids for JSON files by file name without its folder; by default the name without its
                suffix, as a number if it consists of digits.
            drawing: options of overlays, see `draw_result`.
        """
        self.folder = Path(folder)
        self.kinds = _checked_kinds(kinds)
        self.image_ids = dict(image_ids or {})
        self.drawing = drawing
        self._image_of_stem: dict[str, str] = {}
        self._image_of_id: dict[int | str, str] = {}
        self._warned_kinds: set[str] = set()
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file; results need a folder: give another name.")
        self.folder.mkdir(parents=True, exist_ok=True)
        for kind in {"overlay", "labels", "panoptic"} & self.kinds:
            (self.folder / kind).mkdir(exist_ok=True)
        self._tables: dict[str, ResultTable] = {}
        if "panoptic" in self.kinds:
            if classes is None:
                raise ValueError("Panoptic files list the classes: give ResultWriter the `classes`.")
            self._tables["panoptic"] = panoptic_table(self.folder / "panoptic.json", classes)
        if "coco" in self.kinds:
            self._tables["coco"] = coco_table(self.folder / "coco_instances_results.json")
        if "csv" in self.kinds:
            self._tables["csv"] = csv_table(self.folder / "segments.csv")

    def write(self, result: PredictedValues, image: NDArray[np.uint8] | None = None) -> None:
        """Write all files of one image; overlays are drawn on `image` (RGB), by default the result's own."""
        stem = self._unique_stem(result.image_name)
        image_id = self._image_id(result.image_name, stem)
        is_written = {}
        if "overlay" in self.kinds:
            overlay = Image.fromarray(draw_result(result, image, **self.drawing))
            save_image(overlay, self.folder / "overlay" / f"{stem}.jpg")
        if "labels" in self.kinds:
            is_written["labels"] = self._write_labels(result, stem)
        if "panoptic" in self.kinds:
            is_written["panoptic"] = self._write_panoptic(result, stem, image_id)
        if "coco" in self.kinds:
            entries = coco_entries(result, image_id)
            is_written["coco"] = entries is not None
            if entries is not None:
                self._tables["coco"].add(image_id, entries)
        if "csv" in self.kinds:
            self._tables["csv"].add(result.image_name, csv_rows(result))
        for kind, written in is_written.items():
            if written or kind in self._warned_kinds:
                continue
            self._warned_kinds.add(kind)
            required = REQUIRED_RESULTS[kind]
            logger.warning("No %s files: they need %s, which are switched off.", kind, required)

    def close(self) -> None:
        """Write the JSON and CSV files."""
        for table in self._tables.values():
            table.close()

    def __enter__(self) -> "ResultWriter":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is None:
            self.close()
            return
        # The exception that is being raised must not be replaced by one of closing; the journals stay.
        with suppress(OSError):
            self.close()

    def _write_labels(self, result: PredictedValues, stem: str) -> bool:
        labels = result.labels()
        if labels is None:
            return False
        picture = Image.fromarray(np.ascontiguousarray(labels))
        if labels.dtype == np.uint8:
            colors = np.zeros((256, 3), np.uint8)
            colors[: len(result.classes)] = result.classes.palette
            picture.putpalette(colors.tobytes())
        save_image(picture, self.folder / "labels" / f"{stem}.png")
        return True

    def _write_panoptic(self, result: PredictedValues, stem: str, image_id: int | str) -> bool:
        if result.panoptic is None:
            return False
        name = f"{stem}.png"
        save_image(Image.fromarray(id_to_rgb(result.panoptic)), self.folder / "panoptic" / name)
        self._tables["panoptic"].add(image_id, [panoptic_entry(result, image_id, name)])
        return True

    def _unique_stem(self, image_name: str) -> str:
        """Return a name for the files of an image that no other image of this writer has."""
        base = stem = Path(image_name).stem
        number = 1
        while self._image_of_stem.setdefault(stem, image_name) != image_name:
            number += 1
            stem = f"{base}_{number}"
        return stem

    def _image_id(self, image_name: str, stem: str) -> int | str:
        given = self.image_ids.get(Path(image_name).name)
        if given is not None:
            return given
        number: int | str = int(stem) if stem.isascii() and stem.isdigit() else stem
        # 1.jpg and 001.jpg are two images.
        return number if self._image_of_id.setdefault(number, image_name) == image_name else stem


def _checked_kinds(kinds: Collection[str]) -> frozenset[str]:
    kinds = frozenset([kinds] if isinstance(kinds, str) else kinds)
    unknown = sorted(kinds - set(KINDS))
    if unknown or not kinds:
        names = ", ".join(map(repr, unknown)) or "none"
        raise ValueError(f"Unknown kind of result file: {names}; choose of {', '.join(KINDS)}.")
    return kinds


def save_image(image: Image.Image, file: Path) -> None:
    """Write an image atomically, in the format that the file's suffix names."""
    Image.init()  # fills the table of suffixes
    form = Image.EXTENSION[file.suffix.lower()]
    options: dict[str, Any] = {"quality": 92, "subsampling": 0} if form == "JPEG" else {}
    try:
        with replacing(file, flush=False) as partial:
            image.save(partial, form, **options)
    except OSError as error:
        raise OSError(error.errno, f"cannot write: {error.strerror or error}", str(file)) from error
