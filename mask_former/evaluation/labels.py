"""Label files read as the numbers they hold, never as pictures to look at."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mask_former.formats import rgb_to_id

# One channel of numbers. "P" holds palette indices, which is what a label file means by its colours.
LABEL_MODES = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B", "I;16N")


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


def _read(path: str | Path) -> tuple[str, NDArray]:
    """Return the mode and the undecorated pixels of a file."""
    try:
        with Image.open(path) as image:
            return image.mode, np.asarray(image)
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path}: cannot be decoded ({error}); replace or regenerate the file.") from error
