"""What the check of a data set says: its faults and its statistics."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from .dataset import OwnDataset, summary

SHOWN_OF_A_KIND = 3


@dataclass(frozen=True)
class Fault:
    """One fault of a data set; where neither `stops` nor `mended` is set, it is only told.

    Attributes:
        kind: a phrase in the plural, the same for all faults alike.
        where: the file, with the place in it, or the key.
        found, remedy: what is there; what was expected, and what to do.
        stops: whether a person has to decide before a training can start.
        mended: whether the data set in the report is already without it.
        picture: file name of the record that is left out where faults are ignored; None if that is no help.
    """

    kind: str
    where: str
    found: str
    remedy: str
    stops: bool = True
    mended: bool = False
    picture: str | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.found}. {self.remedy}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Statistics:
    """Counts of a data set; those by class are K numbers for each split.

    Attributes:
        pictures: split -> number of readable pictures.
        sizes: (width, height) -> number of pictures, the most frequent first.
        pictures_by_class, pixels_by_class, segments_by_class: split -> counts by class id, without crowds.
            Of semantic labels, a segment is all that a picture has of a class.
        void_pixels: split -> number of pixels without a class.
        most_segments, most_segments_in: in one picture, and the file name of that picture ("" if none).
    """

    pictures: Mapping[str, int]
    sizes: Mapping[tuple[int, int], int]
    pictures_by_class: Mapping[str, Sequence[int]]
    pixels_by_class: Mapping[str, Sequence[int]]
    segments_by_class: Mapping[str, Sequence[int]]
    void_pixels: Mapping[str, int]
    most_segments: int
    most_segments_in: str


@dataclass(frozen=True)
class Report:
    """The result of a check.

    Attributes:
        dataset: the data set, mended, and without the pictures that are left out.
        faults: those that stop first.
        statistics: of that data set.
        left_out: file names of the pictures that ignoring faults has left out.
        measures: file name -> measured values of its picture (see `pictures.measure`).
    """

    dataset: OwnDataset
    faults: tuple[Fault, ...]
    statistics: Statistics
    left_out: tuple[str, ...]
    measures: Mapping[str, Mapping[str, Any]]

    @property
    def stops(self) -> bool:
        """Whether a fault is left that a person has to decide on."""
        return any(fault.stops for fault in self.faults)

    def text(self) -> str:
        """Return the report for the screen."""
        statistics = self.statistics
        sizes = [f"{width}x{height}" for width, height in statistics.sizes]
        kinds = f"{len(sizes)} sizes, mostly {sizes[0]}" if len(sizes) > 1 else "".join(sizes)
        lines = [
            f"{self.dataset.folder}: {summary(self.dataset)}",
            f"{kinds}; at most {statistics.most_segments} segments in a picture",
        ]
        if self.left_out:
            lines.append(f"{len(self.left_out)} pictures with faults are left out")
        return "\n".join([*lines, *faults_text(self.faults)])


def faults_text(faults: Iterable[Fault]) -> list[str]:
    """Return the lines that name faults, some of each kind."""
    lines = []
    for (status, kind), alike in by_kind(faults).items():
        lines.append(f"{status}: {kind} ({len(alike)})")
        lines += [f"    {fault}" for fault in alike[:SHOWN_OF_A_KIND]]
        if len(alike) > SHOWN_OF_A_KIND:
            lines.append(f"    ... and {len(alike) - SHOWN_OF_A_KIND} more")
    return lines or ["no faults"]


def by_kind(faults: Iterable[Fault]) -> dict[tuple[str, str], list[Fault]]:
    """Return the faults by status and kind, those that stop first, then those mended, then those told."""
    groups: dict[tuple[str, str], list[Fault]] = {}
    for fault in sorted(faults, key=lambda fault: (not fault.stops, not fault.mended)):
        status = "MUST BE MENDED" if fault.stops else "mended" if fault.mended else "note"
        groups.setdefault((status, fault.kind), []).append(fault)
    return groups


def merged(faults: Iterable[Fault]) -> list[Fault]:
    """Return one fault for each kind and picture; it names the first place and how many there are."""
    groups: dict[tuple[str, str | None, bool], list[Fault]] = {}
    for fault in faults:
        groups.setdefault((fault.kind, fault.picture, fault.stops), []).append(fault)
    return [
        replace(first, found=f"{first.found} (and {len(rest)} more like it)") if rest else first
        for first, *rest in groups.values()
    ]
