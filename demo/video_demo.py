"""Predictions on videos and cameras, with colours that follow a segment from frame to frame."""

import dataclasses
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from display import Window
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from tqdm import tqdm
from video_files import VideoWriter

from mask_former.prediction.classes import Color
from mask_former.prediction.drawing import segment_colors, shade
from mask_former.prediction.inputs import InputImage
from mask_former.prediction.predictor import Predictor
from mask_former.prediction.results import Result
from mask_former.prediction.values import segments_of_map
from mask_former.prediction.video import VIDEO_SUFFIXES, VideoReader
from mask_former.prediction.writing import ResultWriter

logger = logging.getLogger("mask_former.demo")

# Instances below this score are not drawn, unless a threshold is given.
DRAWN_SCORE = 0.5
# Masks of two frames are compared on at most about this many rows and columns.
TRACKING_GRID = 240


def predict_video(
    build: Callable[[], Predictor],
    source: str | int,
    output: Path | None,
    kinds: tuple[str, ...] = ("overlay",),
    batch_size: int = 1,
    **drawing: Any,
) -> tuple[int, list[str]]:
    """Predict on every frame of a file or camera, and write a video of the same size and rate, or show it.

    An error or KeyboardInterrupt leaves a video that plays, of the frames until then.

    Args:
        source: a file, or the index of a camera.
        output: a video file that does not exist yet, or a folder for one; None: a window.
        kinds: those other than "overlay" add files for each frame, beside the video or in a folder with its
            name.
        drawing: see `drawing.draw_result`.

    Returns:
        How many frames are done, and a line if the file states more.
    """
    with VideoReader(source) as reader, ExitStack() as stack:
        colors, pace, done = SteadyColors(), Pace(reader), 0
        batch_size = 1 if output is None or isinstance(source, int) else batch_size
        window = video = files = None
        if output is None:
            window = stack.enter_context(Window(wait_ms=1))
        else:
            path = _video_file(output, source)
            folder = path.parent if path != output else path.with_suffix("")
            video = stack.enter_context(VideoWriter(path, reader.width, reader.height, reader.rate))
            stack.callback(_log_frames, video)
        options: Any = {"file": sys.stderr, "dynamic_ncols": True, "delay": 0.1}
        bar = stack.enter_context(tqdm(total=reader.frames or None, unit="frame", **options))
        name = f"camera{source}" if isinstance(source, int) else Path(source).stem
        frames = (InputImage(f"{name}_{number:06d}", frame) for number, frame in enumerate(reader, start=1))
        for result in build().stream(frames, batch_size):
            drawn = colors.draw(result, **drawing)
            if window is not None and not window.show(drawn):
                return done, []
            done += 1
            bar.update()
            if video is None:
                continue
            for _ in range(pace.copies(video.frames)):
                video.write(drawn)
            file_kinds = [kind for kind in kinds if kind != "overlay"]
            if file_kinds:
                files = files or stack.enter_context(ResultWriter(folder, file_kinds, result.classes))
                files.write(result)
    if done >= reader.frames:
        return done, []
    message = "%s states %d frames, but only %d can be read: is it cut off? The video has those."
    logger.warning(message, source, reader.frames, done)
    return done, [f"{source}: {done} of the {reader.frames} frames it states"]


def _video_file(output: Path, source: str | int) -> Path:
    """Return `output` if it names a video file, else a file named for the source in that folder."""
    if output.suffix.lower() in VIDEO_SUFFIXES and not output.is_dir():
        return output
    if isinstance(source, int):
        return output / f"camera{source}.mp4"
    name = Path(source).name if Path(source).suffix.lower() in VIDEO_SUFFIXES else f"{Path(source).stem}.mp4"
    return output / name


def _log_frames(video: VideoWriter) -> None:
    if video.frames:
        logger.info("%d frames in %s", video.frames, video.path)


class Pace:
    """Counts how often to write each frame so that the video of a camera runs in real time.

    A camera is read as fast as the model predicts, not at its own rate.
    """

    def __init__(self, reader: VideoReader) -> None:
        self.is_live = isinstance(reader.source, int)
        self.rate = reader.rate
        self.start: float | None = None

    def copies(self, written: int) -> int:
        """Return how many frames are due when `written` are written; 1 for files."""
        if not self.is_live:
            return 1
        now = time.monotonic()
        self.start = now if self.start is None else self.start
        return max(0, int((now - self.start) * self.rate) + 1 - written)


