"""What demo/demo.py and `make demo` do: pictures, videos and cameras in; files, windows and a page out."""

from mask_former.demonstration.program import (
    Outcome,
    PredictorRecipe,
    needed_tasks,
    predict_pictures,
    timed,
)

__all__ = ["Outcome", "PredictorRecipe", "needed_tasks", "predict_pictures", "timed"]
