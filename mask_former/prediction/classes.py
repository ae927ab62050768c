"""The classes of a model: names, colours, things, and their category ids in files of the data set."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from numpy.typing import NDArray

from mask_former.checkpoint import describe
from mask_former.checkpoint.description import dataset_ids_of
from mask_former.formats import distinct_colors

Color = tuple[int, int, int]
# Key in the metadata of a checkpoint: category id of each class in files of its data set.
DATASET_IDS = "class_dataset_ids"


@dataclass(frozen=True)
class ClassTable:
    """K classes, in the order of their indices.

    names: "class 0", "class 1", ... if unknown.
    colors: RGB, 0..255.
    is_thing: whether segments of the class are kept separate; False if unknown.
    dataset_ids: category ids in files; equal to the indices if unknown.
    void_label: value of label maps where there is no class; outside 0..K-1.
    """

    names: tuple[str, ...]
    colors: tuple[Color, ...]
    is_thing: tuple[bool, ...]
    dataset_ids: tuple[int, ...]
    void_label: int

    def __len__(self) -> int:
        return len(self.names)

    @property
    def things(self) -> frozenset[int]:
        """The indices of the thing classes."""
        return frozenset(index for index, thing in enumerate(self.is_thing) if thing)

    @property
    def label_type(self) -> type[np.uint8] | type[np.uint16]:
        """The smallest type for label maps."""
        return np.uint8 if self.void_label < 256 else np.uint16

    @property
    def palette(self) -> NDArray[np.uint8]:
        """The colours, (K, 3)."""
        return np.array(self.colors, np.uint8).reshape(-1, 3)

    def name_of(self, index: int) -> str:
        """Return the name of a class, "void" for the void label."""
        return self.names[index] if 0 <= index < len(self.names) else "void"

    def indices_of(self, classes: Iterable[str | int]) -> frozenset[int]:
        """Return the indices of classes given by name (case-insensitive) or index.

        A class with several names, such as ADE20K's "car, auto", is found by each of them.
        """
        classes = [classes] if isinstance(classes, str | int) else list(classes)
        by_name = self._indices_by_name()
        return frozenset(index for item in classes for index in self._indices_of(item, by_name))

    def _indices_by_name(self) -> dict[str, set[int]]:
        by_name: dict[str, set[int]] = {}
        for index, name in enumerate(self.names):
            for part in {name, *name.split(",")}:
                by_name.setdefault(part.strip().lower(), set()).add(index)
        # A full name takes precedence over a part of another class's name.
        return by_name | {name.strip().lower(): {index} for index, name in enumerate(self.names)}

    def _indices_of(self, item: str | int, by_name: Mapping[str, Collection[int]]) -> Collection[int]:
        text = str(item).strip().lower()
        if text in by_name and isinstance(item, str):
            return by_name[text]
        if text.isdigit() and int(text) < len(self):
            return [int(text)]
        near = get_close_matches(text, by_name, n=3) or list(self.names[:8])
        raise ValueError(
            f"No class {item!r}; this model has {len(self)} classes, 0..{len(self) - 1}, for example "
            f"{', '.join(near)}. Give names or indices."
        )


def classes_from_description(description: Mapping[str, Any], count: int) -> ClassTable:
    """Return the classes that a checkpoint's metadata describe, see `checkpoint.describe`.

    Args:
        description: defaults are numbered names, distinct colours, and indices as ids.
        count: K of the model.
    """
    names = description.get("class_names") or [f"class {index}" for index in range(count)]
    colors = description.get("class_colors") or distinct_colors(count)
    dataset_ids = description.get(DATASET_IDS) or list(range(count))
    for what, values in (("class_names", names), ("class_colors", colors), (DATASET_IDS, dataset_ids)):
        if len(values) != count:
            raise ValueError(
                f"The metadata of the checkpoint give {len(values)} '{what}', but its model has {count} "
                "classes; was it written by another program?"
            )
    things = set(description.get("thing_classes") or ())
    return ClassTable(
        names=tuple(str(name) for name in names),
        colors=tuple((int(red), int(green), int(blue)) for red, green, blue in colors),
        is_thing=tuple(index in things for index in range(count)),
        dataset_ids=tuple(int(dataset_id) for dataset_id in dataset_ids),
        void_label=_void_label(description.get("ignore_value", 255), count),
    )


def classes_of_dataset(cfg: CfgNode, dataset_name: str | None = None) -> ClassTable:
    """Return the classes of a registered data set, by default the first one of `cfg` that is registered."""
    names = [*([dataset_name] if dataset_name else []), *cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    # MetadataCatalog.get adds unknown names.
    known = [MetadataCatalog.get(name) for name in names if name in MetadataCatalog.list()]
    # A data set with another number of classes does not describe this model.
    named = [entry for entry in known if describe(cfg, entry)["class_names"]]
    metadata = next(iter([*named, *known]), None)
    count = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    description = {**describe(cfg, metadata), DATASET_IDS: dataset_ids_of(metadata, count)}
    return classes_from_description(description, count)


def described_classes(description: Mapping[str, Any], cfg: CfgNode) -> ClassTable:
    """Return the classes of a checkpoint; missing ids come from the catalogue if the class names agree."""
    count = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if not description.get(DATASET_IDS) and description.get("class_names"):
        registered = classes_of_dataset(cfg)
        if registered.names == tuple(description["class_names"]):
            description = {**description, DATASET_IDS: registered.dataset_ids}
    return classes_from_description(description, count)


def _void_label(ignore_value: Any, count: int) -> int:
    """Return the ignore value if label files with `count` classes can contain it, else their maximum."""
    highest = 255 if count <= 255 else 65535
    return int(ignore_value) if count <= int(ignore_value) <= highest else highest
