"""Pickles read without running anything: a check of the stream, and an unpickler that knows a few names."""

import io
import pickle
import pickletools
from collections import Counter, OrderedDict
from collections.abc import Callable
from mmap import mmap
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

# Published files have below 0.1 million operations; a million or two take a few seconds.
MAX_OPERATIONS = 2_000_000
# Python hashes integers modulo 2**61 - 1, so many larger ones as keys can be made to collide.
MAX_LARGE_INTEGERS = 1000
# Operations that make instances of classes, use the extension registry or buffers outside of the stream, or
# that no pickler writes.
REFUSED_OPERATIONS = {"INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "DUP"}
REFUSED_OPERATIONS |= {"NEXT_BUFFER", "READONLY_BUFFER"}
# What an item of a copied container takes, roughly.
ITEM_BYTES = 64
FILLING_OPERATIONS = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS"}
NUMBER_TYPES = {"i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1", "f2", "f4", "f8", "c8", "c16"}


class UnsafeFileError(ValueError):
    """A weight file names something that weights do not need, so that reading it may run code."""


class DamagedFileError(ValueError):
    """A weight file is cut off, altered, or declares more than it holds."""


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


class _NumberType:
    """A numpy dtype as pickles describe it: a code, then a state of which the byte order is taken."""

    def __init__(self, code: Any, *_: Any) -> None:
        code = code.decode("latin1") if isinstance(code, bytes) else code
        if not isinstance(code, str) or code not in NUMBER_TYPES:
            shown = repr(code)[:80] if isinstance(code, str) else f"a {type(code).__name__}"
            raise UnsafeFileError(f"has arrays of numpy type {shown}; weights are numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "=") or any(item is not None for item in state[2:5]):
            raise UnsafeFileError("has arrays of a structured numpy type; weights are numbers")
        self.dtype = self.dtype.newbyteorder(order)  # type: ignore[arg-type]


class _Array(np.ndarray):
    """An array whose state is checked: of numbers, and of as many as there are bytes."""

    def __setstate__(self, state: Any) -> None:
        _, shape, number_type, is_fortran, data = state
        data = data.encode("latin1") if isinstance(data, str) else data  # a byte string of Python 2
        if not isinstance(data, bytes):
            raise DamagedFileError(f"has an array whose data are a {type(data).__name__}")
        super().__setstate__((1, shape, number_type.dtype, bool(is_fortran), data))  # type: ignore[arg-type]


def _array_from_buffer(data: Any, number_type: _NumberType, shape: Any, order: Any = "C") -> np.ndarray:
    return np.frombuffer(data, number_type.dtype).reshape(shape, order="F" if order == "F" else "C")


def _number(number_type: _NumberType, data: Any) -> Any:
    data = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(data, number_type.dtype, count=1)[0].item()


def _encode(text: str, encoding: Any = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise UnsafeFileError("encodes a text with something other than 'latin1'")
    return text.encode("latin1")


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    # Unlike torch's own rebuilding, as_strided refuses to reach beyond the storage.
    return torch.empty(0, dtype=storage.dtype).set_(storage).as_strided(size, stride, offset)


def read_legacy_torch_file(stream: BinaryIO, size: int) -> Any:
    """Read torch's format before zip archives: five pickles, of which the fourth is the content."""
    for _ in range(5):
        check_pickle(stream, size)
    stream.seek(0)
    return torch.load(stream, map_location="cpu", weights_only=True)


class _Builder(NamedTuple):
    """Stands for a name of the stream. It is immutable, so that a stream cannot change it."""

    build: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.build(*arguments)


def _refuse_call(*_: Any) -> None:
    raise UnsafeFileError("makes an array by its class; picklers do not")


def _builders() -> dict[str, _Builder]:
    builders: dict[str, Callable[..., Any]] = {
        "numpy.ndarray": _refuse_call,
        "numpy.dtype": _NumberType,
        "_codecs.encode": _encode,
        "collections.OrderedDict": OrderedDict,
        "collections.Counter": Counter,
        "torch.Size": torch.Size,
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_parameter": lambda data, *_: data,
        "torch.storage._load_from_bytes": lambda data: read_legacy_torch_file(io.BytesIO(data), len(data)),
    }
    for core in ("numpy.core", "numpy._core"):
        builders[f"{core}.multiarray._reconstruct"] = lambda *_: _Array((0,), np.int8)
        builders[f"{core}.multiarray.scalar"] = _number
        builders[f"{core}.numeric._frombuffer"] = _array_from_buffer
    for module in ("builtins", "__builtin__"):
        builders |= {f"{module}.set": set, f"{module}.complex": complex, f"{module}.bytes": lambda: b""}
    return {name: _Builder(build) for name, build in builders.items()}


BUILDERS = _builders()


class SafeUnpickler(pickle.Unpickler):
    """Reads containers, numbers, texts, numpy arrays and tensors; other names are refused, not imported."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the builder for a name of the stream."""
        if f"{module}.{name}" not in BUILDERS:
            what = f"{module}.{name}"[:80]
            raise UnsafeFileError(f"names {what!r}, which weights do not need, so that reading may run code")
        return BUILDERS[f"{module}.{name}"]
