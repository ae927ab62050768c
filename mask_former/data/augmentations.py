"""The published training recipes, as lists of Detectron2 augmentations."""

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform
from fvcore.transforms.transform import Transform

from .labels import VOID, SegmentMap, move

Augmentations = list[T.Augmentation | Transform]

# Short sides in pixels from which DETR cuts its crops.
DETR_SIZES_BEFORE_CROP = (400, 500, 600)


class LabelledPicture:
    """A picture (H, W, C) and its label, if that is a map, as input of Detectron2's augmentations."""

    def __init__(self, image: np.ndarray, segment_map: SegmentMap | None) -> None:
        self.image = image
        self.segment_map = segment_map

    @property
    def sem_seg(self) -> np.ndarray | None:
        """(H, W) integers, class + 1 or `VOID`: `RandomCrop_CategoryAreaConstraint` chooses crops by it."""
        if self.segment_map is None:
            return None
        return np.concatenate(([VOID], self.segment_map.classes + 1)).take(self.segment_map.pixels)

    def transform(self, transform: Transform) -> None:
        """Apply a transform to picture and label."""
        self.image = transform.apply_image(self.image)
        if self.segment_map is not None:
            self.segment_map = self.segment_map._replace(pixels=move(transform, self.segment_map.pixels))


def crop_recipe(cfg: CfgNode) -> Augmentations:
    """Resize; crop if INPUT.CROP.ENABLED; colour if INPUT.COLOR_AUG_SSD; flip."""
    return [_resize(cfg), *_crop(cfg), *_colour(cfg), *_flip(cfg)]


def detr_recipe(cfg: CfgNode) -> Augmentations:
    """Flip; if INPUT.CROP.ENABLED, resize and crop with probability one half; resize; colour as above."""
    augmentations: Augmentations = _flip(cfg)
    if cfg.INPUT.CROP.ENABLED:
        resize = T.ResizeShortestEdge(list(DETR_SIZES_BEFORE_CROP), sample_style="choice")
        augmentations.append(T.RandomApply(T.AugmentationList([resize, *_crop(cfg)]), prob=0.5))
    return [*augmentations, _resize(cfg), *_colour(cfg)]


def _resize(cfg: CfgNode) -> T.Augmentation:
    return T.ResizeShortestEdge(
        cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    )


def _crop(cfg: CfgNode) -> Augmentations:
    crop = cfg.INPUT.CROP
    if not crop.ENABLED:
        return []
    if crop.SINGLE_CATEGORY_MAX_AREA >= 1:  # the same crops, without reading the label
        return [T.RandomCrop(crop.TYPE, crop.SIZE)]
    return [T.RandomCrop_CategoryAreaConstraint(crop.TYPE, crop.SIZE, crop.SINGLE_CATEGORY_MAX_AREA, VOID)]


def _colour(cfg: CfgNode) -> Augmentations:
    return [ColorAugSSDTransform(img_format=cfg.INPUT.FORMAT)] if cfg.INPUT.COLOR_AUG_SSD else []


def _flip(cfg: CfgNode) -> Augmentations:
    direction = cfg.INPUT.RANDOM_FLIP
    if direction not in ("horizontal", "vertical", "none"):
        raise ValueError(f"INPUT.RANDOM_FLIP is {direction!r}; choose horizontal, vertical or none.")
    if direction == "none":
        return []
    return [T.RandomFlip(horizontal=direction == "horizontal", vertical=direction == "vertical")]
