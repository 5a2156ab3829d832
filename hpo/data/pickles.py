"""Reads pickles of plain values and numpy arrays without running any of their code.

A list of allowed classes cannot make Python's own unpickler safe for files from strangers. A file
may give numpy's `dtype` the flags of its choice, after which numpy takes eight bytes of the file
for the address of an object. It may call `setattr` on whatever an allowed name stands for, and a
tuple that is nested a million times deep ends the process when it becomes the key of a dict.

Here a file can do none of that. `pickletools.genops`, of the standard library, cuts it into
operations. Each operation that plain data need has a method below; all others are refused. The
result holds None, bool, int, float, str, bytes, lists, tuples, dicts, sets, numpy scalars and
arrays. An array is made from its bytes and a dtype, and the dtype is made here, from a name that
matches PLAIN_DTYPE.

Supports protocols 0 to 5, as written by Python 2 and 3 and by numpy 1 and 2.
"""

import math
import mmap
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from hpo.data.kinds import OLD_TORCH_START, PICKLE_STARTS, TORCH_STARTS, unreadable
from hpo.errors import DataError

VALID = "Valid: plain containers and numpy arrays; nothing was run"

# bool, integers, floats and complex numbers of fixed width; byte and text strings of fixed width
PLAIN_DTYPE = re.compile(r"b1|[iu][1248]|f[248]|c8|c16|[SU][0-9]{1,6}")
OBJECT_DTYPE = "O8"

# The states with which numpy pickles these dtypes, after the version and the byte order: (subarray,
# names, fields, item size, alignment, flags). Only strings have an item size in it. The flags are
# numpy's own for the kind; here they are compared and never used.
NUMBER_STATE = (None, None, None, -1, -1, 0)
OBJECT_STATE = (None, None, None, -1, -1, 63)
STRING_FLAGS = {"S": 0, "U": 8}
DTYPE_STATE_VERSION = 3
ARRAY_STATE_VERSION = 1

LARGEST_CODE_POINT = 0x10FFFF
KEY_TYPES = (str, bytes, int, float, type(None), np.generic)
LARGEST_SIZE = 2**48
MOST_DIMENSIONS = 64
ERROR_CHARACTERS = 200

# A state dict has tuples in tuples, but no deep ones; Python's stack holds some 50,000.
DEEPEST_TUPLE = 1000
# In files of torch before 1.6: magic number, version, system, contents, names of the storages.
PICKLES_OF_OLD_TORCH = 5
LARGEST_STATE_DICT_PICKLE = 64 * 2**20
ZIP_START = b"PK\x03\x04"

# (module, name) in a file -> its meaning here. numpy 2 writes _core where numpy 1 writes core.
NAMES = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",
    ("__builtin__", "bytes"): "bytes",
    ("builtins", "bytes"): "bytes",
    ("numpy.core.multiarray", "_reconstruct"): "reconstruct",
    ("numpy._core.multiarray", "_reconstruct"): "reconstruct",
    ("numpy.core.multiarray", "scalar"): "scalar",
    ("numpy._core.multiarray", "scalar"): "scalar",
    ("numpy.core.numeric", "_frombuffer"): "frombuffer",
    ("numpy._core.numeric", "_frombuffer"): "frombuffer",
}


