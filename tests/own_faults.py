"""Faults that are planted in small data sets: what is done to the set, and what has to be said about it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from own_sets import HEIGHT, WIDTH, all_pictures, box_polygon, label, picture, save
from PIL import ExifTags, Image

LABEL = "labels/train/a.png"
JSON = "annotations/instances_train.json"
PANOPTIC = "annotations/panoptic_train.json"
TABLE = "data.yaml"


class Planted(NamedTuple):
    """A fault in one of `own_sets.SETS`.

    plant: changes the folder of the set.
    where, remedy: parts of the one line that has to name the fault.
    stops: whether a person has to decide.
    """

    name: str
    base: str
    plant: Callable[[Path], object]
    where: str
    remedy: str
    stops: bool = True


def edit(file: str, change: Callable[[Any], object]) -> Callable[[Path], object]:
    """Return what changes the content of a JSON file."""

    def plant(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        change(content)
        (folder / file).write_text(json.dumps(content))

    return plant


def set_in(part: str, number: int, **values: Any) -> Callable[[Any], object]:
    return lambda content: content[part][number].update(values)


def without(part: str, number: int, *keys: str) -> Callable[[Any], object]:
    return lambda content: [content[part][number].pop(key) for key in keys]


def polygon(*numbers: Any) -> Callable[[Path], object]:
    return edit(JSON, set_in("annotations", 0, segmentation=[list(numbers)]))


def run_lengths(**values: Any) -> Callable[[Path], object]:
    return edit(JSON, lambda content: content["annotations"][1]["segmentation"].update(values))


def segment(**values: Any) -> Callable[[Path], object]:
    return edit(PANOPTIC, lambda content: content["annotations"][0]["segments_info"][0].update(values))


def values(file: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], object]:
    return lambda folder: save(folder / file, change(label()))


def all_labels(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], object]:
    return lambda folder: [save(folder / f"labels/{s}/{n}.png", change(label())) for s, n in all_pictures()]


def saved(file: str, image: Callable[[], Image.Image], **options: Any) -> Callable[[Path], object]:
    return lambda folder: image().save(folder / file, **options)


def cut(file: str, size: int) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:size])


def text(file: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_text(content)


def move(source: str, target: str) -> Callable[[Path], object]:
    return lambda folder: shutil.move(folder / source, folder / target)


def copy(source: str, target: str) -> Callable[[Path], object]:
    return lambda folder: shutil.copy(folder / source, folder / target)


def remove(file: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).unlink()


def lists(**files: str) -> Callable[[Path], object]:
    """Put all pictures into one folder, and name those of each split in a list."""

    def plant(folder: Path) -> None:
        for split, name in all_pictures():
            for part in ("images", "labels"):
                shutil.move(folder / f"{part}/{split}/{name}.png", folder / f"{part}/{name}.png")
        for part in ("images", "labels"):
            for split in ("train", "val"):
                (folder / part / split).rmdir()
        for split, names in files.items():
            (folder / f"{split}.txt").write_text("\n".join(names.split()))

    return plant


def with_palette(colors: list[int]) -> Image.Image:
    image = Image.fromarray(label() % 3, mode="P")
    image.putpalette(colors)
    return image


def palettes(folder: Path) -> None:
    usual = [0, 0, 0, 128, 0, 0, 0, 128, 0]
    for split, name in all_pictures():
        with_palette(usual).save(folder / f"labels/{split}/{name}.png")
    with_palette(usual[::-1]).save(folder / LABEL)


def turned_by_exif(folder: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(picture("a")).save(folder / "images/train/a.png", exif=exif)


def stretched(values: np.ndarray) -> np.ndarray:
    return np.where(values == 255, 0, values * 85).astype(np.uint8)


def smoothed() -> Image.Image:
    return Image.fromarray(label() % 3 * 100).resize((WIDTH * 3, HEIGHT * 3)).resize((WIDTH, HEIGHT), 2)


def smooth_mask() -> Image.Image:
    mask = Image.fromarray(np.uint8(255 * (label() == 1)))
    return mask.resize((WIDTH // 4, HEIGHT // 4)).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)


def third_value(folder: Path) -> None:
    (folder / "classes.txt").write_text("background\nroad")
    save(folder / "masks/train/a.png", np.uint8(100 * (label() == 1)))


def color_label() -> Image.Image:
    return Image.fromarray(np.array([(10, 20, 30), (200, 0, 0), (0, 200, 0)], np.uint8)[label() % 3])


def jpeg_of(image: Image.Image) -> dict[str, Any]:
    return {"format": "JPEG", "quality": 60}


def labelme_points(points: list[list[float]], **others: Any) -> Callable[[Path], object]:
    return edit("train/a.json", set_in("shapes", 0, points=points, **others))


SEMANTIC = [
    Planted(
        "masks of 0 and 255",
        "semantic",
        all_labels(lambda v: np.uint8(255 * (v == 1))),
        "semantic: every pixel is 0 (sky) or void",
        "Write 1 in place of 255",
    ),
    Planted(
        "all void",
        "semantic",
        all_labels(lambda v: np.full_like(v, 255)),
        "semantic: no label has a pixel",
        "Check the labels' export",
    ),
    Planted(
        "one void",
        "semantic",
        values(LABEL, lambda v: np.full_like(v, 255)),
        f"{LABEL}: every pixel is void",
        "label it, or take it out",
        stops=False,
    ),
    Planted(
        "all one class",
        "semantic",
        all_labels(np.zeros_like),
        "semantic: every pixel is 0 (sky)",
        "check the labels' export",
    ),
    Planted(
        "value outside",
        "semantic",
        values(LABEL, lambda v: np.where(v == 2, 7, v).astype(np.uint8)),
        f"{LABEL}: values 0, 1, 7, 255; 7 is no class",
        "Expected 0 to 2, and 255 for void",
    ),
    Planted(
        "off by one everywhere",
        "semantic",
        all_labels(lambda v: np.where(v < 3, v + 1, v)),
        f"{LABEL}: values 1, 2, 3, 255; 3 is no class",
        "subtract 1",
    ),
    Planted(
        "off by one in a file",
        "semantic",
        values(LABEL, lambda v: np.where(v < 3, v + 1, v)),
        f"{LABEL}: values 1, 2, 3, 255; 3 is no class",
        "subtract 1",
    ),
    Planted(
        "other size",
        "semantic",
        values(LABEL, lambda v: v[:8, :8]),
        f"{LABEL}: the label is 8x8, its picture",
        "export the label at the picture's size",
    ),
    Planted(
        "turned label",
        "semantic",
        values(LABEL, lambda v: v.T.copy()),
        f"{LABEL}: the label is 16x24, its picture",
        "turned by a quarter",
    ),
    Planted("EXIF", "semantic", turned_by_exif, f"{LABEL}: the label is 24x16, its picture", "EXIF"),
    Planted(
        "JPEG label",
        "semantic",
        lambda f: (Image.open(f / LABEL).save(f / "labels/train/a.jpg"), (f / LABEL).unlink()),
        "labels/train/a.jpg: the label is a JPEG file",
        "as PNG",
    ),
    Planted(
        "JPEG called PNG",
        "semantic",
        saved(LABEL, lambda: Image.fromarray(label()), format="JPEG"),
        f"{LABEL}: the label is a JPEG file, whatever its name",
        "as PNG",
    ),
    Planted(
        "lossy WebP called PNG",
        "semantic",
        saved(LABEL, lambda: color_label(), format="WEBP"),
        f"{LABEL}: the label is a WEBP file",
        "as PNG",
    ),
    Planted("palettes", "semantic", palettes, f"{LABEL}: index 0 has colour (0, 128, 0) here", "one palette"),
    Planted(
        "RGB label",
        "semantic",
        saved(LABEL, color_label),
        f"{LABEL}: a label of 3 colours (mode RGB)",
        "classes.json",
    ),
    Planted(
        "RGBA label",
        "semantic",
        saved(LABEL, lambda: color_label().convert("RGBA")),
        f"{LABEL}: a label of 3 colours and transparency",
        "classes.json",
    ),
    Planted(
        "grey as RGB",
        "semantic",
        saved(LABEL, lambda: Image.fromarray(label()).convert("RGB")),
        f"{LABEL}: a grey label saved in mode RGB, values 0, 1, 2, 255",
        "Keep one channel",
    ),
    Planted(
        "grey with transparency",
        "semantic",
        saved(LABEL, lambda: Image.fromarray(label()).convert("LA")),
        f"{LABEL}: a grey label saved in mode LA",
        "Keep one channel",
    ),
    Planted(
        "16 bits stretched",
        "semantic",
        values(LABEL, lambda v: np.where(v == 255, 0, v).astype(np.uint16) * 257),
        f"{LABEL}: values 0, 257, 514",
        "Divide the values by 257",
    ),
    Planted(
        "stretched to be visible",
        "semantic",
        values(LABEL, stretched),
        f"{LABEL}: values 0, 85, 170",
        "Divide the values by 85",
    ),
    Planted("smoothed", "semantic", saved(LABEL, smoothed), f"{LABEL}: values 0, ", "without interpolation"),
    Planted(
        "void of 16 bits",
        "semantic",
        values(LABEL, lambda v: np.where(v == 255, 65535, v.astype(np.uint16))),
        f"{LABEL}: values 0, 1, 2, 65535",
        "write 255 for it",
    ),
    Planted(
        "truncated picture",
        "semantic",
        cut("images/train/a.png", 300),
        "images/train/a.png: cannot be read",
        "Get it again",
    ),
    Planted("truncated label", "semantic", cut(LABEL, 60), f"{LABEL}: ", "Get it again"),
    Planted(
        "empty picture file",
        "semantic",
        cut("images/train/a.png", 0),
        "images/train/a.png: the file is empty",
        "Get it again",
    ),
    Planted("empty label file", "semantic", cut(LABEL, 0), f"{LABEL}: the file is empty", "Get it again"),
    Planted(
        "no picture at all",
        "semantic",
        text("images/train/a.png", "<html>404</html>"),
        "images/train/a.png: cannot be read",
        "Get it again",
    ),
    Planted("no label", "semantic", remove(LABEL), "images/train/a.png: it has no label", "left out", False),
    Planted(
        "label alone",
        "semantic",
        remove("images/train/a.png"),
        f"{LABEL}: no picture has the name",
        "rename it",
        stops=False,
    ),
    Planted(
        "train in val",
        "semantic",
        copy("images/train/a.png", "images/val/d.png"),
        "images/val/d.png: the same picture as",
        "take one of them out",
    ),
    Planted(
        "copies",
        "semantic",
        copy("images/train/a.png", "images/train/b.png"),
        "images/train/b.png: the same picture as",
        "One of them is enough",
        stops=False,
    ),
    Planted(
        "class never seen",
        "semantic",
        all_labels(lambda v: np.where(v == 2, 1, v).astype(np.uint8)),
        "classes.txt: no training picture shows car",
        "order of the classes",
        stops=False,
    ),
    Planted("class twice", "semantic", text("classes.txt", "sky\nroad\nroad"), "classes.txt", "of its own"),
    Planted(
        "listed in both splits",
        "semantic",
        lists(train="a b c", val="c d e"),
        "images/c.png: the same picture as",
        "take one of them out",
    ),
    Planted("listed, but missing", "semantic", lists(train="a b c x", val="d e"), "train.txt", "x"),
    Planted(
        "smooth class mask",
        "class_masks",
        saved("masks/train/car/a.png", smooth_mask),
        "masks/train/car/a.png: values 0, ",
        "without smoothing",
    ),
    Planted(
        "class masks of two sizes",
        "class_masks",
        lambda f: save(f / "masks/train/road/a.png", np.zeros((5, 5), np.uint8)),
        "masks/train/road/a.png",
        "of a picture have one size",
    ),
    Planted(
        "third value", "binary", third_value, "masks/train/a.png: values 0, 100", "Divide the values by 100"
    ),
    Planted(
        "unknown colour",
        "colored",
        lambda f: save(f / "labels/train/a.png", np.full((HEIGHT, WIDTH, 3), 77, np.uint8)),
        "labels/train/a.png: ",
        "colours of the classes",
    ),
]

INSTANCE = [
    Planted(
        "image without id", "coco", edit(JSON, without("images", 0, "id")), f"{JSON}, images[0]", "Add it"
    ),
    Planted(
        "image id twice",
        "coco",
        edit(JSON, set_in("images", 1, id=1)),
        f"{JSON}, images: id 1 occurs more than once",
        "number them anew",
    ),
    Planted(
        "file listed twice",
        "coco",
        edit(JSON, set_in("images", 1, file_name="a.png")),
        f"{JSON}, images: file_name a.png occurs",
        "List each picture once",
    ),
    Planted(
        "image without file",
        "coco",
        edit(JSON, without("images", 0, "file_name")),
        f"{JSON}, images[1]: there is no 'file_name'",
        "Add the name",
    ),
    Planted(
        "annotation id twice",
        "coco",
        edit(JSON, set_in("annotations", 1, id=1)),
        f"{JSON}, annotations: id 1 occurs",
        "numbered anew",
        stops=False,
    ),
    Planted(
        "annotation without id",
        "coco",
        edit(JSON, without("annotations", 0, "id")),
        f"{JSON}, annotations[0]: there is no 'id'",
        "numbered anew",
        stops=False,
    ),
    *(
        Planted(
            f"no {key}",
            "coco",
            edit(JSON, without("annotations", number, key)),
            f"{JSON}, annotations[{number + 1}]: there is no {key!r}",
            remedy,
            stops=False,
        )
        for key, number, remedy in (
            ("area", 0, "counted in the mask"),
            ("bbox", 0, "taken from the mask"),
            ("bbox", 1, "taken from the mask"),
            ("iscrowd", 0, "taken as 0"),
        )
    ),
    Planted(
        "no size",
        "coco",
        edit(JSON, without("images", 0, "width", "height")),
        f"{JSON}, images[1]: there is no 'width'",
        "taken from the picture",
        stops=False,
    ),
    Planted(
        "two points",
        "coco",
        polygon(1, 1, 5, 5),
        "train/a.png, annotation 1: a polygon of 2 points",
        "three or more",
    ),
    Planted(
        "half a point",
        "coco",
        polygon(1, 1, 5, 5, 1, 5, 3),
        "train/a.png, annotation 1: a polygon of 7 numbers",
        "in pairs",
    ),
    Planted(
        "normalised",
        "coco",
        polygon(0.1, 0.1, 0.5, 0.1, 0.5, 0.6),
        "train/a.png, annotation 1: x 0.1 to 0.5",
        "multiply x by the width",
    ),
    Planted(
        "outside",
        "coco",
        polygon(*box_polygon(30, 3, 9, 9)),
        "train/a.png, annotation 1: x 30 to 39",
        "inside the picture",
    ),
    Planted(
        "x and y swapped",
        "coco",
        polygon(1, 2, 15, 2, 15, 22),
        "train/a.png, annotation 1: x 1 to 15, y 2 to 22",
        "x and y may be swapped",
    ),
    Planted(
        "negative",
        "coco",
        polygon(*box_polygon(-9, 3, 12, 9)),
        "train/a.png, annotation 1: x -9 to 3",
        "inside the picture",
    ),
    Planted("no number", "coco", polygon(1, 1, 5, None, 1, 5), "annotation 1: a coordinate is None", "Draw"),
    Planted(
        "not finite",
        "coco",
        polygon(1, 1, 5, float("nan"), 1, 5),
        "annotation 1: a coordinate is nan",
        "Draw it again",
    ),
    Planted(
        "text", "coco", polygon("1", "1", "5", "1", "5", "5"), "annotation 1: a coordinate is '1'", "Draw"
    ),
    Planted(
        "flat list",
        "coco",
        edit(JSON, set_in("annotations", 0, segmentation=box_polygon(2, 3, 8, 6))),
        "annotation 1: one flat list of numbers",
        "[[x1, y1, ...]]",
    ),
    Planted(
        "no area",
        "coco",
        polygon(1, 1, 5, 5, 9, 9),
        "train/a.png, annotation 1: a polygon of 3 points covers no area",
        "trains nothing",
        stops=False,
    ),
    Planted(
        "corners as box",
        "coco",
        edit(JSON, set_in("annotations", 0, bbox=[2, 3, 10, 9])),
        "train/a.png, annotation 1: the box is [2, 3, 10, 9]",
        "taken from the mask",
        stops=False,
    ),
    Planted(
        "wrong box",
        "coco",
        edit(JSON, set_in("annotations", 0, bbox=[0, 0, 1, 1])),
        "train/a.png, annotation 1: the box is [0, 0, 1, 1]",
        "taken from the mask",
        stops=False,
    ),
    Planted(
        "size swapped",
        "coco",
        run_lengths(size=[WIDTH, HEIGHT]),
        "train/a.png, annotation 2: run lengths of size [24, 16]",
        "COCO writes [height, width]",
    ),
    Planted(
        "other mask size",
        "coco",
        run_lengths(size=[99, 98]),
        "train/a.png, annotation 2: run lengths of size [99, 98]",
        "at the picture's size",
    ),
    Planted(
        "wrong sum",
        "coco",
        run_lengths(counts=[10, 20, 30]),
        "train/a.png, annotation 2: the counts add up to 60",
        "Encode the mask again",
    ),
    Planted(
        "no counts",
        "coco",
        edit(JSON, set_in("annotations", 1, segmentation={"size": [HEIGHT, WIDTH]})),
        "annotation 2: run lengths with the keys size",
        "Expected 'size'",
    ),
    Planted(
        "unknown category",
        "coco",
        edit(JSON, set_in("annotations", 0, category_id=4)),
        f"{JSON}, annotation 1 (picture a.png): category_id 4 is none",
        "add the category",
    ),
    Planted(
        "category as text",
        "coco",
        edit(JSON, set_in("annotations", 0, category_id="3")),
        f"{JSON}, annotation 1: category_id '3'",
        "taken as that number",
        stops=False,
    ),
    Planted(
        "image id as text",
        "coco",
        edit(JSON, set_in("annotations", 0, image_id="1")),
        f"{JSON}, annotation 1: image_id '1'",
        "Write ids as numbers",
    ),
    Planted(
        "orphan",
        "coco",
        edit(JSON, set_in("annotations", 0, image_id=99)),
        f"{JSON}, annotation 1: image_id 99",
        "left out",
        stops=False,
    ),
    Planted(
        "all orphans",
        "coco",
        edit(JSON, lambda c: [a.update(image_id=99) for a in c["annotations"]]),
        f"{JSON}, annotation 1: image_id 99",
        "of one export",
    ),
    Planted(
        "boxes alone",
        "coco",
        edit(JSON, set_in("annotations", 0, segmentation=[])),
        "train/a.png, annotation 1: 'segmentation' is []",
        "Boxes alone",
    ),
    Planted(
        "no segmentation",
        "coco",
        edit(JSON, without("annotations", 0, "segmentation")),
        "train/a.png, annotation 1: no 'segmentation'",
        "Boxes alone",
    ),
    Planted(
        "no category",
        "coco",
        edit(JSON, without("annotations", 0, "category_id")),
        f"{JSON}, annotations[1] (picture a.png): there is no 'category_id'",
        "Add it",
    ),
    Planted(
        "no image",
        "coco",
        edit(JSON, without("annotations", 0, "image_id")),
        f"{JSON}, annotations[1]: there is no 'image_id'",
        "Name the picture",
    ),
    Planted(
        "picture missing", "coco", remove("train/a.png"), "train/a.png: there is no such file", "Expected"
    ),
    Planted(
        "other suffix",
        "coco",
        move("train/a.png", "train/a.PNG"),
        "train/a.png: there is no such file",
        "there is a.PNG",
    ),
    Planted(
        "other size stated",
        "coco",
        edit(JSON, set_in("images", 0, width=48, height=32)),
        "train/a.png: the labels' file says 48x32",
        "Correct width and height",
    ),
    Planted(
        "annotation twice",
        "coco",
        edit(JSON, lambda c: c["annotations"].append({**c["annotations"][0], "id": 99})),
        f"{JSON}, annotation 99: the same picture, category and mask",
        "Take one of each",
    ),
    Planted(
        "crowd flag",
        "coco",
        edit(JSON, set_in("annotations", 0, iscrowd=2)),
        "annotation 1: 'iscrowd' is 2",
        "Expected 0 or 1",
    ),
    Planted(
        "category id twice",
        "coco",
        edit(JSON, set_in("categories", 1, id=3)),
        f"{JSON}, categories: id 3 occurs",
        "of its own",
    ),
    Planted(
        "category name twice",
        "coco",
        edit(JSON, set_in("categories", 1, name="car")),
        f"{JSON}, categories: name car occurs",
        "of its own",
    ),
    Planted(
        "category without name",
        "coco",
        edit(JSON, without("categories", 0, "name")),
        f"{JSON}, categories[3]: there is no 'name'",
        "Add it",
    ),
    Planted(
        "category without id",
        "coco",
        edit(JSON, without("categories", 0, "id")),
        f"{JSON}, categories[0]: there is no 'id'",
        "Add it",
    ),
    Planted("truncated JSON", "coco", cut(JSON, 200), f"{JSON}", "get it again"),
    Planted(
        "no list",
        "coco",
        edit(JSON, lambda c: c.pop("categories")),
        f"{JSON}: there is no list 'categories'",
        "export it again",
    ),
    Planted(
        "no annotation",
        "coco",
        edit(JSON, lambda c: c["annotations"].clear()),
        f"{JSON}: 'annotations' is empty",
        "export it again",
    ),
    Planted(
        "unlisted picture",
        "coco",
        lambda f: save(f / "train/x.png", picture("x")),
        "train/x.png: no annotation file lists it",
        "add it to 'images'",
        stops=False,
    ),
    Planted(
        "copied into val",
        "coco",
        copy("train/a.png", "val/d.png"),
        "val/d.png: the same picture as",
        "take one of them out",
    ),
    Planted("truncated picture of COCO", "coco", cut("train/a.png", 300), "train/a.png: cannot be", "Get it"),
]

PANOPTIC_FAULTS = [
    Planted(
        "id only in the PNG",
        "panoptic",
        segment(id=1001),
        "panoptic_train/a.png: segment ids 1000 of the PNG are not in the JSON",
        "of one release",
    ),
    Planted(
        "id only in the JSON",
        "panoptic",
        edit(PANOPTIC, lambda c: c["annotations"][0]["segments_info"].append({"id": 9, "category_id": 5})),
        "panoptic_train/a.png: segment ids 9 of the JSON have no pixel",
        "left out",
        stops=False,
    ),
    Planted(
        "id twice",
        "panoptic",
        segment(id=2000),
        f"{PANOPTIC}, annotation 1 (picture a.png): two segments of a picture share",
        "of its own",
    ),
    Planted(
        "id 0",
        "panoptic",
        segment(id=0),
        f"{PANOPTIC}, annotation 1 (picture a.png): a segment has the id 0",
        "from 1",
    ),
    Planted(
        "no isthing",
        "panoptic",
        edit(PANOPTIC, without("categories", 2, "isthing")),
        f"{PANOPTIC}, categories[5]: there is no 'isthing'",
        "1 for objects",
    ),
    Planted(
        "unknown panoptic category",
        "panoptic",
        segment(category_id=77),
        f"{PANOPTIC}, annotation 1000 (picture a.png): category_id 77",
        "add the category",
    ),
    Planted(
        "PNG missing",
        "panoptic",
        remove("panoptic_train/b.png"),
        "panoptic_train/b.png: there is no such file",
        "Expected it here",
    ),
    Planted(
        "PNG truncated", "panoptic", cut("panoptic_train/a.png", 80), "panoptic_train/a.png: ", "Get it again"
    ),
    Planted(
        "PNG grey",
        "panoptic",
        values("panoptic_train/a.png", lambda v: v),
        "panoptic_train/a.png: the file has mode L",
        "three 8-bit channels",
    ),
    Planted(
        "PNG is a JPEG",
        "panoptic",
        saved("panoptic_train/a.png", color_label, format="JPEG"),
        "panoptic_train/a.png: the label is a JPEG file",
        "as PNG",
    ),
    Planted(
        "PNG of another size",
        "panoptic",
        lambda f: (
            Image.open(f / "panoptic_train/a.png").crop((0, 0, 20, 16)).save(f / "panoptic_train/a.png")
        ),
        "panoptic_train/a.png: the label is 20x16",
        "at the picture's size",
    ),
    Planted(
        "all void PNG",
        "panoptic",
        lambda f: save(f / "panoptic_train/a.png", np.zeros((HEIGHT, WIDTH, 3), np.uint8)),
        "panoptic_train/a.png: every pixel is void",
        "label it",
        stops=False,
    ),
    Planted(
        "picture annotated twice",
        "panoptic",
        edit(PANOPTIC, lambda c: c["annotations"].append(c["annotations"][0])),
        f"{PANOPTIC}, annotations: image_id 1 occurs",
        "Keep one annotation",
    ),
    Planted(
        "picture not annotated",
        "panoptic",
        edit(PANOPTIC, lambda c: c["annotations"].pop()),
        f"{PANOPTIC}, c.png: no annotation",
        "left out",
        stops=False,
    ),
    Planted(
        "no thing",
        "panoptic",
        lambda f: [
            edit(f"annotations/panoptic_{split}.json", set_in("categories", 2, isthing=0))(f)
            for split in ("train", "val")
        ],
        f"{PANOPTIC}: no class is a thing",
        "Set 'isthing' to 1",
        stops=False,
    ),
    Planted(
        "no segments",
        "panoptic",
        edit(PANOPTIC, without("annotations", 0, "segments_info")),
        f"{PANOPTIC}, annotations[0] (picture a.png): there is no 'segments_info'",
        "Add it",
    ),
    Planted(
        "segment without category",
        "panoptic",
        edit(PANOPTIC, lambda c: c["annotations"][0]["segments_info"][0].pop("category_id")),
        f"{PANOPTIC}, annotation 1 (picture a.png): a segment has no 'category_id'",
        "Add it",
    ),
]

YOLO = [
    Planted(
        "class too high",
        "yolo",
        text("train/labels/a.txt", "2 0.1 0.1 0.5 0.1 0.5 0.6"),
        "train/labels/a.txt, line 1: class 2",
        "Expected 0 to 1",
    ),
    Planted(
        "class no integer",
        "yolo",
        text("train/labels/a.txt", "0.5 0.1 0.1 0.5 0.1 0.5 0.6"),
        "train/labels/a.txt, line 1: class 0.5",
        "Expected 0 to 1",
    ),
    Planted(
        "YOLO boxes",
        "yolo",
        text("train/labels/a.txt", "0 0.5 0.5 0.2 0.2"),
        "train/labels/a.txt, line 1: a box",
        "for segmentation",
    ),
    Planted(
        "in pixels",
        "yolo",
        text("train/labels/a.txt", "0 2 2 12 2 12 9"),
        "train/labels/a.txt, line 1: coordinates up to 12",
        "divide x by the width",
    ),
    Planted(
        "YOLO line",
        "yolo",
        text("train/labels/a.txt", "0 0.1 0.1 0.5 0.5 0.1"),
        "train/labels/a.txt, line 1: a polygon of 5 numbers",
        "in pairs",
    ),
    Planted(
        "one point",
        "yolo",
        text("train/labels/a.txt", "0 0.1 0.1"),
        "train/labels/a.txt, line 1: a polygon of 1 points",
        "three or more",
    ),
    Planted(
        "beyond the edge",
        "yolo",
        text("train/labels/a.txt", "0 -0.3 0.1 0.5 0.1 0.5 0.6"),
        "train/labels/a.txt, line 1: x ",
        "inside the picture",
    ),
    Planted(
        "words",
        "yolo",
        text("train/labels/a.txt", "car 0.1 0.1 0.5 0.1 0.5 0.6"),
        "train/labels/a.txt, line 1: 'car'",
        "Expected class x1 y1",
    ),
    Planted(
        "no text",
        "yolo",
        lambda f: (f / "train/labels/a.txt").write_bytes(b"\xff\xfe\x00\x81" * 9),
        "train/labels/a.txt: it is not text",
        "get the file again",
    ),
    Planted(
        "nc",
        "yolo",
        text(TABLE, "train: train/images\nval: val/images\nnc: 3\nnames: [car, dog]"),
        f"{TABLE}: 'nc' is 3",
        "set nc to 2",
    ),
    Planted(
        "YOLO name twice",
        "yolo",
        text(TABLE, "train: train/images\nval: val/images\nnames: [car, car]"),
        f"{TABLE}: 'names' has 'car' more than once",
        "of its own",
    ),
    Planted(
        "no names",
        "yolo",
        text(TABLE, "train: train/images\nval: val/images"),
        f"{TABLE}: 'names' is None",
        "Expected the list",
    ),
    Planted("no YAML", "yolo", text(TABLE, "train: [\nnames"), f"{TABLE}: it is not YAML", "Correct"),
    Planted(
        "YOLO label alone",
        "yolo",
        text("train/labels/x.txt", ""),
        "train/labels/x.txt: no picture has the name",
        "rename it",
        stops=False,
    ),
    Planted(
        "YOLO picture alone",
        "yolo",
        remove("train/labels/a.txt"),
        "train/images/a.png: it has no label file",
        "without objects",
        stops=False,
    ),
]

LABELME = [
    Planted(
        "unknown label",
        "labelme",
        labelme_points([[2, 2], [9, 2], [9, 8]], label="cat"),
        "train/a.json, shape 0: label 'cat' is none of car, dog",
        "add the class",
    ),
    Planted(
        "no label name",
        "labelme",
        labelme_points([[2, 2], [9, 2], [9, 8]], label=""),
        "train/a.json, shape 0: its label is ''",
        "Name its class",
    ),
    Planted(
        "labelme points",
        "labelme",
        labelme_points([[2, 2], [9, 2]]),
        "train/a.json, shape 0: a polygon of 2 points",
        "three or more",
    ),
    Planted(
        "labelme outside",
        "labelme",
        labelme_points([[2, 2], [90, 2], [90, 8]]),
        "train/a.json, shape 0: x 2 to 90",
        "inside the picture",
    ),
    Planted(
        "labelme normalised",
        "labelme",
        labelme_points([[0.2, 0.2], [0.9, 0.2], [0.9, 0.8]]),
        "train/a.json, shape 0: x 0.2 to 0.9",
        "Expected pixels",
    ),
    Planted(
        "labelme size",
        "labelme",
        edit("train/a.json", lambda c: c.update(imageWidth=48)),
        "train/a.json: imageWidth x imageHeight is 48x16",
        "label it again",
    ),
    Planted("labelme truncated", "labelme", cut("train/a.json", 99), "train/a.json", "Replace the file"),
    Planted(
        "labelme alone", "labelme", remove("train/a.png"), "train/a.json: its picture", "correct imagePath"
    ),
    Planted(
        "labelme line",
        "labelme",
        labelme_points([[2, 2], [9, 2]], shape_type="line"),
        "train/a.json, shape 0: a shape of type 'line'",
        "covers no area",
    ),
]

PLANTED = [*SEMANTIC, *INSTANCE, *PANOPTIC_FAULTS, *YOLO, *LABELME]
