"""The names that weight files may use, each with a builder that checks sizes before anything is made."""

import math
from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mask_former.checkpoint.restricted_pickle import (
    DamagedFileError,
    Global,
    UnsafeFileError,
    checked_key,
    checked_pairs,
    shown,
)

MAX_AXES = 32
NUMBER_TYPES = {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)} | {
    "b1",
    "f2",
    "f4",
    "f8",
    "c8",
    "c16",
}


class Storage(NamedTuple):
    """The numbers behind one or more tensors; `data` (numel,) is None where only sizes are checked."""

    dtype: torch.dtype
    numel: int
    data: Tensor | None


class NumpyType:
    """A numpy dtype that is still being read."""

    def __init__(self, code: Any, align: Any = False, copy: Any = False) -> None:
        if isinstance(code, bytes):
            code = code.decode("latin1")
        if not isinstance(code, str) or code not in NUMBER_TYPES:
            raise UnsafeFileError(f"has arrays of numpy type {shown(code)}; weights are numbers")
        self.code: str = code
        self.order = "="

    def set_state(self, state: Any) -> None:
        """Take the byte order out of a dtype's state."""
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "=") or any(item is not None for item in state[2:5]):
            raise UnsafeFileError("has arrays of a structured numpy type; weights are numbers")
        self.order = "=" if order == "|" else order

    def dtype(self) -> np.dtype:
        """Return the dtype, byte order included."""
        return np.dtype(self.code).newbyteorder(self.order)  # type: ignore[arg-type]


def _dtype(value: Any) -> np.dtype:
    if not isinstance(value, NumpyType):
        raise DamagedFileError(f"has an array whose type is a {type(value).__name__}")
    return value.dtype()


def _sizes(values: Any, what: str) -> tuple[int, ...]:
    is_list = isinstance(values, tuple | list)
    if not is_list or len(values) > MAX_AXES or not all(type(n) is int and 0 <= n < 2**62 for n in values):
        raise DamagedFileError(f"has an impossible {what}: {shown(values)}")
    return tuple(values)


def _raw(data: Any) -> bytes | bytearray:
    if isinstance(data, str):  # a byte string of Python 2
        return data.encode("latin1")
    if not isinstance(data, bytes | bytearray):
        raise DamagedFileError(f"has an array whose data are a {type(data).__name__}")
    return data


def _check_bytes(shape: Sequence[int], itemsize: int, found: int) -> None:
    if math.prod(shape) * itemsize != found:
        raise DamagedFileError(
            f"declares an array of shape {tuple(shape)} ({itemsize} bytes each) over {found} bytes"
        )


def _empty_array(kind: Any, shape: Any, code: Any) -> np.ndarray:
    if kind is not NDARRAY:
        raise UnsafeFileError("has arrays of a class other than numpy.ndarray")
    return np.ndarray((0,), np.int8)


def _fill_array(array: np.ndarray, state: Any) -> None:
    _, shape, number_type, is_fortran, data = state
    shape, dtype, data = _sizes(shape, "array shape"), _dtype(number_type), bytes(_raw(data))
    _check_bytes(shape, dtype.itemsize, len(data))
    state = (1, shape, dtype, bool(is_fortran), data)
    array.__setstate__(state)


def _array_from_buffer(data: Any, number_type: Any, shape: Any, order: Any = "C") -> np.ndarray:
    shape, dtype, data = _sizes(shape, "array shape"), _dtype(number_type), bytearray(_raw(data))
    _check_bytes(shape, dtype.itemsize, len(data))
    return np.frombuffer(data, dtype).reshape(shape, order="F" if order == "F" else "C")


def _numpy_number(number_type: Any, data: Any = None) -> int | float | complex | bool:
    dtype, data = _dtype(number_type), _raw(data)
    _check_bytes((), dtype.itemsize, len(data))
    return np.frombuffer(data, dtype)[0].item()


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise UnsafeFileError(f"encodes with {shown(encoding)}; weights have need of 'latin1' alone")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""  # how early protocols write it


def _ordered_dict(pairs: Any = ()) -> OrderedDict:
    return OrderedDict(checked_pairs(pairs))


def _counter(counts: Any = None) -> Counter:
    if counts is not None and not isinstance(counts, dict):
        raise DamagedFileError("has a Counter that was not made of a dict")
    return Counter(counts)


def _complex(real: Any, imaginary: Any) -> complex:
    return complex(float(real), float(imaginary))


def rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor | None:
    """Return the view of a storage that a file declares, after checking that it lies inside of it."""
    if not isinstance(storage, Storage):
        raise DamagedFileError(f"has a tensor over a {type(storage).__name__}")
    (offset,), size, stride = _sizes([offset], "offset"), _sizes(size, "shape"), _sizes(stride, "stride")
    if len(size) != len(stride):
        raise DamagedFileError(f"has a tensor with shape {size} and stride {stride}")
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else offset - 1
    if count > storage.numel or last >= storage.numel or offset > storage.numel:
        raise DamagedFileError(f"declares a tensor of shape {size} over a storage of {storage.numel} numbers")
    return None if storage.data is None else storage.data.as_strided(size, stride, offset)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _size(values: Any = ()) -> torch.Size:
    return torch.Size(_sizes(values, "shape"))


def _refuse_array(*_: Any) -> None:
    raise UnsafeFileError("makes an array by its class; picklers do not")


NDARRAY = Global("numpy.ndarray", _refuse_array)
# Class -> what sets the state of its objects.
STATES: dict[type, Any] = {np.ndarray: _fill_array}
STORAGES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}


def _named(builders: dict[str, Any]) -> dict[str, Any]:
    return {name: Global(name, build) for name, build in builders.items()}


def _numpy_table() -> dict[str, Any]:
    table = {"numpy.ndarray": NDARRAY, **_named({"numpy.dtype": NumpyType})}
    for core in ("numpy.core", "numpy._core"):
        names = {
            f"{core}.multiarray._reconstruct": _empty_array,
            f"{core}.multiarray.scalar": _numpy_number,
            f"{core}.numeric._frombuffer": _array_from_buffer,
        }
        table |= _named(names)
    return table


def _torch_table() -> dict[str, Any]:
    builders = {
        "torch._utils._rebuild_tensor": rebuild_tensor,
        "torch._utils._rebuild_tensor_v2": rebuild_tensor,
        "torch._utils._rebuild_parameter": _parameter,
        "torch.Size": _size,
    }
    storages = {f"torch.{name}Storage": dtype for name, dtype in STORAGES.items()}
    types = {str(dtype): dtype for dtype in STORAGES.values()}
    return {**_named(builders), **storages, **types}


def _container_table() -> dict[str, Any]:
    def make_set(items: Any = ()) -> set[Any]:
        return set(map(checked_key, items))

    builders = {
        "_codecs.encode": _encode,
        "collections.OrderedDict": _ordered_dict,
        "collections.Counter": _counter,
    }
    for module in ("builtins", "__builtin__"):
        builders |= {f"{module}.complex": _complex, f"{module}.set": make_set}
        builders[f"{module}.bytes"] = _no_bytes
    return _named(builders)


# "module.name" as it stands in files -> what is put in its place.
TABLE: dict[str, Any] = {**_container_table(), **_numpy_table(), **_torch_table()}
