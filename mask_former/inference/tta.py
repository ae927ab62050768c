"""Test-time augmentation of semantic results: scaled and flipped copies of the original picture, averaged."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import read_image
from detectron2.modeling import DatasetMapperTTA
from fvcore.transforms import HFlipTransform
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Mapper = Callable[[dict[str, Any]], list[dict[str, Any]]]


class SemanticSegmentorWithTTA(nn.Module):
    """A model that gives `sem_seg`, run on copies of each picture in several sizes and flipped.

    It takes what the model takes in evaluation and gives the mean of the copies' `sem_seg`, (K, H, W)
    float32: scores of a MaskFormer, logits of a per-pixel baseline. Other results are left out.
    """

    def __init__(
        self, cfg: CfgNode, model: nn.Module, tta_mapper: Mapper | None = None, batch_size: int = 1
    ) -> None:
        """Wrap `model`.

        Args:
            cfg: INPUT.FORMAT and, for the default mapper, TEST.AUG.
            model: MaskFormer or Detectron2's SemanticSegmentor, also inside DistributedDataParallel.
            tta_mapper: from one picture to its copies, as Detectron2's `DatasetMapperTTA` (the default).
            batch_size: copies that the model sees at once.
        """
        super().__init__()
        if isinstance(model, DistributedDataParallel):
            model = model.module
        if not getattr(model, "semantic_on", True):
            raise ValueError(
                "Test-time augmentation averages semantic results, which are off: set "
                "MODEL.MASK_FORMER.TEST.SEMANTIC_ON True or TEST.AUG.ENABLED False."
            )
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, but must be at least 1.")
        self.model = model
        self.input_format: str = cfg.INPUT.FORMAT
        self.tta_mapper: Mapper = DatasetMapperTTA(cfg) if tta_mapper is None else tta_mapper
        self.batch_size = batch_size

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        """Return `{"sem_seg": ...}` for each picture.

        Args:
            batched_inputs: dicts that say where the original picture is: `original` (3, H, W), else
                `file_name`, else `image` as the loader resized it. `height` and `width` give the size of the
                result; by default that of the original.

        Returns:
            `sem_seg` is (K, height, width) float32, or (height, width) int64 if the model gives labels.
        """
        wants_labels = getattr(self.model, "label_maps", False)
        with torch.no_grad(), _semantic_scores_only(self.model):
            scores = [self._mean_scores(picture) for picture in batched_inputs]
        return [{"sem_seg": score.argmax(0) if wants_labels else score} for score in scores]

    def _mean_scores(self, picture: dict[str, Any]) -> Tensor:
        copies = self.tta_mapper(self._original(picture))
        total: Tensor | None = None
        for start in range(0, len(copies), self.batch_size):
            total = self._add_scores(total, copies[start : start + self.batch_size])
        if total is None:
            raise ValueError("No copy of the picture was made: name at least one size in TEST.AUG.MIN_SIZES.")
        return total.div_(len(copies))

    def _add_scores(self, total: Tensor | None, copies: list[dict[str, Any]]) -> Tensor | None:
        """Return `total` (K, H, W) plus the scores of these copies, flipped back."""
        # The model need not see how a copy was made.
        results = self.model([{key: item[key] for key in item if key != "transforms"} for item in copies])
        for item, result in zip(copies, results, strict=True):
            score = result.pop("sem_seg").float()
            if _is_flipped(item):
                score = score.flip(dims=[2])
            total = score if total is None else total.add_(score)
        return total

    def _original(self, picture: dict[str, Any]) -> dict[str, Any]:
        """Return what the mapper needs: the picture before any resizing, and the size of the result."""
        if "original" in picture:
            image = picture["original"]
        elif "file_name" in picture:
            array = read_image(picture["file_name"], self.input_format)
            image = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))
        elif "image" in picture:
            image = picture["image"]
        else:
            raise KeyError(
                f"A picture for test-time augmentation has only {sorted(picture)}: give 'file_name', "
                "'original' or 'image'."
            )
        height, width = image.shape[-2:]
        # Without the rest: the mapper makes a deep copy, labels included, for each of its copies.
        return {
            **{key: picture[key] for key in ("file_name", "image_id") if key in picture},
            "image": image,
            "height": picture.get("height", height),
            "width": picture.get("width", width),
        }


def _is_flipped(item: dict[str, Any]) -> bool:
    return sum(isinstance(step, HFlipTransform) for step in item["transforms"].transforms) % 2 == 1


@contextmanager
def _semantic_scores_only(model: nn.Module) -> Iterator[None]:
    """Have a MaskFormer compute semantic scores and nothing else meanwhile."""
    wanted = {"panoptic_on": False, "instance_on": False, "label_maps": False}
    before = {name: getattr(model, name) for name in wanted if hasattr(model, name)}
    try:
        for name in before:
            setattr(model, name, wanted[name])
        yield
    finally:
        for name, value in before.items():
            setattr(model, name, value)
