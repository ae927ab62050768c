"""The synthetic set as real files, in the formats that users have.

Below the set's folder:

    shapes.json                              what the set is; written last, so a set that has it is complete
    images/{train,val}/000001.jpg            JPEG (the ending that Detectron2 expects), quality 95
    sem_seg/{train,val}/000001.png           8 bit; contiguous class, 255 = void
    panoptic/{train,val}/000001.png          RGB; segment id = R + 256 G + 65536 B, 0 = void
    annotations/panoptic_{train,val}.json    COCO panoptic format
    annotations/instances_{train,val}.json   COCO instance format; polygons, RLE where a shape has a hole
    shapes_video.mp4                         shapes that move
"""

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mask_former.formats import box_of_mask, coco_box, encode_mask, id_to_rgb, rgb_to_id

from .drawing import CLASSES, THING_COUNT, VOID, Canvas, Scene, Thing, draw_scene, new_canvas, sample_thing

logger = logging.getLogger(__name__)

VIDEO = "shapes_video.mp4"
VOID_LABEL = 255
VIDEO_SIZE = (192, 256)  # height, width
VIDEO_FRAMES = 72
VIDEO_RATE = 24  # frames a second


class ShapesSpec(NamedTuple):
    """What a set holds: pictures in each split, side of a picture in pixels, seed of everything random."""

    train: int = 2000
    val: int = 200
    size: int = 96
    seed: int = 0


def write_set(folder: Path, spec: ShapesSpec) -> None:
    """Write a whole set except its marker below `folder`; the same `spec` gives the same bytes."""
    (folder / "annotations").mkdir(parents=True)
    for number, (split, count) in enumerate((("train", spec.train), ("val", spec.val))):
        _write_split(folder, split, count, spec.size, (spec.seed, number))
    _write_video(folder / VIDEO, spec.seed)


def _write_split(folder: Path, split: str, count: int, size: int, seed: tuple[int, int]) -> None:
    for kind in ("images", "sem_seg", "panoptic"):
        (folder / kind / split).mkdir(parents=True)
    images: list[dict[str, Any]] = []
    panoptic: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    for image_id in range(1, count + 1):
        # One generator per picture, so that the first pictures of a larger set are those of a smaller one.
        scene = draw_scene(np.random.default_rng([*seed, image_id]), size, size)
        stem = f"{image_id:06d}"
        infos = _segments_info(scene)
        ids = np.array([VOID, *(info["id"] for info in infos)], np.int32)
        labels = np.array([VOID_LABEL, *scene.classes], np.uint8)
        _write_image(folder / "images" / split / f"{stem}.jpg", scene.image)
        _write_image(folder / "sem_seg" / split / f"{stem}.png", labels[scene.segments])
        _write_image(folder / "panoptic" / split / f"{stem}.png", id_to_rgb(ids[scene.segments]))
        images.append({"id": image_id, "file_name": f"{stem}.jpg", "height": size, "width": size})
        panoptic.append({"image_id": image_id, "file_name": f"{stem}.png", "segments_info": infos})
        for number, (class_index, info) in enumerate(zip(scene.classes, infos, strict=True), start=1):
            if class_index < THING_COUNT:
                outline = mask_to_segmentation(scene.segments == number, info["bbox"])
                own = {"id": len(instances) + 1, "image_id": image_id, "segmentation": outline}
                instances.append(own | {key: info[key] for key in ("category_id", "area", "bbox", "iscrowd")})
    classes = [{**entry, "supercategory": "thing" if entry["isthing"] else "stuff"} for entry in CLASSES]
    info = {"description": "Synthetic shapes with exact labels", "version": "1"}
    labels_of = {"panoptic": (panoptic, classes), "instances": (instances, classes[:THING_COUNT])}
    for kind, (annotations, categories) in labels_of.items():
        content = {"info": info, "licenses": [], "images": images, "annotations": annotations}
        text = json.dumps(content | {"categories": categories}, separators=(",", ":"))
        (folder / f"annotations/{kind}_{split}.json").write_text(text)


