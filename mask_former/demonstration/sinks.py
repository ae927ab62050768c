"""Where results go: files below a folder, a single file, or a window."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mask_former.formats import PICTURE_SUFFIXES, replacing
from mask_former.prediction.results import Result, ResultWriter

WINDOW = "MaskFormer"
ESCAPE = 27


class Sink:
    """Where results go; `close` makes them complete. `write` returns False when the user wants no more."""

    def write(self, result: Result) -> bool:
        """Take a result."""
        raise NotImplementedError

    def close(self) -> None:
        """Finish."""


class FolderSink(Sink):
    """Files of several kinds below a folder."""

    def __init__(self, folder: Path, kinds: Sequence[str], drawing: Mapping[str, Any]) -> None:
        make_folder(folder)
        self._make = lambda classes: ResultWriter(folder, kinds, classes, **drawing)
        self._writer: ResultWriter | None = None

    def write(self, result: Result) -> bool:
        """Write the files of a picture."""
        if self._writer is None:
            self._writer = self._make(result.classes)  # files list the classes, which the model knows
        self._writer.write(result)
        return True

    def close(self) -> None:
        """Write the JSON and CSV files."""
        if self._writer is not None:
            self._writer.close()


class FileSink(Sink):
    """One overlay in one file."""

    def __init__(self, file: Path, drawing: Mapping[str, Any]) -> None:
        make_folder(file.parent)
        self.file, self.drawing = file, drawing

    def write(self, result: Result) -> bool:
        """Write the overlay."""
        Image.init()  # fills the table of endings
        form = Image.EXTENSION[self.file.suffix.lower()]
        with replacing(self.file) as partial:
            Image.fromarray(result.draw(**self.drawing)).save(partial, form)
        return True


class WindowSink(Sink):
    """A window that shows one result after the other until a key is pressed; Esc ends."""

    def __init__(self, drawing: Mapping[str, Any], wait_ms: int = 0) -> None:
        check_display()
        self.drawing, self.wait_ms = drawing, wait_ms

    def write(self, result: Result) -> bool:
        """Show the overlay."""
        return self.show(result.draw(**self.drawing))

    def show(self, picture: NDArray[np.uint8]) -> bool:
        """Show a picture (H, W, 3) RGB."""
        cv2.namedWindow(WINDOW, cv2.WINDOW_NORMAL)
        cv2.imshow(WINDOW, np.ascontiguousarray(picture[..., ::-1]))
        return cv2.waitKey(self.wait_ms) != ESCAPE

    def close(self) -> None:
        """Close the window."""
        cv2.destroyAllWindows()


def picture_sink(
    output: Path | None, kinds: Sequence[str], files: Sequence[str], drawing: Mapping[str, Any]
) -> Sink:
    """Return where the results of these pictures go; see `demonstration.predict_pictures`."""
    if output is None:
        return WindowSink(drawing)
    if output.suffix.lower() not in PICTURE_SUFFIXES or output.is_dir():
        return FolderSink(output, kinds, drawing)
    if len(files) > 1 or tuple(kinds) != ("overlay",):
        raise ValueError(
            f"--output {output} names one file, but there are {len(files)} pictures and --save "
            f"{','.join(kinds)}: name a folder."
        )
    if output.exists() and os.path.samefile(output, files[0]):
        raise ValueError(f"--output {output} is the picture itself, which would be lost: name another file.")
    return FileSink(output, drawing)


def make_folder(folder: Path) -> None:
    """Make a folder with its parents; ValueError where a file has its name."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(
            f"{folder} cannot be a folder, since a file has that name: name another --output."
        ) from error


def check_display() -> None:
    """Raise ValueError where no window can be opened."""
    if sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        raise ValueError("There is no display for a window: give --output FOLDER.")
    # Tried by another process: where it fails, OpenCV ends the program, and a headless OpenCV has no windows.
    trial = subprocess.run(
        [sys.executable, "-c", "import cv2; cv2.namedWindow('trial')"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    if trial.returncode != 0:
        display = os.environ.get("DISPLAY", "")
        raise ValueError(
            f"OpenCV opens no window (DISPLAY is {display!r}): give --output FOLDER. If there is one: is "
            "opencv-python installed, and not its headless twin?"
        )
