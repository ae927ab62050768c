"""A few drawn scenes, and programs that write them in each layout of a user's own data."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from mask_former.formats import draw_polygons, encode_mask, id_to_rgb

CLASSES = ("background", "road", "car")  # of semantic labels
COLORS = ((0, 0, 0), (128, 64, 128), (0, 0, 142))
VOID = 255
THINGS = ("car", "tree")  # of instances
SPLITS = {"train": slice(0, 4), "val": slice(4, 6)}


class Scene(NamedTuple):
    """A picture and its labels of all kinds."""

    name: str
    image: NDArray[np.uint8]  # (H, W, 3)
    label: NDArray[np.uint8]  # (H, W), indices of CLASSES and VOID
    objects: list[tuple[int, list[float]]]  # class in THINGS, polygon

    def mask(self, number: int) -> NDArray[np.bool_]:
        """Return the pixels of an object."""
        return draw_polygons([self.objects[number][1]], *self.label.shape)


def draw_scenes(void: bool = True, count: int = 6) -> list[Scene]:
    """Return scenes of different sizes; with `void`, a corner of the labels is VOID."""
    scenes = []
    for number in range(count):
        rng = np.random.default_rng(number)
        height, width = 30 + number, 41 - 2 * number
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        label = np.zeros((height, width), np.uint8)
        label[height // 2 :] = 1
        label[5:14, 3 + number : 20] = 2
        if void:
            label[-4:, -6:] = VOID
        objects: list[tuple[int, list[float]]] = [
            (0, [2, 3, 15, 4, 14 - number, 16, 3, 12]),
            (1, [18, 10, 28, 11, 22 + number % 3, 25]),
        ]
        scenes.append(Scene(f"scene_{number}", image, label, objects))
    return scenes


def _save(array: NDArray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def _each(scenes: Sequence[Scene], splits: dict[str, slice] | None = None) -> list[tuple[str, Scene]]:
    return [(split, scene) for split, part in (splits or SPLITS).items() for scene in scenes[part]]


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def with_void(label: NDArray[np.uint8], value: int) -> NDArray[np.uint8]:
    """Return a label with another value of void."""
    return np.where(label == VOID, value, label).astype(np.uint8)


def splits_above(folder: Path, scenes: Sequence[Scene], void_value: int = VOID) -> None:
    """train/images, train/labels, ... and classes.txt."""
    _write_lines(folder / "classes.txt", CLASSES)
    for split, scene in _each(scenes):
        _save(scene.image, folder / split / "images" / f"{scene.name}.png")
        _save(with_void(scene.label, void_value), folder / split / "labels" / f"{scene.name}.png")


def void_after_classes(folder: Path, scenes: Sequence[Scene]) -> None:
    """As CamVid's: void is the value after the last class."""
    splits_above(folder, scenes, void_value=len(CLASSES))


def splits_below(folder: Path, scenes: Sequence[Scene]) -> None:
    """images/train, masks/train, images/valid, ... with endings of the labels' names, and classes.json."""
    (folder / "images").mkdir(parents=True)
    (folder / "classes.json").write_text(json.dumps(CLASSES))
    for split, scene in _each(scenes):
        name = {"train": "training", "val": "valid"}[split]
        _save(scene.image, folder / "images" / name / f"{scene.name}.png")
        _save(scene.label, folder / "masks" / name / f"{scene.name}_mask.png")


def labels_after_pictures(folder: Path, scenes: Sequence[Scene]) -> None:
    """train, train_labels/*_L.png, ..., as some publish CamVid."""
    _write_lines(folder / "classes.txt", CLASSES)
    for split, scene in _each(scenes):
        _save(scene.image, folder / split / f"{scene.name}.png")
        _save(scene.label, folder / f"{split}_labels" / f"{scene.name}_L.png")


def listed(folder: Path, scenes: Sequence[Scene]) -> None:
    """images, labels in 16 bits, train.txt and val.txt."""
    _write_lines(folder / "classes.txt", CLASSES)
    for scene in scenes:
        _save(scene.image, folder / "images/north" / f"{scene.name}.png")
        _save(scene.label.astype(np.uint16), folder / "labels/north" / f"{scene.name}.png")
    for split, part in SPLITS.items():
        _write_lines(folder / f"{split}.txt", [f"images/north/{scene.name}.png" for scene in scenes[part]])


def unsplit(folder: Path, scenes: Sequence[Scene]) -> None:
    """images, labels and classes.txt: one set."""
    _write_lines(folder / "classes.txt", CLASSES)
    for scene in scenes:
        _save(scene.image, folder / "images" / f"{scene.name}.png")
        _save(scene.label, folder / "labels" / f"{scene.name}.png")


