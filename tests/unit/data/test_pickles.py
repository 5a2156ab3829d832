"""Pickles: those of real data are read as Python reads them, and all others are refused."""

import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.paths import ROOT

from hpo.data.pickles import check_torch_file, unpickle
from hpo.decoder.artifact import load_decoder
from hpo.errors import DataError

FUZZ = ROOT / "tests" / "helpers" / "pickle_fuzz.py"
FUZZ_SEQUENCES = 2000
FUZZ_PROCESSES = 4
FUZZ_MEMORY_KB = 2_000_000

numbers = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
WIDTHS = ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")
SIMPLE: list[Any] = [None, True, False, 0, -1, 2**70, 1.5, float("inf")]
SIMPLE += ["text", "naïve \u2603", b"\x00\xff", (), (1, (2, 3)), {"a": {1: 2.0}}]
VALUES: dict[str, Any] = {
    "plain": SIMPLE,
    "long text and bytes": ["x" * 70_000, b"y" * 70_000],
    "a tuple as a key": {("t12", 3): 1},
    "lists of lists": [[[0.5] * 4] * 3, list(range(300))],
    "float32": numbers,
    "big-endian": numbers.astype(">f4"),
    "big-endian integers": np.arange(5, dtype=">i8"),
    "Fortran order": np.asfortranarray(numbers),
    "a transposed array": numbers.transpose(1, 0, 2),
    "every second": numbers[:, ::2],
    "every width": [np.arange(3).astype(width) for width in WIDTHS],
    "bool": np.array([[True, False], [False, True]]),
    "text": np.array(["ab", "c", "\U0001f600"]),
    "big-endian text": np.array(["ab", "c"]).astype(">U2"),
    "byte text": np.array([b"ab", b"c"]),
    "empty": [np.empty((0, 4), np.float32), np.empty(0, np.int64), np.empty((3, 0))],
    "no dimensions": np.array(3.5),
    "scalars": [np.float32(0.02), np.int64(-3), np.bool_(True)],
    "scalars of text": [np.str_("adam"), np.str_(""), np.bytes_(b"x")],
    "wide scalars": [np.float64(1e-8), np.complex64(1j)],
    "objects": np.array([np.arange(3), "text", None, [1, 2]], dtype=object),
    "objects in two dimensions": np.array([["a", None], [1, 2.5], [b"c", ()]], dtype=object),
    "no objects": np.empty(0, dtype=object),
    "one array twice": [numbers, numbers],
    "labels as floats": np.array([3.0, 7.0]),
    "scalars as keys": {np.int64(3): "a", np.str_("b"): 1},
}


