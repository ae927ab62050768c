"""Frames of video files and cameras.

PyAV (`pip install av`) reads files; OpenCV reads cameras, and replaces PyAV where it is not installed.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]

VIDEO_SUFFIXES = frozenset((".mp4", ".mkv", ".mov", ".avi"))
# Frames per second where a camera or file states none.
DEFAULT_RATE = 25.0


class VideoReader:
    """Iterates over the frames of a video file or camera: (H, W, 3) uint8 RGB, upright.

    Attributes:
        width, height: of every frame, in pixels.
        rate: frames per second.
        frames: the number that the file states, or that follows from its duration; 0 if unknown.
    """

    def __init__(self, source: str | Path | int) -> None:
        """Open a file by its path, or a camera by its index."""
        self.source = source
        if not isinstance(source, int) and not Path(source).is_file():
            raise FileNotFoundError(f"{source} is no file, expected a video.")
        try:
            rate, self.frames, self._iterator = _open(source)
            self._first: Frame | None = next(self._iterator)
        except (StopIteration, IndexError, OSError, ValueError) as error:
            raise ValueError(_why_unreadable(source)) from error
        self.rate = rate if math.isfinite(rate) and 0 < rate <= 1000 else DEFAULT_RATE
        self.height, self.width = self._first.shape[:2]

    def __iter__(self) -> Iterator[Frame]:
        """Yield each frame once; a second loop continues where the first stopped."""
        first, self._first = self._first, None
        if first is not None:
            yield first
        yield from self._iterator

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        """Release the file or camera."""
        self._iterator.close()


def _open(source: str | Path | int) -> tuple[float, int, Any]:
    """Return rate, number of frames, and a generator of the frames of a file or camera."""
    try:
        import av
    except ImportError:
        av = None  # type: ignore[assignment]
    return _open_with_opencv(source) if isinstance(source, int) or av is None else _open_with_av(av, source)


def _open_with_av(av: Any, path: str | Path) -> tuple[float, int, Any]:
    container = av.open(str(path))
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    rate = float(stream.average_rate or 0)
    frames = stream.frames or round(rate * (container.duration or 0) / av.time_base)

    def decode() -> Iterator[Frame]:
        with container:
            for packet in container.demux(stream):
                try:
                    decoded = packet.decode()
                except av.error.InvalidDataError:
                    continue  # a damaged frame; those after it may be whole
                for frame in decoded:
                    pixels = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                    yield np.ascontiguousarray(pixels)

    return rate, frames, decode()


def _open_with_opencv(source: str | Path | int) -> tuple[float, int, Any]:
    with silent_opencv():
        capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
    rate = float(capture.get(cv2.CAP_PROP_FPS))
    frames = 0 if isinstance(source, int) else max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))

    def decode() -> Iterator[Frame]:
        try:
            while (frame := capture.read()[1]) is not None:
                yield np.ascontiguousarray(frame[..., ::-1])
        finally:
            capture.release()

    return rate, frames, decode()


def _why_unreadable(source: str | Path | int) -> str:
    if not isinstance(source, int):
        return f"{source} cannot be read as a video: no frame of it can be decoded."
    cameras = ", ".join(sorted(map(str, Path("/dev").glob("video*")))) or "none"
    return f"Camera {source} gives no picture. Cameras found: {cameras}. Is another program using it?"


@contextmanager
def silent_opencv() -> Iterator[None]:
    """Silence OpenCV, whose messages repeat the errors raised here."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # read when OpenCV first opens a file
    log = getattr(cv2.utils, "logging", cv2)  # OpenCV before 4.13 has the two functions in cv2 itself
    level = log.getLogLevel()
    log.setLogLevel(0)  # silent
    try:
        yield
    finally:
        log.setLogLevel(level)
