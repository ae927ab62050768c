"""Video files and cameras: frames in, frames out, and proof that what was written can be read again.

OpenCV writes without a word into a file that no player opens: when a codec is missing, when the disk is
full, when width or height are odd. So each codec is probed with a few frames before work starts, space is
watched while frames come, and the finished file is opened again and counted.
"""

import json
import logging
import math
import os
import resource
import shutil
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

Frame = NDArray[Any]  # uint8; the stubs of OpenCV do not say so

# Frames a second where a camera or file states none.
DEFAULT_RATE = 25.0
# Frames of a probe: more than one, so that frames which depend on others are among them.
PROBE_FRAMES = 3
# Room that is left on the disk for what a codec holds back and for the index of the file.
RESERVE_BYTES = 2**17


class Codec(NamedTuple):
    """A way to write a video: OpenCV's code of four letters, the file ending, the part of OpenCV."""

    fourcc: str
    suffix: str
    backend: int = cv2.CAP_FFMPEG


# In order of preference. The last is OpenCV's own, needs no library and alone takes odd sizes.
CODECS = (
    Codec("mp4v", ".mp4"),
    Codec("mp4v", ".mkv"),
    Codec("mp4v", ".mov"),
    Codec("XVID", ".avi"),
    Codec("MJPG", ".avi", cv2.CAP_OPENCV_MJPEG),
)


class VideoReader:
    """The frames of a video file or of a camera, (H, W, 3) uint8 RGB, one after the other.

    Attributes:
        width, height: of every frame, in pixels, as they come (upright).
        rate: frames a second.
        frames: how many the file says it holds; 0 where it does not say, and for cameras.
    """

    def __init__(self, source: str | Path | int) -> None:
        """Open a file by its path, or a camera by its index."""
        self.source = source
        if not isinstance(source, int) and not Path(source).is_file():
            raise FileNotFoundError(f"{source} is no file, expected a video.")
        with _quiet():
            self._capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
            readable, first = self._capture.read()
        if not readable:
            self._capture.release()
            raise ValueError(_why_not_readable(source))
        self._first: Frame | None = first
        self.height, self.width = first.shape[:2]
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = float(rate) if math.isfinite(rate) and 0 < rate <= 1000 else DEFAULT_RATE
        self.frames = (
            0 if isinstance(source, int) else max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        )

    def __iter__(self) -> Iterator[Frame]:
        """Give each frame once; a second loop goes on where the first stopped."""
        frame, self._first = self._first, None
        if frame is None:
            _, frame = self._capture.read()
        while frame is not None:
            yield np.ascontiguousarray(frame[..., ::-1])
            _, frame = self._capture.read()

    def close(self) -> None:
        """Give the file or the camera free."""
        self._capture.release()

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class VideoWriter:
    """Writes frames to a video file of the same size and rate, or to PNG files where no codec works.

    `close`, which a `with` block calls whatever happens inside, leaves a file that plays, and checks it.

    Attributes:
        path: the file, or the folder of PNG files, that is really written.
        frames: how many are in it.
    """

    def __init__(
        self,
        path: str | Path,
        width: int,
        height: int,
        rate: float,
        codecs: Sequence[Codec] = CODECS,
    ) -> None:
        """Choose a codec for `path`, whose ending is kept if a codec for it works, and open the file.

        Args:
            path: must not exist yet.
            width: of the frames, in pixels.
            height: of the frames, in pixels.
            rate: frames a second.
            codecs: those to try, the ones for the ending of `path` first.
        """
        wanted = Path(path)
        wanted.parent.mkdir(parents=True, exist_ok=True)
        self.width, self.height, self.rate, self.frames = width, height, rate, 0
        self.codec = choose_codec(wanted, width, height, rate, codecs)
        self.path = _target(wanted, self.codec)
        if self.path != wanted:
            logger.warning(
                "%dx%d pixels at %g frames/s cannot be written as %s here: writing %s",
                *(width, height, rate, wanted.suffix or "video", self.path),
            )
        if self.path.exists():
            raise FileExistsError(f"{self.path} is there already and is not replaced: name another.")
        self._video = None if self.codec is None else _open_codec(self.path, self.codec, width, height, rate)
        if self.codec is None:
            self.path.mkdir()
            facts = {"rate": rate, "width": width, "height": height}
            (self.path / "video.json").write_text(json.dumps(facts) + "\n")
        self._closed = False

    def write(self, frame: Frame) -> None:
        """Append a frame (height, width, 3) uint8 RGB.

        Raises:
            OSError: there is just enough space left to finish the file.
        """
        if frame.shape != (self.height, self.width, 3):
            raise ValueError(
                f"Frame {self.frames + 1} for {self.path} is {frame.shape}, expected "
                f"{(self.height, self.width, 3)} as the video was opened."
            )
        room = _room(self.path)
        if room < RESERVE_BYTES + 2 * frame.size + 64 * self.frames:
            raise OSError(
                f"Only {room} bytes of space are left for {self.path}: it ends after {self.frames} frames."
            )
        bgr = np.ascontiguousarray(frame[..., ::-1])
        if self._video is not None:
            self._video.write(bgr)
        elif not cv2.imwrite(str(self.path / f"{self.frames + 1:06d}.png"), bgr):
            raise OSError(f"{self.path / f'{self.frames + 1:06d}.png'} could not be written.")
        self.frames += 1

    def close(self) -> None:
        """Finish the file and check that size, rate and number of frames can be read back."""
        if self._closed:
            return
        self._closed = True
        if self._video is not None:
            self._video.release()
            _state_rate(self.path, self.codec, self.rate)
        if self.frames == 0:
            self._remove()
            return
        problem = find_problem(self.path, self.width, self.height, self.rate, self.frames)
        if problem is not None:
            raise OSError(f"{self.path} was written, but {problem}.")

    def _remove(self) -> None:
        """Take an empty video away, which no player opens."""
        if self.path.is_dir():
            shutil.rmtree(self.path)
        else:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except OSError as broken:
            if error is None:
                raise
            logger.error("%s", broken)  # the first error is the one to tell


