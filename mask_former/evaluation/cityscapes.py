"""Detectron2's Cityscapes evaluators, which run cityscapesscripts, with its errors as exceptions."""

import contextlib
import importlib
import importlib.util
import io
import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from detectron2.evaluation import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator
from numpy.typing import NDArray

logger = logging.getLogger(__name__)


class CityscapesSemantic(CityscapesSemSegEvaluator):
    """IoU and iIoU of classes and categories, of `sem_seg` scores (K, H, W)."""

    def __init__(self, dataset_name: str, output_dir: str | None = None) -> None:
        """Take a registered data set; files are written to a temporary folder, not to `output_dir`."""
        require_cityscapesscripts(dataset_name)
        super().__init__(dataset_name)

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Write the labels of images; `inputs` are entries of the data set."""
        num_classes = len(self._metadata.stuff_classes)
        for entry, result in zip(inputs, outputs, strict=True):
            if "sem_seg" not in result:
                raise KeyError(
                    "The model gave no 'sem_seg' to evaluate; set MODEL.MASK_FORMER.TEST.SEMANTIC_ON True."
                )
            shape = tuple(result["sem_seg"].shape)
            if len(shape) != 3 or shape[0] != num_classes:
                raise ValueError(
                    f"{entry['file_name']}: expected 'sem_seg' to be scores ({num_classes}, H, W), found "
                    f"{shape}; Cityscapes has {num_classes} classes, which MODEL.SEM_SEG_HEAD.NUM_CLASSES "
                    "must be."
                )
        super().process(inputs, outputs)

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Return `{"sem_seg": scores}` on the main process."""
        return _run("evalPixelLevelSemanticLabeling", super().evaluate)


class CityscapesInstance(CityscapesInstanceEvaluator):
    """AP and AP50 of `instances`."""

    def __init__(self, dataset_name: str, output_dir: str | None = None) -> None:
        """Take a registered data set; files are written to a temporary folder, not to `output_dir`."""
        require_cityscapesscripts(dataset_name)
        super().__init__(dataset_name)

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Write the masks of images; `inputs` are entries of the data set."""
        num_classes = len(self._metadata.thing_classes)
        for result in outputs:
            if "instances" not in result:
                raise KeyError(
                    "The model gave no 'instances' to evaluate; set MODEL.MASK_FORMER.TEST.INSTANCE_ON True."
                )
            highest = int(result["instances"].pred_classes.max()) if len(result["instances"]) else 0
            if highest >= num_classes:
                raise ValueError(
                    f"The model predicted class {highest}; Cityscapes has {num_classes} classes of things, "
                    "which MODEL.SEM_SEG_HEAD.NUM_CLASSES must be."
                )
        super().process(inputs, outputs)

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Return `{"segm": scores}` on the main process."""
        return _run("evalInstanceLevelSemanticLabeling", super().evaluate)


def require_cityscapesscripts(dataset_name: str) -> None:
    """Raise ImportError where the package is absent."""
    if importlib.util.find_spec("cityscapesscripts") is None:
        raise ImportError(
            f"Evaluation on {dataset_name} needs the package cityscapesscripts: pip install cityscapesscripts"
        )


def _run(module_name: str, evaluate: Callable[[], Any]) -> Any:
    """Run an evaluation of cityscapesscripts, which prints its errors and then calls `sys.exit`."""
    module: Any = importlib.import_module(f"cityscapesscripts.evaluation.{module_name}")
    if "in1d" not in vars(np):
        # Removed in numpy 2.4; only the name `np` of this module is replaced.
        module.np = SimpleNamespace(**vars(np), in1d=_in1d)
    # It writes matches.json, for debugging, into the working directory, and fails there on numpy's integers.
    if module_name == "evalInstanceLevelSemanticLabeling":
        module.writeDict2JSON = _write_json
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            results = evaluate()
    except SystemExit as error:
        lines = printed.getvalue().strip().splitlines() or ["no message"]
        raise RuntimeError(
            f"cityscapesscripts stopped the evaluation: {lines[-1].removeprefix('ERROR: ')} Compare the data "
            "set's gt_dir with datasets/README.md, and the pictures of the data set with those in it."
        ) from error
    logger.info("cityscapesscripts:\n%s", printed.getvalue())
    return results


def _write_json(content: Any, file_name: str) -> None:
    if file_name != "matches.json":
        Path(file_name).write_text(json.dumps(content))


def _in1d(values: NDArray[Any], test_values: Sequence[int], **options: Any) -> NDArray[np.bool_]:
    return np.isin(np.ravel(values), test_values, **options)
