"""Inputs of a prediction: files, folders, patterns, addresses, videos, arrays, read one image at a time."""

import glob
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from mask_former.formats import PICTURE_SUFFIXES, picture_pixels, read_picture
from mask_former.prediction.video import VIDEO_SUFFIXES, VideoReader

URL_SCHEMES = ("http://", "https://")
MAX_DOWNLOAD_BYTES = 64 * 2**20
DOWNLOAD_TIMEOUT = 30.0  # seconds without any answer
CHANNELS = (1, 3, 4)


class PictureError(ValueError):
    """An image that cannot be predicted on; the message names it and the reason.

    Attributes:
        picture: its file name, or the name of an array.
    """

    def __init__(self, picture: str, message: str) -> None:
        super().__init__(message if picture in message else f"{picture}: {message}")
        self.picture = picture


@dataclass(frozen=True)
class InputImage:
    """An image before prediction: its name, and its pixels (H, W, 3) uint8 in RGB."""

    name: str
    pixels: NDArray[np.uint8]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.pixels.shape[:2]
        return height, width


Item = str | np.ndarray | Tensor | Image.Image | InputImage
Source = Item | os.PathLike[str]
ErrorHandler = Callable[[PictureError], None]


def expand(inputs: Source | Iterable[Source], on_error: ErrorHandler | None = None) -> Iterator[Item]:
    """Yield single files, addresses and images; folders and patterns yield their files, sorted by name.

    Args:
        inputs: one of these, or an iterable of them: a path of a picture or video, a folder (the pictures
            directly in it), a glob pattern (`~` allowed), an http(s) address of a picture, a PIL picture, an
            `InputImage`, or a NumPy array or tensor. These are grey, RGB or RGBA, uint8 or float from 0 to 1,
            of shape (H, W), (H, W, C) or (C, H, W), C = 1, 3, 4. Where both could be meant, an array's
            channels are last, a tensor's first. With one more axis, in front, they hold several images.
        on_error: called for inputs that are not found, which are then skipped; None: raise.
    """
    single = (str, os.PathLike, np.ndarray, Tensor, Image.Image, InputImage)
    sources = [inputs] if isinstance(inputs, single) else inputs
    for source in sources:
        if isinstance(source, np.ndarray | Tensor) and source.ndim == 4:
            yield from source
        elif isinstance(source, np.ndarray | Tensor | Image.Image | InputImage):
            yield source
        elif isinstance(source, str | os.PathLike):
            try:
                yield from _files(os.path.expanduser(os.fspath(source)))
            except PictureError as error:
                _handle(error, on_error)
        else:
            raise TypeError(
                f"An input is a {type(source).__name__}; expected a path, folder, pattern, address, PIL "
                "picture, array or tensor."
            )


def _files(path: str) -> list[str]:
    if path.startswith(URL_SCHEMES):
        return [path]
    try:
        if os.path.isdir(path):
            names = [name for name in os.listdir(path) if Path(name).suffix.lower() in PICTURE_SUFFIXES]
            files = sorted(os.path.join(path, name) for name in names)
            files = [file for file in files if not os.path.isdir(file)]
            expected = f"a folder with pictures ({' '.join(sorted(PICTURE_SUFFIXES))})"
        elif glob.has_magic(path) and not os.path.exists(path):
            files = sorted(name for name in glob.glob(path, recursive=True) if not os.path.isdir(name))
            expected = "a pattern of existing files"
        else:
            return [path]
    except OSError as error:
        raise PictureError(path, f"cannot be read ({error.strerror}).") from error
    if not files:
        raise PictureError(path, f"holds no pictures; expected {expected}.")
    return files


