"""From one entry of a data set to what the model reads: the training mapper and the test mapper."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.detection_utils import check_image_size
from detectron2.structures import Instances

from mask_former.formats import read_picture, semantic_label_files

from .augmentations import Augmentations, LabelledPicture, crop_recipe, detr_recipe
from .labels import VOID, SegmentMap, instance_segments, read_panoptic, read_semantic, split

logger = logging.getLogger(__name__)

Entry = dict[str, Any]
Mapper = Callable[[Entry], Entry | None]

# INPUT.DATASET_MAPPER_NAME -> which label is read, and the recipe of augmentations.
RECIPES: dict[str, tuple[str, Callable[[CfgNode], Augmentations]]] = {
    "mask_former_semantic": ("semantic", crop_recipe),
    "mask_former_panoptic": ("panoptic", crop_recipe),
    "mask_former_instance": ("instance", crop_recipe),
    "detr_panoptic": ("panoptic", detr_recipe),
}
# Where an entry of a data set holds each kind of label; for others of semantic labels see `formats`.
LABEL_KEYS = {"semantic": "sem_seg_file_name", "panoptic": "pan_seg_file_name", "instance": "annotations"}
PICTURE_PADDING = 128


def build_train_mapper(cfg: CfgNode) -> Mapper:
    """Return the mapper that INPUT.DATASET_MAPPER_NAME names; "default" is Detectron2's own."""
    name = cfg.INPUT.DATASET_MAPPER_NAME
    if name in ("", "default"):
        return DatasetMapper(cfg, is_train=True)
    if name not in RECIPES:
        raise ValueError(
            f"INPUT.DATASET_MAPPER_NAME is {name!r}; choose one of {', '.join(RECIPES)}, or default "
            "(Detectron2's own)."
        )
    return TrainingMapper(cfg)


def build_test_mapper(cfg: CfgNode) -> Mapper:
    """Return the mapper for test time: the picture at its test size, and no work on labels."""
    return PictureMapper(cfg)


