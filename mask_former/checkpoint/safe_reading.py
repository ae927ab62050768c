"""Reads weight files of every kind without running anything that is in them.

The kind is told by the first bytes, not by the name: torch's zip archives and its older form, pickles as
Detectron2 publishes them, and safetensors.
"""

import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mask_former.checkpoint.restricted_globals import STATES, TABLE, Storage
from mask_former.checkpoint.restricted_pickle import (
    Buffer,
    DamagedFileError,
    Global,
    PickleMachine,
    UnsafeFileError,
    shown,
)

# How torch's files began before it wrote zip archives: three pickles, of these two numbers and a dict.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
# A tensor inside of a pickle is such a file, of some 60 operations.
MAX_NESTED_OPERATIONS = 1000
# Key of a safetensors file's metadata under which ours are kept, as JSON.
METADATA_KEY = "mask_former"


def read_file(file: str | Path, allow_unsafe: bool = False) -> Any:
    """Return what a weight file holds: containers of numbers, texts, tensors and numpy arrays.

    Args:
        file: any of the kinds above; of a safetensors file, {"model": tensors, "metadata_json": text}.
        allow_unsafe: read pickles without restriction, which runs whatever code the file names.

    Raises:
        UnsafeFileError: the file names what weights have no need of. It was not imported.
        DamagedFileError: the file is cut off, altered, or declares more than it holds.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is no file; expected weights (.pth, .pkl or .safetensors).")
    try:
        kind = file_kind(file)
        if kind == "safetensors":
            return _read_safetensors(file)
        if allow_unsafe:
            return _read_unrestricted(file, kind)
        if kind == "zip":
            return _read_zip(file)
        with _mapped(file) as data:
            return _read_legacy(data) if kind == "legacy" else _read_pickle(data)
    except UnsafeFileError as error:
        advice = "If you trust its origin, read it without restriction (allow_unsafe=True, --allow-unsafe)."
        raise UnsafeFileError(f"{file} {error}. {advice}") from error
    except DamagedFileError as error:
        raise DamagedFileError(f"{file} {error}. Fetch or write it again.") from error


def file_kind(file: Path) -> str:
    """Return "zip", "legacy", "pickle" or "safetensors", by the first bytes of a file."""
    with file.open("rb") as stream:
        start = stream.read(32)
    if not start:
        raise DamagedFileError("is empty")
    if start.startswith(b"PK\x03\x04"):
        return "zip"
    if len(start) > 8 and start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] < file.stat().st_size:
        return "safetensors"
    magic = b"\x8a\x0a" + LEGACY_MAGIC.to_bytes(10, "little")
    if start[:1] == b"\x80":
        return "legacy" if start[2:14] == magic else "pickle"
    if start[:1] in (b"(", b"}", b"]", b"c"):
        return "pickle"  # protocol 0 and 1 have no header
    raise DamagedFileError(f"begins with {start[:8]!r}, as no kind of weight file does")


@contextmanager
def _mapped(file: Path) -> Iterator[mmap]:
    with file.open("rb") as stream, mmap(stream.fileno(), 0, access=ACCESS_READ) as data:
        yield data


def _read_pickle(data: Buffer) -> Any:
    table = {**TABLE, "torch.storage._load_from_bytes": Global("_load_from_bytes", _nested_storage)}
    return PickleMachine(data, table, states=STATES).read()


def _nested_storage(data: Any) -> Storage:
    if not isinstance(data, bytes):
        raise DamagedFileError(f"has a storage made of a {type(data).__name__}")
    storage = _read_legacy(data, MAX_NESTED_OPERATIONS)
    if not isinstance(storage, Storage):
        raise DamagedFileError(f"has a {type(storage).__name__} where a storage should be")
    return storage


def _read_legacy(data: Buffer, max_operations: int = 2_000_000) -> Any:
    """Read torch's older form: three pickles, the object, the names of the storages, and their numbers."""
    position = 0
    head = []
    for _ in range(3):
        machine = PickleMachine(data, {}, position=position, max_operations=100)
        head.append(machine.read())
        position = machine.position
    if head[:2] != [LEGACY_MAGIC, LEGACY_PROTOCOL]:
        raise DamagedFileError(f"has the unknown torch format {shown(head[1])}")
    # The numbers stand behind the object that views them: read it once for their sizes, once with them.
    declared: dict[str, Storage] = {}

    def note(identity: Any) -> Storage:
        key, storage = _declared_storage(identity)
        return declared.setdefault(key, storage)

    options: dict[str, Any] = {"states": STATES, "max_operations": max_operations}
    machine = PickleMachine(data, TABLE, position=position, load_storage=note, **options)
    machine.read()
    storages = _legacy_numbers(data, machine.position, declared, max_operations)
    second = PickleMachine(
        data,
        TABLE,
        position=position,
        load_storage=lambda identity: storages[_declared_storage(identity)[0]],
        **options,
    )
    return second.read()


