"""The layout of a user's data set: found by what lies in its folder, or named."""

from pathlib import Path

from . import coco_files, label_maps, polygon_files
from .dataset import LAYOUTS, Offer, OwnDataset, register, summary

__all__ = ["LAYOUTS", "find_dataset", "register", "summary"]


def find_dataset(folder: Path, layout: str | None = None, seed: int = 0) -> OwnDataset:
    """Return the data set that lies in a folder; of label files, at most a sample is opened.

    Args:
        folder: the data set's own.
        layout: a key of `LAYOUTS`; None takes the one that fits.
        seed: chooses the pictures for validation where neither folders nor files do.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no layout fits or several do, or the named one does not: the message lists layouts and
            what each lacks.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder.absolute()}; expected the folder of a data set.")
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"No layout {layout!r}; choose one of {', '.join(LAYOUTS)}.")
    found = offers(folder, seed)
    if layout is not None:
        read = found[layout].read
        if read is None:
            raise ValueError(f"{folder} has not the layout {layout}: it lacks {found[layout].lacks}.")
        return read()
    fitting = {name: offer.read for name, offer in found.items() if not offer.lacks and offer.read}
    if len(fitting) > 1:
        raise ValueError(f"{folder} has several layouts: {', '.join(fitting)}. Name one with --layout.")
    if not fitting:
        names_by_lack: dict[str, list[str]] = {}
        for name, offer in found.items():
            names_by_lack.setdefault(offer.lacks, []).append(name)
        lines = [f"  {', '.join(names)}: {lacks}" for lacks, names in names_by_lack.items()]
        raise ValueError("\n".join((f"{folder} has no known layout. What each lacks:", *lines)))
    (read,) = fitting.values()
    return read()


def offers(folder: Path, seed: int = 0) -> dict[str, Offer]:
    """Return for each layout what a folder lacks, and how it is read."""
    modules = (label_maps, coco_files, polygon_files)
    return {name: offer for module in modules for name, offer in module.offers(folder, seed).items()}
