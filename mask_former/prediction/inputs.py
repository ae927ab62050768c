"""What to predict on: files, folders, patterns and arrays, one picture after the other."""

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
    """A picture that cannot be predicted on; the message names it and says why.

    Attributes:
        picture: its file name, or the name of an array.
    """

    def __init__(self, picture: str, message: str) -> None:
        super().__init__(message if picture in message else f"{picture}: {message}")
        self.picture = picture


@dataclass(frozen=True)
class Picture:
    """A picture before the model: its name, and its pixels (H, W, 3) uint8 in RGB."""

    name: str
    pixels: NDArray[np.uint8]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.pixels.shape[:2]
        return height, width


Source = str | os.PathLike[str] | np.ndarray | Picture
ErrorHandler = Callable[[PictureError], None]


def _as_many(inputs: Source | Iterable[Source]) -> Iterable[Source]:
    if isinstance(inputs, str | os.PathLike | np.ndarray | Picture):
        return [inputs]
    return inputs


def expand(
    inputs: Source | Iterable[Source], on_error: ErrorHandler | None = None
) -> Iterator[str | NDArray[Any] | Picture]:
    """Yield single files, arrays and pictures: folders and patterns as the files in them, in order of name.

    Args:
        inputs: a path, folder, glob pattern (`~` allowed), array or `Picture`, or an iterable of them. Of a
            folder, the pictures directly in it.
        on_error: told of what cannot be found, which is then left out; None: raise.
    """
    for source in _as_many(inputs):
        if isinstance(source, np.ndarray | Picture):
            yield source
        elif isinstance(source, str | os.PathLike):
            try:
                yield from _files(os.path.expanduser(os.fspath(source)))
            except PictureError as error:
                _tell(error, on_error)
        else:
            raise TypeError(
                f"An input is a {type(source).__name__}; expected a path, folder, pattern, or array of shape "
                "(H, W, 3), uint8, RGB."
            )


def _files(path: str) -> list[str]:
    try:
        if os.path.isdir(path):
            names = [name for name in os.listdir(path) if Path(name).suffix.lower() in PICTURE_SUFFIXES]
            found = sorted(os.path.join(path, name) for name in names)
            found = [name for name in found if not os.path.isdir(name)]
            wanted = f"a folder with pictures ({' '.join(sorted(PICTURE_SUFFIXES))})"
        elif glob.has_magic(path) and not os.path.exists(path):
            found = sorted(name for name in glob.glob(path, recursive=True) if not os.path.isdir(name))
            wanted = "a pattern of existing files"
        else:
            return [path]
    except OSError as error:
        raise PictureError(path, f"cannot be read ({error.strerror}).") from error
    if not found:
        raise PictureError(path, f"holds no pictures; expected {wanted}.")
    return found


def load(source: str | NDArray[Any] | Picture, number: int) -> Picture:
    """Return the picture of one item of `expand`; arrays are named by their `number`.

    Raises:
        PictureError: it cannot be read, or is no picture.
    """
    if isinstance(source, Picture):
        return Picture(source.name, _checked(source.pixels, source.name))
    if isinstance(source, np.ndarray):
        name = f"array_{number:06d}"
        return Picture(name, _checked(source, name))
    try:
        return Picture(source, read_picture(source, "RGB"))
    except OSError as error:
        raise PictureError(source, f"cannot be read ({error.strerror or error}).") from error
    except ValueError as error:
        raise PictureError(source, str(error)) from error


def load_all(inputs: Source | Iterable[Source], on_error: ErrorHandler | None = None) -> Iterator[Picture]:
    """Yield the pictures of `inputs` as they are asked for; `on_error` as in `expand`."""
    for number, source in enumerate(expand(inputs, on_error)):
        try:
            yield load(source, number)
        except PictureError as error:
            _tell(error, on_error)


def _tell(error: PictureError, on_error: ErrorHandler | None) -> None:
    if on_error is None:
        raise error
    on_error(error)


def _checked(pixels: NDArray[Any], name: str) -> NDArray[np.uint8]:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise PictureError(
            name,
            f"an array of shape {pixels.shape} and type {pixels.dtype} came; expected (H, W, 3), uint8, RGB.",
        )
    return pixels
