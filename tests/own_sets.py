"""Small data sets of a user, of each kind and without a fault, for tests that then plant one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mask_former.formats import encode_mask, id_to_rgb

WIDTH, HEIGHT = 24, 16
PICTURES = {"train": ("a", "b", "c"), "val": ("d", "e")}
CLASSES = ("sky", "road", "car")


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def picture(name: str, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    return np.random.default_rng(ord(name[0])).integers(0, 255, (height, width, 3), dtype=np.uint8)


def label(width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Return a label with three classes in bands, a strip of void."""
    values = np.zeros((height, width), dtype=np.uint8)
    values[:, width // 3 :], values[:, 2 * width // 3 :] = 1, 2
    values[-2:] = 255
    return values


def all_pictures() -> list[tuple[str, str]]:
    return [(split, name) for split, names in PICTURES.items() for name in names]


def semantic(folder: Path) -> None:
    for split, name in all_pictures():
        save(folder / f"images/{split}/{name}.png", picture(name))
        save(folder / f"labels/{split}/{name}.png", label())
    (folder / "classes.txt").write_text("\n".join(CLASSES))


def class_masks(folder: Path) -> None:
    for split, name in all_pictures():
        save(folder / f"images/{split}/{name}.png", picture(name))
        for number, kind in enumerate(("road", "car"), 1):
            save(folder / f"masks/{split}/{kind}/{name}.png", np.uint8(255 * (label() == number)))


def binary(folder: Path) -> None:
    for split, name in all_pictures():
        save(folder / f"images/{split}/{name}.png", picture(name))
        save(folder / f"masks/{split}/{name}.png", np.uint8(255 * (label() == 1)))


def colored(folder: Path) -> None:
    semantic(folder)
    colors = np.array([(10, 20, 30), (200, 0, 0), (0, 200, 0)], dtype=np.uint8)
    for split, name in all_pictures():
        save(folder / f"labels/{split}/{name}.png", colors[label() % 3])
    table = [{"name": n, "color": c} for n, c in zip(CLASSES, colors.tolist(), strict=True)]
    (folder / "classes.txt").unlink()
    (folder / "classes.json").write_text(json.dumps(table))


def box_polygon(x: float, y: float, width: float, height: float) -> list[float]:
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def coco(folder: Path) -> None:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[2:6, 14:20] = True
    for split, names in PICTURES.items():
        images, annotations = [], []
        for number, name in enumerate(names, 1):
            save(folder / f"{split}/{name}.png", picture(name))
            images.append({"id": number, "file_name": f"{name}.png", "width": WIDTH, "height": HEIGHT})
            # One polygon and one mask as run lengths.
            common = {"image_id": number, "iscrowd": 0}
            annotations += [
                {
                    **common,
                    "id": 2 * number - 1,
                    "category_id": 3,
                    "segmentation": [box_polygon(2, 3, 8, 6)],
                    "bbox": [2, 3, 8, 6],
                    "area": 48,
                },
                {
                    **common,
                    "id": 2 * number,
                    "category_id": 7,
                    "segmentation": encode_mask(mask),
                    "bbox": [14, 2, 6, 4],
                    "area": 24,
                },
            ]
        categories = [{"id": 3, "name": "car"}, {"id": 7, "name": "dog"}]
        write_json(folder, split, "instances", images, annotations, categories)


def panoptic(folder: Path) -> None:
    ids = np.full((HEIGHT, WIDTH), 1000)
    ids[:, 10:] = 2000
    ids[4:8, 4:8] = 3
    ids[:1] = 0
    for split, names in PICTURES.items():
        images, annotations = [], []
        for number, name in enumerate(names, 1):
            save(folder / f"{split}/{name}.png", picture(name))
            save(folder / f"panoptic_{split}/{name}.png", id_to_rgb(ids))
            images.append({"id": number, "file_name": f"{name}.png", "width": WIDTH, "height": HEIGHT})
            segments = [
                {"id": number, "category_id": category, "iscrowd": 0, "area": int((ids == number).sum())}
                for number, category in ((1000, 1), (2000, 2), (3, 5))
            ]
            annotations.append({"image_id": number, "file_name": f"{name}.png", "segments_info": segments})
        categories = [
            {"id": 1, "name": "sky", "isthing": 0},
            {"id": 2, "name": "road", "isthing": 0},
            {"id": 5, "name": "car", "isthing": 1},
        ]
        write_json(folder, split, "panoptic", images, annotations, categories)


def write_json(folder: Path, split: str, kind: str, images: Any, annotations: Any, categories: Any) -> None:
    path = folder / f"annotations/{kind}_{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def yolo(folder: Path) -> None:
    for split, name in all_pictures():
        save(folder / f"{split}/images/{name}.png", picture(name))
        text = folder / f"{split}/labels/{name}.txt"
        text.parent.mkdir(exist_ok=True)
        text.write_text("0 0.1 0.1 0.5 0.1 0.5 0.6\n1 0.6 0.6 0.9 0.6 0.9 0.9 0.6 0.9\n")
    (folder / "data.yaml").write_text("train: train/images\nval: val/images\nnc: 2\nnames: [car, dog]\n")


def labelme(folder: Path) -> None:
    for split, name in all_pictures():
        save(folder / f"{split}/{name}.png", picture(name))
        shapes = [
            {"label": "car", "points": [[2, 2], [9, 2], [9, 8]], "shape_type": "polygon"},
            {"label": "dog", "points": [[12, 4], [20, 12]], "shape_type": "rectangle"},
        ]
        content = {
            "version": "5.0.0",
            "shapes": shapes,
            "imagePath": f"{name}.png",
            "imageData": None,
            "imageWidth": WIDTH,
            "imageHeight": HEIGHT,
        }
        (folder / f"{split}/{name}.json").write_text(json.dumps(content))
    (folder / "classes.txt").write_text("car\ndog\n")


SETS = {
    build.__name__: build for build in (semantic, class_masks, binary, colored, coco, panoptic, yolo, labelme)
}


# Odd, but healthy.
def sixteen_bits(folder: Path) -> None:
    semantic(folder)
    for split, name in all_pictures():
        save(folder / f"labels/{split}/{name}.png", label().astype(np.uint16))
        save(folder / f"images/{split}/{name}.png", picture(name)[..., 0].astype(np.uint16) * 256)


def gaps_in_ids(folder: Path) -> None:
    renumber(folder, lambda number: 1000 * number)


def ids_from_zero(folder: Path) -> None:
    renumber(folder, lambda number: number - 1)


def renumber(folder: Path, change: Callable[[int], int]) -> None:
    """Change the ids of pictures 1, 2, ... and of the categories, 3 and 7."""
    coco(folder)

    def renumbered(content: Any) -> None:
        categories = {3: change(1), 7: change(2)}
        for image in content["images"]:
            image["id"] = change(image["id"])
        for category in content["categories"]:
            category["id"] = categories[category["id"]]
        for each in content["annotations"]:
            each.update(image_id=change(each["image_id"]), category_id=categories[each["category_id"]])

    for split in PICTURES:
        change_json(folder, split, renumbered)


def one_class(folder: Path) -> None:
    coco(folder)
    for split in PICTURES:
        change_json(folder, split, lambda c: c.update(annotations=c["annotations"][::2]))
        change_json(folder, split, lambda c: c.update(categories=c["categories"][:1]))


def crowds(folder: Path) -> None:
    coco(folder)
    for split in PICTURES:
        change_json(folder, split, lambda c: c["annotations"][1].update(iscrowd=1))


def empty_pictures(folder: Path) -> None:
    coco(folder)
    change_json(folder, "train", lambda c: c.update(annotations=c["annotations"][:2]))


def tiny(folder: Path) -> None:
    for split, name in all_pictures():
        save(folder / f"images/{split}/{name}.png", picture(name, 2, 1))
        save(folder / f"labels/{split}/{name}.png", np.array([[0, 1]], dtype=np.uint8))
    (folder / "classes.txt").write_text("sky\nroad")


def huge(folder: Path) -> None:
    """Make one picture of 12 megapixels."""
    semantic(folder)
    save(folder / "images/train/a.png", np.zeros((3000, 4000), dtype=np.uint8))
    save(folder / "labels/train/a.png", label(4000, 3000))


def many_kinds_of_pictures(folder: Path) -> None:
    """Make pictures in grey, with transparency, of a palette, as JPEG, and as CMYK."""
    semantic(folder)
    for (split, name), mode in zip(all_pictures(), ("L", "RGBA", "P", "RGB", "CMYK"), strict=True):
        path = folder / f"images/{split}/{name}.png"
        path.unlink()
        suffix = "jpg" if mode in ("RGB", "CMYK") else "png"
        Image.fromarray(picture(name)).convert(mode).save(path.with_suffix(f".{suffix}"))


def sizes_that_differ(folder: Path) -> None:
    semantic(folder)
    for number, (split, name) in enumerate(all_pictures(), 10):
        save(folder / f"images/{split}/{name}.png", picture(name, number, 9))
        save(folder / f"labels/{split}/{name}.png", label(number, 9))


def pictures_of_background(folder: Path) -> None:
    """Leave the masks of one picture empty, and fill those of another."""
    binary(folder)
    save(folder / "masks/train/a.png", np.zeros((HEIGHT, WIDTH), dtype=np.uint8))
    save(folder / "masks/train/b.png", np.full((HEIGHT, WIDTH), 255, dtype=np.uint8))


def empty_text_files(folder: Path) -> None:
    yolo(folder)
    (folder / "train/labels/a.txt").write_text("")


def change_json(folder: Path, split: str, change: Any) -> None:
    path = folder / f"annotations/instances_{split}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


ODD_SETS = (
    *(sixteen_bits, gaps_in_ids, ids_from_zero, one_class, crowds, empty_pictures, tiny, huge),
    *(many_kinds_of_pictures, sizes_that_differ, pictures_of_background, empty_text_files),
)
