"""What an exported file says of itself: classes, rules, sizes, licence, versions."""

import importlib.metadata
import json
from typing import Any

from mask_former.inference.rules import TASKS
from mask_former.modeling.per_pixel import PerPixelModel
from mask_former.prediction.predictor import Predictor

# Name of the JSON text in ONNX metadata, in OpenVINO's rt_info and among the files of a .pt2 program.
KEY = "mask_former"
# Raised where readers of earlier versions would misunderstand.
FORMAT = 1
OPSET = 18


def describe_export(
    predictor: Predictor, *, semantic: bool = False, size: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Return the metadata of an exported model, which `mask_former_runner` reads.

    Args:
        predictor: the model with its classes and rules.
        semantic: the graph gives label maps instead of logits.
        size: the only height and width that the graph takes; None: any.
    """
    classes, rules, model_input = predictor.classes, predictor.rules, predictor.cfg.INPUT
    only_semantic = semantic or isinstance(predictor.model, PerPixelModel)
    return {
        "format": FORMAT,
        "classes": {
            "names": list(classes.names),
            "colors": [list(color) for color in classes.colors],
            "is_thing": [int(is_thing) for is_thing in classes.is_thing],
            "dataset_ids": list(classes.dataset_ids),
            "void_label": classes.void_label,
        },
        "rules": {
            "tasks": ["semantic"] if semantic else list(rules.tasks),
            "thing_ids": None if rules.thing_ids is None else sorted(rules.thing_ids),
            "resize_logits": rules.resize_logits,
            "mask_threshold": rules.mask_threshold,
            "object_mask_threshold": rules.object_mask_threshold,
            "instance_score_threshold": rules.instance_score_threshold,
            "overlap_threshold": rules.overlap_threshold,
            "top_k": rules.top_k,
        },
        "possible_tasks": ["semantic"] if only_semantic else list(TASKS),
        "channels": model_input.FORMAT,
        "sizes": {
            "shortest_edge": model_input.MIN_SIZE_TEST,
            "longest_edge": model_input.MAX_SIZE_TEST,
            "divisor": _divisor(predictor.model),
            "fixed": None if size is None else list(size),
        },
        "license": predictor.metadata.get("license"),
        "versions": {name: importlib.metadata.version(name) for name in ("mask-former", "torch", "onnx")}
        | {"opset": OPSET},
    }


def _divisor(model: Any) -> int:
    """Return the number of pixels of which the area that the grid of logits covers has a multiple."""
    divisor = max(1, model.size_divisibility)
    if isinstance(model, PerPixelModel):
        # They enlarge to whole cells of the finest map.
        head: Any = model.sem_seg_head
        return max(divisor, min(shape.stride for shape in head.input_shape.values()))
    return divisor


def as_text(metadata: dict[str, Any]) -> str:
    """Return metadata as they are written into files."""
    return json.dumps(metadata, ensure_ascii=False)
