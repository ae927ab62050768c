"""The synthetic set from the command line: `python -m mask_former.data.shapes --help` tells how."""

import argparse
import colorsys
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from detectron2.utils.logger import setup_logger
from detectron2.utils.visualizer import Visualizer
from numpy.typing import NDArray
from PIL import Image

from mask_former.data.shapes_catalog import (
    Record,
    datasets_root,
    ensure_set,
    load_instances,
    load_panoptic,
    register,
)
from mask_former.data.shapes_drawing import VOID, class_table
from mask_former.data.shapes_files import ShapesSpec
from mask_former.formats import decode_mask, draw_polygons, id_to_rgb, rgb_to_id

__all__ = ["ShapesSpec", "draw_contact_sheet", "ensure_set", "main", "register"]

logger = logging.getLogger(__name__)

Picture = NDArray[np.uint8]
SHEET_ROWS, SHEET_COLUMNS = 6, 2
PANEL_SIDE = 260  # pixels
TITLES = ("image", "semantic", "panoptic", "instances")


class Part(NamedTuple):
    """What is drawn over a picture: mask (H, W), colour in 0..255, name."""

    mask: NDArray[np.bool_]
    color: list[float]
    name: str


def draw_contact_sheet(folder: Path, split: str = "val") -> Picture:
    """Return a picture (H, W, 3) uint8 RGB of the first samples of a set, with labels drawn beside them."""
    count = SHEET_ROWS * SHEET_COLUMNS
    panoptic, instances = load_panoptic(folder, split)[:count], load_instances(folder, split)[:count]
    samples = [_draw_sample(*pair) for pair in zip(panoptic, instances, strict=True)]
    blank = np.full_like(samples[0], 255)
    samples += [blank] * (-len(samples) % SHEET_COLUMNS)
    rows = [
        np.concatenate(samples[k : k + SHEET_COLUMNS], axis=1) for k in range(0, len(samples), SHEET_COLUMNS)
    ]
    return np.concatenate(rows)


def _draw_sample(panoptic: Record, instances: Record) -> Picture:
    """One strip: the image, and each kind of label over it, all read back from the files."""
    image = np.asarray(Image.open(panoptic["file_name"]))
    semantic = np.asarray(Image.open(panoptic["sem_seg_file_name"]))
    ids = rgb_to_id(np.asarray(Image.open(panoptic["pan_seg_file_name"])))
    names = [entry["name"] for entry in class_table()]
    present = np.intersect1d(semantic, range(len(names)))
    classes = [Part(semantic == k, class_table()[k]["color"], names[k]) for k in present]
    segments = [
        Part(ids == info["id"], id_to_rgb(np.array(info["id"])).tolist(), names[info["category_id"]])
        for info in panoptic["segments_info"]
    ]
    shapes = [
        Part(_decoded(annotation, *ids.shape), _nth_color(k), names[annotation["category_id"]])
        for k, annotation in enumerate(instances["annotations"])
    ]
    void = [Part(ids == VOID, [0, 0, 0], "void")] if (ids == VOID).any() else []
    panels = [_drawn(image, parts) for parts in ([], classes + void, segments + void, shapes)]
    framed = [_framed(panel, title) for panel, title in zip(panels, TITLES, strict=True)]
    return np.pad(np.concatenate(framed, axis=1), ((4, 4), (8, 8), (0, 0)), constant_values=255)


def _drawn(image: Picture, parts: list[Part]) -> Picture:
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


def _nth_color(k: int) -> list[float]:
    """Colours that differ well from those just before: hues a golden section apart."""
    return [255 * channel for channel in colorsys.hsv_to_rgb(0.618 * k % 1, 0.85, 1.0)]


def _framed(panel: Picture, title: str) -> Picture:
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
