"""A pickle reader that can build plain containers, and through a table of guarded builders nothing else.

Python's own unpickler imports what a stream names before anyone is asked, and believes declared sizes,
memo positions and nested keys; a hostile file of a few bytes can run code, or take all memory or time. This
one knows only the opcodes that data needs. A name in the stream is looked up in a table, never imported.
"""

import codecs
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from mmap import mmap
from typing import Any, NamedTuple

# Published files have below 0.1 million operations; a million or two take a few seconds.
MAX_OPERATIONS = 2_000_000
MAX_LINE = 4096
MAX_INTEGER_BYTES = 255
# What may be a key. Tuples are left out because hashing nested ones takes exponential time, large integers
# because they can be made to collide.
KEY_TYPES = (str, bytes, bool, type(None))
MAX_INTEGER_KEY = 2**32

Buffer = bytes | mmap


class UnsafeFileError(ValueError):
    """A weight file names something that weights have no need of, so that reading it may run code."""


class DamagedFileError(ValueError):
    """A weight file is cut off, altered, or declares more than it holds."""


class Global(NamedTuple):
    """What stands for a name of the stream: a builder of ours that checks its arguments."""

    name: str
    build: Callable[..., Any]


class PickleMachine:
    """Reads one pickle of a buffer; `position` is then the first byte behind it."""

    def __init__(
        self,
        data: Buffer,
        table: Mapping[str, Any],
        *,
        states: Mapping[type, Callable[[Any, Any], None]] | None = None,
        position: int = 0,
        load_storage: Callable[[Any], Any] | None = None,
        max_operations: int = MAX_OPERATIONS,
    ) -> None:
        """Prepare to read.

        Args:
            data: the stream.
            table: "module.name" -> a Global, or a harmless value, for each name that may occur.
            states: class -> what sets the state of its objects, for those without `set_state`.
            position: where the pickle begins.
            load_storage: gives the storage of a persistent id; without it, such ids are refused.
            max_operations: a longer pickle is refused.
        """
        self.data = data
        self.table = table
        self.states = states or {}
        self.position = position
        self.load_storage = load_storage
        self.max_operations = max_operations
        # What builders may copy. Bytes in the memo could be handed to them again and again.
        self.budget = 4 * len(data) + 2**20
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: list[Any] = []

    def read(self) -> Any:
        """Return the object; UnsafeFileError or DamagedFileError say what stands in the way."""
        start = self.position
        try:
            for _ in range(self.max_operations):
                code = self.take(1)
                if code == b".":
                    return self.stack.pop()
                operation = OPERATIONS.get(code)
                if operation is None and code not in CLASS_OPERATIONS:
                    raise DamagedFileError(f"has {code!r} where a pickle operation should be")
                if operation is None:
                    raise UnsafeFileError(
                        f"uses the pickle operation {code!r}, which weights have no need of"
                    )
                operation(self)
        except (UnsafeFileError, DamagedFileError):
            raise
        except (IndexError, KeyError, TypeError, ValueError, OverflowError, struct.error) as error:
            where = self.position
            raise DamagedFileError(
                f"is damaged near byte {where} ({type(error).__name__}: {error})"
            ) from error
        except MemoryError as error:
            raise DamagedFileError("declares more than there is memory for") from error
        raise DamagedFileError(f"has more than {self.max_operations} pickle operations from byte {start} on")

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        if not 0 <= count <= len(self.data) - self.position:
            left = len(self.data) - self.position
            raise DamagedFileError(f"is cut off: {count} bytes wanted at byte {self.position}, {left} left")
        self.position += count
        return self.data[self.position - count : self.position]

    def number(self, form: str) -> Any:
        """Return the next number, in a format of `struct`."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> bytes:
        """Return the bytes up to the next line break, and skip that."""
        end = self.data.find(b"\n", self.position, self.position + MAX_LINE)
        if end < 0:
            raise DamagedFileError(f"has no line end within {MAX_LINE} bytes of byte {self.position}")
        line = self.take(end - self.position)
        self.position += 1
        return line

    def spend(self, values: Any) -> None:
        """Count what a builder is about to copy."""
        for value in values if isinstance(values, tuple) else ():
            if isinstance(value, str | bytes | bytearray):
                self.budget -= len(value)
            elif isinstance(value, list | dict | tuple | set):
                self.budget -= 100 * len(value)
        if self.budget < 0:
            raise DamagedFileError("uses the same data many times over, to fill the memory")

    def since_mark(self) -> list[Any]:
        """Return what was pushed since the last mark, and go back to what was before."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def find(self, module: Any, name: Any) -> Any:
        """Return what the table has for a name; it is never imported."""
        if not (isinstance(module, str) and isinstance(name, str)):
            raise DamagedFileError(f"names {shown(module)}.{shown(name)}, which is no name")
        full_name = f"{module}.{name}"
        if full_name not in self.table:
            raise UnsafeFileError(
                f"names {full_name!r}, which weights have no need of, so that reading may run code"
            )
        return self.table[full_name]


