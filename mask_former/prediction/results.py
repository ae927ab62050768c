"""The result of one image, as users see it: values that can be drawn and saved."""

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mask_former.prediction.classes import Color
from mask_former.prediction.drawing import draw_result
from mask_former.prediction.values import PredictedValues
from mask_former.prediction.writing import KINDS, ResultWriter


class Result(PredictedValues):
    """The predictions for one image, see `PredictedValues` for the fields."""

    def draw(
        self,
        image: NDArray[np.uint8] | None = None,
        *,
        task: str | None = None,
        score_threshold: float = 0.5,
        colors: Mapping[int, Color] | None = None,
        scale: float = 1.0,
        text: bool = True,
    ) -> NDArray[np.uint8]:
        """Return `image` (default: the one predicted on) with the result over it, see `draw_result`."""
        return draw_result(
            self, image, task=task, score_threshold=score_threshold, colors=colors, scale=scale, text=text
        )

    def save(
        self, folder: str | Path, kinds: Collection[str] = KINDS, image: NDArray[np.uint8] | None = None
    ) -> None:
        """Write files of these kinds into `folder`, and keep what it contains; see `ResultWriter`."""
        with ResultWriter(folder, kinds, self.classes) as writer:
            writer.write(self, image)