def void_by_name(folder: Path, scenes: Sequence[Scene]) -> None:
    """The first class is called void, so that all others follow one later."""
    _write_lines(folder / "classes.txt", ("void", *CLASSES))
    for split, scene in _each(scenes):
        _save(scene.image, folder / split / "images" / f"{scene.name}.png")
        label = np.where(scene.label == VOID, 0, scene.label + 1).astype(np.uint8)
        _save(label, folder / split / "labels" / f"{scene.name}.png")


def pascal_voc(folder: Path, scenes: Sequence[Scene]) -> None:
    """JPEGImages (as PNG, which loses nothing), SegmentationClass with a palette, and lists of names."""
    _write_lines(folder / "classes.txt", CLASSES)
    for scene in scenes:
        _save(scene.image, folder / "JPEGImages" / f"{scene.name}.png")
        label = Image.fromarray(scene.label).convert("P")
        label.putpalette(_colored(np.arange(256, dtype=np.uint8)).ravel().tolist())
        (folder / "SegmentationClass").mkdir(exist_ok=True)
        label.save(folder / "SegmentationClass" / f"{scene.name}.png")
    for split, part in SPLITS.items():
        names = [scene.name for scene in scenes[part]]
        _write_lines(folder / "ImageSets/Segmentation" / f"{split}.txt", names)


def _colored(label: NDArray[np.uint8]) -> NDArray[np.uint8]:
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(COLORS)] = COLORS
    palette[VOID] = (224, 224, 192)
    return palette[label]


def color_labels(folder: Path, scenes: Sequence[Scene]) -> None:
    """RGB labels, and a CSV file of the colours."""
    rows = [f"{name},{','.join(map(str, color))}" for name, color in zip(CLASSES, COLORS, strict=True)]
    _write_lines(folder / "class_dict.csv", ["name,r,g,b", *rows, "void,224,224,192"])
    for split, scene in _each(scenes):
        _save(scene.image, folder / split / "images" / f"{scene.name}.png")
        _save(_colored(scene.label), folder / split / "labels" / f"{scene.name}.png")


def color_palettes(folder: Path, scenes: Sequence[Scene]) -> None:
    """Colour labels saved with palettes, whose indices mean nothing; colours in classes.json."""
    table = [
        {"name": n, "color": c} for n, c in zip((*CLASSES, "void"), (*COLORS, (224, 224, 192)), strict=True)
    ]
    splits_above(folder, scenes)
    (folder / "classes.txt").unlink()
    (folder / "classes.json").write_text(json.dumps(table))
    for split, scene in _each(scenes):
        label = Image.fromarray(_colored(scene.label)).quantize(4)
        label.save(folder / split / "labels" / f"{scene.name}.png")


def class_masks(folder: Path, scenes: Sequence[Scene]) -> None:
    """A folder of masks 0/255 for each class; the background has none."""
    for split, scene in _each(scenes):
        _save(scene.image, folder / "images" / split / f"{scene.name}.png")
        for index, name in enumerate(CLASSES[1:], 1):
            mask = (scene.label == index).astype(np.uint8) * 255
            _save(mask, folder / "masks" / split / name / f"{scene.name}.png")


def binary_masks(folder: Path, scenes: Sequence[Scene]) -> None:
    """Masks 0/255 of everything that is no background, and its name."""
    _write_lines(folder / "classes.txt", ["thing"])
    for split, scene in _each(scenes):
        _save(scene.image, folder / split / "images" / f"{scene.name}.png")
        _save((scene.label > 0).astype(np.uint8) * 255, folder / split / "masks" / f"{scene.name}.png")


def cityscapes(folder: Path, scenes: Sequence[Scene]) -> None:
    """leftImg8bit/train/city, gtFine with label ids: 0 is void, 11 building, 7 road, 26 car."""
    ids = np.zeros(256, np.uint8)
    ids[[0, 1, 2, VOID]] = 11, 7, 26, 0
    for split, scene in _each(scenes):
        _save(scene.image, folder / "leftImg8bit" / split / "bonn" / f"{scene.name}_leftImg8bit.png")
        _save(ids[scene.label], folder / "gtFine" / split / "bonn" / f"{scene.name}_gtFine_labelIds.png")
        _save(_colored(scene.label), folder / "gtFine" / split / "bonn" / f"{scene.name}_gtFine_color.png")


def coco_content(scenes: Sequence[Scene], prefix: str = "", run_lengths: bool = False) -> dict[str, Any]:
    """Return COCO's instance annotations; category ids have gaps."""
    images, annotations = [], []
    for image_id, scene in enumerate(scenes, 3):
        height, width = scene.label.shape
        name = f"{prefix}{scene.name}.png"
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        for number, (class_id, polygon) in enumerate(scene.objects):
            mask = scene.mask(number)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 7 + 10 * class_id,
                    "iscrowd": 0,
                    "area": int(mask.sum()),
                    "bbox": [
                        min(polygon[::2]),
                        min(polygon[1::2]),
                        np.ptp(polygon[::2]),
                        np.ptp(polygon[1::2]),
                    ],
                    "segmentation": encode_mask(mask) if run_lengths else [polygon],
                }
            )
    categories = [
        {"id": 7 + 10 * i, "name": name, "supercategory": "objects"} for i, name in enumerate(THINGS)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, default=float))