def same(one: Any, other: Any) -> bool:
    """Equal in every value, type, dtype and shape; `one` has the byte order of this machine."""
    if isinstance(other, np.ndarray):
        assert isinstance(one, np.ndarray)
        assert one.dtype == other.dtype.newbyteorder("=")
        assert one.shape == other.shape
        return same(one.ravel().tolist(), other.ravel().tolist())
    if isinstance(other, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(other, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in other)
    return type(one) is type(other) and bool(one == other)


def read(path: Path, contents: bytes) -> Any:
    path.write_bytes(contents)
    return unpickle(path)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", VALUES)
def test_what_python_reads_is_read_the_same(tmp_path: Path, name: str, protocol: int) -> None:
    written = pickle.dumps(VALUES[name], protocol=protocol)
    by_python = pickle.loads(written)
    assert same(read(tmp_path / "p", written), by_python)
    as_by_numpy_1 = written.replace(b"numpy._core", b"numpy.core")
    # From protocol 4 on the length of a module's name comes before it.
    if protocol < 4:
        assert same(read(tmp_path / "p", as_by_numpy_1), by_python)


def test_sets(tmp_path: Path) -> None:
    sets = [{1, "a"}, frozenset({2.5, b"c"})]
    assert read(tmp_path / "p", pickle.dumps(sets, protocol=4)) == sets


@pytest.mark.parametrize("protocol", range(6))
def test_cycles(tmp_path: Path, protocol: int) -> None:
    endless: list[Any] = [1]
    endless.append((endless, 2))
    value = read(tmp_path / "p", pickle.dumps(endless, protocol=protocol))
    assert value[1][0] is value


def test_pickles_of_python_2(tmp_path: Path) -> None:
    """Text is bytes there, and so are the contents of an array.

    Written by hand, as Python 2.7 with numpy 1.16 writes it with protocol 2.
    """
    values = np.array([1.5, -2.0])
    written = (
        b"\x80\x02}q\x00U\x01xq\x01"
        b"cnumpy.core.multiarray\n_reconstruct\nq\x02"
        b"cnumpy\nndarray\nq\x03K\x00\x85q\x04U\x01bq\x05\x87q\x06Rq\x07"
        b"(K\x01K\x02\x85q\x08"
        b"cnumpy\ndtype\nq\tU\x02f8q\nK\x00K\x01\x87q\x0bRq\x0c"
        b"(K\x03U\x01<q\rNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0eb"
        b"\x89U\x10" + values.tobytes() + b"q\x0ftq\x10bs."
    )
    assert same(read(tmp_path / "p", written), {"x": values})


# ---- what is refused


MINUS_ONE = b"J\xff\xff\xff\xff"
WITHOUT_FIELDS = b"NNN" + 2 * MINUS_ONE


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def raw(contents: bytes) -> bytes:
    return b"C" + bytes([len(contents)]) + contents


def dtype(
    name: str, order: bytes = text("<"), rest: bytes = WITHOUT_FIELDS, flags: int = 0
) -> bytes:
    """A dtype with its state; `rest` is the subarray, names, fields, width and alignment."""
    call = b"cnumpy\ndtype\n" + text(name) + b"\x89\x88\x87R"
    return call + b"(K\x03" + order + rest + b"K" + bytes([flags]) + b"tb"


def array(kind: bytes, shape: bytes = b"K\x01\x85", contents: bytes = raw(b"A" * 8)) -> bytes:
    return DRAFT + state(kind, shape, contents)


def state(kind: bytes, shape: bytes = b"K\x01\x85", contents: bytes = raw(b"A" * 8)) -> bytes:
    return b"(K\x01" + shape + kind + b"\x89" + contents + b"tb"


def called(name: str, *arguments: bytes) -> bytes:
    return b"cnumpy._core." + name.encode() + b"\n(" + b"".join(arguments) + b"tR"


# An array whose state is not set yet.
DRAFT = b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
OBJECTS = dtype("O8", text("|"), flags=63)
FIELDS = b"N\x8c\x01a\x85}\x8c\x01a" + OBJECTS + b"K\x00\x86sK\x08K\x01"
HUGE = b"\x8a\x08" + b"\xff" * 7 + b"\x0f"
CRAFTED = {
    "objects without their flags": array(dtype("O8", text("|"))),
    "objects of bytes": array(OBJECTS),
    "a list shorter than the shape": array(OBJECTS, b"K\x09\x85", b"(K\x01l"),
    "a scalar of objects": called("multiarray\nscalar", OBJECTS, raw(b"A" * 8)),
    "a buffer of objects": called(
        "numeric\n_frombuffer", raw(b"A" * 8), OBJECTS, b"K\x01\x85", text("C")
    ),
    "a void with an object in it": array(dtype("V8", text("|"), FIELDS, flags=1)),
    "a number with fields": array(dtype("f8", text("<"), FIELDS)),
    "a number with flags": array(dtype("f8", flags=63)),
    "a number of another size": array(dtype("f4", text("<"), b"NNNK\x40" + MINUS_ONE)),
    "text of another size": array(dtype("U2", text("<"), b"NNNM\x00\x40K\x04", flags=8)),
    "a subarray": array(dtype("f8", text("<"), b"K\x01NN" + 2 * MINUS_ONE)),
    "a structure by name": array(dtype("i4,O")),
    "times with metadata": array(dtype("M8[s]")),
    "a very long text": array(dtype("U9999999")),
    "no such byte order": array(dtype("f8", text("x"))),
    "an array of another class": DRAFT.replace(b"ndarray", b"dtype"),
    "fewer bytes than the shape": array(dtype("f8"), b"K\x02\x85"),
    "more bytes than the shape": array(dtype("f4")),
    "a negative shape": array(dtype("f8"), MINUS_ONE + b"\x85"),
    "a shape that overflows": array(dtype("f8"), HUGE + HUGE + b"\x86"),
    "a shape of a list": array(dtype("f8"), b"(K\x01l"),
    "invalid characters": array(
        dtype("U2", text("<"), b"NNNK\x08K\x04", flags=8), contents=raw(b"\xff" * 8)
    ),
    "an array without its contents": b"]" + DRAFT + b"a",
    "an array in its own contents": DRAFT + b"\x94" + state(OBJECTS, contents=b"(h\x00l"),
    "a second state": array(dtype("f8")) + state(OBJECTS),
    "a dtype without its state": b"]cnumpy\ndtype\n" + text("f8") + b"\x89\x88\x87Ra",
    "the state of a name": b"cnumpy\nndarray\nN}" + text("__defaults__") + b"K\x01\x85s\x86b",
    "an instance": b"cnumpy\nndarray\nK\x01\x85\x81",
    "an instance of numpy": b"(K\x01inumpy\nndarray\n",
    "a call of a class": b"cnumpy\nndarray\nK\x01\x85R",
    "a call of a number": b"K\x01)R",
    "another codec": b"c_codecs\nencode\n" + text("a") + text("zlib") + b"\x86R",
    "a copy of the top": b"K\x01\x32\x86",
    "an object outside": b"K\x01Q",
    "a buffer outside": b"\x97",
    "an extension": b"\x82\x01",
    "an array as a key": b"}" + array(dtype("f8")) + b"K\x01s",
    "a key without a value": b"}(K\x01u",
    "a million tuples as a key": b"}N" + b"\x85" * 1_000_000 + b"K\x01s",
    "a million tuples in a set": b"\x8f(N" + b"\x85" * 1_000_000 + b"\x90",
    "values left over": b"K\x01K\x02",
    "an open mark": b"(K\x01",
    "nothing": b"",
    "something that was never remembered": b"h\x07",
    "a hundred thousand digits": b"I" + b"9" * 100_000 + b"\n",
    "more bytes than there are": b"\x8e" + b"\xff" * 7 + b"\x0f" + b"A",
}
READ = """
import sys
from pathlib import Path
from hpo.data.pickles import unpickle
unpickle(Path(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_pickle_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    """In a process of its own: in Python's unpickler, six of these end the process by a signal."""
    path = tmp_path / "crafted"
    path.write_bytes(b"\x80\x04" + CRAFTED[name] + b".")
    done = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True)
    assert done.returncode == 1, (done.returncode, done.stderr[-300:])
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"hpo.errors.DataError: {path}: ")
    assert len(last) < 600


