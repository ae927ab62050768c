"""The classes of a model: names, colours, things, and the ids that files of its data set use."""

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
# Key of a checkpoint's metadata: the category id of each class in files of its data set.
DATASET_IDS = "class_dataset_ids"


@dataclass(frozen=True)
class ClassTable:
    """K classes, each at its index.

    names: "class 0", "class 1", ... where nobody named them.
    colors: RGB, 0..255.
    is_thing: whether its segments stay apart; False everywhere if nobody said.
    dataset_ids: category ids in files; the indices themselves if nobody said.
    void_label: what label maps hold where there is no class; outside 0..K-1.
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
    def palette(self) -> NDArray[np.uint8]:
        """The colours, (K, 3)."""
        return np.array(self.colors, np.uint8).reshape(-1, 3)

    def name_of(self, index: int) -> str:
        """Return the name of a class, "void" for the void label."""
        return self.names[index] if 0 <= index < len(self.names) else "void"

    def indices_of(self, wanted: Iterable[str | int]) -> frozenset[int]:
        """Return the indices of classes given by name (case does not matter) or index.

        A class of several names, as ADE20K's "car, auto", goes by each of them, too.
        """
        wanted = [wanted] if isinstance(wanted, str | int) else list(wanted)
        by_name = self._indices_by_name()
        return frozenset(index for item in wanted for index in self._indices_of(item, by_name))

    def _indices_by_name(self) -> dict[str, set[int]]:
        by_name: dict[str, set[int]] = {}
        for index, name in enumerate(self.names):
            for part in {name, *name.split(",")}:
                by_name.setdefault(part.strip().lower(), set()).add(index)
        # The whole name wins over a part of another class's.
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
        description: what is not in it is made up: numbered names, distinct colours, indices as ids.
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
    """Return the classes of a registered data set, else of the first in `cfg`; numbered without."""
    names = [*([dataset_name] if dataset_name else []), *cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    # Asking the catalogue for an unknown name would add it there.
    known = [MetadataCatalog.get(name) for name in names if name in MetadataCatalog.list()]
    # A set of other classes names none of this model's.
    named = [entry for entry in known if describe(cfg, entry)["class_names"]]
    metadata = next(iter([*named, *known]), None)
    count = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    description = {**describe(cfg, metadata), DATASET_IDS: dataset_ids_of(metadata, count)}
    return classes_from_description(description, count)


def described_classes(description: Mapping[str, Any], cfg: CfgNode) -> ClassTable:
    """Return the classes of a checkpoint; ids that it leaves out are the catalogue's, if the names agree."""
    count = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if not description.get(DATASET_IDS) and description.get("class_names"):
        registered = classes_of_dataset(cfg)
        if registered.names == tuple(description["class_names"]):
            description = {**description, DATASET_IDS: registered.dataset_ids}
    return classes_from_description(description, count)


def _void_label(ignore_value: Any, count: int) -> int:
    """Return the ignore value if label files of `count` classes can hold it, else their highest."""
    highest = 255 if count <= 255 else 65535
    return int(ignore_value) if count <= int(ignore_value) <= highest else highest