class SegmentTracker:
    """Numbers the segments of each frame so that one which stays in the picture keeps its number.

    Segments are matched within their class, by the assignment with the largest total IoU. Numbers count up
    from 0 in each class.
    """

    def __init__(self, min_iou: float = 0.2, patience: int = 10) -> None:
        """Match masks of at least `min_iou`, also after up to `patience` frames without the segment."""
        self.min_iou, self.patience = min_iou, patience
        # (class, number) -> mask on the grid, (P,) float32, and frames since it was last seen.
        self._tracks: dict[tuple[int, int], tuple[NDArray[np.float32], int]] = {}
        self._counts: Counter[int] = Counter()

    def update(self, classes: Sequence[int], masks: NDArray[np.bool_]) -> list[int]:
        """Return the number of each segment of the next frame, given their classes and masks (M, H, W)."""
        step = max(1, max(masks.shape[1:]) // TRACKING_GRID)
        grids = masks[:, ::step, ::step].astype(np.float32)
        grids = grids.reshape(len(grids), grids.shape[1] * grids.shape[2])
        if any(len(mask) != grids.shape[1] for mask, _ in self._tracks.values()):
            self._tracks = {}  # frames of another size: another video
        keys = list(self._tracks)
        tracked = np.array([mask for mask, _ in self._tracks.values()]).reshape(len(keys), grids.shape[1])
        intersection = grids @ tracked.T
        union = grids.sum(1)[:, None] + tracked.sum(1)[None] - intersection
        same_class = np.array([[c == key[0] for key in keys] for c in classes], bool).reshape(union.shape)
        iou = np.where(same_class, intersection / np.maximum(union, 1), 0)
        numbers = [-1] * len(classes)
        for row, column in zip(*linear_sum_assignment(-iou), strict=True):
            if same_class[row, column] and iou[row, column] >= self.min_iou:
                numbers[row] = keys[column][1]
        for row, class_index in enumerate(classes):
            if numbers[row] < 0:
                numbers[row] = self._counts[class_index]
                self._counts[class_index] += 1
        missing = {key: (mask, age + 1) for key, (mask, age) in self._tracks.items() if age < self.patience}
        seen = {(c, n): (grid, 0) for c, n, grid in zip(classes, numbers, grids, strict=True)}
        self._tracks = {**missing, **seen}
        return numbers


class SteadyColors:
    """Draws the frames of a video; a segment keeps its colour while it stays in the picture."""

    def __init__(self) -> None:
        self.tracker = SegmentTracker()

    def draw(self, result: Result, **drawing: Any) -> NDArray[np.uint8]:
        """Return a frame with its result over it, see `drawing.draw_result`."""
        if result.panoptic is None and result.semantic is None and result.instances is not None:
            result = instances_as_segments(result, drawing.get("score_threshold", DRAWN_SCORE))
        if result.panoptic is None:
            return result.draw(**drawing)  # the colours of the classes
        return result.draw(colors=self.colors(result), **drawing)

    def colors(self, result: Result) -> dict[int, Color]:
        """Return the colour of each panoptic segment of the next frame, by its id."""
        assert result.panoptic is not None
        things = [segment for segment in result.segments if segment.is_thing]
        ids = np.array([segment.id for segment in things], result.panoptic.dtype)
        numbers = self.tracker.update(
            [segment.category_id for segment in things], result.panoptic == ids[:, None, None]
        )
        tracked = {
            segment.id: shade(result.classes.colors[segment.category_id], number)
            for segment, number in zip(things, numbers, strict=True)
        }
        return {**segment_colors(result), **tracked}


def instances_as_segments(result: Result, score_threshold: float) -> Result:
    """Return a result that holds only instances with a panoptic map of them, higher scores in front.

    Instances below `score_threshold`, and those that others cover completely, are left out.
    """
    instances = result.instances
    assert instances is not None
    ids = np.zeros((result.height, result.width), np.int32)
    for index in reversed(range(len(instances))):  # sorted by score, highest first
        if instances.scores[index] >= score_threshold:
            ids[instances.masks[index]] = index + 1
    infos = [
        {
            "id": k,
            "category_id": int(instances.classes[k - 1]),
            "score": float(instances.scores[k - 1]),
            "isthing": True,
        }
        for k in np.setdiff1d(ids, [0]).tolist()
    ]
    return dataclasses.replace(result, panoptic=ids, segments=segments_of_map(ids, infos, result.classes))