def test_deep_nesting_outside_of_keys_is_read(tmp_path: Path) -> None:
    value = read(tmp_path / "p", b"\x80\x04N" + b"\x85" * 100_000 + b".")
    assert type(value) is tuple


@pytest.mark.slow
@pytest.mark.parametrize("process", range(FUZZ_PROCESSES))
def test_no_pickle_of_odd_parts_ends_the_process(tmp_path: Path, process: int) -> None:
    """With Python's unpickler and a list of allowed names, about one in twenty of these ends it."""
    count = FUZZ_SEQUENCES // FUZZ_PROCESSES
    command = [sys.executable, str(FUZZ), str(process * count), str(count), str(tmp_path)]
    # A pickle of a few bytes that declares terabytes must not get them.
    limited = ["sh", "-c", f'ulimit -v {FUZZ_MEMORY_KB} && exec "$@"', "sh", *command]
    done = subprocess.run(limited, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    # If hardly any pickle could be read, the fuzz test would write nonsense.
    assert int(done.stdout) > count / 50


# ---- weights, which torch.load reads


DEEP_KEY = b"}N" + b"\x85" * 1_000_000 + b"K\x01s."


def nested(path: Path) -> None:
    """A state dict whose one key is a tuple nested a million times."""
    torch.save({"a": torch.zeros(2)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, contents in entries.items():
            is_pickle = name.endswith("data.pkl")
            archive.writestr(name, b"\x80\x02" + DEEP_KEY if is_pickle else contents)


def nested_in_the_old_format(path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    state_dict = whole.index(b"}", whole.index(b"type_sizes"))
    path.write_bytes(whole[:state_dict] + DEEP_KEY)


def cut(path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, path)
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("spoil", [nested, nested_in_the_old_format, cut])
def test_weights_that_would_end_torch_load_are_refused(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    (tmp_path / "args").write_bytes(pickle.dumps({"strideLen": 4}))
    spoil(tmp_path / "modelWeights")
    message = r"modelWeights: not a whole state dict of torch \(.*\)\. Copy it again"
    with pytest.raises(DataError, match=message):
        load_decoder(tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_in_both_formats_of_torch_pass(tmp_path: Path, zipped: bool) -> None:
    weights = {f"layer{number}": torch.zeros(2) for number in range(500)}
    torch.save(weights, tmp_path / "w", _use_new_zipfile_serialization=zipped)
    check_torch_file(tmp_path / "w")