def choose_codec(
    path: Path, width: int, height: int, rate: float, codecs: Sequence[Codec] = CODECS
) -> Codec | None:
    """Return the first codec that gives back what it was given, those for the ending of `path` first.

    None where none does, or where the folder of `path` has no room for a probe.
    """
    suffix = path.suffix.lower()
    for codec in sorted(codecs, key=lambda codec: codec.suffix != suffix):
        if _probe(path.parent, codec, width, height, rate):
            return codec
        logger.debug("%s in %s cannot hold %dx%d at %g", codec.fourcc, codec.suffix, width, height, rate)
    return None


def find_problem(path: Path, width: int, height: int, rate: float, frames: int) -> str | None:
    """Return what is wrong with a written video, as part of a sentence, or None.

    The file is read again from disk, all of it.

    Args:
        path: a video file, or a folder as `VideoWriter` makes it.
        width: expected of every frame.
        height: expected of every frame.
        rate: expected frames a second, to a thousandth.
        frames: expected number.
    """
    if path.is_dir():
        pictures = sorted(path.glob("*.png"))
        found_frames, found_rate = len(pictures), rate
        first = cv2.imread(str(pictures[0])) if pictures else None
        found_size = None if first is None else first.shape[1::-1]
    else:
        found_size, found_rate, found_frames = _read_back(path)
    if found_size != (width, height):
        return (
            f"its frames are {found_size}, expected {(width, height)}"
            if found_size
            else "cannot be read back"
        )
    if abs(found_rate - rate) > 1e-3 * rate:
        return f"its rate is {found_rate:g} frames/s, expected {rate:g}"
    if found_frames != frames:
        return f"{found_frames} frames can be read back, expected {frames}"
    return None


def _read_back(path: Path) -> tuple[tuple[int, int] | None, float, int]:
    """Size, rate and number of frames of a file, by decoding all of it."""
    with _quiet():
        capture = cv2.VideoCapture(str(path))
        readable, first = capture.read()
        frames, rate = 0, capture.get(cv2.CAP_PROP_FPS)
        size = first.shape[1::-1] if readable else None
        while readable:
            frames += 1
            readable = capture.grab()
        capture.release()
    return size, rate, frames


def _probe(folder: Path, codec: Codec, width: int, height: int, rate: float) -> bool:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    with tempfile.TemporaryDirectory(prefix=".codec-", dir=folder) as beside:
        path = Path(beside) / f"probe{codec.suffix}"
        video = _open_codec(path, codec, width, height, rate)
        for _ in range(PROBE_FRAMES):
            video.write(noise)
        video.release()
        _state_rate(path, codec, rate)
        return find_problem(path, width, height, rate, PROBE_FRAMES) is None


def _open_codec(path: Path, codec: Codec, width: int, height: int, rate: float) -> cv2.VideoWriter:
    with _quiet():
        fourcc = cv2.VideoWriter.fourcc(*codec.fourcc)
        return cv2.VideoWriter(str(path), codec.backend, fourcc, rate, (width, height))


def _target(wanted: Path, codec: Codec | None) -> Path:
    """The path for what a codec writes, or the folder for PNG files."""
    return wanted.with_name(f"{wanted.stem}_frames") if codec is None else wanted.with_suffix(codec.suffix)


def _state_rate(path: Path, codec: Codec | None, rate: float) -> None:
    """Put the exact rate into a file of OpenCV's own AVI writer, which rounds it to an integer."""
    if codec is None or codec.backend != cv2.CAP_OPENCV_MJPEG or rate == round(rate) or not path.exists():
        return
    with path.open("r+b") as file:
        stream = file.read(4096).find(b"strh")
        if stream < 0:
            return
        # strh, size, type, handler, flags, priority and language, initial frames: then scale and rate.
        file.seek(stream + 28)
        file.write(struct.pack("<II", 1000, round(1000 * rate)))


def _room(path: Path) -> int:
    """Bytes that can still be written to a file: what the disk has, or the process may."""
    free = shutil.disk_usage(path.parent).free
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit == resource.RLIM_INFINITY:
        return free
    size = path.stat().st_size if path.is_file() else 0
    return min(free, limit - size)


def _why_not_readable(source: str | Path | int) -> str:
    if isinstance(source, int):
        present = sorted(str(device) for device in Path("/dev").glob("video*"))
        found = ", ".join(present) if present else "none"
        return f"Camera {source} gives no picture. Cameras found: {found}. Is it in use by another program?"
    return f"{source} cannot be read as a video: no frame of it can be decoded."


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep OpenCV from writing to the terminal what is found out and told here anyway."""
    # FFmpeg's own messages; read by OpenCV when it first opens a file.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    log = getattr(cv2.utils, "logging", cv2)  # OpenCV before 4.13 has the two functions in cv2 itself
    before = log.getLogLevel()
    log.setLogLevel(0)  # silent
    try:
        yield
    finally:
        log.setLogLevel(before)
