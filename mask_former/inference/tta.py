"""Test-time augmentation of semantic results: the mean over scaled and flipped copies of an image."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import DatasetMapperTTA
from fvcore.transforms import HFlipTransform
from torch import Tensor, nn

from mask_former.formats import read_picture
from mask_former.inference.postprocess import labels_of_scores
from mask_former.inference.ruled_model import RuledModel, unwrapped, with_rules

Mapper = Callable[[dict[str, Any]], list[dict[str, Any]]]


class SemanticSegmentorWithTTA(nn.Module):
    """A model that gives `sem_seg`, run on copies of each image in several sizes and flipped.

    It takes what the model takes in evaluation and returns the mean of the copies' `sem_seg`: scores of a
    MaskFormer, logits of a per-pixel model. There are no other results.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        tta_mapper: Mapper | None = None,
        batch_size: int = 1,
        semantic_form: str = "scores",
    ) -> None:
        """Wrap `model`, which is not changed.

        Args:
            cfg: INPUT.FORMAT and, for the default mapper, TEST.AUG.
            model: MaskFormer or Detectron2's SemanticSegmentor, also inside DistributedDataParallel.
            tta_mapper: from one image to its copies, as Detectron2's `DatasetMapperTTA` (the default).
            batch_size: copies in one batch.
            semantic_form: of the result, "scores" or "labels", see `ResultRules`.
        """
        super().__init__()
        model = unwrapped(model)
        if isinstance(model, RuledModel) and "semantic" not in model.rules.tasks:
            raise ValueError(
                "Test-time augmentation averages semantic results, which are off: set "
                "MODEL.MASK_FORMER.TEST.SEMANTIC_ON True or TEST.AUG.ENABLED False."
            )
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, but must be at least 1.")
        self.model = with_rules(model, tasks=("semantic",), semantic_form="scores")
        self.training = model.training
        self.input_format: str = cfg.INPUT.FORMAT
        self.tta_mapper: Mapper = DatasetMapperTTA(cfg) if tta_mapper is None else tta_mapper
        self.batch_size = batch_size
        self.semantic_form = semantic_form

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        """Return `{"sem_seg": ...}` for each image.

        Args:
            batched_inputs: dicts that say where the original image is: `original` (C, H, W), else
                `file_name`, else `image` as the loader resized it. `height` and `width` give the size of the
                result; by default that of the original.

        Returns:
            `sem_seg` is (K, height, width) float32 or (height, width) int64, by `semantic_form`.
        """
        scores = [self._mean_scores(entry) for entry in batched_inputs]
        as_labels = self.semantic_form == "labels"
        return [{"sem_seg": labels_of_scores(score) if as_labels else score} for score in scores]

    def _mean_scores(self, entry: dict[str, Any]) -> Tensor:
        copies = self.tta_mapper(self._original(entry))
        total: Tensor | None = None
        for start in range(0, len(copies), self.batch_size):
            total = self._add_scores(total, copies[start : start + self.batch_size])
        if total is None:
            raise ValueError("No copy of the image was made: name at least one size in TEST.AUG.MIN_SIZES.")
        return total.div_(len(copies))

    def _add_scores(self, total: Tensor | None, copies: list[dict[str, Any]]) -> Tensor | None:
        """Return `total` (K, H, W) plus the scores of these copies, flipped back."""
        results = self.model([{key: item[key] for key in item if key != "transforms"} for item in copies])
        for item, result in zip(copies, results, strict=True):
            score = result.pop("sem_seg").float()
            if _is_flipped(item):
                score = score.flip(dims=[2])
            total = score if total is None else total.add_(score)
        return total

    def _original(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Return the input of the mapper: the image before any resizing, and the size of the result."""
        if "original" in entry:
            image = entry["original"]
        elif "file_name" in entry:
            array = read_picture(entry["file_name"], self.input_format)
            image = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))
        elif "image" in entry:
            image = entry["image"]
        else:
            raise KeyError(
                f"An image for test-time augmentation has only {sorted(entry)}: give 'file_name', "
                "'original' or 'image'."
            )
        height, width = image.shape[-2:]
        # Nothing else: the mapper makes a deep copy of its input, labels included, for each of its copies.
        return {
            **{key: entry[key] for key in ("file_name", "image_id") if key in entry},
            "image": image,
            "height": entry.get("height", height),
            "width": entry.get("width", width),
        }


def _is_flipped(item: dict[str, Any]) -> bool:
    return sum(isinstance(step, HFlipTransform) for step in item["transforms"].transforms) % 2 == 1
