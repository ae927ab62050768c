"""The check of a user's data set: every file is looked at, in parallel, and remembered."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mask_former.formats import read_json, semantic_label_files

from .dataset import OwnDataset
from .memory import Memory, default_cache, key_of, stamp
from .mending import kept, mended_dataset, statistics_of
from .picture_check import CONTENT_ERRORS, Job, PictureCheck
from .polygon_files import Records
from .report import Fault, Report
from .set_faults import Checked, check_against_config, set_faults
from .source_check import source_faults, source_files

__all__ = ["CONTENT_ERRORS", "Fault", "Report", "check_against_config", "check_dataset", "check_sources"]

AT_ONCE = 8  # pictures that a process gets at a time


def check_dataset(
    dataset: OwnDataset,
    processes: int | None = None,
    cache: Path | None = None,
    ignore_faults: bool = False,
) -> Report:
    """Look at every file of a data set and return what is wrong, and its statistics.

    Args:
        dataset: as `find_dataset` returns it.
        processes: that read files; None takes one for each core.
        cache: file that remembers what was read, until a file's size or time changes; None takes one in the
            user's folder of caches.
        ignore_faults: leave out pictures with faults that stop, instead of stopping.
    """
    memory = Memory(cache or default_cache(dataset.folder))
    try:
        sources = check_sources(dataset.folder, dataset, memory)
        checked = _check_pictures(dataset, memory, processes or len(os.sched_getaffinity(0)))
    finally:
        memory.write()
    by_end = _pictures_by_end(checked)
    faults = [replace(fault, picture=by_end(fault.picture)) for fault in sources]
    faults += [Fault(**fault) for entry in checked for fault in entry.measure["faults"]]
    usable = kept(checked, dataset.task, ())
    faults += set_faults(dataset, checked, statistics_of(usable, dataset))
    left_out: set[str] = set()
    if ignore_faults:
        left_out = {fault.picture for fault in faults if fault.stops and fault.picture}
        usable = kept(checked, dataset.task, left_out)
        faults = [replace(f, stops=False, mended=True) if f.picture in left_out else f for f in faults]
    if not any(entry.split == "train" for entry in usable):
        remedy = "Label some, or mend the faults."
        faults.append(Fault("nothing left", str(dataset.folder), "no training picture can be used", remedy))
    faults = sorted(dict.fromkeys(faults), key=lambda fault: (not fault.stops, not fault.mended))
    measures = {entry.record["file_name"]: entry.measure for entry in usable if entry.record}
    statistics = statistics_of(usable, dataset)
    return Report(
        mended_dataset(dataset, usable), tuple(faults), statistics, tuple(sorted(left_out)), measures
    )


def check_sources(
    folder: Path, dataset: OwnDataset | None = None, memory: Memory | None = None
) -> list[Fault]:
    """Return the faults of annotation files as they stand; without a data set, of all that are in a folder.

    The picture of a fault is named as in the file.
    """
    classes = dataset.classes if dataset else ()
    faults = []
    for path in source_files(folder, dataset):
        key = key_of("source", stamp(path), classes)
        found = memory.get(key) if memory else None
        if found is None:
            found = [fault.to_dict() for fault in source_faults(path, classes, dataset is None)]
            if memory:
                memory.new[key] = found
        faults += [Fault(**fault) for fault in found]
    return faults


def _check_pictures(dataset: OwnDataset, memory: Memory, processes: int) -> list[Checked]:
    """Return all records with their measures, remembered or new."""
    checked = [
        _taken(split, number, records)
        for split, records in dataset.splits.items()
        for number in range(len(records))
    ]
    stamps = {split: stamp(path) for split, path in dataset.json_files.items()}
    settings = (dataset.task, len(dataset.classes), dataset.ignore_label)
    todo: dict[int, str] = {}
    for place, entry in enumerate(checked):
        if entry.record is not None:
            key = key_of(entry.split, stamps.get(entry.split), settings, *_state(entry.record, stamps))
            measure = memory.get(key)
            if measure is None:
                todo[place] = key
            else:
                checked[place] = entry._replace(measure=measure)
    raw = _annotations_as_they_stand(dataset, checked) if todo else {}
    jobs = [
        Job(entry.record, raw.get((entry.split, entry.record["file_name"])), entry.split)
        for entry in (checked[place] for place in todo)
        if entry.record is not None
    ]
    measures = _mapped(PictureCheck(*settings), jobs, processes)
    for (place, key), measure in zip(todo.items(), measures, strict=True):
        memory.new[key] = measure
        checked[place] = checked[place]._replace(measure=measure)
    return checked


def _taken(split: str, number: int, records: Sequence[dict[str, Any]]) -> Checked:
    """Return a record that is yet to be checked; one that cannot be read has its fault."""
    try:
        return Checked(split, number, records[number], {})
    except CONTENT_ERRORS as error:
        picture = records.pairs[number][0] if isinstance(records, Records) else None
        where, found = picture or f"picture {number} of {split}", str(error).rstrip(".")
        fault = Fault("label files that cannot be read", where, found, "Correct the file.", picture=picture)
        return Checked(split, number, None, {"faults": [fault.to_dict()]})


def _state(record: Mapping[str, Any], stamps: Mapping[str, Any]) -> list[Any]:
    """Return what a record's measure depends on, beside its JSON file."""
    files = (record["file_name"], *semantic_label_files(record), record.get("pan_seg_file_name"))
    # Annotations of a big JSON file stand and fall with the file, and would take long to compare.
    rest = {k: v for k, v in record.items() if not (stamps and k in ("annotations", "segments_info"))}
    return [*(stamp(file) for file in files if file), sorted((k, str(v)) for k, v in rest.items())]


