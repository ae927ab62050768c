"""The synthetic set from the command line: `python -m mask_former.data.shapes --help` tells how."""

import argparse
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from detectron2.utils.logger import setup_logger
from detectron2.utils.visualizer import Visualizer
from numpy.typing import NDArray

from mask_former.data.coco import Entry, load_instances, load_panoptic
from mask_former.data.registration import datasets_root
from mask_former.data.shapes import ShapesSpec, ensure_set, set_metadata
from mask_former.data.shapes.drawing import VOID, shape_classes
from mask_former.formats import (
    decode_mask,
    distinct_colors,
    draw_polygons,
    id_to_rgb,
    read_label_map,
    read_panoptic_map,
    read_picture,
)

logger = logging.getLogger(__name__)

SHEET_ROWS, SHEET_COLUMNS = 6, 2
PANEL_SIDE = 260  # pixels
TITLES = ("image", "semantic", "panoptic", "instances")


class Part(NamedTuple):
    """What is drawn over a picture: mask (H, W), colour in 0..255, name."""

    mask: NDArray[np.bool_]
    color: Sequence[float]
    name: str


def draw_contact_sheet(folder: Path, split: str = "val") -> NDArray[np.uint8]:
    """Return a picture (H, W, 3) uint8 RGB of the first samples of a set, with labels drawn beside them."""
    count = SHEET_ROWS * SHEET_COLUMNS
    metadata = set_metadata(folder, "panoptic", split)
    instances = load_instances(f"shapes_instance_{split}", metadata)
    entries = zip(load_panoptic("shapes", metadata), instances, strict=True)
    samples = [_draw_sample(*pair) for pair in itertools.islice(entries, count)]
    blank = np.full_like(samples[0], 255)
    samples += [blank] * (-len(samples) % SHEET_COLUMNS)
    rows = [
        np.concatenate(samples[k : k + SHEET_COLUMNS], axis=1) for k in range(0, len(samples), SHEET_COLUMNS)
    ]
    return np.concatenate(rows)


def _draw_sample(panoptic: Entry, instances: Entry) -> NDArray[np.uint8]:
    """One strip: the image, and each kind of label over it, all read back from the files."""
    image = read_picture(panoptic["file_name"], "RGB")
    semantic = read_label_map(panoptic["sem_seg_file_name"])
    ids = read_panoptic_map(panoptic["pan_seg_file_name"])
    names = [entry["name"] for entry in shape_classes()]
    present = np.intersect1d(semantic, range(len(names)))
    classes = [Part(semantic == k, shape_classes()[k]["color"], names[k]) for k in present]
    segments = [
        Part(ids == info["id"], id_to_rgb(np.array(info["id"])).tolist(), names[info["category_id"]])
        for info in panoptic["segments_info"]
    ]
    annotations = instances["annotations"]
    shapes = [
        Part(_decoded(annotation, *ids.shape), color, names[annotation["category_id"]])
        for annotation, color in zip(annotations, distinct_colors(len(annotations)), strict=True)
    ]
    void = [Part(ids == VOID, [0, 0, 0], "void")] if (ids == VOID).any() else []
    panels = [_drawn(image, parts) for parts in ([], classes + void, segments + void, shapes)]
    framed = [_framed(panel, title) for panel, title in zip(panels, TITLES, strict=True)]
    return np.pad(np.concatenate(framed, axis=1), ((4, 4), (8, 8), (0, 0)), constant_values=255)


def _drawn(image: NDArray[np.uint8], parts: list[Part]) -> NDArray[np.uint8]:
    """The image, enlarged, with coloured and named masks over it.

    Masks one by one: Detectron2's method for whole panoptic results fills the holes of things.
    """
    visualizer = Visualizer(image, scale=PANEL_SIDE / min(image.shape[:2]))
    for part in parts:
        mask, color = part.mask.astype(np.uint8), [channel / 255 for channel in part.color]
        visualizer.draw_binary_mask(mask, color, edge_color="white", text=part.name, alpha=0.65)
    return visualizer.output.get_image()


def _decoded(annotation: dict[str, Any], height: int, width: int) -> NDArray[np.bool_]:
    """The mask of a COCO annotation."""
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        return draw_polygons(segmentation, height, width)
    return decode_mask(segmentation)


def _framed(panel: NDArray[np.uint8], title: str) -> NDArray[np.uint8]:
    """The panel below a line with its title."""
    framed = np.full((PANEL_SIDE + 18, PANEL_SIDE + 4, 3), 255, np.uint8)
    cv2.putText(framed, title, (2, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (40, 40, 40), 1, cv2.LINE_AA)
    height, width = (min(side, PANEL_SIDE) for side in panel.shape[:2])
    framed[18 : 18 + height, 2 : 2 + width] = panel[:height, :width]
    return framed


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the set, and a sheet of samples if asked."""
    default = ShapesSpec()
    parser = argparse.ArgumentParser(prog="python -m mask_former.data.shapes", description=__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        default=datasets_root(),
        metavar="DIR",
        help="the set goes to DIR/shapes (default: $DETECTRON2_DATASETS, or datasets)",
    )
    parser.add_argument("--train", type=int, default=default.train, help="training pictures (%(default)s)")
    parser.add_argument("--val", type=int, default=default.val, help="validation pictures (%(default)s)")
    parser.add_argument("--size", type=int, default=default.size, help="side in pixels (%(default)s)")
    parser.add_argument("--seed", type=int, default=default.seed, help="seed (%(default)s)")
    parser.add_argument("--contact-sheet", type=Path, metavar="FILE", help="draw samples and their labels")
    args = parser.parse_args(arguments)
    if min(args.train, args.val) < 1 or args.size < 32 or args.seed < 0:
        parser.error("--train and --val start at 1, --size at 32, --seed at 0")
    setup_logger(name="mask_former")
    folder = ensure_set(args.out.expanduser(), ShapesSpec(args.train, args.val, args.size, args.seed))
    logger.info("The set is in %s", folder)
    if args.contact_sheet is not None:
        _write_sheet(args.contact_sheet.expanduser(), folder)


def _write_sheet(path: Path, folder: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), np.ascontiguousarray(draw_contact_sheet(folder)[..., ::-1])):
        raise OSError(f"{path} could not be written; name a .png or .jpg file in a writable folder.")
    logger.info("Samples and their labels are drawn in %s", path)


if __name__ == "__main__":
    main()