def _legacy_numbers(
    data: Buffer, position: int, declared: Mapping[str, Storage], max_operations: int
) -> dict[str, Storage]:
    machine = PickleMachine(data, {}, position=position, max_operations=max_operations)
    keys = machine.read()
    is_list = isinstance(keys, list) and all(isinstance(key, str | int) for key in keys)
    if not is_list or sorted(map(str, keys)) != sorted(declared):
        raise DamagedFileError("holds other storages than it declares")
    storages = {}
    for key in map(str, keys):
        storage = declared[key]
        if machine.number("<q") != storage.numel:
            raise DamagedFileError(
                f"declares {storage.numel} numbers for storage {key!r} and holds another number"
            )
        numbers = bytearray(machine.take(storage.numel * storage.dtype.itemsize))
        storages[key] = storage._replace(data=_numbers(numbers, storage.dtype))
    return storages


def _numbers(data: bytearray, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _declared_storage(identity: Any) -> tuple[str, Storage]:
    is_known = isinstance(identity, tuple) and len(identity) in (5, 6) and identity[0] == "storage"
    if not is_known or any(item is not None for item in identity[5:]):
        raise DamagedFileError(f"refers to an unknown storage ({shown(identity)})")
    _, dtype, key, _, numel = identity[:5]
    if (
        not isinstance(dtype, torch.dtype)
        or not isinstance(key, str | int)
        or type(numel) is not int
        or not 0 <= numel < 2**60
    ):
        raise DamagedFileError(f"declares an impossible storage: {shown(key)} of {shown(numel)} numbers")
    return str(key), Storage(dtype, numel, None)


def _read_zip(file: Path) -> Any:
    """Check an archive of torch, sizes and names, then let torch read it with `weights_only`.

    torch refuses code too, but inflates what is compressed and makes what a few bytes ask for.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            _check_archive(archive, file.stat().st_size)
    except (UnsafeFileError, DamagedFileError):
        raise
    except Exception as error:  # zipfile meets damage in many ways
        raise DamagedFileError(f"is a damaged archive ({error})") from error
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        names = re.findall(r"GLOBAL (\S+)", str(error))
        what = f"holds {names[0]!r}" if names else "holds objects"
        raise UnsafeFileError(
            f"{what}, which torch.load refuses as possibly unsafe (weights_only)"
        ) from error
    except Exception as error:  # whatever torch meets in a file, the file is at fault
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedFileError(f"cannot be read by torch.load ({reason})") from error


def _check_archive(archive: zipfile.ZipFile, file_size: int) -> None:
    entries = {entry.filename: entry for entry in archive.infolist()}
    packed = [name for name, entry in entries.items() if entry.compress_type != zipfile.ZIP_STORED]
    if packed or sum(entry.file_size for entry in entries.values()) > file_size:
        raise DamagedFileError("has compressed entries, which torch does not write; they may be of any size")
    pickles = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise DamagedFileError(f"is a zip archive with {len(pickles)} entries data.pkl, expected one")
    folder = pickles[0].removesuffix("data.pkl")

    def sized(identity: Any) -> Storage:
        key, storage = _declared_storage(identity)
        entry = entries.get(f"{folder}data/{key}")
        if entry is None or entry.file_size < storage.numel * storage.dtype.itemsize:
            found = "none" if entry is None else f"{entry.file_size} bytes"
            raise DamagedFileError(f"declares {storage.numel} numbers for storage {key!r} and holds {found}")
        return storage

    PickleMachine(archive.read(pickles[0]), TABLE, states=STATES, load_storage=sized).read()


def _read_safetensors(file: Path) -> dict[str, Any]:
    try:
        with safe_open(str(file), framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, RuntimeError, OSError) as error:
        raise DamagedFileError(f"is a damaged safetensors file ({error})") from error
    result: dict[str, Any] = {"model": tensors}
    if METADATA_KEY in metadata:
        result["metadata_json"] = metadata[METADATA_KEY]
    return result


def _read_unrestricted(file: Path, kind: str) -> Any:
    if kind in ("zip", "legacy"):
        return torch.load(file, map_location="cpu", weights_only=False)
    with file.open("rb") as stream:
        return pickle.load(stream, encoding="latin1")


def as_tensors(state: Any, file: str | Path) -> "OrderedDict[str, Tensor]":
    """Return a state dict with tensors for arrays; anything else in it is refused by name."""
    if not isinstance(state, Mapping):
        raise DamagedFileError(f"{file} holds a {type(state).__name__} where a dict of weights should be.")
    tensors: OrderedDict[str, Tensor] = OrderedDict()
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor | np.ndarray | np.generic):
            raise DamagedFileError(
                f"{file}: entry {name!r} is a {type(value).__name__}; expected texts as names and tensors or "
                "numpy arrays as values."
            )
        tensors[name] = value if isinstance(value, Tensor) else _from_numpy(np.asarray(value))
    metadata = getattr(state, "_metadata", None)  # versions of modules, as torch keeps them
    if metadata is not None:
        tensors._metadata = metadata  # type: ignore[attr-defined]
    return tensors


def _from_numpy(array: np.ndarray) -> Tensor:
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(native if native.flags.writeable and native.ndim else native.copy())
