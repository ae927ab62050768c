#!/usr/bin/env python
"""Prepare ADE20K (150 classes) for semantic segmentation: class ids from 0, and 255 for no class.

Reads   ADEChallengeData2016/annotations/{training,validation}/*.png            0: none, 1..150
Writes  ADEChallengeData2016/annotations_detectron2/{training,validation}/*.png  255: none, 0..149
"""

import numpy as np
from preparation import (
    Job,
    argument_parser,
    list_files,
    read_array,
    run_jobs,
    run_program,
    write_labels,
)

WHERE_FROM = (
    "Unpack http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip "
    "in the folder that holds all data sets (--root)."
)


def convert(labels: np.ndarray) -> np.ndarray:
    """Return class ids, (H, W) uint8, 255 for none, of ADE20K's labels, (H, W) uint8, 0 for none."""
    if labels.max(initial=0) > 150:
        raise ValueError(
            f"label {labels.max()} is not in 0..150; are these the labels of the scene parsing challenge?"
        )
    return labels.astype(np.uint8) - np.uint8(1)  # 0 wraps round to 255


def work(job: Job) -> None:
    """Convert one label map."""
    (source,), (target,) = job
    try:
        labels = convert(read_array(source, channels=1))
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    write_labels(target, labels)


def main() -> None:
    """Convert both splits."""
    arguments = argument_parser(__doc__.splitlines()[0]).parse_args()
    data = arguments.root / "ADEChallengeData2016"
    for split in ("training", "validation"):
        sources = list_files(data / "annotations" / split, ".png", WHERE_FROM)
        jobs = [Job((path,), (data / "annotations_detectron2" / split / path.name,)) for path in sources]
        run_jobs(work, jobs, arguments.workers, arguments.force, title=split)


if __name__ == "__main__":
    run_program(main)
