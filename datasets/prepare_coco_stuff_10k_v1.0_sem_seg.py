#!/usr/bin/env python
"""Prepare COCO-Stuff 10K, release v1.0, for semantic segmentation: label maps as PNG, pictures by split.

Reads   coco/coco_stuff_10k/imageLists/{train,test}.txt
        coco/coco_stuff_10k/images/*.jpg
        coco/coco_stuff_10k/annotations/*.mat                          matrix S; 1: none, 2..172
Writes  coco/coco_stuff_10k/images_detectron2/{train,test}/*.jpg
        coco/coco_stuff_10k/annotations_detectron2/{train,test}/*.png  255: none, 0..170

Needs h5py (pip install h5py): the .mat files are HDF5.
"""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from preparation import (
    Job,
    argument_parser,
    check_exists,
    run_jobs,
    run_program,
    write_labels,
)

from mask_former.formats import replacing

WHERE_FROM = (
    "Unpack release v1.0 (not v1.1, whose labels differ) of https://github.com/nightrome/cocostuff10k as "
    "coco/coco_stuff_10k in the folder that holds all data sets (--root)."
)


def convert(labels: np.ndarray) -> np.ndarray:
    """Return class ids, (H, W) uint8, 255 for none.

    Args:
        labels: (W, H), the matrix S as HDF5 gives it: MATLAB stores columns first. 2..172 are classes;
            1, and 0 where MATLAB left a pixel unset, are none.
    """
    labels = np.asarray(labels).T
    found = np.unique(labels)
    wrong = found[(found < 0) | (found > 172) | (found != np.floor(found))]
    if wrong.size:
        raise ValueError(f"label {wrong[0]} is not in 0..172; is this release v1.0?")
    class_ids = labels.astype(np.int64) - 2
    return np.where(class_ids < 0, 255, class_ids).astype(np.uint8)


def read_matrix(path: Path) -> np.ndarray:
    """Return the matrix S of a .mat file, (W, H)."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"Reading {path} needs h5py: pip install h5py") from error
    try:
        with h5py.File(path, "r") as file:
            return np.asarray(file["S"])
    except (KeyError, OSError) as error:
        raise ValueError(
            f"{path} is not an HDF5 file with a matrix S ({error}); it should be of release v1.0."
        ) from error


def work(job: Job) -> None:
    """Copy one picture and convert its labels."""
    (picture, matrix), (picture_target, label_target) = job
    try:
        labels = convert(read_matrix(matrix))
    except ValueError as error:
        raise ValueError(f"{matrix}: {error}") from error
    with Image.open(picture) as image:
        if image.size != labels.shape[::-1]:
            raise ValueError(
                f"{picture} is {image.size} pixels wide and high, {matrix} {labels.shape[::-1]}."
            )
    write_labels(label_target, labels)
    with replacing(picture_target) as partial:
        shutil.copyfile(picture, partial)


def main() -> None:
    """Convert both splits."""
    arguments = argument_parser(__doc__.splitlines()[0]).parse_args()
    data = arguments.root / "coco" / "coco_stuff_10k"
    for split in ("train", "test"):
        names = data / "imageLists" / f"{split}.txt"
        check_exists([names], WHERE_FROM)
        jobs = [
            Job(
                (data / "images" / f"{stem}.jpg", data / "annotations" / f"{stem}.mat"),
                (
                    data / "images_detectron2" / split / f"{stem}.jpg",
                    data / "annotations_detectron2" / split / f"{stem}.png",
                ),
            )
            for stem in sorted(names.read_text().split())
        ]
        check_exists((source for job in jobs for source in job.sources), WHERE_FROM)
        run_jobs(work, jobs, arguments.workers, arguments.force, title=split)


if __name__ == "__main__":
    run_program(main)
