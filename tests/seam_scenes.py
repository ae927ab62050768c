"""Models that read classes from the colours of an image, and data sets of such images."""

import json
from pathlib import Path

import numpy as np
import pycocotools.mask
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import SemanticSegmentor
from PIL import Image
from torch import nn
from torch.nn import functional as F

from mask_former.config import load_config
from mask_former.evaluation import EVALUATORS
from mask_former.formats import id_to_rgb
from mask_former.modeling.criterion import SetCriterion
from mask_former.modeling.mask_former import MaskFormer, rules_of_config
from mask_former.modeling.matcher import HungarianMatcher
from mask_former.modeling.per_pixel import PerPixelModel
from mask_former.modeling.structures import Prediction

HEIGHT, WIDTH = 48, 64
# Six segments, each of a colour; classes by K, None is void.
COLORS = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 0, 255], [0, 255, 255]]
CLASSES = {1: [0, 0, None, None, None, None], 2: [0, 0, 1, 1, 1, 1], 300: [0, 17, 99, 150, 255, 299]}
THINGS = {1: {0}, 2: {0}, 300: {0, 99, 299}}
IGNORE = {1: 65535, 2: 255, 300: 65535}
SWITCH_OF_TASK = {"semantic": "SEMANTIC_ON", "panoptic": "PANOPTIC_ON", "instance": "INSTANCE_ON"}


class QuarterGrid(nn.Module):
    """A backbone that only takes the mean colour of 4x4 pixels."""

    size_divisibility = 32

    def forward(self, images):
        return {"grid": F.avg_pool2d(images, 4)}


class ColorHead(nn.Module):
    """A query for each colour: its mask is where the colour is, its class that of the segment."""

    def __init__(self, classes, num_classes, colors=COLORS):
        super().__init__()
        self.num_classes = num_classes
        self.sharpness, self.radius = 6.0, 0.4
        self.register_buffer("colors", torch.tensor(colors) / 255)
        probs = torch.full((len(classes), num_classes + 1), 0.1 / num_classes)
        for query, label in enumerate(classes):
            probs[query, num_classes if label is None else label] = 0.9 - 0.02 * query
        self.register_buffer("class_logits", probs.log())

    def mask_logits(self, features):
        distance = (features["grid"][:, None] - self.colors[None, :, :, None, None]).norm(dim=2)
        return self.sharpness * (self.radius - distance)

    def forward(self, features):
        masks = self.mask_logits(features)
        return [Prediction(self.class_logits.expand(len(masks), -1, -1), masks)]


class PixelColorHead(ColorHead):
    """The same for each pixel, without queries."""

    def forward(self, features, targets):
        probs = self.class_logits[:, :-1].softmax(1)
        scores = torch.einsum("qk,bqhw->bkhw", probs, self.mask_logits(features).sigmoid() * 20)
        return F.interpolate(scores, scale_factor=4, mode="bilinear"), {}


STATISTICS = {"pixel_mean": [0.0] * 3, "pixel_std": [255.0] * 3}


def color_model(cfg, classes, thing_ids=None, head=ColorHead, colors=COLORS, mean_and_std=None):
    num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    parts = {"backbone": QuarterGrid(), "sem_seg_head": head(classes, num_classes, colors), **STATISTICS}
    if mean_and_std is not None:
        parts["pixel_mean"], parts["pixel_std"] = mean_and_std
    if issubclass(head, PixelColorHead):
        return PerPixelModel(**parts).eval()
    matcher = HungarianMatcher(mask_weight=1.0, dice_weight=1.0)
    weights = {"mask_weight": 1.0, "dice_weight": 1.0, "no_object_weight": 0.1}
    return MaskFormer(
        criterion=SetCriterion(num_classes=num_classes, matcher=matcher, **weights),
        num_queries=len(classes),
        size_divisibility=32,
        rules=rules_of_config(cfg, thing_ids),
        **parts,
    ).eval()


def plain_per_pixel_model(model):
    """Detectron2's own model with the parts of a `PerPixelModel`."""
    return SemanticSegmentor(backbone=model.backbone, sem_seg_head=model.sem_seg_head, **STATISTICS).eval()


def segment_map(number):
    """Which segment is where, (H, W), its edges multiples of 4."""
    rows = np.arange(HEIGHT)[:, None] >= 24
    columns = np.digitize(np.arange(WIDTH), [20, 44])[None]
    return (rows * 3 + columns + number) % 6


