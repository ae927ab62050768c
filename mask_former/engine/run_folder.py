"""The folder of a run: one run at a time writes to it, and none over another's checkpoints unasked."""

import fcntl
import os
import socket
from pathlib import Path

from detectron2.utils import comm

LOCK_NAME = "run.lock"
# What a run writes and a new one, which is not to go on from it, would mix with its own.
RUN_FILES = ("model_*.pth", "last_checkpoint", "model_best.json", "metrics.json")

# Open lock file of each folder that this process has claimed. The lock ends with the process, however that
# ends, so that no lock is ever stale.
_held: dict[Path, int] = {}


def claim(folder: str | Path, *, resume: bool, overwrite: bool) -> None:
    """Lock OUTPUT_DIR for this run, in all of its processes alike.

    Raises ValueError if another run holds it; or if it has checkpoints and neither `resume` is given nor
    `overwrite`, which deletes RUN_FILES.
    """
    folder = Path(folder)
    refusal = ""
    if comm.is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
        refusal = _lock(folder) or ("" if resume else _refusal_if_used(folder, overwrite))
    refusal = comm.all_gather(refusal)[0]
    if refusal:
        raise ValueError(refusal)


def _lock(folder: Path) -> str:
    """Lock the folder until this process ends; return why that is not possible, or nothing."""
    file = (folder / LOCK_NAME).resolve()
    if file in _held:
        return ""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        # Held by this process alone, not by the data workers that are forked from it; works over NFS.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        owner = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
        os.close(descriptor)
        return (
            f"OUTPUT_DIR {folder} is in use by a run that is still going ({owner}). Wait for it, end it, or "
            "give another OUTPUT_DIR."
        )
    except OSError:
        pass  # a file system without locks
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"host {socket.gethostname()}, process {os.getpid()}\n".encode())
    _held[file] = descriptor
    return ""


def _refusal_if_used(folder: Path, overwrite: bool) -> str:
    """Return why a new run cannot begin in the folder, or nothing; with `overwrite`, empty it first."""
    files = [file for pattern in RUN_FILES for file in sorted(folder.glob(pattern)) if file.is_file()]
    checkpoints = [file.name for file in files if file.suffix == ".pth"]
    if checkpoints and not overwrite:
        return (
            f"OUTPUT_DIR {folder} holds the checkpoints of a run ({len(checkpoints)}, the last "
            f"{checkpoints[-1]}): --resume goes on with it, another OUTPUT_DIR starts beside it, --overwrite "
            "deletes it and starts anew."
        )
    if overwrite:
        for file in files:
            file.unlink()
    return ""
