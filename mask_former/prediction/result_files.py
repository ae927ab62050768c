"""Files of results: drawings, label maps, panoptic and COCO JSON, a table of segments.

    overlay/<name>.jpg             the picture with the result over it
    labels/<name>.png              class indices, 8 bits with a palette, 16 bits for more than 255 classes
    panoptic/<name>.png, panoptic.json    COCO's panoptic form, segment id = R + 256 G + 65536 B
    coco_instances_results.json    COCO's results form, masks as run lengths
    segments.csv                   one row a segment

JSON and CSV files use the category ids of the data set (`ClassTable.dataset_ids`).
"""

import logging
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mask_former.formats import id_to_rgb, replacing
from mask_former.prediction.classes import ClassTable
from mask_former.prediction.result_entries import (
    CSV_COLUMNS,
    categories,
    coco_entries,
    panoptic_entries,
    segment_rows,
)
from mask_former.prediction.result_tables import CocoTable, CsvTable, PanopticTable, ResultTable

if TYPE_CHECKING:
    from mask_former.prediction.results import Result

logger = logging.getLogger(__name__)

KINDS = ("overlay", "labels", "panoptic", "coco", "csv")
_MISSING = {
    "overlay": "any result",
    "labels": "semantic or panoptic results",
    "panoptic": "panoptic results",
    "coco": "instance or panoptic results",
    "csv": "any result",
}


class ResultWriter:
    """Writes results into one folder, picture by picture, each file whole or not at all.

    Entries of JSON and CSV files go to a journal beside them at once, and into the files themselves by
    `close`. What a run that was killed left in journals, and what the files held before, is taken over; an
    entry of a picture of the same name is replaced. Use it with `with`.
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
        """Make the folder, and read what it holds of earlier runs.

        Args:
            folder: made if need be.
            kinds: of `KINDS`.
            classes: of the results to come; needed by all kinds but "overlay".
            image_ids: ids for JSON files by file name, without its folder; by default the name without its
                ending, as a number if it consists of digits.
            drawing: options of overlays, see `drawing.draw_result`.
        """
        self.folder = Path(folder)
        self.kinds = _known_kinds(kinds)
        self.image_ids = dict(image_ids or {})
        self.drawing = drawing
        self._image_of_stem: dict[str, str] = {}
        self._image_of_id: dict[int | str, str] = {}
        self._warned: set[str] = set()
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file; results need a folder: give another name.")
        for kind in {"overlay", "labels", "panoptic"} & self.kinds:
            (self.folder / kind).mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._tables = self._open_tables(classes)

    def _open_tables(self, classes: ClassTable | None) -> dict[str, ResultTable]:
        tables: dict[str, ResultTable] = {}
        if "panoptic" in self.kinds:
            if classes is None:
                raise ValueError("Panoptic files list the classes: give ResultWriter the `classes`.")
            tables["panoptic"] = PanopticTable(self.folder / "panoptic.json", categories(classes))
        if "coco" in self.kinds:
            tables["coco"] = CocoTable(self.folder / "coco_instances_results.json")
        if "csv" in self.kinds:
            tables["csv"] = CsvTable(self.folder / "segments.csv", CSV_COLUMNS)
        return tables

    def write(self, result: "Result", image: NDArray[np.uint8] | None = None) -> None:
        """Write all files of one picture; `image` (RGB) is what overlays are drawn on, by default its own."""
        stem = self._stem(result.image_name)
        image_id = self._image_id(result.image_name, stem)
        for kind in KINDS:
            if kind in self.kinds:
                written = getattr(self, f"_write_{kind}")(result, stem, image_id, image)
                if not written and kind not in self._warned:
                    self._warned.add(kind)
                    logger.warning("No %s files: they need %s, which are switched off.", kind, _MISSING[kind])

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
        # What was in the way of writing is told already; the journals stay.
        with suppress(OSError):
            self.close()

    def _write_overlay(self, result: "Result", stem: str, _: Any, image: NDArray[np.uint8] | None) -> bool:
        picture = Image.fromarray(result.draw(image, **self.drawing))
        save_picture(picture, self.folder / "overlay" / f"{stem}.jpg", quality=92, subsampling=0)
        return True

    def _write_labels(self, result: "Result", stem: str, *_: Any) -> bool:
        labels = result.labels()
        if labels is None:
            return False
        picture = Image.fromarray(np.ascontiguousarray(labels))
        if labels.dtype == np.uint8:
            colors = np.zeros((256, 3), np.uint8)
            colors[: len(result.classes)] = result.classes.palette
            picture.putpalette(colors.tobytes())
        save_picture(picture, self.folder / "labels" / f"{stem}.png")
        return True

    def _write_panoptic(self, result: "Result", stem: str, image_id: int | str, *_: Any) -> bool:
        if result.panoptic is None:
            return False
        name = f"{stem}.png"
        save_picture(Image.fromarray(id_to_rgb(result.panoptic)), self.folder / "panoptic" / name)
        segments = panoptic_entries(result)
        annotation = {"image_id": image_id, "file_name": name, "segments_info": segments}
        picture = {
            "id": image_id,
            "file_name": Path(result.image_name).name,
            "height": result.height,
            "width": result.width,
        }
        self._tables["panoptic"].add(image_id, [{"annotation": annotation, "image": picture}])
        return True

    def _write_coco(self, result: "Result", _: str, image_id: int | str, *__: Any) -> bool:
        entries = coco_entries(result, image_id)
        if entries is None:
            return False
        self._tables["coco"].add(image_id, entries)
        return True

    def _write_csv(self, result: "Result", _: str, __: Any, *___: Any) -> bool:
        rows = [
            dict(zip(CSV_COLUMNS, (result.image_name, *row), strict=True)) for row in segment_rows(result)
        ]
        self._tables["csv"].add(result.image_name, rows)
        return True

    def _stem(self, image_name: str) -> str:
        """Return a name for the files of a picture that no other picture of this writer has."""
        base = stem = Path(image_name).stem
        number = 1
        while self._image_of_stem.setdefault(stem, image_name) != image_name:
            number += 1
            stem = f"{base}_{number}"
        return stem

    def _image_id(self, image_name: str, stem: str) -> int | str:
        known = self.image_ids.get(Path(image_name).name)
        if known is not None:
            return known
        number: int | str = int(stem) if stem.isascii() and stem.isdigit() else stem
        # 1.jpg and 001.jpg are two pictures.
        return number if self._image_of_id.setdefault(number, image_name) == image_name else stem


def _known_kinds(kinds: Collection[str]) -> frozenset[str]:
    wanted = [kinds] if isinstance(kinds, str) else list(kinds)
    unknown = [kind for kind in wanted if kind not in KINDS]
    if unknown or not wanted:
        found = ", ".join(map(repr, unknown)) or "none"
        raise ValueError(f"Unknown kind of result file: {found}; choose of {', '.join(KINDS)}.")
    return frozenset(wanted)


def save_picture(picture: Image.Image, file: Path, **options: Any) -> None:
    """Write a picture so that there is never half of one."""
    try:
        with replacing(file) as partial:
            picture.save(partial, format="JPEG" if file.suffix == ".jpg" else "PNG", **options)
    except OSError as error:
        raise OSError(error.errno, f"cannot write: {error.strerror or error}", str(file)) from error
