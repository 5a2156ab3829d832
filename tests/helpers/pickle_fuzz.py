"""Makes pickles that look for a way past hpo.data.pickles, and reads them.

    python tests/helpers/pickle_fuzz.py FIRST_SEED COUNT FOLDER

Each seed gives one pickle of the names that are allowed, with odd arguments, states and uses of the
memo. Prints the seed before it reads, so whoever sees this process end by a signal knows which it was.
"""

import faulthandler
import gc
import random
import struct
import sys
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


class Writer:
    """Writes operations for one random value after another."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.memo = 0
        self.depth = 0

    def pickle(self) -> bytes:
        body = b"(" + b"".join(self.value() for _ in range(self.random.randint(1, 4))) + b"l"
        return b"\x80" + bytes([self.random.choice([2, 3, 4, 5])]) + body + b"."

    def value(self) -> bytes:
        self.depth += 1
        kinds = [self.plain] if self.depth > 6 else [
            self.plain, self.container, self.dtype, self.array, self.array, self.scalar, self.buffer,
            self.name, self.remembered, self.states_of_names, self.nested_key,
        ]  # fmt: skip
        written = self.random.choice(kinds)()
        self.depth -= 1
        return self.memoized(written)

    def memoized(self, written: bytes) -> bytes:
        if self.random.random() < 0.4:
            written += b"r" + struct.pack("<I", self.memo)
            self.memo += 1
        if self.random.random() < 0.03:
            written += self.random.choice(
                [b"2", b"0", b"1", b"(", b"R", b"b", b"a", b"s", b"\x81", b"\x93"]
            )
        return written

    def remembered(self) -> bytes:
        if not self.memo:
            return self.plain()
        return b"j" + struct.pack("<I", self.random.randrange(self.memo))

    def plain(self) -> bytes:
        raw = self.random.choice([b"", POINTERS, POINTERS * 2, b"A" * 7, b"\xff" * 8, b"\x00" * 16])
        return self.random.choice([
            b"N", b"\x88", b"\x89", b"K\x01", b"K\x00", b"J\xff\xff\xff\xff", b"\x8a\x09" + b"\xff" * 8 + b"\x00",
            b"G" + struct.pack(">d", 1e308), b"C" + bytes([len(raw)]) + raw, b"X\x02\x00\x00\x00f4",
            b"\x96" + struct.pack("<Q", len(raw)) + raw, self.text(self.random.choice(DTYPES)),
        ])  # fmt: skip

    def container(self) -> bytes:
        inside = b"(" + b"".join(self.value() for _ in range(self.random.randint(0, 3)))
        return inside + self.random.choice([b"l", b"t", b"\x91", b"d"])

    def nested_key(self) -> bytes:
        return (
            b"}N" + b"\x85" * self.random.choice([1, 2, 3, 4, 5, 6, 7, 8, 9, 200_000]) + b"K\x01s"
        )

    def text(self, text: str) -> bytes:
        return b"X" + struct.pack("<I", len(text)) + text.encode()

    def number(self, value: int) -> bytes:
        return b"\x8a\x08" + struct.pack("<q", value)

    def tuple(self, *values: bytes) -> bytes:
        return b"(" + b"".join(values) + b"t"

    def name(self, name: str | None = None) -> bytes:
        chosen = name or self.random.choice(NAMES)
        home = HOMES[chosen] + (self.random.randint(0, 1) if HOMES[chosen] in (0, 2) else 0)
        if self.random.random() < 0.02:
            home = self.random.randrange(len(MODULES))
        return b"c" + MODULES[home].encode() + b"\n" + chosen.encode() + b"\n"

    def states_of_names(self) -> bytes:
        """BUILD on what a name stands for sets attributes in Python's unpickler."""
        attribute = self.text(
            self.random.choice(
                ["__defaults__", "__kwdefaults__", "__setstate__", "__class__", "dtype"]
            )
        )
        return self.name() + self.tuple(b"N", b"}" + attribute + self.value() + b"s") + b"b"

    def odd(self, usual: bytes, share: float = 0.12) -> bytes:
        return self.value() if self.random.random() < share else usual

    def dtype(self) -> bytes:
        name = self.random.choice(DTYPES)
        made = self.name("dtype") + self.tuple(self.odd(self.text(name)), b"\x89", b"\x88") + b"R"
        made = self.memoized(made)
        if self.random.random() < 0.1:
            return made
        fields = self.odd(b"N", 0.1)
        if self.random.random() < 0.15:
            fields = (
                b"}"
                + self.text("a")
                + self.tuple(self.dtype() if self.depth < 5 else self.plain(), b"K\x00")
                + b"s"
            )
        names = self.odd(b"N", 0.1) if fields == b"N" else self.tuple(self.text("a"))
        width = {"S8": 8, "U2": 8, "V8": 8, "V16": 16}.get(name, -1)
        flags = (
            self.random.choice(FLAGS)
            if self.random.random() < 0.4
            else 63
            if name.startswith("O")
            else 0
        )
        order = self.text(self.random.choice(["<", ">", "|", "=", "x"]))
        state = [
            self.number(self.random.choice([3, 3, 3, 3, 4, 1])), order, self.odd(b"N", 0.05), names, fields,
            self.number(width), self.number({"S8": 1, "U2": 4}.get(name, -1)), self.number(flags),
        ]  # fmt: skip
        return made + self.odd(self.tuple(*state), 0.05) + b"b"

    def shape(self) -> bytes:
        sizes = self.random.choice(
            [(), (0,), (1,), (2,), (1, 1), (3,), (2**61,), (-1,), (0, 2**61), (2**40, 2**40)]
        )
        return self.tuple(*(self.number(size) for size in sizes))

    def contents(self) -> bytes:
        raw = self.random.choice(
            [b"", b"\x00" * 4, POINTERS, POINTERS * 2, POINTERS * 3, b"\xff" * 8]
        )
        return self.random.choice([
            b"C" + bytes([len(raw)]) + raw, b"\x96" + struct.pack("<Q", len(raw)) + raw,
            b"(" + b"".join(self.value() for _ in range(self.random.randint(0, 2))) + b"l",
        ])  # fmt: skip

    def array(self) -> bytes:
        kind = self.odd(self.name("ndarray"), 0.08)
        made = (
            self.name("_reconstruct")
            + self.tuple(kind, self.odd(self.tuple(b"K\x00")), b"C\x01b")
            + b"R"
        )
        made = self.memoized(made)
        for _ in range(self.random.choice([0, 1, 1, 1, 1, 2])):
            state = self.tuple(self.odd(b"K\x01", 0.03), self.odd(self.shape(), 0.05), self.odd(self.dtype(), 0.1),
                               self.random.choice([b"\x88", b"\x89"]), self.contents())  # fmt: skip
            made += self.odd(state, 0.05) + b"b"
        return made

    def scalar(self) -> bytes:
        return (
            self.name("scalar")
            + self.tuple(self.odd(self.dtype()), self.odd(self.contents()))
            + b"R"
        )

    def buffer(self) -> bytes:
        order = self.text(self.random.choice(["C", "F", "K", "A"]))
        axes = [self.tuple(b"K\x00")] * self.random.randint(0, 1)
        made = self.tuple(
            self.contents(), self.odd(self.dtype()), self.odd(self.shape()), order, *axes
        )
        return self.name("_frombuffer") + made + b"R"


def use(value: object, depth: int = 0) -> None:
    """Do what readers do with values: look at each, copy, compare, print."""
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