def shown(value: Any) -> str:
    """Return a value of a file for a message. A container may be endless, when printed."""
    return repr(value)[:80] if isinstance(value, str | bytes | int | float) else f"a {type(value).__name__}"


def checked_key(key: Any) -> Any:
    """Return a key that is safe to hash."""
    if isinstance(key, KEY_TYPES) or (isinstance(key, int) and abs(key) < MAX_INTEGER_KEY):
        return key
    raise DamagedFileError(f"has a {type(key).__name__} as a key, expected a text or a number below 2**32")


def checked_pairs(pairs: Any) -> list[tuple[Any, Any]]:
    """Return (key, value) pairs whose keys are safe to hash."""
    return [(checked_key(key), value) for key, value in pairs]


def _set_items(machine: PickleMachine, flat: list[Any]) -> None:
    target = machine.stack[-1]
    if not isinstance(target, dict) or len(flat) % 2:
        raise DamagedFileError(f"sets items of a {type(target).__name__}, or a key without a value")
    target.update(checked_pairs(zip(flat[::2], flat[1::2], strict=True)))


def _append(machine: PickleMachine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if not isinstance(target, list):
        raise DamagedFileError(f"appends to a {type(target).__name__}")
    target.extend(items)


def _add(machine: PickleMachine) -> None:
    items = machine.since_mark()
    target = machine.stack[-1]
    if not isinstance(target, set):
        raise DamagedFileError(f"adds to a {type(target).__name__}")
    target.update(map(checked_key, items))


def _put(machine: PickleMachine, index: int) -> None:
    # Picklers number their memo without gaps, from 0 or 1 on; a gap would be memory for nothing.
    if index > len(machine.memo) + 1:
        raise DamagedFileError(f"puts memo entry {index} after {len(machine.memo)}")
    machine.memo.extend([None] * (index + 1 - len(machine.memo)))
    machine.memo[index] = machine.stack[-1]


def _get(machine: PickleMachine, index: int) -> None:
    if not 0 <= index < len(machine.memo):
        raise DamagedFileError(f"asks for memo entry {index} of {len(machine.memo)}")
    machine.stack.append(machine.memo[index])


def _pop(machine: PickleMachine) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.since_mark()


def _mark(machine: PickleMachine) -> None:
    machine.marks.append(machine.stack)
    machine.stack = []


def _reduce(machine: PickleMachine) -> None:
    arguments = machine.stack.pop()
    function = machine.stack[-1]
    if not isinstance(function, Global):
        raise UnsafeFileError(f"calls a {type(function).__name__}, which weights have no need of")
    if not isinstance(arguments, tuple):
        raise DamagedFileError(f"calls {function.name} without a tuple of arguments")
    machine.spend(arguments)
    machine.stack[-1] = function.build(*arguments)


def _build(machine: PickleMachine) -> None:
    state = machine.stack.pop()
    target = machine.stack[-1]
    machine.spend(state)
    if hasattr(target, "set_state"):
        target.set_state(state)
    elif type(target) in machine.states:
        machine.states[type(target)](target, state)
    elif isinstance(target, OrderedDict | Counter) and isinstance(state, dict):
        # torch keeps the versions of modules as an attribute of a state dict.
        metadata = state.get("_metadata")
        if isinstance(metadata, dict):
            target._metadata = metadata  # type: ignore[union-attr]
    else:
        raise UnsafeFileError(f"sets the state of a {type(target).__name__}, which weights have no need of")


def _persistent(machine: PickleMachine) -> None:
    if machine.load_storage is None:
        raise UnsafeFileError("refers to objects outside of the stream")
    machine.stack[-1] = machine.load_storage(machine.stack[-1])


def _global_line(machine: PickleMachine) -> None:
    module, name = machine.line().decode(), machine.line().decode()
    machine.stack.append(machine.find(module, name))


def _stack_global(machine: PickleMachine) -> None:
    name = machine.stack.pop()
    machine.stack.append(machine.find(machine.stack.pop(), name))


def _integer(data: bytes) -> int:
    if len(data) > MAX_INTEGER_BYTES:
        raise DamagedFileError(f"has an integer of {len(data)} bytes")
    return int.from_bytes(data, "little", signed=True)


def _decimal(line: bytes) -> int | bool:
    if line in (b"00", b"01"):
        return line == b"01"
    if len(line) > MAX_INTEGER_BYTES:
        raise DamagedFileError(f"has an integer of {len(line)} digits")
    return int(line.rstrip(b"L"))


def _quoted(line: bytes) -> str:
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise DamagedFileError("has a text without quotes")
    return codecs.escape_decode(line[1:-1])[0].decode("latin1")


Operation = Callable[[PickleMachine], None]


def _push(value_of: Callable[[PickleMachine], Any]) -> Operation:
    return lambda machine: machine.stack.append(value_of(machine))


def _sized(length: str, convert: Callable[[bytes], Any]) -> Operation:
    """Return an operation that pushes what a length, in a format of `struct`, and that many bytes say."""
    return _push(lambda machine: convert(machine.take(machine.number(length))))


def _tuple_of(count: int) -> Operation:
    def make_tuple(machine: PickleMachine) -> None:
        if len(machine.stack) < count:
            raise DamagedFileError("makes a tuple of more than there is")
        items = tuple(machine.stack[-count:])
        machine.stack[-count:] = [items]

    return make_tuple


def _collected(make: Callable[[list[Any]], Any]) -> Operation:
    def collect(machine: PickleMachine) -> None:
        items = machine.since_mark()
        machine.stack.append(make(items))

    return collect


def _pairs(flat: list[Any]) -> dict[Any, Any]:
    return dict(checked_pairs(zip(flat[::2], flat[1::2], strict=True)))


def _last(machine: PickleMachine) -> list[Any]:
    value = machine.stack.pop()
    return [value]


def _last_two(machine: PickleMachine) -> list[Any]:
    value = machine.stack.pop()
    return [machine.stack.pop(), value]


def _text(data: bytes) -> str:
    return data.decode("utf-8")


def _latin(data: bytes) -> str:
    # Python 2's byte strings, read as Detectron2 reads them.
    return data.decode("latin1")


def _skip(count: int) -> Operation:
    def skip(machine: PickleMachine) -> None:
        machine.take(count)

    return skip


# Refused: what makes instances of classes, uses the extension registry, or buffers outside of the stream.
CLASS_OPERATIONS = frozenset(bytes([code]) for code in b"ioP\x81\x82\x83\x84\x92\x97\x98")

# Opcode -> what it does.
OPERATIONS: dict[bytes, Operation] = {
    b"\x80": _skip(1),
    b"\x95": _skip(8),
    b"(": _mark,
    b"0": _pop,
    b"1": lambda machine: machine.since_mark().clear(),
    b"2": lambda machine: machine.stack.append(machine.stack[-1]),
    b"N": _push(lambda machine: None),
    b"\x88": _push(lambda machine: True),
    b"\x89": _push(lambda machine: False),
    b"I": _push(lambda machine: _decimal(machine.line())),
    b"L": _push(lambda machine: _decimal(machine.line())),
    b"J": _push(lambda machine: machine.number("<i")),
    b"K": _push(lambda machine: machine.number("<B")),
    b"M": _push(lambda machine: machine.number("<H")),
    b"\x8a": _sized("<B", _integer),
    b"\x8b": _sized("<i", _integer),
    b"F": _push(lambda machine: float(machine.line())),
    b"G": _push(lambda machine: machine.number(">d")),
    b"S": _push(lambda machine: _quoted(machine.line())),
    b"T": _sized("<i", _latin),
    b"U": _sized("<B", _latin),
    b"V": _push(lambda machine: machine.line().decode("raw-unicode-escape")),
    b"X": _sized("<I", _text),
    b"\x8c": _sized("<B", _text),
    b"\x8d": _sized("<Q", _text),
    b"B": _sized("<I", bytes),
    b"C": _sized("<B", bytes),
    b"\x8e": _sized("<Q", bytes),
    b"\x96": _sized("<Q", bytearray),
    b"]": _push(lambda machine: []),
    b"a": lambda machine: _append(machine, _last(machine)),
    b"e": lambda machine: _append(machine, machine.since_mark()),
    b"l": _collected(list),
    b")": _push(lambda machine: ()),
    b"t": _collected(tuple),
    b"\x85": _tuple_of(1),
    b"\x86": _tuple_of(2),
    b"\x87": _tuple_of(3),
    b"}": _push(lambda machine: {}),
    b"d": _collected(_pairs),
    b"s": lambda machine: _set_items(machine, _last_two(machine)),
    b"u": lambda machine: _set_items(machine, machine.since_mark()),
    b"\x8f": _push(lambda machine: set()),
    b"\x90": _add,
    b"\x91": _collected(lambda items: frozenset(map(checked_key, items))),
    b"g": lambda machine: _get(machine, int(machine.line())),
    b"h": lambda machine: _get(machine, machine.number("<B")),
    b"j": lambda machine: _get(machine, machine.number("<I")),
    b"p": lambda machine: _put(machine, int(machine.line())),
    b"q": lambda machine: _put(machine, machine.number("<B")),
    b"r": lambda machine: _put(machine, machine.number("<I")),
    b"\x94": lambda machine: _put(machine, len(machine.memo)),
    b"c": _global_line,
    b"\x93": _stack_global,
    b"R": _reduce,
    b"b": _build,
    b"Q": _persistent,
}
