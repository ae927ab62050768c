"""What changes a small data set of `own_sets` so that it has a fault."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from own_sets import HEIGHT, WIDTH, all_pictures, label, picture, save
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


def labelme_points(points: list[list[float]], **others: Any) -> Callable[[Path], object]:
    return edit("train/a.json", set_in("shapes", 0, points=points, **others))


def cropped(file: str) -> Callable[[Path], object]:
    return lambda folder: Image.open(folder / file).crop((0, 0, 20, 16)).save(folder / file)


def things_to_stuff(folder: Path) -> None:
    for split in ("train", "val"):
        edit(f"annotations/panoptic_{split}.json", set_in("categories", 2, isthing=0))(folder)


def unused_segment(content: Any) -> None:
    content["annotations"][0]["segments_info"].append({"id": 9, "category_id": 5})