def load(source: Item, number: int) -> InputImage:
    """Return the image of one item of `expand`; arrays are named by their `number`.

    Raises:
        PictureError: it cannot be read, or is not an image.
    """
    if isinstance(source, InputImage):
        return InputImage(source.name, _rgb_pixels(source.pixels, source.name))
    if isinstance(source, np.ndarray | Tensor):
        name = f"array_{number:06d}"
        return InputImage(name, _rgb_pixels(source, name))
    name = source if isinstance(source, str) else getattr(source, "filename", "") or f"picture_{number:06d}"
    try:
        if isinstance(source, Image.Image):
            return InputImage(name, picture_pixels(ImageOps.exif_transpose(source), "RGB", name))
        return InputImage(name, read_picture(name, "RGB", _download(name)))
    except OSError as error:
        raise PictureError(name, f"cannot be read ({error.strerror or error}).") from error
    except ValueError as error:
        raise PictureError(name, str(error)) from error


def load_all(inputs: Source | Iterable[Source], on_error: ErrorHandler | None = None) -> Iterator[InputImage]:
    """Yield the images of `inputs` one by one, read on demand; `on_error` as in `expand`.

    The frames of a video are named for it, and numbered from 1.
    """
    for number, source in enumerate(expand(inputs, on_error)):
        try:
            if isinstance(source, str) and Path(source).suffix.lower() in VIDEO_SUFFIXES:
                yield from _frames(source)
            else:
                yield load(source, number)
        except PictureError as error:
            _handle(error, on_error)


def _frames(path: str) -> Iterator[InputImage]:
    try:
        reader = VideoReader(path)
    except (OSError, ValueError) as error:
        raise PictureError(path, str(error)) from error
    with reader:
        for number, frame in enumerate(reader, start=1):
            yield InputImage(f"{Path(path).stem}_{number:06d}", frame)


def _download(address: str) -> bytes | None:
    """Return what an http(s) address holds, None for a path."""
    if not address.startswith(URL_SCHEMES):
        return None
    # Some servers refuse Python's own name.
    request = Request(address, headers={"User-Agent": "mask_former"})
    try:
        with urlopen(request, timeout=DOWNLOAD_TIMEOUT) as response:
            content = response.read(MAX_DOWNLOAD_BYTES + 1)
    except (OSError, HTTPException, ValueError) as error:
        raise PictureError(address, f"cannot be fetched ({error}).") from error
    if len(content) > MAX_DOWNLOAD_BYTES:
        limit = f"{MAX_DOWNLOAD_BYTES >> 20} MiB"
        raise PictureError(address, f"holds more than {limit}: save it as a file first.")
    return content


def _handle(error: PictureError, on_error: ErrorHandler | None) -> None:
    if on_error is None:
        raise error
    on_error(error)


def _rgb_pixels(image: NDArray[Any] | Tensor, name: str) -> NDArray[np.uint8]:
    """Return an array or tensor, as `expand` describes them, as (H, W, 3) uint8."""
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        pixels = (image.float() if image.is_floating_point() else image).numpy()
    else:
        pixels = image
    shape, prefers_first = tuple(pixels.shape), isinstance(image, Tensor)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    elif pixels.ndim == 3 and shape[0] in CHANNELS and (prefers_first or shape[2] not in CHANNELS):
        pixels = pixels.transpose(1, 2, 0)
    is_float = np.issubdtype(pixels.dtype, np.floating)
    is_image = pixels.ndim == 3 and pixels.shape[2] in CHANNELS and 0 not in shape
    if not is_image or not (is_float or pixels.dtype == np.uint8):
        raise PictureError(
            name,
            f"got shape {shape} and type {pixels.dtype}; expected (H, W), (H, W, C) or (C, H, W), C = 1, 3, "
            "4 (grey, RGB, RGBA), of type uint8, or float from 0 to 1.",
        )
    if is_float:
        low, high = pixels.min(), pixels.max()
        if not 0 <= low <= high <= 1:  # also NaN
            raise PictureError(name, f"has float values {low:g}..{high:g}; expected 0..1.")
        pixels = np.rint(255 * pixels).astype(np.uint8)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[:, :, :3]
