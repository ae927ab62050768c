"""Video files: frames in, a file out.

PyAV (`pip install av`) writes H.264. OpenCV replaces it where it is not installed, as MPEG-4; it refuses
frames of an odd width or height.
"""

import logging
import resource
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mask_former.prediction.video import Frame, VideoReader, silent_opencv

try:
    import av
except ImportError:
    av = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

# Disk space that is kept free for the buffers of the encoder and the index of the file.
RESERVE_BYTES = 2**17
# "zerolatency" encodes each frame as soon as it is given.
H264_OPTIONS = {"preset": "veryfast", "crf": "18", "tune": "zerolatency"}


class VideoWriter:
    """Writes a video file; a `with` block leaves one that plays, even after an error, and checks it.

    Attributes:
        path: of `prediction.video.VIDEO_SUFFIXES`; must not exist yet.
        frames: how many are written.
    """

    def __init__(self, path: str | Path, width: int, height: int, rate: float) -> None:
        """Create the file, for frames of this size, and this many per second."""
        self.path, self.frames = Path(path), 0
        self.width, self.height, self.rate = width, height, rate
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            raise FileExistsError(f"{self.path} is there already and is not replaced: name another.")
        encoder = _Mpeg4Encoder if av is None else _H264Encoder
        self._encoder: _Mpeg4Encoder | _H264Encoder = encoder(self.path, width, height, rate)

    def write(self, frame: Frame) -> None:
        """Append a frame (height, width, 3) uint8 RGB; OSError once disk space only suffices to finish."""
        if frame.shape != (self.height, self.width, 3):
            raise ValueError(
                f"Frame {self.frames + 1} for {self.path} is {frame.shape}, expected "
                f"{(self.height, self.width, 3)} as the video was opened."
            )
        space = _disk_space(self.path)
        if space < RESERVE_BYTES + 2 * frame.size + 64 * self.frames:
            raise OSError(
                f"Only {space} bytes of space are left for {self.path}: it ends after {self.frames} frames."
            )
        self._encoder.write(np.ascontiguousarray(frame))
        self.frames += 1

    def close(self) -> None:
        """Finish the file, and check that size, rate and number of frames can be read back."""
        self._encoder.close()
        if self.frames == 0:
            self.path.unlink(missing_ok=True)  # no player opens an empty video
            return
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
        with silent_opencv():
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
    """Decode a whole video file, and return what differs from this as part of a sentence, or None."""
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
    size = path.stat().st_size if path.is_file() else 0
    return free if limit == resource.RLIM_INFINITY else min(free, limit - size)
