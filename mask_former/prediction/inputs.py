"""Inputs of a prediction: files, folders, glob patterns and arrays, read one image at a time."""

import glob
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mask_former.formats import PICTURE_SUFFIXES, read_picture


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


Source = str | os.PathLike[str] | np.ndarray | InputImage
ErrorHandler = Callable[[PictureError], None]


def expand(
    inputs: Source | Iterable[Source], on_error: ErrorHandler | None = None
) -> Iterator[str | NDArray[Any] | InputImage]:
    """Yield single files, arrays and images; folders and patterns yield their files, sorted by name.

    Args:
        inputs: a path, folder, glob pattern (`~` allowed), array or `InputImage`, or an iterable of them.
            A folder stands for the images directly in it.
        on_error: called for inputs that are not found, which are then skipped; None: raise.
    """
    sources = [inputs] if isinstance(inputs, str | os.PathLike | np.ndarray | InputImage) else inputs
    for source in sources:
        if isinstance(source, np.ndarray | InputImage):
            yield source
        elif isinstance(source, str | os.PathLike):
            try:
                yield from _files(os.path.expanduser(os.fspath(source)))
            except PictureError as error:
                _handle(error, on_error)
        else:
            raise TypeError(
                f"An input is a {type(source).__name__}; expected a path, folder, pattern, or array of shape "
                "(H, W, 3), uint8, RGB."
            )


def _files(path: str) -> list[str]:
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


def load(source: str | NDArray[Any] | InputImage, number: int) -> InputImage:
    """Return the image of one item of `expand`; arrays are named by their `number`.

    Raises:
        PictureError: it cannot be read, or is not an image.
    """
    if isinstance(source, InputImage):
        return InputImage(source.name, _checked(source.pixels, source.name))
    if isinstance(source, np.ndarray):
        name = f"array_{number:06d}"
        return InputImage(name, _checked(source, name))
    try:
        return InputImage(source, read_picture(source, "RGB"))
    except OSError as error:
        raise PictureError(source, f"cannot be read ({error.strerror or error}).") from error
    except ValueError as error:
        raise PictureError(source, str(error)) from error


def load_all(inputs: Source | Iterable[Source], on_error: ErrorHandler | None = None) -> Iterator[InputImage]:
    """Yield the images of `inputs` one by one, read on demand; `on_error` as in `expand`."""
    for number, source in enumerate(expand(inputs, on_error)):
        try:
            yield load(source, number)
        except PictureError as error:
            _handle(error, on_error)


def _handle(error: PictureError, on_error: ErrorHandler | None) -> None:
    if on_error is None:
        raise error
    on_error(error)


def _checked(pixels: NDArray[Any], name: str) -> NDArray[np.uint8]:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise PictureError(
            name,
            f"got an array of shape {pixels.shape} and type {pixels.dtype}; expected (H, W, 3), uint8, RGB.",
        )
    return pixels
