"""Label files read as the numbers they hold, never as pictures to look at."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# One channel of numbers. "P" holds palette indices, which is what a label file means by its colours.
LABEL_MODES = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B", "I;16N")
# Ids of a panoptic PNG are written in three bytes.
MAX_SEGMENT_ID = 256**3 - 1


def read_label_map(path: str | Path) -> NDArray[np.integer]:
    """Return the (H, W) class indices of a one-channel file: 8-bit, 16-bit or palette, PNG or TIFF.

    Raises:
        ValueError: the file cannot be decoded, or holds colours.
    """
    mode, pixels = _read(path)
    if mode not in LABEL_MODES:
        raise ValueError(
            f"{path}: expected a label map with one channel of class indices (8-bit, 16-bit or palette), "
            f"found a picture of mode {mode}; translate its colours to class indices first."
        )
    return pixels.astype(np.uint8) if mode == "1" else pixels


def read_panoptic_map(path: str | Path) -> NDArray[np.int32]:
    """Return the (H, W) segment ids of an RGB file in COCO's panoptic form; 0 is void.

    Raises:
        ValueError: the file cannot be decoded, or is not RGB.
    """
    mode, pixels = _read(path)
    if mode != "RGB":
        raise ValueError(
            f"{path}: expected an RGB panoptic map with id = R + 256 G + 65536 B, found mode {mode}."
        )
    return rgb_to_id(pixels)


def rgb_to_id(rgb: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Return the segment ids (H, W) that colours (H, W, 3) stand for: R + 256 G + 65536 B."""
    red, green, blue = (rgb[..., channel].astype(np.int32) for channel in range(3))
    return red | green << 8 | blue << 16


def id_to_rgb(ids: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Return the colours (H, W, 3) that segment ids (H, W) are written with."""
    if ids.size and not 0 <= ids.min() <= ids.max() <= MAX_SEGMENT_ID:
        raise ValueError(
            f"Segment ids must be in 0..{MAX_SEGMENT_ID} to fit three bytes, found {ids.min()}..{ids.max()}."
        )
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)


def _read(path: str | Path) -> tuple[str, NDArray]:
    """Return the mode and the undecorated pixels of a file."""
    try:
        with Image.open(path) as image:
            return image.mode, np.asarray(image)
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path}: cannot be decoded ({error}); replace or regenerate the file.") from error
