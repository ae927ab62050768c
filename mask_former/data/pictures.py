"""Picture and label files as arrays. Whatever is wrong with a file is told in one line that names it."""

import numpy as np
from detectron2.data.detection_utils import _apply_exif_orientation, convert_PIL_to_numpy
from detectron2.utils.file_io import PathManager
from PIL import ExifTags, Image

from mask_former.formats import rgb_to_id


def read_picture(file_name: str, image_format: str) -> np.ndarray:
    """Return a picture as (H, W, C) in `image_format`, upright by its EXIF tag.

    Grey and palette pictures become colour, alpha is dropped, and of 16-bit grey the upper eight bits stay
    (Pillow does so for 16-bit colour, but would turn 16-bit grey white). For 8-bit files the result is that
    of `detectron2.data.detection_utils.read_image`.

    Args:
        file_name: any file that Pillow reads.
        image_format: as `INPUT.FORMAT`: "RGB" or "BGR" (C = 3), "L" (C = 1); all uint8.
    """
    picture = _decode(file_name)
    if picture.mode == "F":
        raise ValueError(f"{file_name} holds floating-point values; expected a picture of 8 or 16 bits.")
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture).clip(0, 65535) >> 8).astype(np.uint8))
    return convert_PIL_to_numpy(picture, image_format)


def read_class_indices(file_name: str) -> np.ndarray:
    """Return a label map as stored, (H, W) integers of 8, 16 or 32 bits; of a palette file its indices."""
    label = _decode(file_name)
    if len(label.getbands()) > 1 or label.mode == "F":
        raise ValueError(
            f"{file_name} is no map of class indices: it has {len(label.getbands())} channels (mode "
            f"{label.mode}). Expected one integer per pixel, as a grey or palette PNG or TIFF. If its "
            "colours stand for classes, write the index of each colour; if they are panoptic ids, set "
            "INPUT.DATASET_MAPPER_NAME to mask_former_panoptic."
        )
    indices = np.asarray(label)
    return indices.view(np.uint8) if indices.dtype == bool else indices


def read_panoptic_ids(file_name: str) -> np.ndarray:
    """Return the segment ids R + 256 G + 65536 B of a panoptic PNG, as (H, W) int32."""
    label = _decode(file_name)
    if label.mode not in ("RGB", "RGBA", "P"):
        raise ValueError(
            f"{file_name} is no panoptic label: its mode is {label.mode}. Expected an RGB PNG whose colours "
            "are segment ids, R + 256 G + 65536 B. If it holds class indices, set "
            "INPUT.DATASET_MAPPER_NAME to mask_former_semantic."
        )
    return rgb_to_id(np.asarray(label.convert("RGB")))


def picture_size(file_name: str) -> tuple[int, int]:
    """Return width and height of the upright picture, from its header alone."""
    picture = _decode(file_name, header_only=True)
    width, height = picture.size
    # Orientations 5 to 8 of EXIF turn the picture by a quarter.
    return (height, width) if picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5 else (width, height)


def _decode(file_name: str, header_only: bool = False) -> Image.Image:
    """Return the whole picture in memory, turned upright; or, as it lies, what its header says of it."""
    try:
        with PathManager.open(file_name, "rb") as file:
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
            f"{file_name} cannot be read as a picture ({error}). Replace the file, or take it out of the set."
        ) from error