def write_scene(folder: Path, num_classes: int, count: int = 3):
    """Write images and ground truth of every kind, and return the entries of a data set."""
    folder.mkdir()
    classes, things = CLASSES[num_classes], THINGS[num_classes]
    entries, images, annotations, panoptic = [], [], [], []
    for number in range(count):
        shown = segment_map(number)
        Image.fromarray(np.array(COLORS, np.uint8)[shown]).save(folder / f"{number}.png")
        # What the model sees is four pixels off the truth.
        truth = np.roll(shown, 4, axis=1)
        is_void = np.arange(HEIGHT)[:, None] < np.full(WIDTH, 4)
        labels = np.full(
            truth.shape, IGNORE[num_classes], np.uint16 if IGNORE[num_classes] > 255 else np.uint8
        )
        ids = np.zeros(truth.shape, np.int64)
        infos = []
        for segment, label in enumerate(classes):
            mask = (truth == segment) & ~is_void
            if label is None:
                continue
            labels[mask] = label
            is_thing = label in things
            same = [info for info in infos if info["category_id"] == label and not is_thing]
            ids[mask] = same[0]["id"] if same else segment + 1
            if not same:
                infos.append({"id": segment + 1, "category_id": label, "isthing": is_thing, "iscrowd": 0})
            rle = pycocotools.mask.encode(np.asfortranarray(mask, np.uint8))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label + 1,
                    "iscrowd": 0,
                    "area": int(mask.sum()),
                    "bbox": pycocotools.mask.toBbox(rle).tolist(),
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                }
            )
        Image.fromarray(labels).save(folder / f"labels_{number}.png")
        Image.fromarray(id_to_rgb(ids)).save(folder / f"panoptic_{number}.png")
        size = {"height": HEIGHT, "width": WIDTH}
        images.append({"id": number, "file_name": f"{number}.png", **size})
        own = [{**info, "category_id": info["category_id"] + 1} for info in infos]
        file_name = f"panoptic_{number}.png"
        panoptic.append({"image_id": number, "file_name": file_name, "segments_info": own})
        entries.append(
            {
                "file_name": str(folder / f"{number}.png"),
                "image_id": number,
                **size,
                "sem_seg_file_name": str(folder / f"labels_{number}.png"),
                "pan_seg_file_name": str(folder / file_name),
                "segments_info": infos,
            }
        )
    for name, kept in (("things", things), ("all", set(range(num_classes)))):
        categories = [{"id": c + 1, "name": f"c{c}"} for c in sorted(kept)]
        chosen = [item for item in annotations if item["category_id"] - 1 in kept]
        content = {"images": images, "annotations": chosen, "categories": categories}
        (folder / f"{name}.json").write_text(json.dumps(content))
    categories = [{"id": c + 1, "name": f"c{c}", "isthing": int(c in things)} for c in range(num_classes)]
    content = {"annotations": panoptic, "categories": categories}
    (folder / "panoptic.json").write_text(json.dumps(content))
    return entries


def register_scene(folder: Path, entries, kind: str, num_classes: int) -> str:
    """Register the data set for an evaluator type, and return its name."""
    name = f"seams_{kind}_{num_classes}"
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, lambda: [dict(entry) for entry in entries])
    things = {"coco": set(range(num_classes)), "sem_seg": set()}.get(kind, THINGS[num_classes])
    names = [f"c{c}" for c in range(num_classes)]
    MetadataCatalog.get(name).set(
        evaluator_type=kind,
        json_file=str(folder / ("all.json" if kind == "coco" else "things.json")),
        panoptic_json=str(folder / "panoptic.json"),
        panoptic_root=str(folder),
        ignore_label=IGNORE[num_classes],
        stuff_classes=names,
        thing_classes=names,
        thing_dataset_id_to_contiguous_id={c + 1: c for c in sorted(things)},
        stuff_dataset_id_to_contiguous_id={c + 1: c for c in range(num_classes)},
    )
    return name


def seam_config(name: str, kind: str, num_classes: int, folder: Path, tasks=None):
    """Return a configuration that evaluates a data set at its own size; TTA makes one copy, of that size."""
    switches = {switch: switch in EVALUATORS[kind] for switch in SWITCH_OF_TASK.values()}
    if tasks is not None:
        switches = {switch: task in tasks for task, switch in SWITCH_OF_TASK.items()}
    opts = [word for key, is_on in switches.items() for word in (f"MODEL.MASK_FORMER.TEST.{key}", is_on)]
    return load_config(
        opts=[
            *opts,
            *("MODEL.META_ARCHITECTURE", "MaskFormer", "MODEL.DEVICE", "cpu"),
            *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", num_classes, "INPUT.FORMAT", "RGB"),
            *("DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,), "DATALOADER.NUM_WORKERS", 0),
            *("INPUT.MIN_SIZE_TEST", HEIGHT, "INPUT.MAX_SIZE_TEST", 1000, "OUTPUT_DIR", str(folder)),
            *("TEST.AUG.MIN_SIZES", (HEIGHT,), "TEST.AUG.MAX_SIZE", 1000, "TEST.AUG.FLIP", False),
            *("MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", 0.5),
            *("MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD", 0.5),
        ]
    )
