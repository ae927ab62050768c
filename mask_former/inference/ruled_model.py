"""The interface of models whose results follow `ResultRules`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from detectron2.structures import ImageList
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mask_former.inference.logits import PixelLogits, QueryLogits
from mask_former.inference.resizing import Size, Sizes
from mask_former.inference.rules import ResultRules

# Pixels that an image must have on each side: one cell of the mask grid.
MIN_IMAGE_SIDE = 4

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
