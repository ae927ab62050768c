"""MaskFormer: images in; losses, or semantic, panoptic and instance results out.

Normalise and pad the batch, backbone, head, then the criterion (training) or `inference` (evaluation).
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone, build_sem_seg_head
from detectron2.structures import BitMasks, ImageList
from torch import Tensor, nn
from torch.nn import functional as F

from mask_former.inference.resizing import Sizes
from mask_former.inference.ruled_model import Logits, QueryLogits, RuledModel
from mask_former.inference.rules import ResultRules
from mask_former.modeling.criterion import Normalizers, SetCriterion
from mask_former.modeling.matcher import build_matcher
from mask_former.modeling.structures import Prediction, Target

THING_MAP = "thing_dataset_id_to_contiguous_id"


@META_ARCH_REGISTRY.register()
class MaskFormer(RuledModel):
    """Mask classification model: a fixed number of queries, each a class and a mask (arXiv 2107.06278)."""

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
        rules: ResultRules | None = None,
    ) -> None:
        """Assemble the model.

        Args:
            backbone: images to maps by name; `output_shape()` as Detectron2 has it.
            sem_seg_head: maps to a list of `Prediction`; `num_classes`.
            criterion: predictions and targets to losses.
            num_queries: Q of the head.
            pixel_mean: subtracted from the image, one per channel.
            pixel_std: divided by afterwards.
            size_divisibility: the batch is padded to a multiple of this; below 2 to its largest image.
            void_in_loss: "background" or "ignore", see MODEL.MASK_FORMER.VOID_IN_LOSS.
            rules: which results are formed, and how; None: semantic scores.
        """
        super().__init__()
        if void_in_loss not in ("background", "ignore"):
            raise ValueError(
                f"MODEL.MASK_FORMER.VOID_IN_LOSS is '{void_in_loss}', but must be 'background' or 'ignore'."
            )
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.criterion = criterion
        self.num_queries = num_queries
        self.size_divisibility = size_divisibility
        self.void_is_ignored = void_in_loss == "ignore"
        self.rules = rules or ResultRules()
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        # torch 2.4 has no public form of this hook.
        self._register_load_state_dict_pre_hook(_drop_loss_weights)
        self.check_rules(self.rules)

    @classmethod
    def from_config(cls, cfg: CfgNode, thing_ids: Collection[int] | None = None) -> dict[str, Any]:
        """Return the constructor's arguments; `thing_ids` take precedence over those of the data set."""
        backbone = build_backbone(cfg)
        sem_seg_head = build_sem_seg_head(cfg, backbone.output_shape())
        settings = cfg.MODEL.MASK_FORMER
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
            "rules": rules_of_config(cfg, thing_ids),
        }

    @property
    def device(self) -> torch.device:
        """The device of the model, to which inputs are moved."""
        return self.pixel_mean.device

    def forward(
        self,
        batched_inputs: list[dict[str, Any]],
        normalizers: Normalizers | None = None,
        rules: ResultRules | None = None,
    ) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Return the losses of a batch (training) or the results of each image (evaluation).

        Args:
            batched_inputs: one dict per image, with
                `image`: (3, H_i, W_i) of any type, channels in the order of INPUT.FORMAT;
                `instances` (training): `gt_classes` (M,) int64, `gt_masks` (M, H_i, W_i) bool or `BitMasks`;
                `valid_mask` (training, optional): (H_i, W_i) bool, False where void;
                `height`, `width` (evaluation, optional): size of the results, by default that of `image`.
            normalizers: in training, those of a step of which this batch is a part; see `normalizers`.
            rules: in evaluation, the rules of the results; None: the model's own.

        Returns:
            In training, weighted losses by name. In evaluation, one dict per image with the results that the
            rules ask for, see `inference.form_results`.
        """
        if not self.training:
            return self.results(batched_inputs, rules)
        images = self.prepare_images([entry["image"] for entry in batched_inputs])
        predictions = self.predict(images.tensor)
        return self.criterion(predictions, self.prepare_targets(batched_inputs, images), normalizers)

    def normalizers(self, batched_inputs: list[dict[str, Any]]) -> Normalizers:
        """Return the divisors of the losses of a step over all these images.

        For gradient accumulation: the losses of the parts, each computed with the normalizers of the whole,
        add up to the losses of the whole.
        """
        counts = [len(entry["instances"]) for entry in batched_inputs]
        return self.criterion.normalizers(counts, self.num_queries)

    def step_shares(
        self, parts: Sequence[list[dict[str, Any]]]
    ) -> list[tuple[dict[str, Any], float | Tensor]]:
        """See `RuledModel`: each part is computed with the normalizers of the whole."""
        whole = self.normalizers([entry for part in parts for entry in part])
        return [({"normalizers": whole}, 1.0) for _ in parts]

    def predict(self, images: Tensor) -> list[Prediction]:
        """Return the prediction of every supervised layer, the answer last.

        Args:
            images: (B, 3, H, W) float, normalised, padded with zeros.
        """
        return self.sem_seg_head(self.backbone(images))

    def split_logits(self, predictions: list[Prediction], sizes: Sequence[Sizes]) -> list[Logits]:
        """Return the last layer's logits of each image."""
        class_logits, mask_logits = predictions[-1]
        return [QueryLogits(*logits) for logits in zip(class_logits, mask_logits, sizes, strict=True)]

    def prepare_targets(self, batched_inputs: list[dict[str, Any]], images: ImageList) -> list[Target]:
        """Return the segments of each image, padded right and below like `images`, on the model's device."""
        height, width = images.tensor.shape[-2:]
        targets = []
        for entry, size in zip(batched_inputs, images.image_sizes, strict=True):
            padding = (0, width - size[1], 0, height - size[0])
            labels, masks = _segments_of(entry, size)
            valid = None
            if self.void_is_ignored:
                valid = F.pad(_valid_mask_of(entry, size).to(self.device), padding, value=False)
            masks = F.pad(masks.to(self.device), padding, value=False)
            targets.append(Target(labels.to(self.device), masks, valid))
        return targets

    def check_rules(self, rules: ResultRules) -> None:
        """Raise ValueError for thing classes that are unknown or out of range."""
        num_classes: Any = self.sem_seg_head.num_classes
        outside = sorted(thing for thing in rules.thing_ids or () if not 0 <= thing < num_classes)
        if outside and {"panoptic", "instance"} & set(rules.tasks):
            raise ValueError(
                f"Thing classes {outside[:5]} are outside 0..{num_classes - 1}: make "
                "MODEL.SEM_SEG_HEAD.NUM_CLASSES the number of classes, things and stuff, of the data set."
            )
        if "panoptic" in rules.tasks and rules.thing_ids is None:
            raise ValueError(
                "Panoptic results need to know which classes are things, but none are given: name a data set "
                f"with metadata '{THING_MAP}' in DATASETS.TRAIN or DATASETS.TEST, pass thing_ids to the "
                "model, or set MODEL.MASK_FORMER.TEST.PANOPTIC_ON False."
            )


