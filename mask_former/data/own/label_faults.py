"""Faults of one label file: its format, its size, its values."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mask_former.data.labels import abbreviated
from mask_former.formats import LABEL_MODES, read_label_map

from .report import Fault

LOSSY_FORMATS = ("AVIF", "JPEG", "JPEG2000", "MPO")


def file_fault(path: str | Path, what: str, error: Exception | None = None) -> Fault:
    """Return the fault of a file that is not there, or, with the reader's error, that cannot be read."""
    name = Path(path)
    if error is None and not name.exists():
        alike = sorted(p.name for p in name.parent.glob("*") if p.stem.lower() == name.stem.lower())
        hint = f"there is {alike[0]}" if alike else "put it there, or take its picture out of the data set"
        remedy = f"Expected it here; {hint}."
        return Fault(f"missing {what} files", str(path), "there is no such file", remedy)
    if not name.stat().st_size:
        return Fault(f"unreadable {what} files", str(path), "the file is empty (0 bytes)", "Get it again.")
    message = str(error).removeprefix(f"{path} ").rstrip(".")
    return Fault(f"unreadable {what} files", str(path), message, "Get it again, or take it out.")


def format_fault(path: str, expected: str) -> Fault | None:
    """Return the fault of a label file's format, from its header.

    Args:
        path: an existing picture file.
        expected: "index" for one integer a pixel, "colors" for a colour a class, or "panoptic" for an RGB map
            of ids.
    """
    with Image.open(path) as label:
        form, mode = label.format, label.mode
        if form in LOSSY_FORMATS or (form == "WEBP" and b"VP8L" not in Path(path).read_bytes()[:64]):
            return Fault(
                "JPEG labels",
                path,
                f"the label is a {form} file, whatever its name ends in; that format changes the values",
                "Export the labels again, as PNG.",
            )
        if expected == "panoptic":
            return None if mode == "RGB" else _panoptic_mode_fault(path, mode)
        is_usable = mode in LABEL_MODES or (expected == "colors" and mode in ("RGB", "RGBA"))
        return None if is_usable else _mode_fault(path, label)


def _panoptic_mode_fault(path: str, mode: str) -> Fault:
    return Fault(
        "panoptic maps that are not RGB",
        path,
        f"the file has mode {mode}",
        "Expected an RGB PNG with id = R + 256 G + 65536 B: save it again with three 8-bit channels.",
    )


def _mode_fault(path: str, label: Image.Image) -> Fault:
    kind, mode = "labels with more than one number a pixel", label.mode
    if mode == "F":
        remedy = "Expected whole numbers: save the label as an 8- or 16-bit PNG."
        return Fault(kind, path, "the label holds floating-point values (mode F)", remedy)
    if mode in ("RGB", "RGBA", "LA"):
        channels = np.asarray(label)
        colors = np.unique(channels.reshape(-1, channels.shape[-1]), axis=0)
        plain = colors[:, :1] if mode == "LA" else colors[:, :3]
        alpha = " and transparency" if mode != "RGB" else ""
        if (plain == plain[:, :1]).all():
            values = abbreviated(np.unique(plain[:, 0]).tolist())
            found = f"a grey label saved in mode {mode}, values {values}"
            return Fault(kind, path, found, "Keep one channel: Image.open(file).getchannel(0).save(file).")
        found = f"a label of {len(np.unique(plain, axis=0))} colours{alpha} (mode {mode}), such as "
        found += ", ".join(str(tuple(map(int, color))) for color in plain[:3])
        remedy = 'Give each class its "color" [r, g, b] in classes.json, or save class indices.'
        return Fault(kind, path, found, remedy)
    return Fault(kind, path, f"mode {mode}", "Expected one integer a pixel: a grey or palette PNG.")


def size_fault(label: str, label_shape: Sequence[int], picture: str, size: tuple[int, int]) -> Fault:
    """Return the fault of a label (H, W) that is not of its picture's size (width, height)."""
    height, width = label_shape
    remedy = "They must have one size: export the label at the picture's size, without smoothing."
    if (height, width) == size:
        remedy = "One of them is turned by a quarter; cameras write this into EXIF, which is applied here."
    found = f"the label is {width}x{height}, its picture {picture} is {size[0]}x{size[1]} (width x height)"
    return Fault("labels of another size than their picture", label, found, remedy)


def all_void_fault(path: str) -> Fault:
    """Return the fault of a label that has no pixel of a class."""
    remedy = "The picture adds nothing to a training; label it, or take it out."
    return Fault("labels that are all void", path, "every pixel is void", remedy, stops=False)


def mask_fault(path: str) -> Fault | None:
    """Return the fault of a binary mask, of which all that is not 0 is the class."""
    values = np.unique(read_label_map(path)).tolist()
    if (len(values) <= 2 and 0 in values) or len(values) == 1:
        return None
    remedy = "Expected 0 and one other value: draw masks without smoothing, and resize them with nearest."
    return Fault("masks that are not binary", path, f"values {abbreviated(values)}", remedy)


def value_fault(path: str, values: NDArray[np.int64], num_classes: int, ignore_label: int) -> Fault | None:
    """Return the fault of a label's distinct values, as stored, that are neither class nor `ignore_label`."""
    wrong = [int(v) for v in values if not 0 <= v < num_classes and v != ignore_label]
    if not wrong:
        return None
    kind, remedy = _explanation(values[values != ignore_label].tolist(), wrong, num_classes, ignore_label)
    found = f"values {abbreviated(values.tolist())}; {abbreviated(wrong)} is no class"
    allowed = f"Expected 0 to {num_classes - 1}, and {ignore_label} for void."
    return Fault(kind, path, found, f"{allowed} {remedy}")


def _explanation(
    values: Sequence[int], wrong: Sequence[int], num_classes: int, ignore_label: int
) -> tuple[str, str]:
    """Return the kind of fault and what to do, from the sorted values without `ignore_label`."""
    lowest, highest = values[0], values[-1]
    if wrong == [255] and lowest in (0, 255):
        return "masks of 0 and 255", "Write 1 in place of 255, or take --layout for binary masks."
    if lowest < 0:
        return "negative labels", f"Write {ignore_label} for pixels without a class."
    if highest > 255 and all(value % 257 == 0 for value in values):
        return "labels stretched to 16 bits", "Divide the values by 257."
    step = math.gcd(*values)
    if len(values) > 1 and step > 1 and highest // step < num_classes:
        return "labels stretched to be visible", f"Divide the values by {step}."
    if len(values) > max(num_classes, 8) and highest - lowest >= len(values) - 1 > 2 * num_classes:
        return "labels with smoothed edges", "Resize and save labels without interpolation (nearest)."
    if wrong == [num_classes]:
        if lowest >= 1:
            return "labels off by one", f"Classes count from 0: subtract 1, and write {ignore_label} for 0."
        return "labels off by one", f"Name class {num_classes} too, or subtract 1 if 0 means void."
    if wrong in ([255], [65535]):
        return "undeclared void values", f"If {wrong[0]} means void, write {ignore_label} for it."
    return "label values that are no class", "Name the missing classes, or write the index of a class."
