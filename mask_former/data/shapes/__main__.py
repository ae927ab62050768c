"""Draw the synthetic data set: `python -m mask_former.data.shapes --help`."""

import argparse
import logging
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from detectron2.utils.logger import setup_logger
from detectron2.utils.visualizer import GenericMask, Visualizer
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mask_former.data.coco import Entry, load_instances, load_panoptic
from mask_former.data.datasets import datasets_root
from mask_former.data.shapes import ShapesSpec, ensure_set, set_metadata
from mask_former.data.shapes.drawing import CLASSES, VOID
from mask_former.formats import distinct_colors, id_to_rgb, read_label_map, read_panoptic_map, read_picture

logger = logging.getLogger(__name__)

SHEET_ROWS, SHEET_COLUMNS = 6, 2
PANEL_SIDE = 260  # pixels
TITLES = ("image", "semantic", "panoptic", "instances")


def write_contact_sheet(path: Path, folder: Path, split: str = "val") -> None:
    """Write a picture of the first samples of a set, with their labels drawn beside them."""
    metadata = set_metadata(folder, "panoptic", split)
    instances = load_instances(f"shapes_instance_{split}", metadata)
    samples = zip(load_panoptic("shapes", metadata), instances, strict=True)
    columns = SHEET_COLUMNS * len(TITLES)
    rows = min(SHEET_ROWS, -(-len(instances) // SHEET_COLUMNS))
    figure = Figure((columns * PANEL_SIDE / 100, rows * PANEL_SIDE / 100), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    panels = (panel for sample in samples for panel in _panels(*sample))
    for axis, title, panel in zip(axes, cycle(TITLES), panels, strict=False):
        axis.imshow(panel)
        axis.set_title(title, fontsize=8)
    for axis in axes:
        axis.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    logger.info("Samples and their labels are drawn in %s", path)


def _panels(panoptic: Entry, instances: Entry) -> Iterator[NDArray[np.uint8]]:
    """Yield the image, and each kind of label over it, all read back from the files."""
    image = read_picture(panoptic["file_name"], "RGB")
    semantic = read_label_map(panoptic["sem_seg_file_name"])
    ids = read_panoptic_map(panoptic["pan_seg_file_name"])
    void = [(ids == VOID, [0, 0, 0], "void")] if (ids == VOID).any() else []
    present = [(k, entry) for k, entry in enumerate(CLASSES) if (semantic == k).any()]
    classes = [(semantic == k, entry["color"], entry["name"]) for k, entry in present]
    segments = [
        (ids == info["id"], id_to_rgb(np.array(info["id"])), CLASSES[info["category_id"]]["name"])
        for info in panoptic["segments_info"]
    ]
    annotations = instances["annotations"]
    things = [
        (GenericMask(each["segmentation"], *ids.shape).mask, color, CLASSES[each["category_id"]]["name"])
        for each, color in zip(annotations, distinct_colors(len(annotations)), strict=True)
    ]
    for parts in ([], classes + void, segments + void, things):
        visualizer = Visualizer(image, scale=PANEL_SIDE / min(image.shape[:2]))
        # Masks one by one: Detectron2's method for whole panoptic results fills the holes of things.
        for mask, color, name in parts:
            shade = [channel / 255 for channel in color]
            visualizer.draw_binary_mask(
                mask.astype(np.uint8), shade, edge_color="white", text=name, alpha=0.65
            )
        yield visualizer.output.get_image()


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the set, and a sheet of samples if asked."""
    default = ShapesSpec()
    parser = argparse.ArgumentParser(prog="python -m mask_former.data.shapes", description=__doc__)
    add = parser.add_argument
    where = "the set goes to DIR/shapes (default: $DETECTRON2_DATASETS, or datasets)"
    add("--out", type=Path, default=datasets_root(), metavar="DIR", help=where)
    add("--train", type=int, default=default.train, help="training pictures (%(default)s)")
    add("--val", type=int, default=default.val, help="validation pictures (%(default)s)")
    add("--size", type=int, default=default.size, help="side in pixels (%(default)s)")
    add("--seed", type=int, default=default.seed, help="seed (%(default)s)")
    add("--contact-sheet", type=Path, metavar="FILE", help="draw samples and their labels")
    args = parser.parse_args(arguments)
    if min(args.train, args.val) < 1 or args.size < 32 or args.seed < 0:
        parser.error("--train and --val start at 1, --size at 32, --seed at 0")
    setup_logger(name="mask_former")
    folder = ensure_set(args.out.expanduser(), ShapesSpec(args.train, args.val, args.size, args.seed))
    logger.info("The set is in %s", folder)
    if args.contact_sheet is not None:
        write_contact_sheet(args.contact_sheet.expanduser(), folder)


if __name__ == "__main__":
    main()
