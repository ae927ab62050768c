"""Panoptic quality of a model on a data set, counted picture by picture while it runs."""

import json
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from numpy.typing import NDArray
from PIL import Image

from mask_former.formats import id_to_rgb

from .ground_truth import entries_by_file, entry_of, panoptic_classes, panoptic_target
from .panoptic_quality import count_picture, no_counts, panoptic_scores, segments_from_info, sum_counts
from .tables import class_table, panoptic_table

logger = logging.getLogger(__name__)


class PanopticEvaluator(DatasetEvaluator):
    """PQ, SQ and RQ of `panoptic_seg` results: over all classes, things, stuff, and of each class.

    Takes from a model, under "panoptic_seg", a map (H, W) of integer segment ids with 0 for void, and
    `segments_info`, a list of dicts with "id" and "category_id" (the class index). Gives, on the main
    process, `{"panoptic_seg": scores}` with the keys of Detectron2's COCOPanopticEvaluator and, for each
    class, `PQ-<name>`, `SQ-<name>`, `RQ-<name>`; None on the others.
    """

    semantic_form = "labels"  # not read

    def __init__(
        self,
        dataset_name: str,
        *,
        output_dir: str | Path | None = None,
        save_predictions: bool = False,
        distributed: bool = True,
    ) -> None:
        """Read the data set's classes and list of pictures.

        Args:
            dataset_name: a registered data set with panoptic ground truth.
            output_dir: where predictions are saved.
            save_predictions: write `predictions.json` and `predictions/*.png` in COCO's panoptic form,
                with the data set's own category ids; each PNG is written as soon as it is there.
            distributed: add up the counts of all processes.
        """
        if save_predictions and output_dir is None:
            raise ValueError("save_predictions needs an output_dir to save them in.")
        self._dataset_name = dataset_name
        self._classes = panoptic_classes(dataset_name)
        self._pictures = entries_by_file(dataset_name)
        self._folder = Path(output_dir) / "predictions" if save_predictions and output_dir else None
        if self._folder and len({Path(name).stem for name in self._pictures}) < len(self._pictures):
            raise ValueError(
                f"{dataset_name}: predictions are saved under the names of the pictures, but some pictures "
                "in different folders have the same name; turn save_predictions off."
            )
        self._distributed = distributed
        self.reset()

    def reset(self) -> None:
        """Forget all pictures."""
        self._counts = no_counts(len(self._classes.names))
        self._num_pictures = 0
        self._annotations: list[dict[str, Any]] = []

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Count pictures; `inputs` are entries of the data set, `outputs` what the model gave for them."""
        num_classes = len(self._classes.names)
        for entry, result in zip(inputs, outputs, strict=True):
            if "panoptic_seg" not in result:
                raise KeyError(
                    "The model gave no 'panoptic_seg' to evaluate; set "
                    "MODEL.MASK_FORMER.TEST.PANOPTIC_ON True, or evaluate a data set without panoptic truth."
                )
            file_name = entry["file_name"]
            panoptic_map = result["panoptic_seg"][0].cpu().numpy()
            infos = result["panoptic_seg"][1]
            picture = entry_of(self._pictures, file_name, self._dataset_name)
            target_map, target = panoptic_target(picture, num_classes)
            class_of = {index: index for index in range(num_classes)}
            predicted = segments_from_info(infos, class_of, f"{file_name}: prediction")
            counts = count_picture(target_map, target, panoptic_map, predicted, num_classes, file_name)
            self._counts = sum_counts([self._counts, counts])
            self._num_pictures += 1
            if self._folder:
                self._save(picture, panoptic_map, infos)

    def _save(
        self,
        picture: Mapping[str, Any],
        panoptic_map: NDArray[np.integer],
        infos: Sequence[Mapping[str, Any]],
    ) -> None:
        """Write one picture's PNG and keep its entry for the JSON file."""
        assert self._folder is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        name = Path(picture["file_name"]).stem + ".png"
        Image.fromarray(id_to_rgb(panoptic_map)).save(self._folder / name)
        segments = [
            {
                "id": int(info["id"]),
                "category_id": self._classes.dataset_ids[info["category_id"]],
                "isthing": bool(self._classes.is_thing[info["category_id"]]),
                "area": int(np.count_nonzero(panoptic_map == info["id"])),
            }
            | ({"score": float(info["score"])} if "score" in info else {})
            for info in infos
        ]
        image_id = picture.get("image_id", Path(name).stem)
        self._annotations.append({"image_id": image_id, "file_name": name, "segments_info": segments})

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Return the scores of all pictures so far, on the main process; processes may have had none."""
        parts = [(self._counts, self._num_pictures, self._annotations)]
        if self._distributed:
            comm.synchronize()
            parts = comm.gather(parts[0])
            if not comm.is_main_process():
                return None
        num_pictures = sum(part[1] for part in parts)
        if num_pictures != len(self._pictures):
            logger.warning(
                "%s: scored %d pictures of %d; give the test loader the whole data set for final figures.",
                self._dataset_name, num_pictures, len(self._pictures),
            )  # fmt: skip
        if self._folder:
            self._write_json([annotation for part in parts for annotation in part[2]])
        names = self._classes.names
        scores = panoptic_scores(sum_counts([part[0] for part in parts]), names, self._classes.is_thing)
        logger.info("%s, panoptic quality by class:\n%s", self._dataset_name,
                    class_table(scores, ("PQ", "SQ", "RQ"), names))  # fmt: skip
        logger.info("%s, panoptic quality:\n%s", self._dataset_name, panoptic_table(scores))
        return OrderedDict(panoptic_seg=scores)

    def _write_json(self, annotations: list[dict[str, Any]]) -> None:
        """Write predictions.json beside the folder of the same name."""
        assert self._folder is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        columns = zip(self._classes.dataset_ids, self._classes.names, self._classes.is_thing, strict=True)
        categories = [{"id": i, "name": name, "isthing": int(thing)} for i, name, thing in columns]
        path = self._folder.with_suffix(".json")
        path.write_text(json.dumps({"annotations": annotations, "categories": categories}))
        logger.info("Wrote %d panoptic predictions to %s.", len(annotations), path)
