"""Detectron2's evaluators of COCO instances and of Cityscapes, adapted."""

import contextlib
import importlib
import importlib.util
import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOEvaluator,
    DatasetEvaluator,
)

from .ground_truth import Entry, annotations_of_entries, class_name, metadata_value, required_result

logger = logging.getLogger(__name__)


class InstanceEvaluator(COCOEvaluator):
    """AP of `instances` results, for boxes and masks, also on panoptic data sets.

    COCOEvaluator assumes that class indices and `thing_classes` are those of the annotation file and no
    others. In a panoptic data set the lists hold stuff as well, and things need not come first; so classes
    are renumbered here in the order of the file's categories. Results of other classes are left out.
    """

    semantic_form = "labels"  # not read

    def __init__(self, dataset_name: str, *, output_dir: str | Path, distributed: bool = True) -> None:
        """Read the annotations.

        Args:
            dataset_name: a registered data set with `json_file` in its metadata, or with "annotations",
                "height" and "width" in its entries.
            output_dir: where `coco_instances_results.json` is written.
            distributed: collect the results of all processes.
        """
        metadata = MetadataCatalog.get(dataset_name)
        path = metadata.get("json_file") or f"the entries of {dataset_name}"
        try:
            with _with_annotations(dataset_name) as name:
                # The fast implementation is compiled, and documented as not official.
                super().__init__(
                    name, ("bbox", "segm"), distributed, output_dir=str(output_dir), use_fast_impl=False
                )
            categories = sorted(self._coco_api.getCatIds())
            self._num_annotations = len(self._coco_api.dataset["annotations"])
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise ValueError(
                f"{path}: expected COCO instance annotations with 'images', 'annotations' and 'categories' "
                f"({error})."
            ) from error
        meaning = "dataset category id -> class index"
        index_of = metadata_value(metadata, "thing_dataset_id_to_contiguous_id", meaning)
        unknown = [category for category in categories if category not in index_of]
        if unknown:
            raise ValueError(
                f"{path}: category ids {unknown[:10]} are not in thing_dataset_id_to_contiguous_id of "
                f"{dataset_name}, which begins with {sorted(index_of)[:10]}; is it "
                "the annotation file of another data set?"
            )
        # The last row is for all classes above the highest thing.
        self._rank_of_class = torch.full((max(index_of.values(), default=-1) + 2,), -1)
        self._rank_of_class[[index_of[category] for category in categories]] = torch.arange(len(categories))
        self._metadata = Metadata(
            name=dataset_name,
            json_file=path,
            thing_classes=[class_name(metadata, "thing_classes", index_of[c]) for c in categories],
            thing_dataset_id_to_contiguous_id={c: rank for rank, c in enumerate(categories)},
        )
        self.reset()

    def check(self, entries: Sequence[Entry]) -> None:
        """Raise ValueError if the annotation file is not of these pictures."""
        path, image_ids = self._metadata.json_file, self._coco_api.imgs
        unknown = [entry["file_name"] for entry in entries if entry.get("image_id") not in image_ids]
        if unknown:
            raise ValueError(
                f"{path}: lists no image with the id of {len(unknown)} of the {len(entries)} pictures of "
                f"{self._metadata.name}, the first {unknown[0]}; is it the file of another split?"
            )
        if self._num_annotations == 0:
            logger.warning("%s has no annotations; AP will be undefined.", path)

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Keep the results of pictures; `inputs` are entries of the data set."""
        for entry, output in zip(inputs, outputs, strict=True):
            instances = required_result(output, "instances").to("cpu")
            rank = self._rank_of_class[instances.pred_classes.clamp(max=len(self._rank_of_class) - 1)]
            known = instances[rank >= 0]
            known.pred_classes = rank[rank >= 0]
            super().process([entry], [{"instances": known}])


@contextlib.contextmanager
def _with_annotations(dataset_name: str) -> Iterator[str]:
    """Give a name whose metadata have a "json_file": the data set, or a passing one made of its entries."""
    metadata = MetadataCatalog.get(dataset_name)
    path = metadata.get("json_file")
    if path:
        if not (Path(path).is_file() and hasattr(metadata, "thing_dataset_id_to_contiguous_id")):
            # Detectron2's COCO loader sets the map when it runs; a synthetic set writes its files then.
            DatasetCatalog.get(dataset_name)
        if not Path(path).is_file():
            raise FileNotFoundError(f"Data set {dataset_name}: the annotations {path} are missing.")
        yield dataset_name
        return
    with TemporaryDirectory() as folder:
        file = Path(folder, "annotations.json")
        file.write_text(json.dumps(annotations_of_entries(dataset_name)))
        MetadataCatalog.get(str(file)).set(json_file=str(file))
        try:
            yield str(file)
        finally:
            MetadataCatalog.pop(str(file))


class _CityscapesScripts(DatasetEvaluator):
    """Base: runs an evaluation of cityscapesscripts, with its errors as exceptions."""

    module: str

    def __init__(self, dataset_name: str, output_dir: str | None = None) -> None:
        """Take a registered data set; files are written to a temporary folder, not to `output_dir`."""
        if importlib.util.find_spec("cityscapesscripts") is None:
            raise ImportError(
                f"Evaluation on {dataset_name} needs the package cityscapesscripts: "
                "pip install cityscapesscripts"
            )
        super().__init__(dataset_name)

    def evaluate(self) -> Any:
        """Return the scores on the main process."""
        module: Any = importlib.import_module(f"cityscapesscripts.evaluation.{self.module}")
        if "in1d" not in vars(np):
            # Removed in numpy 2.4; only the name `np` of this module is replaced.
            in1d = lambda values, known, **options: np.isin(np.ravel(values), known, **options)  # noqa: E731
            module.np = SimpleNamespace(**vars(np), in1d=in1d)
        if hasattr(module, "writeDict2JSON"):
            module.writeDict2JSON = _write_json
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                results = super().evaluate()
        except SystemExit as error:
            lines = printed.getvalue().strip().splitlines() or ["no message"]
            raise RuntimeError(
                f"cityscapesscripts stopped the evaluation: {lines[-1].removeprefix('ERROR: ')} Compare the "
                "data set's gt_dir with datasets/README.md, and the pictures with those in it."
            ) from error
        logger.info("cityscapesscripts:\n%s", printed.getvalue())
        return results


class CityscapesSemantic(_CityscapesScripts, CityscapesSemSegEvaluator):
    """IoU and iIoU of classes and categories, of `sem_seg` scores (K, H, W)."""

    module = "evalPixelLevelSemanticLabeling"

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Write the labels of images; `inputs` are entries of the data set."""
        num_classes = len(self._metadata.stuff_classes)
        for entry, output in zip(inputs, outputs, strict=True):
            shape = tuple(required_result(output, "sem_seg").shape)
            if len(shape) != 3 or shape[0] != num_classes:
                raise ValueError(
                    f"{entry['file_name']}: expected 'sem_seg' to be scores ({num_classes}, H, W), found "
                    f"{shape}; Cityscapes has {num_classes} classes, which MODEL.SEM_SEG_HEAD.NUM_CLASSES "
                    "must be."
                )
        super().process(inputs, outputs)


class CityscapesInstance(_CityscapesScripts, CityscapesInstanceEvaluator):
    """AP and AP50 of `instances`."""

    module = "evalInstanceLevelSemanticLabeling"

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Write the masks of images; `inputs` are entries of the data set."""
        num_classes = len(self._metadata.thing_classes)
        for output in outputs:
            highest = max(required_result(output, "instances").pred_classes.tolist(), default=0)
            if highest >= num_classes:
                raise ValueError(
                    f"The model predicted class {highest}; Cityscapes has {num_classes} classes of things, "
                    "which MODEL.SEM_SEG_HEAD.NUM_CLASSES must be."
                )
        super().process(inputs, outputs)


def _write_json(content: Any, file_name: str) -> None:
    """Write a JSON file, but not matches.json: it is for debugging, and numpy's integers in it fail."""
    if file_name != "matches.json":
        Path(file_name).write_text(json.dumps(content))