def rules_of_config(cfg: CfgNode, thing_ids: Collection[int] | None) -> ResultRules:
    """Return the rules in MODEL.MASK_FORMER.TEST; `thing_ids` None: those of the data set."""
    test = cfg.MODEL.MASK_FORMER.TEST
    switches = {"semantic": test.SEMANTIC_ON, "panoptic": test.PANOPTIC_ON, "instance": test.INSTANCE_ON}
    if not any(switches.values()):
        raise ValueError(
            "MODEL.MASK_FORMER.TEST has SEMANTIC_ON, PANOPTIC_ON and INSTANCE_ON all False, so there would "
            "be no result: set at least one of them True."
        )
    if thing_ids is None:
        thing_ids = _thing_ids_of_dataset(cfg)
    return ResultRules(
        tasks=tuple(task for task, is_on in switches.items() if is_on),
        thing_ids=None if thing_ids is None else frozenset(int(thing) for thing in thing_ids),
        # Published models with panoptic results resize logits for their semantic results, too.
        resize_logits=test.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE or test.PANOPTIC_ON,
        object_mask_threshold=test.OBJECT_MASK_THRESHOLD,
        overlap_threshold=test.OVERLAP_THRESHOLD,
        top_k=cfg.TEST.DETECTIONS_PER_IMAGE,
    )


def _drop_loss_weights(state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Remove the class weights of the loss from published checkpoints: the configuration gives them."""
    state_dict.pop(f"{prefix}criterion.empty_weight", None)


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


def _segments_of(picture: dict[str, Any], image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return a training picture's labels (M,) int64 and masks (M, H_i, W_i) bool."""
    if "instances" not in picture:
        raise KeyError(
            f"A training picture ({_name_of(picture)}) has no 'instances', only {sorted(picture)}: set "
            "INPUT.DATASET_MAPPER_NAME to a mapper that makes them, such as 'mask_former_semantic'."
        )
    segments = picture["instances"]
    labels = segments.gt_classes
    if len(labels) == 0:
        # Detectron2's mappers leave the masks of an empty picture out, or in another form.
        return labels.long(), torch.zeros((0, *image_size), dtype=torch.bool)
    if not segments.has("gt_masks"):
        raise KeyError(
            f"'instances' of a training picture ({_name_of(picture)}) have no 'gt_masks': set "
            "MODEL.MASK_ON True or INPUT.DATASET_MAPPER_NAME to a mapper that keeps masks."
        )
    masks = segments.gt_masks
    if isinstance(masks, BitMasks):
        masks = masks.tensor
    if not isinstance(masks, Tensor):
        raise TypeError(
            f"gt_masks of a training picture ({_name_of(picture)}) are {type(masks).__name__}, but must be "
            "a bool tensor (M, H, W) or BitMasks: set INPUT.MASK_FORMAT 'bitmask'."
        )
    if masks.shape != (len(labels), *image_size):
        raise ValueError(
            f"gt_masks of a training picture ({_name_of(picture)}) have shape {tuple(masks.shape)}, but its "
            f"{len(labels)} gt_classes and its image of {image_size} need {(len(labels), *image_size)}: "
            "the mapper must transform both alike."
        )
    return labels.long(), masks.bool()


def _valid_mask_of(picture: dict[str, Any], image_size: tuple[int, int]) -> Tensor:
    valid = picture.get("valid_mask")
    if valid is None:
        return torch.ones(image_size, dtype=torch.bool)
    if valid.shape != image_size:
        raise ValueError(
            f"valid_mask of a training picture ({_name_of(picture)}) has shape {tuple(valid.shape)}, but "
            f"its image is {image_size}: the mapper must transform both alike."
        )
    return valid.bool()


def _name_of(picture: dict[str, Any]) -> str:
    return str(picture.get("file_name", "no file_name"))
