"""Video files and cameras: frames in, frames out.

PyAV (`pip install av`) reads files and writes H.264. OpenCV reads cameras, and replaces PyAV where it is not
installed; it then writes MPEG-4, and refuses frames of an odd width or height.
"""

import logging
import math
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

try:
    import av
except ImportError:
    av = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

Frame = NDArray[np.uint8]

VIDEO_SUFFIXES = frozenset((".mp4", ".mkv", ".mov", ".avi"))
# Frames per second where a camera or file states none.
DEFAULT_RATE = 25.0
# Disk space that is kept free for the buffers of the encoder and the index of the file.
RESERVE_BYTES = 2**17
# "zerolatency" encodes each frame as soon as it is given.
H264_OPTIONS = {"preset": "veryfast", "crf": "18", "tune": "zerolatency"}


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
            use_opencv = isinstance(source, int) or av is None
            rate, self.frames, self._iterator = (_open_with_opencv if use_opencv else _open_with_av)(source)
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


def _open_with_av(path: str | Path | int) -> tuple[float, int, Any]:
    """Return rate, number of frames, and a generator of the frames of a file."""
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
    """Return rate, number of frames, and a generator of the frames of a file or camera."""
    with _silent_opencv():
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
    if isinstance(source, int):
        cameras = ", ".join(sorted(str(device) for device in Path("/dev").glob("video*"))) or "none"
        return f"Camera {source} gives no picture. Cameras found: {cameras}. Is another program using it?"
    return f"{source} cannot be read as a video: no frame of it can be decoded."


class VideoWriter:
    """Writes a video file of given frame size and rate.

    `close`, which a `with` block calls even after an error, leaves a file that plays, and checks it.

    Attributes:
        path: the file.
        frames: how many are written.
    """

    def __init__(self, path: str | Path, width: int, height: int, rate: float) -> None:
        """Open a file that does not exist yet.

        Args:
            path: of `VIDEO_SUFFIXES`.
            width: of the frames, in pixels.
            height: of the frames, in pixels.
            rate: frames per second.
        """
        self.path = Path(path)
        self.width, self.height, self.rate, self.frames = width, height, rate, 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            raise FileExistsError(f"{self.path} is there already and is not replaced: name another.")
        encoder = _Mpeg4Encoder if av is None else _H264Encoder
        self._encoder: _Mpeg4Encoder | _H264Encoder | None = encoder(self.path, width, height, rate)

    def write(self, frame: Frame) -> None:
        """Append a frame (height, width, 3) uint8 RGB.

        Raises:
            OSError: there is only enough disk space left to finish the file.
        """
        if frame.shape != (self.height, self.width, 3):
            raise ValueError(
                f"Frame {self.frames + 1} for {self.path} is {frame.shape}, expected "
                f"{(self.height, self.width, 3)} as the video was opened."
            )
        assert self._encoder is not None, "the video is closed"
        space = _disk_space(self.path)
        if space < RESERVE_BYTES + 2 * frame.size + 64 * self.frames:
            raise OSError(
                f"Only {space} bytes of space are left for {self.path}: it ends after {self.frames} frames."
            )
        self._encoder.write(np.ascontiguousarray(frame))
        self.frames += 1

    def close(self) -> None:
        """Finish the file, and check that size, rate and number of frames can be read back."""
        if self._encoder is None:
            return
        encoder, self._encoder = self._encoder, None
        if self.frames == 0:  # no player opens an empty video
            encoder.close()
            self.path.unlink(missing_ok=True)
            return
        encoder.close()
        problem = find_problem(self.path, self.width, self.height, self.rate, self.frames)
        if problem is not None:
            raise OSError(f"{self.path} was written, but {problem}.")

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            self.close()
        except OSError as second:
            if error is None:
                raise
            logger.error("%s", second)  # the first error is raised


class _H264Encoder:
    """H.264 through PyAV. Odd sizes need colours at full resolution (4:4:4)."""

    def __init__(self, path: Path, width: int, height: int, rate: float) -> None:
        # Without buffering, so that the remaining disk space is known.
        self.container = av.open(str(path), "w", container_options={"flush_packets": "1"})
        rate_fraction = Fraction(rate).limit_denominator(100_000)
        self.stream = self.container.add_stream("libx264", rate=rate_fraction, options=H264_OPTIONS)
        self.stream.width, self.stream.height = width, height
        self.stream.pix_fmt = "yuv444p" if width % 2 or height % 2 else "yuv420p"
        # Players assume either colour matrix where a file states none.
        self.stream.codec_context.colorspace = av.video.reformatter.Colorspace.ITU709
        self.stream.codec_context.color_range = av.video.reformatter.ColorRange.MPEG

    def write(self, frame: Frame) -> None:
        picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(
            format=self.stream.pix_fmt, dst_colorspace="ITU709", dst_color_range="MPEG"
        )
        self.container.mux(self.stream.encode(picture))

    def close(self) -> None:
        try:
            self.container.mux(self.stream.encode())
        finally:
            self.container.close()


class _Mpeg4Encoder:
    """MPEG-4 Part 2 through OpenCV, which cuts a row or column off odd sizes."""

    def __init__(self, path: Path, width: int, height: int, rate: float) -> None:
        code = cv2.VideoWriter.fourcc(*("XVID" if path.suffix.lower() == ".avi" else "mp4v"))
        with _silent_opencv():
            self.video = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, rate, (width, height))
        if width % 2 or height % 2 or not self.video.isOpened():
            self.video.release()
            path.unlink(missing_ok=True)
            raise ValueError(
                f"OpenCV cannot write {path} with {width}x{height} pixels at {rate:g} frames/s here: install "
                "PyAV (pip install av)."
            )

    def write(self, frame: Frame) -> None:
        self.video.write(np.ascontiguousarray(frame[..., ::-1]))

    def close(self) -> None:
        self.video.release()


def find_problem(path: Path, width: int, height: int, rate: float, frames: int) -> str | None:
    """Return what is wrong with a video file as part of a sentence, or None; the whole file is decoded.

    Args:
        path: the file.
        width: expected of every frame.
        height: expected of every frame.
        rate: expected frames per second, to a thousandth.
        frames: expected number.
    """
    try:
        with VideoReader(path) as video:
            size, count = (video.width, video.height), sum(1 for _ in video)
    except ValueError:
        return "cannot be read back"
    if size != (width, height):
        return f"its frames are {size}, expected {(width, height)}"
    if abs(video.rate - rate) > 1e-3 * rate:
        return f"its rate is {video.rate:g} frames/s, expected {rate:g}"
    if count != frames:
        return f"{count} frames can be read back, expected {frames}"
    return None


def _disk_space(path: Path) -> int:
    """Return how many bytes the disk and the limit of the process allow to add to a file."""
    free = shutil.disk_usage(path.parent).free
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit == resource.RLIM_INFINITY:
        return free
    size = path.stat().st_size if path.is_file() else 0
    return min(free, limit - size)


@contextmanager
def _silent_opencv() -> Iterator[None]:
    """Silence OpenCV, whose messages repeat the errors raised here."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # read when OpenCV first opens a file
    log = getattr(cv2.utils, "logging", cv2)  # OpenCV before 4.13 has the two functions in cv2 itself
    level = log.getLogLevel()
    log.setLogLevel(0)  # silent
    try:
        yield
    finally:
        log.setLogLevel(level)
