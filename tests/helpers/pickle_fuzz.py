"""Writes pickles that look for a way past hpo.data.pickles, and reads them.

    python tests/helpers/pickle_fuzz.py FIRST_SEED COUNT FOLDER

Each seed gives one pickle of the allowed names, with odd arguments, states and uses of the memo.
The seed is printed before its pickle is read, so that it is known when a signal ends this process.
"""

import faulthandler
import gc
import random
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hpo.data.pickles import unpickle
from hpo.errors import DataError

MODULES = [
    "numpy.core.multiarray",
    "numpy._core.multiarray",
    "numpy.core.numeric",
    "numpy._core.numeric",
    "numpy",
    "_codecs",
]
NAMES = ["_reconstruct", "scalar", "_frombuffer", "ndarray", "dtype", "encode"]
# The index in MODULES of the module that has the name. numpy 2 has its own form of 0 and of 2.
HOMES = {"_reconstruct": 0, "scalar": 0, "_frombuffer": 2, "ndarray": 4, "dtype": 4, "encode": 5}
DTYPES = [
    "f4",
    "f8",
    "i8",
    "u1",
    "b1",
    "S8",
    "U2",
    "O8",
    "O",
    "V8",
    "M8[s]",
    "c16",
    ">f4",
    "V16",
    "S0",
    "U0",
    "|O",
    "i4,O",
    "U99999999",
]
FLAGS = [0, 1, 2, 4, 8, 16, 27, 63, 64, 255, -1, 2**31]
POINTERS = struct.pack("<Q", 0x4141414141414141)
LONGEST_READING = 10
NONE = b"N"
TRUE = b"\x88"
FALSE = b"\x89"
CALL = b"R"
SET_STATE = b"b"


def byte_string(contents: bytes) -> bytes:
    return b"C" + bytes([len(contents)]) + contents


def byte_array(contents: bytes) -> bytes:
    return b"\x96" + struct.pack("<Q", len(contents)) + contents