def _mapped(check: PictureCheck, jobs: Sequence[Job], processes: int) -> Iterator[dict[str, Any]]:
    """Yield the measures of the jobs in order, under a progress bar where there is a terminal."""
    bar = partial(tqdm, total=len(jobs), desc="Checking pictures", unit="", disable=None)
    if processes < 2 or len(jobs) <= AT_ONCE:
        yield from bar(map(check, jobs))
        return
    # Forked, a process starts at once; it touches neither torch nor a GPU.
    with ProcessPoolExecutor(processes, mp_context=get_context("fork")) as pool:
        try:
            yield from bar(pool.map(check, jobs, chunksize=AT_ONCE))
        except BrokenProcessPool as error:
            raise RuntimeError(
                "A process that reads pictures was killed, perhaps for lack of memory: use --processes 1."
            ) from error


def _annotations_as_they_stand(
    dataset: OwnDataset, checked: Iterable[Checked]
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Return the annotations in COCO's instance files by split and file name of their picture."""
    raw: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for split, path in dataset.json_files.items() if dataset.task == "instance" else ():
        by_end = _pictures_by_end(entry for entry in checked if entry.split == split)
        with suppress(*CONTENT_ERRORS):  # which `check_sources` names
            content = read_json(path)
            names = {str(image["id"]): by_end(image["file_name"]) for image in content["images"]}
            for annotation in content["annotations"]:
                raw[split, names.get(str(annotation.get("image_id"))) or ""].append(annotation)
    return raw


def _pictures_by_end(checked: Iterable[Checked]) -> Callable[[str | None], str | None]:
    """Return a function from the end of a path, suffix apart, to a file name of the records, or as it was."""
    names: dict[str, list[str]] = defaultdict(list)
    for entry in checked:
        if entry.record is not None:
            names[Path(entry.record["file_name"]).stem].append(entry.record["file_name"])

    def find(end: str | None) -> str | None:
        if not end:
            return end
        tail = Path(end).with_suffix("").parts
        fitting = (name for name in names[tail[-1]] if Path(name).with_suffix("").parts[-len(tail) :] == tail)
        return next(fitting, end)

    return find
