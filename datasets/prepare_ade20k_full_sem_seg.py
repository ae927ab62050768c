#!/usr/bin/env python
"""Prepare ADE20K-Full (847 classes) for semantic segmentation: short side at most 512, 16-bit label maps.

Reads   ADE20K_2021_17_01/index_ade20k.pkl                                   pictures and object names
        ADE20K_2021_17_01/images/ADE/**/*.jpg and *_seg.png                  id = (R // 10) * 256 + G
Writes  ADE20K_2021_17_01/images_detectron2/{training,validation}/*.jpg
        ADE20K_2021_17_01/annotations_detectron2/{training,validation}/*.tif 65535: none, 0..846

The class table holds the names of the 847 classes. The data set's id of a name is its place, from 1, among
the object names of the index, which also guards against an index of another release.
"""

import difflib
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
from PIL import Image
from preparation import (
    Job,
    argument_parser,
    check_exists,
    read_array,
    read_plain_pickle,
    run_jobs,
    run_program,
    write_labels,
)

from mask_former.formats import load_classes, replacing

WHERE_FROM = (
    "Register at https://groups.csail.mit.edu/vision/datasets/ADE20K/request_data/ and unpack "
    "ADE20K_2021_17_01.zip in the folder that holds all data sets (--root)."
)
SHORT_SIDE = 512
NO_CLASS = 65535
ID_RANGE = (6, 3156)  # least and greatest data set id among the 847 classes


def resolve_ids(object_names: Sequence[str], classes: Sequence[dict[str, Any]]) -> list[int]:
    """Return the data set's id of each class, in the order of the classes.

    Args:
        object_names: of the index; the first has id 1.
        classes: `{"name"}` each; where there is an "id", known from the data set's own published lists, the
            index must agree.
    """
    places: dict[str, list[int]] = {}
    for place, name in enumerate(object_names, start=1):
        places.setdefault(name, []).append(place)
        if _plain(name) != name:
            places.setdefault(_plain(name), []).append(place)
    ids = [_resolve(entry, places) for entry in classes]
    if len(set(ids)) < len(ids) or (min(ids), max(ids)) != ID_RANGE:
        raise ValueError(
            f"the {len(ids)} classes get {len(set(ids))} ids in {min(ids)}..{max(ids)}, not as many in "
            f"{ID_RANGE[0]}..{ID_RANGE[1]}; is this the index of ADE20K_2021_17_01?"
        )
    return ids


def _plain(name: str) -> str:
    """Return the words of a name: releases differ in case and punctuation."""
    return " ".join(re.findall(r"[a-z0-9]+", name.lower()))


def _resolve(entry: dict[str, Any], places: dict[str, list[int]]) -> int:
    name = entry["name"]
    found = places.get(name) or places.get(_plain(name)) or []
    known = entry.get("id")
    if known in found or (known is None and len(found) == 1):
        return known or found[0]
    if not found:
        near = difflib.get_close_matches(name, places, n=1)
        raise ValueError(f"the index has no object {name!r}; the nearest is {near}.")
    raise ValueError(
        f"the index has object {name!r} at {found}, the class table wants {known or 'one place'}."
    )


def class_lookup(ids: Sequence[int]) -> np.ndarray:
    """Return the class of every value that (R // 10) * 256 + G can have: (6656,) uint16."""
    lookup = np.full(26 * 256, NO_CLASS, dtype=np.uint16)
    lookup[list(ids)] = np.arange(len(ids))
    return lookup


def convert(colors: np.ndarray, lookup: np.ndarray) -> np.ndarray:
    """Return class ids, (H, W) uint16, 65535 for none, of a *_seg.png, (H, W, 3) uint8."""
    return lookup[colors[..., 0].astype(np.intp) // 10 * 256 + colors[..., 1]]


def target_size(height: int, width: int) -> tuple[int, int]:
    """Return (height, width) with the short side brought down to 512; smaller pictures stay as they are."""
    short = min(height, width)
    if short <= SHORT_SIDE:
        return height, width
    return round(height * SHORT_SIDE / short), round(width * SHORT_SIDE / short)


def work(job: Job, lookup: np.ndarray) -> None:
    """Convert one picture and its labels."""
    (picture, segmentation), (picture_target, label_target) = job
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB"))
    labels = convert(read_array(segmentation, channels=3), lookup)
    if labels.shape != pixels.shape[:2]:
        raise ValueError(f"{picture} is {pixels.shape[:2]} pixels, {segmentation} {labels.shape}.")
    height, width = target_size(*labels.shape)
    if (height, width) != labels.shape:
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
        labels = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)
    # Written anew, small or not, so that no orientation tag is left to turn it away from its labels.
    with replacing(picture_target) as partial:
        Image.fromarray(pixels).save(partial, format="JPEG", quality=95)
    write_labels(label_target, labels)


def main() -> None:
    """Convert every picture that the index names."""
    arguments = argument_parser(__doc__.splitlines()[0]).parse_args()
    data = arguments.root / "ADE20K_2021_17_01"
    index_file = data / "index_ade20k.pkl"
    check_exists([index_file], WHERE_FROM)
    index = read_plain_pickle(index_file)
    try:
        ids = resolve_ids(list(index["objectnames"]), load_classes("ade20k_full_847"))
        pictures = list(zip(index["folder"], index["filename"], strict=True))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{index_file}: {error}") from error
    del index  # several hundred megabytes, which every worker would inherit

    jobs = []
    for folder, name in sorted(pictures):
        split = "validation" if name.split("_")[1] == "val" else "training"
        stem = name.removesuffix(".jpg")
        source = arguments.root / folder
        jobs.append(
            Job(
                (source / f"{stem}.jpg", source / f"{stem}_seg.png"),
                (
                    data / "images_detectron2" / split / f"{stem}.jpg",
                    data / "annotations_detectron2" / split / f"{stem}.tif",
                ),
            )
        )
    check_exists((source for job in jobs for source in job.sources), WHERE_FROM)
    run_jobs(partial(work, lookup=class_lookup(ids)), jobs, arguments.workers, arguments.force)


if __name__ == "__main__":
    run_program(main)