class TrainingMapper:
    """Reads and augments the picture and label of an entry, pads them, and makes a mask of each segment.

    The result has, beside the entry's own keys (less "annotations" and "segments_info"):
        image: (3, H, W) uint8.
        height, width: of the picture as read.
        instances: `Instances` with gt_classes (M,) int64 and gt_masks (M, H, W) bool; M may be 0, and no
            mask is empty.
        sem_seg: (H, W) int64, class or MODEL.SEM_SEG_HEAD.IGNORE_VALUE; with semantic labels only.
        valid_mask: (H, W) bool, False where a pixel is void, crowd or padding; only where
            MODEL.MASK_FORMER.VOID_IN_LOSS is "ignore".
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.label, recipe = RECIPES[cfg.INPUT.DATASET_MAPPER_NAME]
        self.num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        self.ignore_value = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
        self.ignore_label = _common_ignore_label(cfg)
        is_class = 0 <= self.ignore_value < self.num_classes and self.ignore_value != self.ignore_label
        if self.label == "semantic" and is_class:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE is {self.ignore_value}, which is also one of the "
                f"{self.num_classes} classes of MODEL.SEM_SEG_HEAD.NUM_CLASSES; set it to the ignore_label "
                "of the data set, or to another value that is no class, such as 65535."
            )
        crop = cfg.INPUT.CROP
        if self.label == "instance" and crop.ENABLED and crop.SINGLE_CATEGORY_MAX_AREA < 1:
            raise ValueError(
                "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA below 1 needs a label map, which mask_former_instance "
                "does not read; set it to 1.0."
            )
        self.augmentations = recipe(cfg)
        self.image_format = cfg.INPUT.FORMAT
        self.size_divisibility = cfg.INPUT.SIZE_DIVISIBILITY
        self.gives_valid_mask = cfg.MODEL.MASK_FORMER.VOID_IN_LOSS == "ignore"
        logger.debug("Training augmentations: %s", self.augmentations)

    def __call__(self, entry: Entry) -> Entry:
        """Return the training sample of an entry, which stays as it is."""
        sample = {key: value for key, value in entry.items() if key not in ("annotations", "segments_info")}
        image = read_picture(entry["file_name"], self.image_format)
        check_image_size(sample, image)
        read_shape = image.shape[:2]
        picture = LabelledPicture(image, self._read_segment_map(entry, read_shape))
        transform = T.AugmentationList(self.augmentations)(picture)
        image, segment_map = picture.image, picture.segment_map
        padded_shape = _padded_shape(image.shape[:2], self.size_divisibility)
        if segment_map is None:
            segments = instance_segments(
                entry["annotations"],
                transform,
                file_name=entry["file_name"],
                read_shape=read_shape,
                shape=image.shape[:2],
                padded_shape=padded_shape,
                num_classes=self.num_classes,
            )
        else:
            segment_map = segment_map._replace(pixels=_pad(segment_map.pixels, padded_shape, VOID))
            segments = split(segment_map)
            if self.label == "semantic":
                values = np.concatenate(([self.ignore_value], segment_map.classes))
                sample["sem_seg"] = torch.from_numpy(values.take(segment_map.pixels))
        sample["image"] = _as_tensor(_pad(image, padded_shape, PICTURE_PADDING))
        instances = Instances(padded_shape)
        instances.gt_classes = torch.from_numpy(segments.classes)
        instances.gt_masks = torch.from_numpy(segments.masks)
        sample["instances"] = instances
        if self.gives_valid_mask:
            sample["valid_mask"] = torch.from_numpy(segments.valid)
        return sample

    def _read_segment_map(self, entry: Entry, shape: tuple[int, int]) -> SegmentMap | None:
        """Return the label of an entry, or None where it comes as annotations."""
        key = LABEL_KEYS[self.label]
        if key not in entry and not (self.label == "semantic" and semantic_label_files(entry)):
            raise ValueError(
                f"{entry['file_name']} has no {key!r} in its data set, which a {self.label} label needs "
                f"(keys: {', '.join(entry)}). Choose the INPUT.DATASET_MAPPER_NAME that fits DATASETS.TRAIN."
            )
        if self.label == "instance":
            return None
        if self.label == "semantic":
            file_name = semantic_label_files(entry)[0]
            segment_map = read_semantic(entry, self.num_classes, self._ignore_label_of(entry))
        else:
            file_name = entry[key]
            segment_map = read_panoptic(file_name, entry["segments_info"], self.num_classes)
        if segment_map.pixels.shape != shape:
            height, width = segment_map.pixels.shape
            raise ValueError(
                f"{file_name} is {width}x{height}, but its picture {entry['file_name']} is "
                f"{shape[1]}x{shape[0]} (width x height). Label and picture must have one size."
            )
        return segment_map

    def _ignore_label_of(self, entry: Entry) -> int:
        ignore_label = entry.get("ignore_label", self.ignore_label)
        if ignore_label is None:
            raise ValueError(
                f"{entry['file_name']} has no 'ignore_label', and the data sets of DATASETS.TRAIN differ in "
                "theirs. Load them with mask_former.data.loader.build_train_loader, which adds it."
            )
        return ignore_label


class PictureMapper:
    """Adds to an entry its resized picture, `image` (C, H, W) uint8, and the `height` and `width` as read."""

    def __init__(self, cfg: CfgNode) -> None:
        self.resize = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST], cfg.INPUT.MAX_SIZE_TEST, "choice")
        self.image_format = cfg.INPUT.FORMAT

    def __call__(self, entry: Entry) -> Entry:
        """Return the test sample of an entry, without "annotations"."""
        sample = {key: value for key, value in entry.items() if key != "annotations"}
        image = read_picture(entry["file_name"], self.image_format)
        check_image_size(sample, image)
        sample["image"] = _as_tensor(self.resize.get_transform(image).apply_image(image))
        return sample


def _common_ignore_label(cfg: CfgNode) -> int | None:
    """Return the ignore label of the training sets, or None if they differ."""
    default = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    labels = {MetadataCatalog.get(name).get("ignore_label", default) for name in cfg.DATASETS.TRAIN}
    return next(iter(labels), default) if len(labels) < 2 else None


def _padded_shape(shape: tuple[int, int], divisibility: int) -> tuple[int, int]:
    if divisibility < 1:
        return shape
    height, width = (-(-side // divisibility) * divisibility for side in shape)
    return height, width


def _pad(values: np.ndarray, shape: tuple[int, int], padding: int) -> np.ndarray:
    """Return (H, W, ...) values with `padding` right and below up to `shape`."""
    if values.shape[:2] == shape:
        return values
    padded = np.full((*shape, *values.shape[2:]), padding, dtype=values.dtype)
    padded[: values.shape[0], : values.shape[1]] = values
    return padded


def _as_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.require(image.transpose(2, 0, 1), requirements=("C", "W")))
