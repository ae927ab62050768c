"""Average precision of a model's instances, by Detectron2's COCOEvaluator."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.evaluation import COCOEvaluator

from .ground_truth import class_name, metadata_value


class InstanceEvaluator(COCOEvaluator):
    """AP of `instances` results, for boxes and masks, also on panoptic data sets.

    COCOEvaluator takes for granted that class indices and `thing_classes` are those of the annotation
    file and no others. In a panoptic data set the lists hold stuff as well, and things need not come
    first; so classes are numbered anew here, in the order of the file's categories. Results of classes
    that the file does not know are left out.
    """

    semantic_form = "labels"  # not read

    def __init__(self, dataset_name: str, *, output_dir: str | Path, distributed: bool = True) -> None:
        """Read the annotations.

        Args:
            dataset_name: a registered data set with `json_file` in its metadata.
            output_dir: where `coco_instances_results.json` is written.
            distributed: collect the results of all processes.
        """
        metadata = MetadataCatalog.get(dataset_name)
        path = metadata_value(metadata, "json_file", "COCO instance annotations")
        if not (os.path.isfile(path) and hasattr(metadata, "thing_dataset_id_to_contiguous_id")):
            # Detectron2's COCO loader sets the map when it runs; a synthetic set writes its files then.
            DatasetCatalog.get(dataset_name)
        # The fast implementation is compiled, and says of itself that it is not official.
        super().__init__(
            dataset_name, ("bbox", "segm"), distributed, output_dir=str(output_dir), use_fast_impl=False
        )
        meaning = "dataset category id -> class index"
        index_of = metadata_value(metadata, "thing_dataset_id_to_contiguous_id", meaning)
        categories = sorted(self._coco_api.getCatIds())
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

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Keep the results of pictures; `inputs` are entries of the data set."""
        for entry, result in zip(inputs, outputs, strict=True):
            if "instances" not in result:
                raise KeyError(
                    "The model gave no 'instances' to evaluate; set MODEL.MASK_FORMER.TEST.INSTANCE_ON True."
                )
            instances = result["instances"].to("cpu")
            rank = self._rank_of_class[instances.pred_classes.clamp(max=len(self._rank_of_class) - 1)]
            known = instances[rank >= 0]
            known.pred_classes = rank[rank >= 0]
            super().process([entry], [{"instances": known}])
