"""What the programs prepare_*.py share: arguments, a parallel loop that resumes, reading and writing."""

import argparse
import os
import pickle
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from mask_former.data.datasets import datasets_root
from mask_former.formats import replacing


class Job(NamedTuple):
    """One picture to prepare: files read, files written. Done when all of `targets` exist."""

    sources: tuple[Path, ...]
    targets: tuple[Path, ...]


def argument_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the arguments that all preparation programs have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--root",
        type=lambda text: Path(text).expanduser(),
        default=datasets_root(),
        help="folder that holds all data sets; set $DETECTRON2_DATASETS to have another default",
    )
    parser.add_argument(
        "--workers", type=_positive, default=os.cpu_count() or 1, help="number of processes; 1: only this one"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="write existing files again; without it, an interrupted run is continued",
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def run_program(program: Callable[[], None]) -> None:
    """Run a program; on an error in its data exit with a one-line message and status 1."""
    try:
        program()
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")


def run_jobs(
    work: Callable[[Job], None], jobs: Sequence[Job], workers: int, force: bool = False, title: str = ""
) -> int:
    """Do the jobs that are not done yet, in parallel, with a progress bar; return their number.

    The first error ends the loop; what is written by then counts as done in the next run.

    Args:
        work: does one job; picklable where `workers` is above 1.
        jobs: with no target in common.
        workers: processes; 1 works in this one.
        force: do all jobs, done or not.
        title: of the progress bar.
    """
    pending = [job for job in jobs if force or not all(target.exists() for target in job.targets)]
    for folder in sorted({target.parent for job in pending for target in job.targets}):
        folder.mkdir(parents=True, exist_ok=True)
    bar = tqdm(total=len(jobs), initial=len(jobs) - len(pending), desc=title, unit="picture")
    with bar:
        if workers == 1 or len(pending) < 2:
            for job in pending:
                work(job)
                bar.update()
        else:
            _run_parallel(work, pending, workers, bar)
    return len(pending)


def _run_parallel(work: Callable[[Job], None], jobs: Sequence[Job], workers: int, bar: Any) -> None:
    chunk = max(1, min(16, len(jobs) // workers))
    pool = ProcessPoolExecutor(min(workers, len(jobs)))
    try:
        for _ in pool.map(work, jobs, chunksize=chunk):
            bar.update()
    finally:
        # After an error or Ctrl-C, start no further job.
        pool.shutdown(cancel_futures=True)


def write_labels(path: Path, labels: np.ndarray) -> None:
    """Write a label map, (H, W) uint8 or uint16, or (H, W, 3) uint8, as the PNG or TIFF that `path` says."""
    options = {"format": "PNG"} if path.suffix == ".png" else {"format": "TIFF", "compression": "tiff_lzw"}
    with replacing(path) as partial:
        Image.fromarray(labels).save(partial, **options)


def read_array(path: Path, channels: int) -> np.ndarray:
    """Return a picture or label map as it is stored: (H, W) for one channel, else (H, W, C).

    A palette picture gives its indices, one channel.
    """
    try:
        with Image.open(path) as image:
            array = np.asarray(image)
    except OSError as error:
        # Pillow does not always name the file.
        raise OSError(f"{path} cannot be read ({error}); get it again.") from error
    found = 1 if array.ndim == 2 else array.shape[2]
    if found != channels:
        raise ValueError(f"{path} has {found} channel(s), not {channels}: it is not a file of this data set.")
    return array


def list_files(folder: Path, suffix: str, where_from: str) -> list[Path]:
    """Return the files of a folder with this extension, sorted; an error says where to get them."""
    files = sorted(folder.glob(f"*{suffix}")) if folder.is_dir() else []
    if not files:
        raise FileNotFoundError(f"There is no {suffix} file in {folder}. {where_from}")
    return files


def check_exists(paths: Iterable[Path], where_from: str) -> None:
    """Raise FileNotFoundError, with advice, at the first path that does not exist."""
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist. {where_from}")


class _PlainUnpickler(pickle.Unpickler):
    """Reads plain Python values and numpy arrays, and refuses everything else that a pickle could call."""

    ALLOWED = frozenset(
        {
            ("_codecs", "encode"),
            ("collections", "OrderedDict"),
            ("numpy", "dtype"),
            ("numpy", "ndarray"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "scalar"),
            ("numpy._core.numeric", "_frombuffer"),
            *(("builtins", name) for name in ("bytearray", "complex", "dict", "list", "set", "tuple")),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        # numpy 1 wrote the names of numpy.core, Python 2 those of __builtin__.
        current = module.replace("numpy.core.", "numpy._core.").replace("__builtin__", "builtins")
        if (current, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it would load {module}.{name}")
        has_core = hasattr(np, "_core")
        return super().find_class(current if has_core else current.replace("._core.", ".core."), name)


def read_plain_pickle(path: Path) -> Any:
    """Return the content of a pickle of plain values and numpy arrays; refuse any other before it runs."""
    with open(path, "rb") as file:
        try:
            return _PlainUnpickler(file).load()
        except (pickle.UnpicklingError, EOFError, AttributeError, IndexError) as error:
            raise ValueError(
                f"{path} is not a pickle of plain values and arrays ({error}); get it again from its source."
            ) from error
