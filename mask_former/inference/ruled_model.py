"""Models whose results follow `ResultRules`: their output for one image, and their common interface."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from detectron2.structures import ImageList
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from mask_former.inference.postprocess import (
    form_results,
    keep_classes,
    labels_of_scores,
    semantic_scores,
)
from mask_former.inference.resizing import Size, Sizes
from mask_former.inference.rules import ResultRules

# Pixels that an image must have on each side: one cell of the mask grid.
MIN_IMAGE_SIDE = 4


class QueryLogits(NamedTuple):
    """The prediction of a mask classification model for one image.

    class_logits: (Q, K+1), index K is "no object".
    mask_logits: (Q, h, w), on the mask grid of the padded image.
    sizes: what the grid covers, and the size of the results.
    """

    class_logits: Tensor
    mask_logits: Tensor
    sizes: Sizes

    def results(self, rules: ResultRules) -> dict[str, Any]:
        """Return `sem_seg`, `panoptic_seg` and `instances`, as far as the rules ask for them."""
        return form_results(*self.strongest(rules.max_queries), rules)

    def scores(self, rules: ResultRules) -> Tensor:
        """Return the semantic scores (K, H, W)."""
        strongest = self.strongest(rules.max_queries)
        return semantic_scores(*strongest, resize_logits=rules.resize_logits)

    def strongest(self, count: int | None) -> "QueryLogits":
        """Return the logits of the `count` queries with the highest class probability, in their order."""
        if count is None or count >= len(self.class_logits):
            return self
        highest = self.class_logits.float().softmax(-1)[:, :-1].amax(1)
        chosen = highest.topk(count).indices.sort().values
        return QueryLogits(self.class_logits[chosen], self.mask_logits[chosen], self.sizes)


class PixelLogits(NamedTuple):
    """The prediction of a per-pixel model for one image.

    class_logits: (K, h, w), on a grid over the padded image.
    sizes: what the grid covers, and the size of the results.
    """

    class_logits: Tensor
    sizes: Sizes

    def results(self, rules: ResultRules) -> dict[str, Any]:
        """Return `sem_seg`: class logits (K, H, W), which Detectron2 calls scores, or labels (H, W)."""
        logits = self._resized()
        if rules.semantic_form == "scores":
            return {"sem_seg": logits}
        return {"sem_seg": keep_classes(labels_of_scores(logits), len(logits), rules.kept_classes)}

    def scores(self, rules: ResultRules) -> Tensor:
        """Return the probabilities (K, H, W) of the classes."""
        return self._resized().float().softmax(0)

    @torch.no_grad()
    def _resized(self) -> Tensor:
        """Return the class logits (K, H, W) at the output size."""
        logits, (padded, image, output) = self.class_logits[None], self.sizes
        # Per-pixel heads enlarge to whole cells; what exceeds the image is cropped below.
        if logits.shape[-2] < padded[0] or logits.shape[-1] < padded[1]:
            logits = F.interpolate(logits, size=padded, mode="bilinear", align_corners=False)
        logits = logits[..., : image[0], : image[1]]
        return F.interpolate(logits, size=output, mode="bilinear", align_corners=False)[0]


Logits = QueryLogits | PixelLogits


class RuledModel(nn.Module):
    """A model whose results follow rules: `model(batched_inputs, rules=...)` in evaluation mode.

    rules: used where no others are given.
    size_divisibility: batches are padded to a multiple of it; below 2 to their largest image.
    """

    rules: ResultRules
    size_divisibility: int
    pixel_mean: Tensor
    pixel_std: Tensor

    def predict(self, images: Tensor) -> Any:
        """Return the output of the network for a batch (B, C, H, W) from `prepare_images`."""
        raise NotImplementedError

    def split_logits(self, predictions: Any, sizes: Sequence[Sizes]) -> list[Logits]:
        """Return the output of `predict` as logits of each image."""
        raise NotImplementedError

    def check_rules(self, rules: ResultRules) -> None:
        """Raise ValueError where the model cannot follow the rules."""
        raise NotImplementedError

    def step_shares(
        self, parts: Sequence[list[dict[str, Any]]]
    ) -> list[tuple[dict[str, Any], float | Tensor]]:
        """Return, for each part of a training batch, arguments of `forward` and a factor on its losses.

        With them, the losses of the parts add up to those of the whole batch.
        """
        raise NotImplementedError

    def results(
        self, batched_inputs: list[dict[str, Any]], rules: ResultRules | None = None
    ) -> list[dict[str, Any]]:
        """Return the results of each image under `rules`, by default the model's own."""
        rules = self.rules if rules is None else rules
        self.check_rules(rules)
        return [logits.results(rules) for logits in self.predict_logits(batched_inputs)]

    def predict_logits(self, batched_inputs: list[dict[str, Any]]) -> list[Logits]:
        """Return the logits of each image; see `MaskFormer.forward` for the inputs."""
        images = self.prepare_images([entry["image"] for entry in batched_inputs])
        padded_height, padded_width = images.tensor.shape[-2:]
        sizes = [
            Sizes(
                padded=(padded_height, padded_width),
                image=(height, width),
                output=(int(entry.get("height", height)), int(entry.get("width", width))),
            )
            for entry, (height, width) in zip(batched_inputs, images.image_sizes, strict=True)
        ]
        return self.split_logits(self.predict(images.tensor), sizes)

    def prepare_images(self, images: list[Tensor]) -> ImageList:
        """Return images (C, H_i, W_i) as one normalised batch, padded right and below with zeros."""
        for image in images:
            self._check_image(image)
        batch = ImageList.from_tensors([self.normalize(image) for image in images], self.size_divisibility)
        # Convolutions keep the memory format of their input, and this one is faster.
        return ImageList(batch.tensor.contiguous(memory_format=torch.channels_last), batch.image_sizes)

    def normalize(self, image: Tensor) -> Tensor:
        """Return the image (..., C, H, W) in float on the model's device, less mean, over deviation."""
        return (image.to(self.pixel_mean) - self.pixel_mean) / self.pixel_std

    def padded_size(self, height: int, width: int) -> Size:
        """Return the size that one image alone is padded to."""
        divisor = max(1, self.size_divisibility)
        return -(-height // divisor) * divisor, -(-width // divisor) * divisor

    def _check_image(self, image: Tensor) -> None:
        channels = len(self.pixel_mean)
        if image.ndim != 3 or image.shape[0] != channels:
            raise ValueError(
                f"Got an image of shape {tuple(image.shape)}, but the model takes ({channels}, height, "
                "width): convert it to the channels of INPUT.FORMAT, or change MODEL.PIXEL_MEAN and _STD."
            )
        height, width = image.shape[-2:]
        if min(height, width) < MIN_IMAGE_SIDE:
            raise ValueError(
                f"Got an image of {height}x{width} pixels (height x width), but each side needs at least "
                f"{MIN_IMAGE_SIDE} pixels: leave it out or resize it."
            )


class ModelWithRules(nn.Module):
    """A model called with rules of the caller's instead of its own; the model is not changed."""

    def __init__(self, model: RuledModel, rules: ResultRules) -> None:
        super().__init__()
        self.model = model
        self.rules = rules
        self.training = model.training

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the results of each image."""
        return self.model.results(batched_inputs, self.rules)


def with_rules(model: nn.Module, **changes: Any) -> nn.Module:
    """Return what gives a model's results under its rules with some fields changed.

    A model that is not a `RuledModel` is returned as it is: it gives what Detectron2's convention says.
    """
    model = unwrapped(model)
    return ModelWithRules(model, replace(model.rules, **changes)) if isinstance(model, RuledModel) else model


def unwrapped(model: nn.Module) -> nn.Module:
    """Return a model without DistributedDataParallel around it."""
    return model.module if isinstance(model, DistributedDataParallel) else model
