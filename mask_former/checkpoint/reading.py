"""Read weight files of every kind without running anything that is in them.

The kind is told by the first bytes, not by the name: torch's zip archives and its older format, pickles as
Detectron2 publishes them, and safetensors.
"""

import io
import json
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from mask_former.checkpoint.unpickling import (
    DamagedFileError,
    SafeUnpickler,
    UnsafeFileError,
    check_pickle,
    read_legacy_torch_file,
)

# The first bytes of torch's format before zip archives: a pickle of its magic number.
LEGACY_START = b"\x8a\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
# Key of a safetensors file's metadata under which ours are kept, as JSON.
METADATA_KEY = "mask_former"
# Our metadata have some thousand values, most of them names and colours of classes.
MAX_METADATA_VALUES = 100_000
MAX_REASON = 200
UNSAFE_ADVICE = "If you trust its origin, read it without restriction (allow_unsafe=True, --allow-unsafe)."


def read_checkpoint(file: str | Path, allow_unsafe: bool = False) -> dict[str, Any]:
    """Return a weight file of any kind as a dict with "model", name -> tensor, and what else it holds.

    A state dict alone, and one under "state_dict" or Caffe2's "blobs", are taken as well.

    Args:
        file: path of the file.
        allow_unsafe: read pickles without restriction, which runs whatever code the file names.

    Raises:
        UnsafeFileError: the file names what weights do not need. It was not imported.
        DamagedFileError: the file is cut off, altered, or declares more than it holds.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is no file; expected weights (.pth, .pkl or .safetensors).")
    try:
        return _as_checkpoint(_read(file, allow_unsafe), file.stat().st_size)
    except UnsafeFileError as error:
        raise UnsafeFileError(f"{file} {_one_line(error)}. {UNSAFE_ADVICE}") from error
    except Exception as error:  # the libraries meet damage in many ways; the file is at fault
        known = isinstance(error, DamagedFileError)
        reason = _one_line(error) if known else f"cannot be read ({type(error).__name__}: {_one_line(error)})"
        raise DamagedFileError(f"{file} {reason}. Fetch or write it again.") from error


def _one_line(error: Exception) -> str:
    text = "".join(letter if letter.isprintable() else " " for letter in str(error)[: 2 * MAX_REASON])
    return text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]}..."


def file_kind(file: Path) -> str:
    """Return "zip", "legacy", "pickle" or "safetensors", by the first bytes of a file."""
    with file.open("rb") as stream:
        start = stream.read(32)
    if start.startswith(b"PK\x03\x04"):
        return "zip"
    if len(start) > 8 and start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] < file.stat().st_size:
        return "safetensors"
    if start[:1] == b"\x80":
        return "legacy" if start[2:14] == LEGACY_START else "pickle"
    if start[:1] in (b"(", b"}", b"]", b"c"):
        return "pickle"  # protocols 0 and 1 have no header
    raise DamagedFileError(f"begins with {start[:8]!r}, as no kind of weight file does")


def _read(file: Path, allow_unsafe: bool) -> Any:
    """Return the content of a file; of a safetensors file {"model": tensors, "metadata": content}."""
    kind, size = file_kind(file), file.stat().st_size
    if kind == "safetensors":
        return _read_safetensors(file)
    with file.open("rb") as stream:
        if allow_unsafe and kind == "pickle":
            return pickle.load(stream, encoding="latin1")
        if allow_unsafe:
            return torch.load(stream, map_location="cpu", weights_only=False)
        if kind == "legacy":
            return _safely(read_legacy_torch_file, stream, size)
        if kind == "zip":
            _check_archive(file, size)
            return _safely(torch.load, stream, map_location="cpu", weights_only=True)
        with mmap(stream.fileno(), 0, access=ACCESS_READ) as data:
            check_pickle(data, size)
            data.seek(0)
            return SafeUnpickler(data, encoding="latin1").load()


def _safely(load: Any, *arguments: Any, **options: Any) -> Any:
    """Call torch's restricted reader; its refusals name what the file holds."""
    try:
        return load(*arguments, **options)
    except pickle.UnpicklingError as error:
        names = re.findall(r"GLOBAL (\S+)", str(error))
        what = f"holds {names[0]!r}" if names else "holds objects"
        raise UnsafeFileError(
            f"{what}, which torch.load refuses as possibly unsafe (weights_only)"
        ) from error


def _check_archive(file: Path, size: int) -> None:
    """Refuse a zip archive that holds more than its size, or whose pickle takes more."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if packed or sum(entry.file_size for entry in entries) > size:
            raise DamagedFileError(
                "has compressed entries, which torch does not write; they may be of any size"
            )
        pickles = [entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise DamagedFileError(f"is a zip archive with {len(pickles)} entries data.pkl, expected one")
        data = archive.read(pickles[0])
    check_pickle(io.BytesIO(data), len(data))


def _read_safetensors(file: Path) -> dict[str, Any]:
    with safe_open(str(file), framework="pt") as opened:
        header = opened.metadata() or {}
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    metadata = {"metadata": json.loads(header[METADATA_KEY])} if METADATA_KEY in header else {}
    return {"model": tensors, **metadata}


def _as_checkpoint(content: Any, size: int) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        raise DamagedFileError(f"holds a {type(content).__name__}; expected a dict of weights")
    data = dict(content)
    if not isinstance(data.get("metadata", {}), dict):
        data.pop("metadata")
    refuse_endless(data.get("metadata"), "metadata")
    for key in ("model", "state_dict"):
        if isinstance(data.get(key), Mapping):
            return {**data, "model": _as_tensors(data.pop(key), size)}
    if isinstance(data.get("blobs"), Mapping):
        return {"model": _as_tensors(data["blobs"], size), "__author__": "Caffe2"}
    return {"model": _as_tensors(content, size)}


def refuse_endless(content: Any, what: str) -> None:
    """Raise DamagedFileError for a tree of shared parts, of which few bytes may hold no end of values."""
    pending, count = [content], 0
    while pending:
        item = pending.pop()
        parts = item.values() if isinstance(item, dict) else item if isinstance(item, list | tuple) else ()
        count += 1 + len(parts)
        if count > MAX_METADATA_VALUES:
            raise DamagedFileError(f"has over {MAX_METADATA_VALUES} values in its {what}")
        pending += parts


def _as_tensors(state: Any, size: int) -> "OrderedDict[str, Tensor]":
    """Return a state dict with tensors for arrays; anything else in it is refused by name."""
    tensors: OrderedDict[str, Tensor] = OrderedDict()
    budget = 4 * size + 2**20  # tensors may share storages, but not grow without end
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor | np.ndarray | np.generic):
            shown = repr(name[:80]) if isinstance(name, str) else f"under a {type(name).__name__}"
            raise DamagedFileError(
                f"has an entry {shown} that is a {type(value).__name__}; expected texts as names and tensors "
                "or numpy arrays as values"
            )
        budget -= value.nbytes
        if budget < 0:
            raise DamagedFileError(f"declares more than it holds, among others for {name[:80]!r}")
        tensors[name] = value if isinstance(value, Tensor) else _from_numpy(np.asarray(value))
    metadata = getattr(state, "_metadata", None)  # versions of modules, as torch keeps them
    if isinstance(metadata, dict):
        tensors._metadata = metadata  # type: ignore[attr-defined]
    return tensors


def _from_numpy(array: np.ndarray) -> Tensor:
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(native if native.flags.writeable and native.ndim else native.copy())
