#!/usr/bin/env python
"""Prepare ADE20K (150 classes) for panoptic segmentation: COCO's format, from semantic and instance labels.

Reads   ADEChallengeData2016/images/{training,validation}/*.jpg                   names only
        ADEChallengeData2016/annotations/{training,validation}/*.png              0: none, 1..150
        ADEChallengeData2016/annotations_instance/{training,validation}/*.png     R: thing 1..100, G: number
Writes  ADEChallengeData2016/ade20k_panoptic_{train,val}/*.png                    id = R + 256 G + 65536 B
        ADEChallengeData2016/ade20k_panoptic_{train,val}.json

Stuff classes become one segment each, then every instance is painted over them; the rest is void (id 0).
The same input gives the same output, byte for byte. Run prepare_ade20k_sem_seg.py as well.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from preparation import (
    Job,
    argument_parser,
    check_exists,
    list_files,
    read_array,
    run_jobs,
    run_program,
    write_labels,
)

from mask_former.formats import box_of_mask, coco_box, load_classes, replacing, rgb_to_id

WHERE_FROM = (
    "Unpack http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip in the folder that holds "
    "all data sets (--root), and in its folder ADEChallengeData2016 "
    "http://placeschallenge.csail.mit.edu/data/ChallengeData2017/annotations_instance.tar."
)
CLASSES = load_classes("ade20k_150")
# The 100 categories of the instance challenge are the things among the 150 classes, in the same order.
THINGS = np.array([entry["id"] for entry in CLASSES if entry["isthing"]])
STUFF = np.array([entry["id"] for entry in CLASSES if not entry["isthing"]])
PALETTE = np.array([entry["color"] for entry in CLASSES])


def convert(labels: np.ndarray, instances: np.ndarray) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return the panoptic ids and segments of one picture.

    Args:
        labels: (H, W) uint8, ADE20K's semantic labels, 0 for none.
        instances: (H, W, 3) uint8, R the category of the instance challenge, G the number of the instance.

    Returns:
        (H, W, 3) uint8, the segment id as R + 256 G + 65536 B, 0 for void; and `segments_info`, whose
        areas and boxes are those of the visible pixels. A segment without any is in neither.
    """
    if labels.shape != instances.shape[:2]:
        raise ValueError(f"semantic labels are {labels.shape}, instance labels {instances.shape[:2]} pixels")
    if labels.max(initial=0) > 150:
        raise ValueError(f"semantic label {labels.max()} is not in 0..150")
    category, number = instances[..., 0].astype(int), instances[..., 1].astype(int)
    if category.max(initial=0) > 100:
        raise ValueError(f"instance category {category.max()} is not in 0..100")
    class_id = labels.astype(int) - 1
    is_stuff, is_thing = (category == 0) & np.isin(class_id, STUFF), category > 0
    # One key a segment: class and, for things, instance number + 1. Keys sort by class, then number.
    key = np.zeros(labels.shape, dtype=int)
    key[is_stuff] = (class_id[is_stuff] + 1) * 1000
    key[is_thing] = (THINGS[category[is_thing] - 1] + 1) * 1000 + number[is_thing] + 1
    keys, index = np.unique(key, return_inverse=True)
    colors = _colors([int(each) // 1000 - 1 for each in keys])
    index = index.reshape(labels.shape)
    segments = [_segment(index == i, int(each) // 1000 - 1, colors[i]) for i, each in enumerate(keys) if each]
    return colors[index].astype(np.uint8), segments


def _colors(class_ids: list[int]) -> np.ndarray:
    """Return one colour a segment, all different; -1 is void, black.

    A class's first segment has the class's colour, further ones have it a little changed.
    """
    noise = np.random.default_rng(0)
    taken = {(0, 0, 0), *map(tuple, PALETTE.tolist())}
    colors: list[list[int]] = []
    for place, class_id in enumerate(class_ids):
        color = [0, 0, 0] if class_id < 0 else PALETTE[class_id].tolist()
        while class_id in class_ids[:place] and tuple(color) in taken:
            color = (PALETTE[class_id] + noise.integers(-30, 31, 3)).clip(0, 255).tolist()
        taken.add(tuple(color))
        colors.append(color)
    return np.array(colors)


def _segment(mask: np.ndarray, class_id: int, color: np.ndarray) -> dict[str, Any]:
    return {
        "id": int(rgb_to_id(color)),
        "category_id": class_id,
        "area": int(mask.sum()),
        "bbox": coco_box(box_of_mask(mask)),
        "iscrowd": 0,
    }


def work(job: Job) -> None:
    """Convert one picture; its part of the JSON is kept in a file of its own until all are done."""
    (semantic, instance), (target, part) = job
    try:
        ids, segments = convert(read_array(semantic, channels=1), read_array(instance, channels=3))
    except ValueError as error:
        raise ValueError(f"{semantic} and {instance}: {error}") from error
    height, width = ids.shape[:2]
    entry = {
        "image": {"id": target.stem, "file_name": target.stem + ".jpg", "width": width, "height": height},
        "annotation": {"image_id": target.stem, "file_name": target.name, "segments_info": segments},
    }
    write_labels(target, ids)
    _write_json(part, entry)


def _write_json(path: Path, content: Any) -> None:
    with replacing(path) as partial:
        partial.write_text(json.dumps(content), encoding="utf-8")


def prepare_split(data: Path, folder: str, split: str, workers: int, force: bool) -> None:
    """Convert one split of ADEChallengeData2016 at `data`."""
    semantic = list_files(data / "annotations" / folder, ".png", WHERE_FROM)
    instance = [data / "annotations_instance" / folder / path.name for path in semantic]
    check_exists(instance, WHERE_FROM)
    check_exists((data / "images" / folder / f"{path.stem}.jpg" for path in semantic), WHERE_FROM)

    target, parts = data / f"ade20k_panoptic_{split}", data / f"ade20k_panoptic_{split}.parts"
    result = data / f"ade20k_panoptic_{split}.json"
    targets = [target / path.name for path in semantic]
    if result.exists() and not force and all(path.exists() for path in targets):
        print(f"{result} is complete.")
        return
    jobs = [
        Job((label, instances), (png, parts / f"{png.stem}.json"))
        for label, instances, png in zip(semantic, instance, targets, strict=True)
    ]
    run_jobs(work, jobs, workers, force, title=split)
    entries = [json.loads(job.targets[1].read_bytes()) for job in jobs]
    content = {
        "images": [entry["image"] for entry in entries],
        "annotations": [entry["annotation"] for entry in entries],
        "categories": CLASSES,
    }
    _write_json(result, content)
    shutil.rmtree(parts)


def main() -> None:
    """Convert both splits."""
    arguments = argument_parser(__doc__.splitlines()[0]).parse_args()
    data = arguments.root / "ADEChallengeData2016"
    for folder, split in (("training", "train"), ("validation", "val")):
        prepare_split(data, folder, split, arguments.workers, arguments.force)


if __name__ == "__main__":
    run_program(main)
