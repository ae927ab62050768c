"""The result of one image, as users see it: values that can be drawn, saved and handed to other programs."""

import dataclasses
import io
import json
import math
import os
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageShow

from mask_former.formats import PICTURE_SUFFIXES
from mask_former.prediction.classes import Color
from mask_former.prediction.drawing import draw_result
from mask_former.prediction.options import option_names, refuse_unknown
from mask_former.prediction.values import PredictedValues
from mask_former.prediction.writing import KINDS, ResultWriter, save_image


class Result(PredictedValues):
    """The predictions for one image, see `PredictedValues` for the fields; iterates over its segments."""

    def draw(
        self,
        image: NDArray[np.uint8] | None = None,
        *,
        task: str | None = None,
        score_threshold: float = 0.5,
        colors: Mapping[int, Color] | None = None,
        scale: float = 1.0,
        text: bool = True,
        **unknown: Any,
    ) -> NDArray[np.uint8]:
        """Return `image` (default: the one predicted on) with the result over it, see `draw_result`."""
        refuse_unknown(unknown, option_names(draw_result), "draw")
        return draw_result(
            self, image, task=task, score_threshold=score_threshold, colors=colors, scale=scale, text=text
        )

    plot = draw

    def show(self, **drawing: Any) -> None:
        """Open the drawing in a program of this machine that shows pictures; options as for `draw`."""
        if not ImageShow.show(Image.fromarray(self.draw(**drawing))):
            raise OSError("There is no program here that shows pictures: use result.save('one.jpg').")

    def save(
        self,
        path: str | Path,
        kinds: Collection[str] = KINDS,
        image: NDArray[np.uint8] | None = None,
        **drawing: Any,
    ) -> None:
        """Write the drawing into a picture file, or files of these kinds into a folder, see `ResultWriter`.

        Args:
            path: with the suffix of a picture, as "one.jpg": that file. Otherwise a folder; what it contains
                is kept.
            kinds: of files in a folder.
            image: to draw on, by default the one predicted on.
            drawing: options as for `draw`.
        """
        path = Path(path)
        if path.suffix.lower() not in PICTURE_SUFFIXES or path.is_dir():
            with ResultWriter(path, kinds, self.classes, **drawing) as writer:
                writer.write(self, image)
            return
        if os.path.exists(self.image_name) and path.exists() and os.path.samefile(path, self.image_name):
            raise ValueError(f"{path} is the picture itself, which would be lost: name another file.")
        path.parent.mkdir(parents=True, exist_ok=True)
        save_image(Image.fromarray(self.draw(image, **drawing)), path)

    def to_dict(self) -> dict[str, Any]:
        """Return name, size and segments in plain Python values; a score that there is not is None."""
        segments = [
            {**dataclasses.asdict(segment), "score": None if math.isnan(segment.score) else segment.score}
            for segment in self
        ]
        size = {"height": self.height, "width": self.width}
        return {"image": self.image_name, **size, "task": self.listed_task, "segments": segments}

    def to_json(self) -> str:
        """Return `to_dict` as JSON."""
        return json.dumps(self.to_dict())

    def to_supervision(self) -> Any:
        """Return the segments as `supervision.Detections`, with masks; a semantic map gives no confidence."""
        try:
            import supervision
        except ImportError as error:
            raise ImportError("supervision is not installed: pip install supervision") from error
        segments = list(self)
        scores = np.array([segment.score for segment in segments], np.float32)
        return supervision.Detections(
            xyxy=np.array([segment.box for segment in segments], np.float32).reshape(-1, 4),
            mask=self.masks(),
            confidence=None if np.isnan(scores).any() else scores,
            class_id=np.array([segment.category_id for segment in segments], int),
            data={"class_name": np.array([segment.name for segment in segments], str)},
        )

    def __repr__(self) -> str:
        counts = Counter(segment.name for segment in self)
        names = [f"{count} {name}" if count > 1 else name for name, count in counts.most_common(8)]
        content = ", ".join([*names, *(["..."] if len(counts) > 8 else [])]) or "nothing"
        return f"<Result of {self.image_name}, {self.width}x{self.height}, {self.listed_task}: {content}>"

    def _repr_png_(self) -> bytes | None:
        """Return the drawing as a notebook displays it, None if there is nothing to draw."""
        if self.image is None or self.listed_task is None:
            return None
        buffer = io.BytesIO()
        Image.fromarray(self.draw()).save(buffer, "PNG")
        return buffer.getvalue()
