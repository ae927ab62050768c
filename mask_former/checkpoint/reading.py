"""Read weight files of every kind without running anything that is in them.

The kind is recognised by the first bytes, not the name: torch's zip archives and its older format, pickles as
Detectron2 publishes them, and safetensors.
"""

import json
import pickle
import pickletools
import re
import struct
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from io import BytesIO
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

# The first bytes of torch's format before zip archives: a pickle of its magic number.
LEGACY_START = b"\x8a\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
# Key of a safetensors file's metadata under which ours are kept, as JSON.
METADATA_KEY = "mask_former"
# Our metadata have some thousand values, most of them names and colours of classes.
MAX_METADATA_VALUES = 100_000
MAX_REASON = 200
# Published files have below 0.1 million pickle operations; a million or two take a few seconds.
MAX_OPERATIONS = 2_000_000
# Python hashes integers modulo 2**61 - 1, so many larger ones as keys can be made to collide.
MAX_LARGE_INTEGERS = 1000
# Operations that make instances of classes, use the extension registry or buffers outside of the stream, or
# that no pickler writes.
REFUSED_OPERATIONS = {"INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "DUP"}
REFUSED_OPERATIONS |= {"NEXT_BUFFER", "READONLY_BUFFER"}
FILLING_OPERATIONS = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS"}
ITEM_BYTES = 64  # of a copied container, roughly
NUMBER_TYPES = {"i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1", "f2", "f4", "f8", "c8", "c16"}


class UnsafeFileError(ValueError):
    """A weight file names something that weights do not need, so that reading it may run code."""


class DamagedFileError(ValueError):
    """A weight file is cut off, altered, or declares more than it holds."""


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
        advice = "If you trust its origin, read it without restriction (allow_unsafe=True, --allow-unsafe)."
        raise UnsafeFileError(f"{file} {_one_line(error)}. {advice}") from error
    except Exception as error:  # the libraries meet damage in many ways; the file is at fault
        reason = _one_line(error)
        if not isinstance(error, DamagedFileError):
            reason = f"cannot be read ({type(error).__name__}: {reason})"
        raise DamagedFileError(f"{file} {reason}. Fetch or write it again.") from error


def read_metadata(file: str | Path) -> dict[str, Any]:
    """Return the metadata of a checkpoint as training writes it, without reading its weights.

    Raises DamagedFileError if they cannot be read; altered weights go unnoticed.
    """
    try:
        _check_archive(Path(file), Path(file).stat().st_size, with_checksums=False)
        content = torch.load(str(file), map_location="cpu", weights_only=True, mmap=True)
        metadata = content["metadata"]
    except Exception as error:
        raise DamagedFileError(f"{file} has no metadata that can be read ({_one_line(error)}).") from error
    refuse_endless(metadata, "metadata")
    return metadata if isinstance(metadata, dict) else {}


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
        with safe_open(str(file), framework="pt") as opened:
            header = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return {"model": tensors, "metadata": json.loads(header.get(METADATA_KEY, "null"))}
    with file.open("rb") as stream:
        if allow_unsafe and kind == "pickle":
            return pickle.load(stream, encoding="latin1")
        if allow_unsafe:
            return torch.load(stream, map_location="cpu", weights_only=False)
        if kind == "pickle":
            with mmap(stream.fileno(), 0, access=ACCESS_READ) as data:
                check_pickle(data, size)
                data.seek(0)
                return SafeUnpickler(data, encoding="latin1").load()
        try:
            if kind == "legacy":
                return read_legacy_torch_file(stream, size)
            _check_archive(file, size)
            return torch.load(stream, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            names = re.findall(r"GLOBAL (\S+)", str(error))
            what = repr(names[0]) if names else "objects"
            raise UnsafeFileError(f"holds {what}, which torch.load refuses as possibly unsafe") from error


def _check_archive(file: Path, size: int, with_checksums: bool = True) -> None:
    """Refuse a zip archive that holds more than its size, was altered, or whose pickle takes more."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        is_packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if is_packed or sum(entry.file_size for entry in entries) > size:
            raise DamagedFileError("has compressed entries, which may be of any size; torch writes none")
        pickles = [entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise DamagedFileError(f"is a zip archive with {len(pickles)} entries data.pkl, expected one")
        # torch writes a checksum for each entry, but does not look at it.
        if with_checksums and (altered := archive.testzip()):
            raise DamagedFileError(f"was altered after it was written: entry {altered} has another checksum")
        data = archive.read(pickles[0])
    check_pickle(BytesIO(data), len(data))


def _as_checkpoint(content: Any, size: int) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        raise DamagedFileError(f"holds a {type(content).__name__}; expected a dict of weights")
    data = dict(content)
    if not isinstance(data.get("metadata", {}), dict):
        data.pop("metadata")
    refuse_endless(data.get("metadata"), "metadata")
    for key in ("model", "state_dict", "blobs"):
        if isinstance(data.get(key), Mapping):
            state = data.pop(key)
            return {**data, "model": _as_tensors(state, size)}
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
                f"has an entry {shown} that is a {type(value).__name__}; expected tensors or arrays by name"
            )
        budget -= value.nbytes
        if budget < 0:
            raise DamagedFileError(f"declares more than it holds, among others for {name[:80]!r}")
        if not isinstance(value, Tensor):
            value = torch.from_numpy(np.require(value, value.dtype.newbyteorder("="), "W"))
        tensors[name] = value
    metadata = getattr(state, "_metadata", None)  # versions of modules, as torch keeps them
    if isinstance(metadata, dict):
        tensors._metadata = metadata  # type: ignore[attr-defined]
    return tensors


def check_pickle(stream: BinaryIO | mmap, size: int) -> None:
    """Refuse a pickle that would take far more memory or time than its size; nothing is built.

    Each item on the stack and in the memo stands for its size: a one-element list with the length of a text,
    the number of items of a container, or the size of a tuple with all its parts. Fetching an item from the
    memo costs that size. A mark is None.

    Args:
        stream: its position is moved behind the pickle.
        size: bytes of the file.
    """
    stack: list[Any] = []
    memo: dict[Any, list[int]] = {}
    budget, large_integers = 4 * size + 2**20, 0
    for number, (opcode, argument, _) in enumerate(pickletools.genops(stream)):  # type: ignore[arg-type]
        name = opcode.name
        if name in REFUSED_OPERATIONS:
            raise UnsafeFileError(f"uses the pickle operation {name}, which weights do not need")
        if name.endswith("PUT") or name == "MEMOIZE":
            index = len(memo) if argument is None else argument
            if index > len(memo) + 1:  # picklers number without gaps, from 0 or 1 on
                raise DamagedFileError(f"puts memo entry {index} after {len(memo)}")
            memo[index] = stack[-1]
        elif name.endswith("GET"):
            stack.append(memo[argument])
            budget -= stack[-1][0]
        elif name == "MARK":
            stack.append(None)
        else:
            _apply(opcode, argument, stack)
        large_integers += isinstance(argument, int) and abs(argument) >= 2**61 - 1
        if number > MAX_OPERATIONS or large_integers > MAX_LARGE_INTEGERS or budget < 0:
            raise DamagedFileError("has too many operations, or uses the same data many times over")


def _apply(opcode: pickletools.OpcodeInfo, argument: Any, stack: list[Any]) -> None:
    """Pop and push the sizes of what an operation takes and gives."""
    before = opcode.stack_before
    count = len(before)
    popped: list[Any] = []
    if pickletools.markobject in before or (opcode.name == "POP" and stack[-1] is None):
        while (item := stack.pop()) is not None:
            popped.append(item)
        count = before.index(pickletools.markobject) if pickletools.markobject in before else 0
    if count:
        popped = stack[-count:] + popped
        del stack[-count:]
    if opcode.name in FILLING_OPERATIONS:
        popped[0][0] += ITEM_BYTES * (len(popped) - 1)
    if opcode.name in FILLING_OPERATIONS or opcode.name == "BUILD":
        stack.append(popped[0])
    elif opcode.stack_after:
        length = len(argument) if isinstance(argument, str | bytes | bytearray) else 1
        stack.append([length + sum(item[0] for item in popped)])


def read_legacy_torch_file(stream: BinaryIO, size: int) -> Any:
    """Read torch's format before zip archives: five pickles, of which the fourth is the content."""
    for _ in range(5):
        check_pickle(stream, size)
    stream.seek(0)
    return torch.load(stream, map_location="cpu", weights_only=True)


def _bytes(data: Any) -> Any:
    """Return bytes for a byte string of Python 2, which is read as latin1; anything else as it is."""
    return data.encode("latin1") if isinstance(data, str) else data


class _NumberType:
    """A numpy dtype as pickles describe it: a code, then a state of which the byte order is taken."""

    def __init__(self, code: Any, *_: Any) -> None:
        code = code.decode("latin1") if isinstance(code, bytes) else code
        if not isinstance(code, str) or code not in NUMBER_TYPES:
            shown = repr(code)[:80] if isinstance(code, str) else f"a {type(code).__name__}"
            raise UnsafeFileError(f"has arrays of numpy type {shown}; weights are numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        order = _bytes(state[1])
        if order not in (b"<", b">", b"|", b"=") or any(item is not None for item in state[2:5]):
            raise UnsafeFileError("has arrays of a structured numpy type; weights are numbers")
        self.dtype = self.dtype.newbyteorder(order.decode())


class _Array(np.ndarray):
    """An array whose state is checked: of numbers, and of as many as there are bytes."""

    def __setstate__(self, state: Any) -> None:
        _, shape, number_type, is_fortran, data = state
        if not isinstance(data := _bytes(data), bytes):
            raise DamagedFileError(f"has an array whose data are a {type(data).__name__}")
        super().__setstate__((1, shape, number_type.dtype, bool(is_fortran), data))  # type: ignore[arg-type]


def _array_from_buffer(data: Any, number_type: _NumberType, shape: Any, order: Any = "C") -> np.ndarray:
    return np.frombuffer(data, number_type.dtype).reshape(shape, order="F" if order == "F" else "C")


def _encode(text: str, encoding: Any = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise UnsafeFileError("encodes a text with something other than 'latin1'")
    return text.encode("latin1")


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    # Unlike torch's own rebuilding, as_strided refuses to reach beyond the storage.
    return torch.empty(0, dtype=storage.dtype).set_(storage).as_strided(size, stride, offset)


class _Builder(NamedTuple):
    """Stands for a name of the stream. It is immutable, so that a stream cannot change it."""

    build: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.build(*arguments)


# Name in a pickle, without "builtins." and with numpy's package before version 2 -> what it builds.
BUILDERS: dict[str, Callable[..., Any]] = {
    "set": set,
    "complex": complex,
    "bytes": lambda: b"",
    "collections.OrderedDict": OrderedDict,
    "collections.Counter": Counter,
    "_codecs.encode": _encode,
    "numpy.ndarray": lambda: None,  # is handed to _reconstruct, never called
    "numpy.dtype": _NumberType,
    "numpy.core.multiarray._reconstruct": lambda *_: _Array((0,), np.int8),
    "numpy.core.multiarray.scalar": lambda kind, data: np.frombuffer(_bytes(data), kind.dtype, 1)[0].item(),
    "numpy.core.numeric._frombuffer": _array_from_buffer,
    "torch.Size": torch.Size,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch.storage._load_from_bytes": lambda data: read_legacy_torch_file(BytesIO(data), len(data)),
}


class SafeUnpickler(pickle.Unpickler):
    """Reads containers, numbers, texts, numpy arrays and tensors; other names are refused, not imported."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the builder for a name of the stream."""
        full = f"{module}.{name}"
        known = re.sub(r"^(builtins|__builtin__)\.", "", full).replace("numpy._core.", "numpy.core.")
        if known not in BUILDERS:
            raise UnsafeFileError(
                f"names {full[:80]!r}, which weights do not need, so that reading may run code"
            )
        return _Builder(BUILDERS[known])