class Writer:
    """Writes the operations for one random value after another.

    The order of the random draws decides what a seed stands for.
    """

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.memo = 0
        self.depth = 0

    def pickle(self) -> bytes:
        body = b"(" + b"".join(self.value() for _ in range(self.random.randint(1, 4))) + b"l"
        return b"\x80" + bytes([self.random.choice([2, 3, 4, 5])]) + body + b"."

    def value(self) -> bytes:
        self.depth += 1
        kinds: list[Callable[[], bytes]] = [self.plain]
        if self.depth <= 6:
            # An array is there twice: it is the most likely way in.
            kinds += [self.container, self.dtype, self.array, self.array, self.scalar]
            kinds += [self.buffer, self.name, self.remembered]
            kinds += [self.states_of_names, self.nested_key]
        written = self.random.choice(kinds)()
        self.depth -= 1
        return self.memoized(written)

    def memoized(self, written: bytes) -> bytes:
        if self.random.random() < 0.4:
            written += b"r" + struct.pack("<I", self.memo)
            self.memo += 1
        if self.random.random() < 0.03:
            operations = [b"2", b"0", b"1", b"(", CALL, SET_STATE, b"a", b"s", b"\x81", b"\x93"]
            written += self.random.choice(operations)
        return written

    def remembered(self) -> bytes:
        if not self.memo:
            return self.plain()
        return b"j" + struct.pack("<I", self.random.randrange(self.memo))

    def plain(self) -> bytes:
        raw = self.random.choice([b"", POINTERS, POINTERS * 2, b"A" * 7, b"\xff" * 8, b"\x00" * 16])
        values = [NONE, TRUE, FALSE]
        values += [b"K\x01", b"K\x00", b"J\xff\xff\xff\xff", b"\x8a\x09" + b"\xff" * 8 + b"\x00"]
        values += [b"G" + struct.pack(">d", 1e308), byte_string(raw), self.text("f4")]
        values += [byte_array(raw), self.text(self.random.choice(DTYPES))]
        return self.random.choice(values)

    def container(self) -> bytes:
        inside = b"(" + b"".join(self.value() for _ in range(self.random.randint(0, 3)))
        return inside + self.random.choice([b"l", b"t", b"\x91", b"d"])

    def nested_key(self) -> bytes:
        depth = self.random.choice([1, 2, 3, 4, 5, 6, 7, 8, 9, 200_000])
        return b"}N" + b"\x85" * depth + b"K\x01s"

    def text(self, text: str) -> bytes:
        return b"X" + struct.pack("<I", len(text)) + text.encode()

    def number(self, value: int) -> bytes:
        return b"\x8a\x08" + struct.pack("<q", value)

    def tuple(self, *values: bytes) -> bytes:
        return b"(" + b"".join(values) + b"t"

    def name(self, name: str | None = None) -> bytes:
        chosen = name or self.random.choice(NAMES)
        home = HOMES[chosen]
        if home in (0, 2):
            home += self.random.randint(0, 1)
        if self.random.random() < 0.02:
            home = self.random.randrange(len(MODULES))
        return b"c" + MODULES[home].encode() + b"\n" + chosen.encode() + b"\n"

    def states_of_names(self) -> bytes:
        """In Python's unpickler, a state that is set on a named object sets its attributes."""
        attributes = ["__defaults__", "__kwdefaults__", "__setstate__", "__class__", "dtype"]
        attribute = self.text(self.random.choice(attributes))
        return self.name() + self.tuple(NONE, b"}" + attribute + self.value() + b"s") + SET_STATE

    def odd(self, usual: bytes, share: float = 0.12) -> bytes:
        return self.value() if self.random.random() < share else usual

    def dtype(self) -> bytes:
        name = self.random.choice(DTYPES)
        called = self.name("dtype") + self.tuple(self.odd(self.text(name)), FALSE, TRUE) + CALL
        called = self.memoized(called)
        if self.random.random() < 0.1:
            return called
        return called + self.odd(self.state_of_dtype(name), 0.05) + SET_STATE

    def state_of_dtype(self, name: str) -> bytes:
        fields = self.odd(NONE, 0.1)
        if self.random.random() < 0.15:
            fields = self.field()
        names = self.odd(NONE, 0.1) if fields == NONE else self.tuple(self.text("a"))
        width = {"S8": 8, "U2": 8, "V8": 8, "V16": 16}.get(name, -1)
        alignment = {"S8": 1, "U2": 4}.get(name, -1)
        flags = 63 if name.startswith("O") else 0
        if self.random.random() < 0.4:
            flags = self.random.choice(FLAGS)
        order = self.text(self.random.choice(["<", ">", "|", "=", "x"]))
        version = self.number(self.random.choice([3, 3, 3, 3, 4, 1]))
        subarray = self.odd(NONE, 0.05)
        sizes = [self.number(width), self.number(alignment), self.number(flags)]
        return self.tuple(version, order, subarray, names, fields, *sizes)

    def field(self) -> bytes:
        kind = self.dtype() if self.depth < 5 else self.plain()
        return b"}" + self.text("a") + self.tuple(kind, b"K\x00") + b"s"

    def shape(self) -> bytes:
        shapes: list[tuple[int, ...]] = [(), (0,), (1,), (2,), (1, 1), (3,)]
        shapes += [(2**61,), (-1,), (0, 2**61), (2**40, 2**40)]
        sizes = self.random.choice(shapes)
        return self.tuple(*(self.number(size) for size in sizes))

    def contents(self) -> bytes:
        raws = [b"", b"\x00" * 4, POINTERS, POINTERS * 2, POINTERS * 3, b"\xff" * 8]
        raw = self.random.choice(raws)
        values = b"".join(self.value() for _ in range(self.random.randint(0, 2)))
        return self.random.choice([byte_string(raw), byte_array(raw), b"(" + values + b"l"])

    def array(self) -> bytes:
        kind = self.odd(self.name("ndarray"), 0.08)
        function = self.name("_reconstruct")
        arguments = self.tuple(kind, self.odd(self.tuple(b"K\x00")), byte_string(b"b"))
        written = self.memoized(function + arguments + CALL)
        for _ in range(self.random.choice([0, 1, 1, 1, 1, 2])):
            written += self.odd(self.state_of_array(), 0.05) + SET_STATE
        return written

    def state_of_array(self) -> bytes:
        version = self.odd(b"K\x01", 0.03)
        shape = self.odd(self.shape(), 0.05)
        kind = self.odd(self.dtype(), 0.1)
        is_fortran = self.random.choice([TRUE, FALSE])
        return self.tuple(version, shape, kind, is_fortran, self.contents())

    def scalar(self) -> bytes:
        function = self.name("scalar")
        kind = self.odd(self.dtype())
        return function + self.tuple(kind, self.odd(self.contents())) + CALL

    def buffer(self) -> bytes:
        order = self.text(self.random.choice(["C", "F", "K", "A"]))
        has_axes = self.random.randint(0, 1) == 1
        arguments = [self.contents(), self.odd(self.dtype()), self.odd(self.shape()), order]
        if has_axes:
            arguments.append(self.tuple(b"K\x00"))
        return self.name("_frombuffer") + self.tuple(*arguments) + CALL


def use(value: object, depth: int = 0) -> None:
    """Do what readers do with values: look at each, copy, convert, print."""
    if isinstance(value, np.ndarray):
        value.copy()
        repr(value[:2] if value.ndim else value)
        np.asarray(value).astype(object).tolist()
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple | set | frozenset) and depth < 20:
        for part in value:
            use(part, depth + 1)


def main(first: int, count: int, folder: Path) -> None:
    faulthandler.enable()
    path = folder / f"{first}.pickle"
    read = 0
    for seed in range(first, first + count):
        print(seed, file=sys.stderr, flush=True)
        path.write_bytes(Writer(seed).pickle())
        # Seconds of the processor, after which a signal ends this process.
        signal.setitimer(signal.ITIMER_PROF, LONGEST_READING)
        try:
            use(unpickle(path))
            read += 1
        except DataError as error:
            if "\n" in str(error) or len(str(error)) > 1000:
                raise SystemExit(f"not one line: {error}") from None
    gc.collect()
    print(read)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
