"""Write a user's data set in COCO's formats: python -m mask_former.data.convert FOLDER OUT.

Instances become OUT/annotations/instances_<split>.json. Semantic labels become panoptic ones, a segment for
each class of a picture; where the folder has instances of the same pictures too, these are the things.
Pictures stay where they are: the files name them from OUT.
"""

import json
import logging
import os
import sys
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from mask_former.formats import (
    box_of_mask,
    coco_annotation,
    coco_box,
    decode_mask,
    id_to_rgb,
    read_semantic_label,
    replacing,
    semantic_label_files,
)

from .coco import Entry
from .own.dataset import OwnDataset
from .own.layouts import LAYOUTS, find_dataset, offers, summary

logger = logging.getLogger(__name__)


def convert_folder(folder: Path, out: Path, layout: str | None = None, seed: int = 0) -> list[Path]:
    """Write the data set of a folder in COCO's formats and return the JSON files, one a split."""
    datasets = _datasets(folder, layout, seed)
    for dataset in datasets:
        logger.info("%s", summary(dataset))
    if "panoptic" in [dataset.task for dataset in datasets]:
        raise ValueError(f"{folder} has COCO's panoptic format already.")
    semantic = next((dataset for dataset in datasets if dataset.task == "semantic"), None)
    instances = next((dataset for dataset in datasets if dataset.task == "instance"), None)
    if semantic is None:
        assert instances is not None
        return [_write_instances(instances, split, out) for split in instances.splits]
    return [_write_panoptic(semantic, instances, split, out) for split in semantic.splits]


def _datasets(folder: Path, layout: str | None, seed: int) -> list[OwnDataset]:
    """Return the data set of a folder, or two: semantic labels, and instances of the same pictures."""
    if layout is None and folder.is_dir():
        fitting = [offer.read for offer in offers(folder, seed).values() if not offer.lacks and offer.read]
        found = [read() for read in fitting] if len(fitting) == 2 else []
        if {dataset.task for dataset in found} == {"semantic", "instance"}:
            return found
    return [find_dataset(folder, layout, seed)]


def _write_instances(dataset: OwnDataset, split: str, out: Path) -> Path:
    annotations: list[Entry] = []
    images = []
    for image_id, entry in enumerate(tqdm(dataset.splits[split], split, disable=None)):
        if "annotations" not in entry:
            continue  # not labelled yet
        images.append(_image(entry, image_id, (entry["height"], entry["width"]), out))
        for instance in entry["annotations"]:
            ids = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": instance["category_id"] + 1,
            }
            annotations.append({**ids, **coco_annotation(instance, entry["height"], entry["width"])})
    categories = [{"id": number, "name": name} for number, name in enumerate(dataset.classes, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return _write_json(out / f"annotations/instances_{split}.json", content)


def _write_panoptic(semantic: OwnDataset, instances: OwnDataset | None, split: str, out: Path) -> Path:
    things = instances.classes if instances else ()
    names = [*(name for name in semantic.classes if name not in things), *things]
    category_of = {name: number for number, name in enumerate(names, 1)}
    stuff = {i: category_of[name] for i, name in enumerate(semantic.classes) if name not in things}
    records = [record for part in (instances.splits.values() if instances else ()) for record in part]
    objects = {record["file_name"]: record.get("annotations", ()) for record in records}
    folder = out / f"annotations/panoptic_{split}"
    folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for image_id, entry in enumerate(tqdm(semantic.splits[split], split, disable=None)):
        if not semantic_label_files(entry):
            continue
        label = read_semantic_label(entry)
        own = [
            {**instance, "category_id": category_of[things[instance["category_id"]]]}
            for instance in objects.get(entry["file_name"], ())
        ]
        ids, segments = _paint(label, stuff, own)
        name = f"{Path(entry['file_name']).stem}_{image_id}.png"
        Image.fromarray(id_to_rgb(ids)).save(folder / name)
        images.append(_image(entry, image_id, label.shape, out))
        annotations.append({"image_id": image_id, "file_name": name, "segments_info": segments})
    categories = [{"id": i, "name": n, "isthing": int(n in things)} for n, i in category_of.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return _write_json(out / f"annotations/panoptic_{split}.json", content)


def _paint(
    label: NDArray[np.integer], stuff: Mapping[int, int], instances: Sequence[Entry]
) -> tuple[NDArray[np.int32], list[Entry]]:
    """Return segment ids (H, W) and the segments with pixels: stuff, and over it instances, small ones last.

    Args:
        label: classes (H, W).
        stuff: class -> category id; pixels of other classes without an instance are void.
        instances: annotations with category ids.
    """
    ids = np.zeros(label.shape, np.int32)
    segments: list[Entry] = [{"category_id": category, "iscrowd": 0} for category in stuff.values()]
    for number, class_id in enumerate(stuff, 1):
        ids[label == class_id] = number
    drawn = [(coco_annotation(instance, *label.shape), instance["category_id"]) for instance in instances]
    for annotation, category in sorted(drawn, key=lambda pair: -pair[0]["area"]):
        segments.append({"category_id": category, "iscrowd": annotation["iscrowd"]})
        ids[decode_mask(annotation["segmentation"])] = len(segments)
    areas = np.bincount(ids.ravel(), minlength=len(segments) + 1)
    present = [number for number in range(1, len(segments) + 1) if areas[number]]
    return ids, [
        {
            **segments[number - 1],
            "id": number,
            "area": int(areas[number]),
            "bbox": coco_box(box_of_mask(ids == number)),
        }
        for number in present
    ]


def _image(entry: Entry, image_id: int, shape: tuple[int, ...], out: Path) -> Entry:
    name = os.path.relpath(Path(entry["file_name"]).resolve(), out.resolve())
    return {"id": image_id, "file_name": name, "height": shape[0], "width": shape[1]}


def _write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(json.dumps(content))
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert the folder that the command line names."""
    parser = ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("folder", type=Path, help="of the data set")
    parser.add_argument("out", type=Path, help="folder for annotations/*.json and the PNGs of segments")
    parser.add_argument("--layout", choices=sorted(LAYOUTS), help="default: what lies in the folder")
    parser.add_argument("--seed", type=int, default=0, help="of the split, where there is none")
    options = parser.parse_args(arguments)
    try:
        files = convert_folder(options.folder, options.out, options.layout, options.seed)
    except (ValueError, OSError) as error:
        sys.exit(f"{parser.prog}: {error}")
    logger.info("Written: %s", ", ".join(map(str, files)))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
