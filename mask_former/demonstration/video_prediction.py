"""Predictions on videos and cameras, with colours that stay with a segment from frame to frame."""

import dataclasses
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mask_former.demonstration import Outcome, PredictorRecipe
from mask_former.demonstration.sinks import WindowSink, make_folder
from mask_former.demonstration.tracking import SegmentTracker
from mask_former.demonstration.video import CODECS, VideoReader, VideoWriter
from mask_former.prediction.classes import Color
from mask_former.prediction.drawing import segment_colors, shade
from mask_former.prediction.inputs import Picture
from mask_former.prediction.results import Result, ResultWriter, segments_of_map

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset(codec.suffix for codec in CODECS)
# Where results hold instances alone, those below this score are not drawn.
DRAWN_SCORE = 0.5


def predict_video(
    recipe: PredictorRecipe,
    source: str | int,
    output: Path | None,
    batch_size: int = 1,
    show_progress: bool = True,
    **drawing: Any,
) -> Outcome:
    """Predict on every frame of a file or camera, and write a video of the same size and rate, or show it.

    Args:
        recipe: of the predictor. Kinds other than "overlay" give files for each frame, in the folder of the
            video, or in one of its name if `output` is a file.
        source: a file, or the index of a camera.
        output: a video file that does not exist yet, or a folder for one of the source's name; None: a
            window.
        batch_size: frames in one batch; of cameras always one.
        show_progress: draw a bar.
        drawing: see `drawing.draw_result`.

    Stopped by Ctrl-C or an error, it leaves a video that plays, of the frames that were done.
    """
    with VideoReader(source) as reader:
        if output is None:
            return _show(recipe, reader, drawing, show_progress)
        path = _video_file(output, source)
        make_folder(path.parent)
        folder = path.parent if path != output else path.with_suffix("")
        with VideoWriter(path, reader.width, reader.height, reader.rate) as video:
            return _write(recipe, reader, video, folder, batch_size, show_progress, drawing)


def _video_file(output: Path, source: str | int) -> Path:
    """The file to write: `output` itself, or one named for the source in that folder."""
    if output.suffix.lower() in VIDEO_SUFFIXES and not output.is_dir():
        return output
    if isinstance(source, int):
        return output / f"camera{source}.mp4"
    name = Path(source).name if Path(source).suffix.lower() in VIDEO_SUFFIXES else f"{Path(source).stem}.mp4"
    return output / name


def _show(
    recipe: PredictorRecipe, reader: VideoReader, drawing: Mapping[str, Any], show_progress: bool
) -> Outcome:
    outcome, colors = Outcome(), SteadyColors()
    window = WindowSink(drawing, wait_ms=1)
    try:
        for result in _results(recipe, reader, 1, outcome, show_progress):
            if not window.show(colors.draw(result, **drawing)):
                outcome.stopped = True
                break
    finally:
        window.close()
    return outcome


def _write(
    recipe: PredictorRecipe,
    reader: VideoReader,
    video: VideoWriter,
    folder: Path,
    batch_size: int,
    show_progress: bool,
    drawing: Mapping[str, Any],
) -> Outcome:
    outcome, colors, pace = Outcome(), SteadyColors(), Pace(reader)
    kinds = [kind for kind in recipe.kinds if kind != "overlay"]
    files: ResultWriter | None = None
    batch_size = 1 if isinstance(reader.source, int) else batch_size
    try:
        for result in _results(recipe, reader, batch_size, outcome, show_progress):
            drawn = colors.draw(result, **drawing)
            for _ in range(pace.copies(video.frames)):
                video.write(drawn)
            if kinds:
                files = files or ResultWriter(folder, kinds, result.classes)
                files.write(result)
    finally:
        if video.frames:
            logger.info("%d frames in %s", video.frames, video.path)
        if files is not None:
            files.close()
    if outcome.done < reader.frames:
        outcome.skipped.append(f"{reader.source}: {outcome.done} of the {reader.frames} frames it states")
        logger.warning(
            "%s states %d frames, but only %d can be read: is it cut off? The video has those.",
            *(reader.source, reader.frames, outcome.done),
        )
    return outcome


def _results(
    recipe: PredictorRecipe, reader: VideoReader, batch_size: int, outcome: Outcome, show_progress: bool
) -> Iterator[Result]:
    """The results of all frames, counted on a bar."""
    name = f"camera{reader.source}" if isinstance(reader.source, int) else Path(reader.source).stem
    pictures = (Picture(f"{name}_{number:06d}", frame) for number, frame in enumerate(reader, start=1))
    total = reader.frames or None
    bar = tqdm(
        total=total, unit="frame", disable=not show_progress, file=sys.stderr, dynamic_ncols=True, delay=0.1
    )
    with bar:
        for result in recipe().stream(pictures, batch_size):
            yield result
            outcome.done += 1
            bar.update()


class Pace:
    """How often a frame is written so that a film of a camera runs as fast as life did.

    A camera gives frames when the model is ready for them, not at its own rate.
    """

    def __init__(self, reader: VideoReader) -> None:
        self.is_live = isinstance(reader.source, int)
        self.rate = reader.rate
        self.start: float | None = None

    def copies(self, written: int) -> int:
        """Return how many frames are due, given how many are written; 1 for files."""
        if not self.is_live:
            return 1
        now = time.monotonic()
        self.start = now if self.start is None else self.start
        return max(0, int((now - self.start) * self.rate) + 1 - written)


class SteadyColors:
    """Draws the frames of a video; a segment keeps its colour while it stays in the picture."""

    def __init__(self) -> None:
        self.tracker = SegmentTracker()

    def draw(self, result: Result, **drawing: Any) -> NDArray[np.uint8]:
        """Return a frame with its result over it, see `drawing.draw_result`."""
        if result.panoptic is None and result.semantic is None and result.instances is not None:
            result = flattened(result, drawing.get("score_threshold", DRAWN_SCORE))
        if result.panoptic is None:
            return result.draw(**drawing)  # classes have their own colours
        return result.draw(colors=self.colors(result), **drawing)

    def colors(self, result: Result) -> dict[int, Color]:
        """Return the colour of each panoptic segment of the next frame, by its id."""
        assert result.panoptic is not None
        things = [segment for segment in result.segments if segment.is_thing]
        ids = np.array([segment.id for segment in things], result.panoptic.dtype)
        numbers = self.tracker.update(
            [segment.category_id for segment in things], result.panoptic == ids[:, None, None]
        )
        steady = {
            segment.id: shade(result.classes.colors[segment.category_id], number)
            for segment, number in zip(things, numbers, strict=True)
        }
        return {**segment_colors(result), **steady}


def flattened(result: Result, score_threshold: float) -> Result:
    """Return a result of instances alone as panoptic segments: the better one is in front.

    Instances below `score_threshold` are left out, as well as those that others hide altogether.
    """
    assert result.instances is not None
    found = result.instances
    ids = np.zeros((result.height, result.width), np.int32)
    for index in reversed(range(len(found))):  # best first
        if found.scores[index] >= score_threshold:
            ids[found.masks[index]] = index + 1
    seen: Sequence[int] = np.setdiff1d(ids, [0]).tolist()
    infos = [
        {
            "id": k,
            "category_id": int(found.classes[k - 1]),
            "score": float(found.scores[k - 1]),
            "isthing": True,
        }
        for k in seen
    ]
    return dataclasses.replace(result, panoptic=ids, segments=segments_of_map(ids, infos, result.classes))
