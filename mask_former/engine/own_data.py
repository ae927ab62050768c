"""A user's folder of pictures and labels: found, checked and registered, and its recipe written."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm

from mask_former.config import leaves, load_config
from mask_former.data.own.check import CONTENT_ERRORS, check_against_config, check_dataset, check_sources
from mask_former.data.own.dataset import OwnDataset, register
from mask_former.data.own.layouts import find_dataset
from mask_former.data.own.report import Report, faults_text
from mask_former.engine.recipe import Request, this_device, write_recipe
from mask_former.formats import replacing

logger = logging.getLogger(__name__)

# (folder, layout, seed, whether faults are ignored) -> what this process has checked.
_reports: dict[tuple[Path, str, int, bool], Report] = {}


def register_folder(cfg: CfgNode) -> None:
    """Register the data set of DATASETS.FOLDER, checked; raise ValueError where it does not fit `cfg`."""
    data = cfg.DATASETS
    report = checked(data.FOLDER, data.LAYOUT, data.SPLIT_SEED, data.IGNORE_FAULTS)
    faults = check_against_config(report.dataset, report.statistics, cfg)
    if faults:
        raise ValueError("; ".join(map(str, faults)))
    register(report.dataset)


def checked(folder: str, layout: str, seed: int, ignore_faults: bool) -> Report:
    """Return the checked data set of a folder; raise ValueError if a person must mend something first.

    Files that were checked before are not read again. Of several processes, the first one checks.
    """
    path = Path(folder).expanduser().resolve()
    if (path, layout, seed, ignore_faults) in _reports:
        return _reports[path, layout, seed, ignore_faults]
    if not comm.is_main_process():
        comm.synchronize()
    report = check_dataset(_found(path, layout, seed), ignore_faults=ignore_faults)
    if comm.is_main_process():
        logger.info("%s", report.text())
        comm.synchronize()
    if report.stops:
        count = sum(fault.stops for fault in report.faults)
        raise ValueError(
            f"{folder} has {count} faults that must be mended first, named above; python -m "
            f"mask_former.data.check {folder} --page faults.html draws them, --ignore-faults leaves such "
            "pictures out."
        )
    for name in (layout, report.dataset.layout):
        _reports[path, name, seed, ignore_faults] = report
    return report


def _found(path: Path, layout: str, seed: int) -> OwnDataset:
    try:
        return find_dataset(path, layout or None, seed)
    except CONTENT_ERRORS:
        # The likely reason, and there may be more than one, is in the annotation files.
        faults = check_sources(path) if path.is_dir() else []
        if not faults:
            raise
        logger.error("%s", "\n".join(faults_text(faults)))
        raise ValueError(f"{path} cannot be read; the faults of its annotation files are above.") from None


def recipe_file(folder: str, output: Path, opts: Sequence[Any], request: Request) -> Path:
    """Check a folder, write its recipe as `output`/recipe.yaml, and return that file.

    Args:
        folder: of the data.
        output: where the results go.
        opts: `[key, value, ...]` that the command gives.
        request: what else it asks for.
    """
    file, given = output / "recipe.yaml", _given(opts, output)
    seed = given.get("DATASETS.SPLIT_SEED", 0)
    report = checked(folder, request.layout, seed, request.ignore_faults)
    if comm.is_main_process():
        device, counts = this_device(given.get("MODEL.DEVICE", "cuda")), report.statistics
        text = write_recipe(report.dataset, counts.sizes, counts.most_segments, device, request, given)
        output.mkdir(parents=True, exist_ok=True)
        with replacing(file) as partial:
            partial.write_text(text)
        logger.info("Recipe, with the reason of each value: %s", file)
    comm.synchronize()
    return file


def _given(opts: Sequence[Any], output: Path) -> dict[str, Any]:
    """Return the values that a command gives, with the types of their keys."""
    values = leaves(load_config(opts=opts))
    return {**{key: values[key] for key in opts[::2]}, "OUTPUT_DIR": str(output)}