def _segments_info(scene: Scene) -> list[dict[str, Any]]:
    """Return one COCO panoptic entry a segment; the ids are visible colours.

    The first segment of a class has the colour of the class, further ones a changed one.
    """
    infos: dict[int, dict[str, Any]] = {}
    for number, class_index in enumerate(scene.classes, start=1):
        category, mask = CLASSES[class_index], scene.segments == number
        color = np.array(category["color"], np.uint8)
        while int(rgb_to_id(color)) in infos:
            color += np.array([53, 200, 97], np.uint8)
        segment_id = int(rgb_to_id(color))
        infos[segment_id] = {
            "id": segment_id,
            "category_id": category["id"],
            "area": int(mask.sum()),
            "bbox": coco_box(box_of_mask(mask)),
            "iscrowd": 0,
        }
    return list(infos.values())


def mask_to_segmentation(mask: NDArray[np.bool_], bbox: list[int]) -> list[list[float]] | dict[str, Any]:
    """Return a mask (H, W) as COCO polygons that decode to exactly it, or as compressed RLE if it has a hole.

    A polygon runs a quarter of a pixel inside the outer edge of its pixels. So it contains the centres of
    these pixels and of no others, which decides what decoders fill.
    """
    left, top, width, height = bbox
    window = mask[top : top + height, left : left + width].astype(np.uint8)
    doubled = window.repeat(2, axis=0).repeat(2, axis=1)
    outlines, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if (hierarchy[0, :, 3] >= 0).any():  # a contour with a parent is a hole
        return encode_mask(mask)
    return [((outline[:, 0] + 0.5) / 2 + (left, top)).ravel().tolist() for outline in outlines]


def _write_video(path: Path, seed: int) -> None:
    """Write three seconds of moving shapes for the demo, or nothing and a warning without a codec."""
    height, width = VIDEO_SIZE
    rng = np.random.default_rng([seed, 2])
    ground = new_canvas(rng, height, width, parts=3)
    things = [sample_thing(rng, height, width, class_index=k) for k in range(THING_COUNT)]
    speeds = rng.uniform(1.0, 2.5, (len(things), 2)) * rng.choice([-1, 1], (len(things), 2))
    spins = rng.uniform(-0.05, 0.05, len(things))
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), VIDEO_RATE, (width, height))
    for frame in range(VIDEO_FRAMES):
        canvas = Canvas(ground.picture.copy(), ground.segments.copy(), list(ground.classes), [])
        for thing, speed, spin in zip(things, speeds, spins, strict=True):
            canvas.add(_moved(thing, frame * speed, frame * spin, height, width), always=True)
        writer.write(np.ascontiguousarray(canvas.finish(rng).image[..., ::-1]))
    writer.release()
    capture = cv2.VideoCapture(str(path))
    is_readable = capture.read()[0]
    capture.release()
    if not is_readable:  # OpenCV does not report a missing codec
        path.unlink(missing_ok=True)
        logger.warning(
            "No %s: it could not be read back, so this OpenCV seems to have no mp4v codec. Install "
            "opencv-python or opencv-python-headless from PyPI if you need the video.",
            path.name,
        )


def _moved(thing: Thing, shift: NDArray[np.float64], turn: float, height: int, width: int) -> Thing:
    """Return the thing after a straight move that bounces off the sides of the picture."""
    x = width - abs((thing.x + shift[0]) % (2 * width) - width)
    y = height - abs((thing.y + shift[1]) % (2 * height) - height)
    return thing._replace(x=float(x), y=float(y), angle=thing.angle + turn, has_void_outline=False)


def _write_image(path: Path, pixels: NDArray[np.uint8]) -> None:
    quality = [cv2.IMWRITE_JPEG_QUALITY, 95] if path.suffix == ".jpg" else []
    bgr = np.ascontiguousarray(pixels[..., ::-1]) if pixels.ndim == 3 else pixels
    if not cv2.imwrite(str(path), bgr, quality):
        raise OSError(f"{path} could not be written; is there space left and is the folder writable?")