def coco_instances(folder: Path, scenes: Sequence[Scene]) -> None:
    """train2017/*, annotations/instances_train2017.json, ..."""
    for split, scene in _each(scenes):
        _save(scene.image, folder / f"{split}2017" / f"{scene.name}.png")
    for split, part in SPLITS.items():
        _write_json(folder / f"annotations/instances_{split}2017.json", coco_content(scenes[part]))


def roboflow(folder: Path, scenes: Sequence[Scene]) -> None:
    """train/_annotations.coco.json beside the pictures, with a category for the kind of all others."""
    for split, part in SPLITS.items():
        name = {"train": "train", "val": "valid"}[split]
        content = coco_content(scenes[part])
        kind = {"id": 0, "name": "objects", "supercategory": "none"}
        _write_json(
            folder / name / "_annotations.coco.json",
            {**content, "categories": [kind, *content["categories"]]},
        )
        for scene in scenes[part]:
            _save(scene.image, folder / name / f"{scene.name}.png")


def coco_panoptic(folder: Path, scenes: Sequence[Scene]) -> None:
    """annotations/panoptic_train.json, annotations/panoptic_train/*.png, images/train/*.png."""
    categories = [{"id": 10 + i, "name": n, "isthing": int(n == "car")} for i, n in enumerate(CLASSES)]
    for split, part in SPLITS.items():
        images, annotations = [], []
        for image_id, scene in enumerate(scenes[part]):
            ids = np.where(scene.label == VOID, 0, scene.label.astype(np.int64) + 1000)
            height, width = ids.shape
            images.append(
                {"id": image_id, "file_name": f"{scene.name}.png", "height": height, "width": width}
            )
            segments = [{"id": 1000 + i, "category_id": 10 + i, "iscrowd": 0} for i in range(len(CLASSES))]
            annotations.append(
                {"image_id": image_id, "file_name": f"{scene.name}.png", "segments_info": segments}
            )
            _save(scene.image, folder / "images" / split / f"{scene.name}.png")
            _save(id_to_rgb(ids), folder / f"annotations/panoptic_{split}" / f"{scene.name}.png")
        content = {"images": images, "annotations": annotations, "categories": categories}
        _write_json(folder / f"annotations/panoptic_{split}.json", content)


def yolo(folder: Path, scenes: Sequence[Scene]) -> None:
    """data.yaml, images/train, labels/train/*.txt with corners as shares of width and height."""
    folder.mkdir(parents=True, exist_ok=True)
    places = {split: f"../images/{split}" for split in SPLITS}  # as Roboflow writes them
    (folder / "data.yaml").write_text(yaml.safe_dump({**places, "nc": len(THINGS), "names": list(THINGS)}))
    for split, scene in _each(scenes):
        height, width = scene.label.shape
        _save(scene.image, folder / "images" / split / f"{scene.name}.png")
        rows = [
            " ".join([str(c), *(repr(v / (height if k % 2 else width)) for k, v in enumerate(polygon))])
            for c, polygon in scene.objects
        ]
        _write_lines(folder / "labels" / split / f"{scene.name}.txt", rows)


def labelme(folder: Path, scenes: Sequence[Scene]) -> None:
    """train/*.png with a JSON file beside each."""
    for split, scene in _each(scenes):
        height, width = scene.label.shape
        _save(scene.image, folder / split / f"{scene.name}.png")
        shapes = [
            {
                "label": THINGS[c],
                "points": np.reshape(p, (-1, 2)).tolist(),
                "shape_type": "polygon",
                "group_id": None,
            }
            for c, p in scene.objects
        ]
        content = {
            "shapes": shapes,
            "imagePath": f"{scene.name}.png",
            "imageHeight": height,
            "imageWidth": width,
        }
        _write_json(folder / split / f"{scene.name}.json", content)


Export = Callable[[Path, Sequence[Scene]], None]
# Name of the layout that is found -> programs that write it. All of a table give the same training samples.
SEMANTIC: dict[str, tuple[Export, ...]] = {
    "label-maps": (
        splits_above,
        void_after_classes,
        splits_below,
        labels_after_pictures,
        listed,
        void_by_name,
    ),
    "voc": (pascal_voc,),
    "color-labels": (color_labels, color_palettes),
}
INSTANCE: dict[str, tuple[Export, ...]] = {
    "coco-instance": (coco_instances, roboflow),
    "yolo": (yolo,),
    "labelme": (labelme,),
}
