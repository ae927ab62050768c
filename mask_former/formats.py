"""File formats that several parts of the package read and write. Each is read and written here only."""

import colorsys
import glob
import io
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
from detectron2.data.detection_utils import _apply_exif_orientation, convert_PIL_to_numpy
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager
from numpy.typing import NDArray
from PIL import ExifTags, Image

# One JSON file a data set, one entry a line, in the order of the class ids.
CLASS_TABLES = Path(__file__).parent / "data" / "classes"
# Files in a folder that are taken for label maps, which must be free of losses, and for pictures.
LABEL_SUFFIXES = frozenset((".bmp", ".png", ".tif", ".tiff"))
_LOSSY_SUFFIXES = (".avif", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".webp")
PICTURE_SUFFIXES = LABEL_SUFFIXES.union(_LOSSY_SUFFIXES, (".pbm", ".pgm", ".pnm", ".ppm", ".tga"))
STALE_AFTER = 600  # seconds, from which temporary files of killed writers are removed
# Pillow's modes of one integer per pixel. "P" is a palette file, whose indices are the labels.
LABEL_MODES = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B", "I;16N")
MAX_SEGMENT_ID = 256**3 - 1  # three bytes of a panoptic PNG


@contextmanager
def replacing(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """Give a temporary path to write to, and rename it to `path` at the end of the `with` block.

    At any moment, also after a loss of power, either the old file is there or the new one, complete. The
    temporary file lies beside `path`, ends in ".partial", and is removed where writing fails.

    Without `flush` (for the many small files of a folder) a loss of power can leave it incomplete.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    if flush:
        _remove_stale(path)
    try:
        yield partial
        if flush:
            _flush(partial)
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    if flush:
        _flush(path.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some file systems cannot flush folders
            raise
    finally:
        os.close(descriptor)


def _remove_stale(path: Path) -> None:
    """Remove temporary files that killed writers of `path` left."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        with suppress(OSError):  # another process may remove it at the same time
            if time.time() - leftover.stat().st_mtime > STALE_AFTER:
                leftover.unlink()


def rgb_to_id(rgb: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Return the segment ids (...) of colours (..., 3) in a panoptic PNG: R + 256 G + 65536 B."""
    # Three bytes and a zero are one little-endian number. Copying channel by channel is the fastest way.
    padded = np.zeros((*rgb.shape[:-1], 4), np.uint8)
    for channel in range(3):
        padded[..., channel] = rgb[..., channel]
    return padded.view("<i4")[..., 0]


def id_to_rgb(ids: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Return the colours (..., 3) of segment ids (...) in a panoptic PNG."""
    if ids.size and not 0 <= ids.min() <= ids.max() <= MAX_SEGMENT_ID:
        raise ValueError(
            f"Segment ids must be in 0..{MAX_SEGMENT_ID} to fit three bytes, found {ids.min()}..{ids.max()}."
        )
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)


def box_of_mask(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return the smallest box x0, y0, x1, y1 of a mask (H, W) in pixel edges; zeros for an empty mask."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def coco_box(box: Sequence[float]) -> list[float]:
    """Return a box x0, y0, x1, y1 as COCO's x, y, width, height."""
    x0, y0, x1, y1 = box
    return [x0, y0, x1 - x0, y1 - y0]


def encode_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return a mask (H, W) as COCO's compressed run lengths: {"size": [H, W], "counts": str}."""
    encoded = pycocotools.mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def decode_mask(run_lengths: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Return the mask (H, W) of COCO's run lengths, compressed or a plain list of numbers."""
    return pycocotools.mask.decode(run_lengths_of(run_lengths, *run_lengths["size"])).astype(bool)


def draw_polygons(
    polygons: Sequence[Sequence[float] | NDArray], height: int, width: int
) -> NDArray[np.bool_]:
    """Return the mask (H, W) that COCO's polygons x1, y1, x2, y2, ... cover; they may reach beyond it."""
    return decode_mask(run_lengths_of(polygons, height, width))


def run_lengths_of(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Return an annotation's mask, polygons, run lengths or (H, W), as COCO's compressed run lengths."""
    if isinstance(segmentation, np.ndarray):
        return encode_mask(segmentation != 0)
    if isinstance(segmentation, Mapping):
        compressed = dict(segmentation)
        if isinstance(compressed["counts"], list):
            compressed = pycocotools.mask.frPyObjects(compressed, *compressed["size"])
    else:
        parts = pycocotools.mask.frPyObjects([list(polygon) for polygon in segmentation], height, width)
        compressed = pycocotools.mask.merge(parts)
    counts = compressed["counts"]
    return {**compressed, "counts": counts if isinstance(counts, str) else counts.decode("ascii")}


def coco_annotation(instance: Mapping[str, Any], height: int, width: int) -> dict[str, Any]:
    """Return "iscrowd", "area", "bbox" and "segmentation" in COCO's form of an annotation in Detectron2's."""
    mask = run_lengths_of(instance["segmentation"], height, width)
    box = pycocotools.mask.toBbox(mask).tolist()
    if "bbox" in instance:
        box = BoxMode.convert(list(instance["bbox"]), instance["bbox_mode"], BoxMode.XYWH_ABS)
    return {
        "iscrowd": int(instance.get("iscrowd", 0)),
        "area": instance.get("area") or int(pycocotools.mask.area(mask)),
        "bbox": box,
        "segmentation": mask,
    }


def read_picture(path: str | Path, image_format: str, content: bytes | None = None) -> NDArray[np.uint8]:
    """Return a picture as (H, W, C) uint8, upright by its EXIF tag.

    16-bit grey keeps its upper eight bits, where Pillow would clip it to white. For 8-bit files the result
    is that of `detectron2.data.detection_utils.read_image`.

    Args:
        path: any file that Pillow reads.
        image_format: as `INPUT.FORMAT`: "RGB" or "BGR" (C = 3), "L" (C = 1).
        content: of the file, if it is at hand.
    """
    return picture_pixels(_decode(path, content=content), image_format, path)


def picture_pixels(picture: Image.Image, image_format: str, name: str | Path) -> NDArray[np.uint8]:
    """Return the pixels (H, W, C) of an upright picture, see `read_picture`; errors call it `name`."""
    if picture.mode == "F":
        raise ValueError(f"{name} holds floating-point values; expected a picture of 8 or 16 bits.")
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture).clip(0, 65535) >> 8).astype(np.uint8))
    return convert_PIL_to_numpy(picture, image_format)


def picture_size(path: str | Path) -> tuple[int, int]:
    """Return width and height of the upright picture, from its header alone."""
    picture = _decode(path, header_only=True)
    width, height = picture.size
    # Orientations 5 to 8 of EXIF turn the picture by a quarter.
    return (height, width) if picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5 else (width, height)


def picture_mode(path: str | Path) -> tuple[str, list[tuple[int, ...]]]:
    """Return Pillow's mode of a file, and the colours of its palette if it has one, from its header alone."""
    picture = _decode(path, header_only=True)
    numbers = picture.getpalette() if picture.mode == "P" else None
    return picture.mode, list(zip(*[iter(numbers or ())] * 3, strict=True))


def read_label_map(path: str | Path) -> NDArray[np.integer]:
    """Return the class indices (H, W) of a one-channel file as stored: 8, 16 or 32 bits, or a palette."""
    label = _decode(path)
    if label.mode not in LABEL_MODES:
        raise ValueError(
            f"{path}: expected one integer per pixel (grey or palette PNG or TIFF), found mode {label.mode}, "
            f"{len(label.getbands())} channels. Write the index of each colour; for panoptic segment ids, "
            "set INPUT.DATASET_MAPPER_NAME to mask_former_panoptic."
        )
    indices = np.asarray(label)
    # Pillow gives the true pixels of a one-bit file as bytes of 255.
    return indices.astype(np.uint8) if label.mode == "1" else indices


def semantic_label_files(entry: Mapping[str, Any]) -> list[str]:
    """Return the files of the semantic label of a data set's entry; empty if it has none."""
    if "sem_seg_file_name" in entry:
        return [entry["sem_seg_file_name"]]
    return [file for file, _ in entry.get("sem_seg_masks", ())]


def read_semantic_label(entry: Mapping[str, Any]) -> NDArray[np.integer]:
    """Return the class indices (H, W) of the semantic label of a data set's entry.

    Args:
        entry: has either "sem_seg_file_name", a label map, and where that does not hold class indices
            "sem_seg_values", {value or (R, G, B): class index}; or "sem_seg_masks", a list of
            (file of a mask that is not 0 at the class's pixels, class index), of which the last one wins;
            pixels of no mask are class 0.
    """
    if "sem_seg_masks" in entry:
        return _read_class_masks(entry["sem_seg_masks"])
    path, values = entry["sem_seg_file_name"], entry.get("sem_seg_values")
    if values is None:
        return read_label_map(path)
    in_colors = isinstance(next(iter(values)), tuple)
    label = rgb_to_id(np.asarray(_decode(path).convert("RGB"))) if in_colors else read_label_map(path)
    table = {int(rgb_to_id(np.uint8(key))) if in_colors else key: index for key, index in values.items()}
    keys = np.array(sorted(table))
    places = np.searchsorted(keys, label).clip(max=len(keys) - 1)
    unknown = label[keys[places] != label]
    if len(unknown):
        found = tuple(id_to_rgb(unknown[0]).tolist()) if in_colors else unknown[0]
        raise ValueError(
            f"{path}: {len(unknown)} of {label.size} pixels are none of the {len(keys)} "
            f"{'colours' if in_colors else 'values'} of the classes, the first {found}; expected "
            f"{', '.join(map(str, list(values)[:8]))}{', ...' if len(values) > 8 else ''}. Correct the "
            "label, or add to the table of classes, where void pixels are an entry named void."
        )
    indices = np.array([table[key] for key in keys.tolist()])
    return indices.astype(np.min_scalar_type(indices.max()))[places]


def _read_class_masks(masks: Sequence[tuple[str, int]]) -> NDArray[np.integer]:
    label: NDArray[np.integer] | None = None
    for path, index in masks:
        mask = read_label_map(path) != 0
        if label is None:
            label = np.zeros(mask.shape, np.uint8 if max(i for _, i in masks) < 256 else np.uint16)
        if mask.shape != label.shape:
            raise ValueError(
                f"{path} is {mask.shape[1]}x{mask.shape[0]}, but {masks[0][0]} is "
                f"{label.shape[1]}x{label.shape[0]} (width x height). The masks of a picture have one size."
            )
        label[mask] = index
    assert label is not None, "an entry with a label has at least one mask"
    return label


def read_panoptic_map(path: str | Path) -> NDArray[np.int32]:
    """Return the segment ids (H, W) of an RGB PNG in COCO's panoptic form; 0 is void."""
    label = _decode(path)
    if label.mode != "RGB":
        raise ValueError(
            f"{path}: expected an RGB panoptic map with id = R + 256 G + 65536 B, found mode {label.mode}. "
            "Save it as an RGB PNG; for class indices, set INPUT.DATASET_MAPPER_NAME to mask_former_semantic."
        )
    return rgb_to_id(np.asarray(label))


def _decode(path: str | Path, header_only: bool = False, content: bytes | None = None) -> Image.Image:
    """Return the whole picture in memory, turned upright; or, as stored, only what its header says."""
    try:
        with PathManager.open(str(path), "rb") if content is None else io.BytesIO(content) as file:
            picture = Image.open(file)
            if header_only:
                picture.getexif()
                return picture
            picture.load()
        return _apply_exif_orientation(picture)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error, EOFError ...
        raise ValueError(
            f"{path} cannot be read as a picture ({error}). Replace the file, or take it out of the data set."
        ) from error


def read_json(path: str | Path, keys: Sequence[str] = ()) -> Any:
    """Return the content of a JSON file; with `keys`, an object that has them."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path}: is not JSON ({error}); the file may be cut short: get it again."
        ) from error
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(map(repr, missing))}: not a label file of this kind.")
    return content


def panoptic_annotations(content: Mapping[str, Any], path: str | Path) -> dict[Any, dict[str, Any]]:
    """Return the annotations, at least one, of a JSON file in COCO's panoptic form by image id."""
    annotations: dict[Any, dict[str, Any]] = {}
    for annotation in content["annotations"]:
        missing = [key for key in ("image_id", "file_name", "segments_info") if key not in annotation]
        if missing:
            raise ValueError(
                f"{path}: an annotation lacks {', '.join(map(repr, missing))}; it has {list(annotation)}."
            )
        if annotation["image_id"] in annotations:
            raise ValueError(
                f"{path}: image id {annotation['image_id']!r} has two annotations; keep one of them."
            )
        annotations[annotation["image_id"]] = annotation
    if not annotations:
        raise ValueError(f"{path}: the list 'annotations' is empty; expected one for each picture.")
    return annotations


def load_classes(table: str | Path) -> list[dict[str, Any]]:
    """Return the classes, in order of ids, of a table of the package ("ade20k_150") or of a JSON file."""
    path = Path(table) if str(table).endswith(".json") else CLASS_TABLES / f"{table}.json"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in CLASS_TABLES.glob("*.json")))
        raise ValueError(f"No class table {path}; known tables: {known}; or give the path of a JSON file.")
    return json.loads(path.read_text(encoding="utf-8"))


def distinct_colors(count: int) -> list[list[int]]:
    """Return `count` different RGB colours, always the same ones, for classes that have none."""
    colors: dict[tuple[int, ...], None] = {}
    step = 0
    while len(colors) < count:
        # Steps of the golden ratio spread the hues evenly, however many there are.
        hue, value = step * 0.618034 % 1.0, 1.0 - 0.15 * (step % 4)
        colors[tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.75, value))] = None
        step += 1
    return [list(color) for color in colors]
