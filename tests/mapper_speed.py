"""Images per second of the training mapper beside the straightforward way: `python -m tests.mapper_speed`.

The straightforward way copies the entry, moves the label as float64 (semantic) or RGB (panoptic), and makes
one mask after the other. Files are 683x512, crops 512x512, one process; processor time is counted.
"""

import copy
import random
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.data.detection_utils import read_image
from PIL import Image
from torch.nn import functional as F

from mask_former.config import load_config
from mask_former.data.augmentations import crop_recipe
from mask_former.data.mapper import build_train_mapper

HEIGHT, WIDTH, CROP = 512, 683, 512
PLAIN = ["INPUT.MIN_SIZE_TRAIN", f"({HEIGHT},)"]
ADE20K = ["INPUT.MIN_SIZE_TRAIN", str(tuple(range(256, 1025, 51))), "INPUT.COLOR_AUG_SSD", True]


def straightforward(recipe, kind, entry):
    entry = copy.deepcopy(entry)
    label = read_image(entry[f"{kind}_file_name"], "RGB" if kind == "pan_seg" else None)
    aug_input = T.AugInput(read_image(entry["file_name"], "RGB"))
    transforms = T.AugmentationList(recipe)(aug_input)
    label = transforms.apply_segmentation(label.astype("double") if kind == "sem_seg" else label).astype(int)
    classes = {int(c): int(c) for c in np.unique(label) if c != 255} if kind == "sem_seg" else {}
    if kind == "pan_seg":
        label = label[..., 0] + 256 * label[..., 1] + 65536 * label[..., 2]
        classes = {s["id"]: s["category_id"] for s in entry["segments_info"]}
    image = torch.from_numpy(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1)))
    padding = (0, CROP - image.shape[2], 0, CROP - image.shape[1])
    label = F.pad(torch.from_numpy(np.ascontiguousarray(label)), padding, value=255).contiguous().numpy()
    masks = [torch.from_numpy((label == value).copy()) for value in classes]
    return F.pad(image, padding, value=128).contiguous(), torch.stack(masks), list(classes.values())


def make_entry(folder, segments, rng):
    """Write a picture of blurred noise and labels of wavy cells."""
    noise = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(cv2.GaussianBlur(noise, (0, 0), 2)).save(folder / "picture.jpg", quality=90)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    y, x = y + 12 * np.sin(x / 19), x + 12 * np.sin(y / 23)
    centres = rng.random((segments, 2)) * [HEIGHT, WIDTH]
    cells = np.argmin([(y - a) ** 2 + (x - b) ** 2 for a, b in centres], axis=0)
    Image.fromarray((cells * 3).astype(np.uint8)).save(folder / "semantic.png")
    ids = (cells + 1) * 40503
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1)
    Image.fromarray(rgb.astype(np.uint8)).save(folder / "panoptic.png")
    return {
        "file_name": str(folder / "picture.jpg"),
        "sem_seg_file_name": str(folder / "semantic.png"),
        "pan_seg_file_name": str(folder / "panoptic.png"),
        "segments_info": [{"id": (i + 1) * 40503, "category_id": i, "iscrowd": 0} for i in range(segments)],
    }


def images_per_second(function, count=40, repetitions=3):
    times = []
    for _ in range(repetitions):
        np.random.seed(0)
        random.seed(0)
        start = time.process_time()
        for _ in range(count):
            function()
        times.append(time.process_time() - start)
    return count / min(times)


def main():
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    sizes = ["INPUT.MAX_SIZE_TRAIN", 2048, "INPUT.MIN_SIZE_TRAIN_SAMPLING", "choice", "INPUT.FORMAT", "RGB"]
    crop = ["INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", f"({CROP},{CROP})"]
    model = ["INPUT.SIZE_DIVISIBILITY", CROP, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 150]
    for segments in (10, 40):
        with tempfile.TemporaryDirectory() as folder:
            entry = make_entry(Path(folder), segments, np.random.default_rng(0))
            for name, kind in (("mask_former_semantic", "sem_seg"), ("mask_former_panoptic", "pan_seg")):
                for recipe, opts in (("no resize, no colour", PLAIN), ("ADE20K recipe", ADE20K)):
                    cfg = load_config(opts=[*sizes, *crop, *model, *opts, "INPUT.DATASET_MAPPER_NAME", name])
                    mapper, augmentations = build_train_mapper(cfg), crop_recipe(cfg)
                    ours = images_per_second(lambda mapper=mapper, entry=entry: mapper(entry))
                    theirs = images_per_second(
                        lambda a=augmentations, k=kind, e=entry: straightforward(a, k, e)
                    )
                    line = f"{name}, {segments} segments, {recipe}: {ours:.0f} / {theirs:.0f} images/s"
                    sys.stdout.write(f"{line} = {ours / theirs:.2f}\n")


if __name__ == "__main__":
    main()
