"""A user's data set as it was found in a folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class OwnDataset:
    """Classes and records of one folder; pictures and labels are read later, in place.

    Attributes:
        folder, layout: where it lies, and the name of its layout.
        task: "semantic", "instance" or "panoptic".
        classes: K names in the order of the ids.
        thing_classes: ids of the classes whose segments are objects; empty for semantic labels.
        colors: K times (R, G, B).
        classes_from: the file or rule that named the classes, for messages.
        ignore_label: value of pixels without a class, in semantic labels.
        splits: "train", "val" and, if there is one, "test" -> Detectron2's dataset dicts.
    """

    folder: Path
    layout: str
    task: str
    classes: tuple[str, ...]
    thing_classes: frozenset[int]
    colors: tuple[tuple[int, int, int], ...]
    classes_from: str
    ignore_label: int
    splits: Mapping[str, Sequence[dict[str, Any]]]