def unpickle(path: Path) -> Any:
    """The contents of a pickle. Raises a one-line DataError for anything but plain data."""
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise ValueError("it is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                if mapped[: len(OLD_TORCH_START)] == OLD_TORCH_START:
                    raise ValueError("it was written by torch.save")
                return _Machine().run(mapped)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    # pickletools and numpy raise nearly anything for broken operations.
    except Exception as error:
        raise unreadable(
            path, "pickle", f"{type(error).__name__}: {error}", PICKLE_STARTS
        ) from None


def check_torch_file(path: Path, largest: int = LARGEST_STATE_DICT_PICKLE) -> None:
    """Raises DataError for a file on which torch.load would end the process, weights_only or not.

    torch.load takes any value as the key of a dict, and Python follows a nested tuple to its end to
    hash it. largest: the most bytes that the description of the weights may have.
    """
    try:
        for pickled in _torch_pickles(path, largest):
            _check_nesting(pickled)
    # A broken file can raise nearly anything.
    except Exception as error:
        raise unreadable(
            path, "state dict of torch", f"{type(error).__name__}: {error}", TORCH_STARTS
        ) from None


def _check_nesting(pickled: IO[bytes]) -> None:
    """Raises ValueError if a tuple of this pickle is nested deeper than Python can follow.

    Reads the operations up to STOP and keeps how deeply each value on the stack is nested.
    """
    # None stands for a MARK.
    depths: list[int | None] = []
    memo: dict[int, int] = {}
    for operation, argument, _ in pickletools.genops(pickled):
        name = operation.name
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            key = len(memo) if argument is None else int(argument)
            memo[key] = depths[-1] or 0
            continue
        if isinstance(argument, int) and name in ("GET", "BINGET", "LONG_BINGET"):
            depths.append(memo[argument])
            continue
        taken: list[int] = []
        needed = [item.name for item in operation.stack_before]
        if "mark" in needed:
            while (depth := depths.pop()) is not None:
                taken.append(depth)
            needed = needed[: needed.index("mark")]
        for _ in needed:
            taken.append(depths.pop() or 0)
        made = 1 + max(taken, default=0) if name.startswith("TUPLE") else 0
        if made > DEEPEST_TUPLE:
            raise ValueError("more nested values than weights have")
        depths += [None if item.name == "mark" else made for item in operation.stack_after]


def _torch_pickles(path: Path, largest: int) -> Iterator[IO[bytes]]:
    """All pickles in a file of torch.save, new (a zip) or old (one after the other)."""
    with path.open("rb") as file:
        if file.read(len(ZIP_START)) != ZIP_START:
            file.seek(0)
            for _ in range(PICKLES_OF_OLD_TORCH):
                yield file
            return
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if not entry.filename.lower().endswith("data.pkl"):
                continue
            if entry.file_size > largest:
                raise ValueError(f"{entry.filename} has {entry.file_size:,} bytes")
            with archive.open(entry) as packed:
                yield packed


@dataclass(frozen=True)
class _Name:
    """One of NAMES, as a value on the stack."""

    meaning: str


class _Draft:
    """An array or a dtype whose state follows in a later operation, BUILD.

    It is on top of the stack and may have a number in the memo. BUILD puts the finished value in
    both places. Until then no operation may take it, so no value ever contains an unfinished one.
    """

    def __init__(self, finish: Callable[[Any], Any]):
        self.finish = finish
        self.memo_key: int | None = None


class _Machine:
    """The stack and the memo of one pickle."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        # The length of the stack at each open MARK.
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, file: Any) -> Any:
        """Execute the operations of `file` up to STOP and return the one value that is left."""
        for operation, argument, _ in pickletools.genops(file):
            step = STEPS.get(operation.name)
            if step is None:
                raise DataError(f"asks for the operation {operation.name}. {VALID}")
            step(self, argument)
        result = self._pop()
        if self._stack or self._marks:
            raise ValueError("values are left over")
        return result

    # ---- the stack

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _has_value(self) -> bool:
        """Whether there is a value above the last MARK."""
        floor = self._marks[-1] if self._marks else 0
        return len(self._stack) > floor

    def _pop(self) -> Any:
        """Take the top value, which must be above the last MARK."""
        if not self._has_value():
            raise ValueError("an operation lacks its values")
        value = self._stack.pop()
        _check_finished(value)
        return value

    def _pop_to_mark(self) -> list[Any]:
        if not self._marks:
            raise ValueError("an operation lacks its MARK")
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        for value in values:
            _check_finished(value)
        return values

    def _top(self, kind: type) -> Any:
        """The top value, which stays on the stack and must be of this type."""
        if not self._has_value() or type(self._stack[-1]) is not kind:
            raise ValueError(f"an operation lacks its {kind.__name__}")
        return self._stack[-1]

    def mark(self, _: None) -> None:
        self._marks.append(len(self._stack))

    def pop(self, _: None) -> None:
        """POP removes the top value, or a MARK above it."""
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._pop()

    def pop_mark(self, _: None) -> None:
        self._pop_to_mark()

    def skip(self, _: Any) -> None:
        """PROTO, FRAME and STOP carry no value."""

    # ---- the memo

    def put(self, key: int) -> None:
        if not self._stack:
            raise ValueError("nothing to remember")
        value = self._stack[-1]
        if isinstance(value, _Draft):
            value.memo_key = key
        self._memo[key] = value

    def memoize(self, _: None) -> None:
        self.put(len(self._memo))

    def get(self, key: int) -> None:
        value = self._memo[key]
        _check_finished(value)
        self._push(value)

    # ---- containers

    def empty_list(self, _: None) -> None:
        self._push([])

    def empty_tuple(self, _: None) -> None:
        self._push(())

    def empty_dict(self, _: None) -> None:
        self._push({})

    def empty_set(self, _: None) -> None:
        self._push(set())

    def list_of_mark(self, _: None) -> None:
        self._push(self._pop_to_mark())

    def tuple_of_mark(self, _: None) -> None:
        self._push(tuple(self._pop_to_mark()))

    def tuple_of_one(self, _: None) -> None:
        self._push((self._pop(),))

    def tuple_of_two(self, _: None) -> None:
        second = self._pop()
        first = self._pop()
        self._push((first, second))

    def tuple_of_three(self, _: None) -> None:
        third = self._pop()
        second = self._pop()
        first = self._pop()
        self._push((first, second, third))

    def dict_of_mark(self, _: None) -> None:
        filled: dict[Any, Any] = {}
        _fill(filled, self._pop_to_mark())
        self._push(filled)

    def frozenset_of_mark(self, _: None) -> None:
        self._push(frozenset(_hashable(value) for value in self._pop_to_mark()))

    def append(self, _: None) -> None:
        value = self._pop()
        self._top(list).append(value)

    def appends(self, _: None) -> None:
        values = self._pop_to_mark()
        self._top(list).extend(values)

    def set_item(self, _: None) -> None:
        value = self._pop()
        key = self._pop()
        _fill(self._top(dict), [key, value])

    def set_items(self, _: None) -> None:
        values = self._pop_to_mark()
        _fill(self._top(dict), values)

    def add_items(self, _: None) -> None:
        values = self._pop_to_mark()
        self._top(set).update(_hashable(value) for value in values)

    # ---- plain values

    def value(self, argument: Any) -> None:
        self._push(argument)

    def none(self, _: None) -> None:
        self._push(None)

    def true(self, _: None) -> None:
        self._push(True)

    def false(self, _: None) -> None:
        self._push(False)

    # ---- numpy's arrays, scalars and dtypes, by the names under which numpy pickles them

    def name(self, argument: str) -> None:
        """GLOBAL gives module and name in one text, separated by a space."""
        module, name = argument.split(" ", maxsplit=1)
        self._push_name(module, name)

    def name_of_stack(self, _: None) -> None:
        name = self._pop()
        module = self._pop()
        self._push_name(module, name)

    def _push_name(self, module: Any, name: Any) -> None:
        # Only text is looked up: to hash a nested tuple may be endless.
        are_texts = type(module) is str and type(name) is str
        if not are_texts or (module, name) not in NAMES:
            shown = f"{module}.{name}"[:ERROR_CHARACTERS]
            raise DataError(f"asks to load {shown}. {VALID}")
        self._push(_Name(NAMES[module, name]))

    def call(self, _: None) -> None:
        """REDUCE calls a name with a tuple of arguments."""
        arguments = self._pop()
        called = self._pop()
        if type(called) is not _Name or type(arguments) is not tuple:
            raise ValueError("a call of something that is no name")
        if called.meaning not in CALLS:
            raise DataError(f"asks to call {called.meaning}. {VALID}")
        self._push(CALLS[called.meaning](*arguments))

    def build(self, _: None) -> None:
        state = self._pop()
        draft = self._top(_Draft)
        finished = draft.finish(state)
        self._stack[-1] = finished
        if draft.memo_key is not None:
            self._memo[draft.memo_key] = finished


def _check_finished(value: Any) -> None:
    if isinstance(value, _Draft):
        raise DataError(f"has an array or a dtype without its contents. {VALID}")


def _hashable(value: Any) -> Any:
    """The value, checked to be a key of a dict or an element of a set.

    A nested tuple is refused, because Python follows it without a limit to hash it.
    """
    parts = value if type(value) is tuple else (value,)
    if not all(isinstance(part, KEY_TYPES) for part in parts):
        kind = type(value).__name__
        raise DataError(f"has a {kind} as a key or in a set. Valid: text, numbers, tuples of them")
    return value


def _fill(filled: dict[Any, Any], values: list[Any]) -> None:
    """Add items to a dict. values: key, value, key, value, ..."""
    if len(values) % 2:
        raise ValueError("a dict with a key that has no value")
    for key, value in zip(values[::2], values[1::2], strict=True):
        filled[_hashable(key)] = value


# ---- the calls behind the names


def _encode(text: Any, encoding: Any) -> bytes:
    """The form in which protocols 0 to 2 write bytes."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise DataError(f"asks for an encoding other than that of bytes. {VALID}")
    return text.encode("latin-1")


def _empty_bytes() -> bytes:
    """The form in which protocols 0 to 2 write empty bytes."""
    return b""


def _dtype(name: Any, *copy: Any) -> _Draft:
    """copy: numpy's arguments `align` and `copy`, which do not matter here."""
    if isinstance(name, bytes):
        name = name.decode("latin-1")
    is_plain = isinstance(name, str) and (PLAIN_DTYPE.fullmatch(name) or name == OBJECT_DTYPE)
    if not is_plain:
        shown = str(name)[:ERROR_CHARACTERS]
        raise DataError(
            f"has an array of dtype {shown}. Valid: numbers, bool, text of fixed width, objects"
        )
    return _Draft(partial(_finished_dtype, name))


def _finished_dtype(name: str, state: Any) -> "np.dtype[Any]":
    """The dtype of that name in the byte order of `state`, which must define nothing else."""
    made = np.dtype(object if name == OBJECT_DTYPE else name)
    expected: tuple[Any, ...] = NUMBER_STATE
    if made.kind in "SU":
        expected = (None, None, None, made.itemsize, made.alignment, STRING_FLAGS[made.kind])
    if made.kind == "O":
        expected = OBJECT_STATE
    is_numpys_own = (
        type(state) is tuple
        and len(state) == 2 + len(expected)
        and state[0] == DTYPE_STATE_VERSION
        and _same(state[2:], expected)
    )
    if not is_numpys_own:
        raise DataError(f"has a dtype {name} with a state of its own. {VALID}")
    order = state[1]
    if isinstance(order, bytes):
        order = order.decode("latin-1")
    if order not in ("<", ">", "|", "="):
        raise DataError(f"has a dtype {name} in the byte order {str(order)[:20]}. {VALID}")
    return made.newbyteorder(order)


def _same(state: tuple[Any, ...], expected: tuple[Any, ...]) -> bool:
    """Whether both hold the same plain values of the same types.

    Nested values are never compared, because a comparison may be endless.
    """
    pairs = zip(state, expected, strict=True)
    return all(type(value) is type(wanted) and value == wanted for value, wanted in pairs)


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Draft:
    """The form in which numpy begins an array. BUILD gives it its shape, dtype and contents."""
    if type(kind) is not _Name or kind.meaning != "ndarray":
        raise DataError(f"asks for an array of another class. {VALID}")
    return _Draft(_finished_array)


def _finished_array(state: Any) -> NDArray[Any]:
    if type(state) is not tuple or len(state) != 5 or state[0] != ARRAY_STATE_VERSION:
        raise DataError(f"has an array with a state of its own. {VALID}")
    _, shape, dtype, fortran, contents = state
    if isinstance(dtype, np.dtype) and dtype.kind == "O":
        return _object_array(shape, bool(fortran), contents)
    return _array(contents, dtype, shape, "F" if fortran else "C")


def _object_array(shape: Any, fortran: bool, contents: Any) -> NDArray[Any]:
    """contents: a list of values of this file, each of which has been checked on its own."""
    _check_shape(shape)
    if type(contents) is not list or len(contents) != math.prod(shape):
        raise DataError(f"has an array of objects that is no list of {math.prod(shape)}. {VALID}")
    flat = np.empty(len(contents), dtype=object)
    for position, value in enumerate(contents):
        flat[position] = value
    return flat.reshape(shape, order="F" if fortran else "C")


def _frombuffer(
    contents: Any, dtype: Any, shape: Any, order: Any, axes: Any = None
) -> NDArray[Any]:
    """The form in which protocol 5 writes an array.

    axes: how to transpose an array whose memory is in neither C nor Fortran order.
    """
    if order == "K" and axes is not None:
        _check_shape(axes)
        return _array(contents, dtype, shape, "C").transpose(axes)
    if order not in ("C", "F"):
        raise DataError(f"has an array in the order {str(order)[:20]}. {VALID}")
    return _array(contents, dtype, shape, order)


def _array(contents: Any, dtype: Any, shape: Any, order: Any) -> NDArray[Any]:
    """A read-only view of `contents`, so that a data set is in memory only once."""
    if isinstance(contents, str):
        # Python 2 had no bytes. pickletools reads its strings as latin-1, so this is exact.
        contents = contents.encode("latin-1")
    if type(contents) not in (bytes, bytearray) or not isinstance(dtype, np.dtype):
        raise DataError(f"has an array that is not bytes of a dtype. {VALID}")
    if dtype.kind == "O":
        raise DataError(f"has bytes as an array of objects. {VALID}")
    _check_shape(shape)
    if len(contents) != math.prod(shape) * dtype.itemsize:
        raise DataError(f"has {len(contents):,} bytes for an array {shape} of {dtype}. {VALID}")
    if not contents:
        # No elements, or one empty text, whose dtype has a width of 0.
        return _empty_array(shape, dtype)
    flat = np.frombuffer(bytes(contents), dtype)
    if dtype.kind == "b":
        # Bytes other than 0 and 1 would be neither true nor false.
        flat = flat.view(np.uint8) != 0
    if dtype.kind == "U":
        _check_text(flat)
    if not dtype.isnative:
        flat = flat.astype(dtype.newbyteorder("="))
    return flat.reshape(shape, order=order)


def _empty_array(shape: tuple[int, ...], dtype: "np.dtype[Any]") -> NDArray[Any]:
    if math.prod(shape) > 1:
        raise DataError(f"has an array {shape} of {dtype} without contents. {VALID}")
    return np.zeros(shape, dtype)


def _check_shape(shape: Any) -> None:
    if type(shape) is not tuple or len(shape) > MOST_DIMENSIONS:
        raise DataError(f"has an array whose shape is no tuple of numbers. {VALID}")
    if not all(type(size) is int and 0 <= size < LARGEST_SIZE for size in shape):
        raise DataError(f"has an array whose shape is no tuple of sizes. {VALID}")
    # An array without elements may still have sizes that break a later computation.
    if math.prod(size or 1 for size in shape) >= LARGEST_SIZE:
        raise DataError(f"has an array {shape}, which is too large. {VALID}")


def _check_text(flat: NDArray[np.str_]) -> None:
    code_points = flat.view(np.dtype(np.uint32).newbyteorder(flat.dtype.byteorder))
    if code_points.max() > LARGEST_CODE_POINT:
        raise DataError(f"has an array of text with a character that is none. {VALID}")


def _scalar(dtype: Any, contents: Any = b"") -> Any:
    return _array(contents, dtype, (), "C")[()]


CALLS: dict[str, Callable[..., Any]] = {
    "encode": _encode,
    "bytes": _empty_bytes,
    "dtype": _dtype,
    "reconstruct": _reconstruct,
    "scalar": _scalar,
    "frombuffer": _frombuffer,
}

# Operation of pickletools -> method. All others are refused: classes and their instances (INST,
# OBJ, NEWOBJ), the extension registry, objects and buffers outside the file, and DUP, which no
# pickler writes.
STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine.skip,
    "FRAME": _Machine.skip,
    "STOP": _Machine.skip,
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "GET": _Machine.get,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "EMPTY_LIST": _Machine.empty_list,
    "EMPTY_TUPLE": _Machine.empty_tuple,
    "EMPTY_DICT": _Machine.empty_dict,
    "EMPTY_SET": _Machine.empty_set,
    "LIST": _Machine.list_of_mark,
    "TUPLE": _Machine.tuple_of_mark,
    "DICT": _Machine.dict_of_mark,
    "FROZENSET": _Machine.frozenset_of_mark,
    "TUPLE1": _Machine.tuple_of_one,
    "TUPLE2": _Machine.tuple_of_two,
    "TUPLE3": _Machine.tuple_of_three,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "ADDITEMS": _Machine.add_items,
    "NONE": _Machine.none,
    "NEWTRUE": _Machine.true,
    "NEWFALSE": _Machine.false,
    "INT": _Machine.value,
    "BININT": _Machine.value,
    "BININT1": _Machine.value,
    "BININT2": _Machine.value,
    "LONG": _Machine.value,
    "LONG1": _Machine.value,
    "LONG4": _Machine.value,
    "FLOAT": _Machine.value,
    "BINFLOAT": _Machine.value,
    "STRING": _Machine.value,
    "BINSTRING": _Machine.value,
    "SHORT_BINSTRING": _Machine.value,
    "UNICODE": _Machine.value,
    "SHORT_BINUNICODE": _Machine.value,
    "BINUNICODE": _Machine.value,
    "BINUNICODE8": _Machine.value,
    "SHORT_BINBYTES": _Machine.value,
    "BINBYTES": _Machine.value,
    "BINBYTES8": _Machine.value,
    "BYTEARRAY8": _Machine.value,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name_of_stack,
    "REDUCE": _Machine.call,
    "BUILD": _Machine.build,
}
