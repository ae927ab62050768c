"""MaskFormer: pictures in; losses, or semantic, panoptic and instance results out.

Normalise and pad the batch, backbone, head, then the criterion (training) or `inference.py` (evaluation).
"""

from collections.abc import Collection
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone, build_sem_seg_head
from detectron2.structures import ImageList
from torch import Tensor, nn

from mask_former import inference
from mask_former.inference.resizing import Sizes
from mask_former.modeling.criterion import Normalizers, SetCriterion
from mask_former.modeling.matcher import build_matcher
from mask_former.modeling.structures import Prediction, Target
from mask_former.modeling.targets import padded_target

# Pixels that a picture must have on each side: one cell of the mask grid.
MIN_IMAGE_SIDE = 4
THING_MAP = "thing_dataset_id_to_contiguous_id"


@META_ARCH_REGISTRY.register()
class MaskFormer(nn.Module):
    """Mask classification model: a fixed number of queries, each a class and a mask (arXiv 2107.06278)."""

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        sem_seg_head: nn.Module,
        criterion: SetCriterion,
        num_queries: int,
        pixel_mean: list[float],
        pixel_std: list[float],
        size_divisibility: int,
        void_in_loss: str = "background",
        semantic_on: bool = True,
        panoptic_on: bool = False,
        instance_on: bool = False,
        thing_ids: Collection[int] | None = None,
        object_mask_threshold: float = 0.0,
        overlap_threshold: float = 0.0,
        sem_seg_postprocess_before_inference: bool = False,
        detections_per_image: int = 100,
        label_maps: bool = False,
    ) -> None:
        """Put the parts together.

        Args:
            backbone: pictures to maps by name; `output_shape()` as Detectron2 has it.
            sem_seg_head: maps to a list of `Prediction`; `num_classes`.
            criterion: predictions and targets to losses.
            num_queries: Q of the head.
            pixel_mean: subtracted from the picture, one a channel.
            pixel_std: divided by afterwards.
            size_divisibility: the batch is padded to a multiple of this; below 2 to its largest picture.
            void_in_loss: "background" or "ignore", see MODEL.MASK_FORMER.VOID_IN_LOSS.
            semantic_on: compute `sem_seg`.
            panoptic_on: compute `panoptic_seg`; needs `thing_ids`.
            instance_on: compute `instances`.
            thing_ids: classes of 0..K-1 that are things; None where nobody said, then panoptic results are
                impossible and every class may be an instance.
            object_mask_threshold: see `inference.panoptic`.
            overlap_threshold: see `inference.panoptic`.
            sem_seg_postprocess_before_inference: bring mask logits, not scores, to the size of `sem_seg`.
            detections_per_image: most instances of a picture.
            label_maps: give `sem_seg` as (H, W) int64 labels, in little memory, instead of (K, H, W) scores.
        """
        super().__init__()
        _check_choices(void_in_loss, semantic_on, panoptic_on, instance_on)
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.criterion = criterion
        self.num_queries = num_queries
        self.size_divisibility = size_divisibility
        self.void_is_ignored = void_in_loss == "ignore"
        self.semantic_on = semantic_on
        self.panoptic_on = panoptic_on
        self.instance_on = instance_on
        self.thing_ids = None if thing_ids is None else frozenset(int(thing) for thing in thing_ids)
        self.object_mask_threshold = object_mask_threshold
        self.overlap_threshold = overlap_threshold
        self.sem_seg_postprocess_before_inference = sem_seg_postprocess_before_inference
        self.detections_per_image = detections_per_image
        self.label_maps = label_maps
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        # torch 2.4 has no public form of this hook.
        self._register_load_state_dict_pre_hook(_drop_loss_weights)
        if panoptic_on or instance_on:
            self._check_thing_ids()

    @classmethod
    def from_config(cls, cfg: CfgNode, thing_ids: Collection[int] | None = None) -> dict[str, Any]:
        """Return the constructor's arguments; `thing_ids` given by the caller win over the data set's."""
        backbone = build_backbone(cfg)
        sem_seg_head = build_sem_seg_head(cfg, backbone.output_shape())
        settings = cfg.MODEL.MASK_FORMER
        if thing_ids is None:
            thing_ids = _thing_ids_of_dataset(cfg)
        size_divisibility = settings.SIZE_DIVISIBILITY
        return {
            "backbone": backbone,
            "sem_seg_head": sem_seg_head,
            "criterion": SetCriterion(
                num_classes=sem_seg_head.num_classes,
                matcher=build_matcher(cfg),
                mask_weight=settings.MASK_WEIGHT,
                dice_weight=settings.DICE_WEIGHT,
                no_object_weight=settings.NO_OBJECT_WEIGHT,
                num_points=settings.LOSS_POINTS,
            ),
            "num_queries": settings.NUM_OBJECT_QUERIES,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "size_divisibility": backbone.size_divisibility if size_divisibility < 0 else size_divisibility,
            "void_in_loss": settings.VOID_IN_LOSS,
            "semantic_on": settings.TEST.SEMANTIC_ON,
            "panoptic_on": settings.TEST.PANOPTIC_ON,
            "instance_on": settings.TEST.INSTANCE_ON,
            "thing_ids": thing_ids,
            "object_mask_threshold": settings.TEST.OBJECT_MASK_THRESHOLD,
            "overlap_threshold": settings.TEST.OVERLAP_THRESHOLD,
            # Published models with panoptic results resize logits for their semantic results, too.
            "sem_seg_postprocess_before_inference": (
                settings.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE or settings.TEST.PANOPTIC_ON
            ),
            "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        }

    @property
    def device(self) -> torch.device:
        """The device of the model, to which inputs are moved."""
        return self.pixel_mean.device

    def forward(
        self, batched_inputs: list[dict[str, Any]], normalizers: Normalizers | None = None
    ) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Return the losses of a batch (training) or the results of each picture (evaluation).

        Args:
            batched_inputs: one dict a picture, with
                `image`: (3, H_i, W_i) of any type, channels in the order of INPUT.FORMAT;
                `instances` (training): `gt_classes` (M,) int64, `gt_masks` (M, H_i, W_i) bool or `BitMasks`;
                `valid_mask` (training, optional): (H_i, W_i) bool, False where void;
                `height`, `width` (evaluation, optional): size of the results, by default that of `image`.
            normalizers: in training, those of a step of which this batch is a part; see `normalizers`.

        Returns:
            In training, weighted losses by name. In evaluation, one dict a picture with what is switched on:
                `sem_seg`: (K, height, width) float32 scores, or (height, width) int64 labels if `label_maps`;
                `panoptic_seg`: (height, width) int32 and a list of segments, see `inference.panoptic`;
                `instances`: see `inference.instances`.
        """
        images = self.prepare_images([picture["image"] for picture in batched_inputs])
        predictions = self.predict(images.tensor)
        if self.training:
            return self.criterion(predictions, self.prepare_targets(batched_inputs, images), normalizers)
        answer = predictions[-1]
        results = []
        for picture, class_logits, mask_logits, (height, width) in zip(
            batched_inputs, answer.class_logits, answer.mask_logits, images.image_sizes, strict=True
        ):
            padded_height, padded_width = images.tensor.shape[-2:]
            sizes = Sizes(
                padded=(padded_height, padded_width),
                image=(height, width),
                output=(int(picture.get("height", height)), int(picture.get("width", width))),
            )
            results.append(self.results(class_logits, mask_logits, sizes))
        return results

    def normalizers(self, batched_inputs: list[dict[str, Any]]) -> Normalizers:
        """Return what the losses of a step over all these pictures are divided by.

        For gradient accumulation: the losses of the parts, each computed with the normalisers of the whole,
        add up to the losses of the whole.
        """
        counts = [len(picture["instances"]) for picture in batched_inputs]
        return self.criterion.normalizers(counts, self.num_queries)

    def predict(self, images: Tensor) -> list[Prediction]:
        """Return every supervised layer's prediction, the answer last, for pictures from `normalize`.

        Args:
            images: (B, 3, H, W) float, normalised, padded with zeros.
        """
        return self.sem_seg_head(self.backbone(images))

    def normalize(self, image: Tensor) -> Tensor:
        """Return the picture (..., 3, H, W) as floats on the model's device, in the network's range."""
        return (image.to(self.pixel_mean) - self.pixel_mean) / self.pixel_std

    def prepare_images(self, images: list[Tensor]) -> ImageList:
        """Return the normalised pictures as one batch, padded right and below with zeros."""
        for image in images:
            self._check_image(image)
        batch = ImageList.from_tensors([self.normalize(image) for image in images], self.size_divisibility)
        # Convolutions keep the layout that they are given, and are faster with this one.
        return ImageList(batch.tensor.contiguous(memory_format=torch.channels_last), batch.image_sizes)

    def prepare_targets(self, batched_inputs: list[dict[str, Any]], images: ImageList) -> list[Target]:
        """Return the segments of each picture, padded like `images`."""
        height, width = images.tensor.shape[-2:]
        return [
            padded_target(
                picture,
                image_size,
                (height, width),
                void_is_ignored=self.void_is_ignored,
                device=self.device,
            )
            for picture, image_size in zip(batched_inputs, images.image_sizes, strict=True)
        ]

    def results(self, class_logits: Tensor, mask_logits: Tensor, sizes: Sizes) -> dict[str, Any]:
        """Return the results of one picture that are switched on; see `forward` and `inference.py`."""
        found: dict[str, Any] = {}
        if self.semantic_on:
            semantic = inference.semantic_labels if self.label_maps else inference.semantic_scores
            resize_logits = self.sem_seg_postprocess_before_inference
            found["sem_seg"] = semantic(class_logits, mask_logits, sizes, resize_logits=resize_logits)
        if self.panoptic_on:
            found["panoptic_seg"] = inference.panoptic(
                class_logits,
                mask_logits,
                sizes,
                thing_ids=self._known_thing_ids(),
                object_mask_threshold=self.object_mask_threshold,
                overlap_threshold=self.overlap_threshold,
            )
        if self.instance_on:
            found["instances"] = inference.instances(
                class_logits,
                mask_logits,
                sizes,
                top_k=self.detections_per_image,
                thing_ids=self.thing_ids,
            )
        return found

    def _check_image(self, image: Tensor) -> None:
        channels = len(self.pixel_mean)
        if image.ndim != 3 or image.shape[0] != channels:
            raise ValueError(
                f"A picture of shape {tuple(image.shape)} came, but the model takes ({channels}, height, "
                "width): convert it to the channels of INPUT.FORMAT, or change MODEL.PIXEL_MEAN and _STD."
            )
        height, width = image.shape[-2:]
        if min(height, width) < MIN_IMAGE_SIDE:
            raise ValueError(
                f"A picture of {height}x{width} pixels (height x width) came, but each side needs at least "
                f"{MIN_IMAGE_SIDE} pixels: leave it out or resize it."
            )

    def _known_thing_ids(self) -> frozenset[int]:
        if self.thing_ids is None:
            raise ValueError(
                "Panoptic results need to know which classes are things, and nobody said: name a data set "
                f"with metadata '{THING_MAP}' in DATASETS.TRAIN or DATASETS.TEST, pass thing_ids to the "
                "model, or set MODEL.MASK_FORMER.TEST.PANOPTIC_ON False."
            )
        return self.thing_ids

    def _check_thing_ids(self) -> None:
        num_classes: Any = self.sem_seg_head.num_classes
        outside = sorted(thing for thing in self.thing_ids or () if not 0 <= thing < num_classes)
        if outside:
            raise ValueError(
                f"Thing classes {outside[:5]} are outside 0..{num_classes - 1}: make "
                "MODEL.SEM_SEG_HEAD.NUM_CLASSES the number of classes, things and stuff, of the data set."
            )
        if self.panoptic_on:
            self._known_thing_ids()


def _drop_loss_weights(state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Take the class weights of the loss out of published checkpoints: here the configuration gives them."""
    state_dict.pop(f"{prefix}criterion.empty_weight", None)


def _check_choices(void_in_loss: str, semantic_on: bool, panoptic_on: bool, instance_on: bool) -> None:
    if void_in_loss not in ("background", "ignore"):
        raise ValueError(
            f"MODEL.MASK_FORMER.VOID_IN_LOSS is '{void_in_loss}', but must be 'background' or 'ignore'."
        )
    if not (semantic_on or panoptic_on or instance_on):
        raise ValueError(
            "MODEL.MASK_FORMER.TEST has SEMANTIC_ON, PANOPTIC_ON and INSTANCE_ON all False, so there would "
            "be no result: set at least one of them True."
        )


def _thing_ids_of_dataset(cfg: CfgNode) -> frozenset[int] | None:
    """Return the thing classes of the first training set, else test set; None where it names none."""
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    # Asking the catalogue for an unknown name would add it there.
    metadata = MetadataCatalog.get(names[0]) if names and names[0] in MetadataCatalog.list() else None
    thing_map = getattr(metadata, THING_MAP, None)
    if thing_map is not None:
        return frozenset(thing_map.values())
    if cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON and names:
        state = "has no" if metadata is not None else "is not registered, so there is no"
        raise ValueError(
            f"MODEL.MASK_FORMER.TEST.PANOPTIC_ON is True, but data set '{names[0]}' {state} metadata "
            f"'{THING_MAP}' (a dict from its thing ids to classes): add it to the set's MetadataCatalog "
            "entry, pass thing_ids to the model, or set PANOPTIC_ON False."
        )
    return None
