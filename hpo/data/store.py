"""Our own format: a folder of .npy files and a store.json that says what is in them. Features are mapped, not read.

Opening costs the same whatever the size: the fingerprint is computed, and every feature seen to be finite, when the store
is written; opening checks sizes and shapes only. Writing streams, so a data set may be larger than memory.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from hpo.data.sentences import Partition, Sentences, Source, Stream
from hpo.errors import CallerError, DataError, MachineError, os_error_text
from hpo.settings import explain

STORE_FILE = "store.json"
AGAIN = "Convert the data again"
ARRAYS = {
    "features": "<f4",
    "lengths": "<i8",
    "labels": "<i8",
    "label_lengths": "<i8",
    "days": "<i8",
}  # a file each; see Sentences


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    sentences: int
    bins: int
    features: int
    labels: int
    fingerprint: str
    finite: Literal[True]
    guessed: dict[str, int]
    bytes: dict[str, int]  # file name -> size


class Manifest(BaseModel):
    """What store.json says."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal[1]
    source: str
    n_days: int
    day_names: tuple[str, ...]
    partitions: dict[Partition, _Part]

    def bytes(self) -> int:
        return sum(sum(part.bytes.values()) for part in self.partitions.values())


class Store(Source):
    def __init__(self, folder: Path):
        self._folder = folder
        self.name = folder.name
        self.manifest = _read_manifest(folder / STORE_FILE)
        self.n_days, self.day_names = self.manifest.n_days, self.manifest.day_names
        self.partitions = tuple(self.manifest.partitions)

    def sentences(self, partition: Partition) -> Sentences:
        part = self.manifest.partitions[partition]
        arrays = {
            name: self._array(f"{partition}_{name}.npy", dtype, part.bytes)
            for name, dtype in ARRAYS.items()
        }
        counts = {"features": part.bins, "labels": part.labels}
        for name, array in arrays.items():
            shape = (
                counts.get(name, part.sentences),
                *((part.features,) if name == "features" else ()),
            )
            if array.shape != shape:
                raise DataError(
                    f"{self._folder}: {partition}_{name}.npy is {array.shape}, {STORE_FILE} says {shape}. {AGAIN}"
                )
        smallest = min(arrays[name].min(initial=0) for name in ("lengths", "label_lengths", "days"))
        sums = arrays["lengths"].sum(), arrays["label_lengths"].sum()
        if (
            smallest < 0
            or sums != (part.bins, part.labels)
            or arrays["days"].max(initial=0) >= self.n_days
            or not part.sentences
        ):
            raise DataError(
                f"{self._folder}: lengths, label_lengths or days of {partition} do not fit the other files. {AGAIN}"
            )
        return _sentences(self, partition, arrays, part)

    def _array(self, name: str, dtype: str, sizes: Mapping[str, int]) -> NDArray[Any]:
        """Features are mapped read-only: workers share the pages, and the map may be larger than memory."""
        path = self._folder / name
        _check_size(path, sizes.get(name, -1))
        try:
            array: NDArray[Any] = np.load(
                path, mmap_mode="r" if name.endswith("_features.npy") else None, allow_pickle=False
            )
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: cannot be read ({error}). {AGAIN}") from None
        if array.dtype != np.dtype(dtype):
            raise DataError(f"{path}: holds {array.dtype}. Valid: {np.dtype(dtype)}. {AGAIN}")
        return array


def _read_manifest(path: Path) -> Manifest:
    try:
        return Manifest.model_validate(json.loads(path.read_bytes()))
    except ValidationError as error:
        raise DataError(f"{explain(error, f'{path}: ')}. {AGAIN}") from None
    except ValueError as error:  # JSON, or text at all
        raise DataError(f"{path}: not JSON ({error}). Copy the store again") from None


def _check_size(path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}). Copy the store again"
        ) from None
    if found != size:
        raise DataError(
            f"{path}: {found:,} bytes, but {STORE_FILE} says {size:,}: a copy that was cut short? Copy the store again"
        )


def convert(source: Source, out: Path) -> Manifest:
    """Write `source` as a store, whole or not at all: under a temporary name beside `out`, then renamed.

    Raises DataError if the source is none that streams or its data cannot be trained on, CallerError if `out` exists,
    MachineError if it cannot be written.
    """
    if not isinstance(source, Stream):
        raise DataError(f"{source.name}: nothing to convert, it opens at once as it is")
    if out.exists() or out.is_symlink():
        raise CallerError(f"{out}: there is something already. Give a new place, or remove it")
    if not out.absolute().parent.is_dir():
        raise CallerError(
            f"{out}: there is no folder {out.absolute().parent} to write it in. Make it first"
        )
    with _whole_or_nothing(out) as draft:
        partitions: dict[Partition, _Part] = {}
        for partition in source.partitions:
            partitions[partition] = _write(source, partition, draft)
        manifest = Manifest(
            format=1,
            source=source.name,
            n_days=source.n_days,
            day_names=source.day_names,
            partitions=partitions,
        )
        (draft / STORE_FILE).write_text(manifest.model_dump_json(indent=2), encoding="utf-8")
    return manifest


@contextmanager
def _whole_or_nothing(out: Path) -> Iterator[Path]:
    draft = out.with_name(f"{out.name}.{os.getpid()}.tmp")
    try:
        draft.mkdir()
        yield draft
        draft.rename(out)
    except OSError as error:  # the readers turn their own into DataError
        raise MachineError(f"{out}: cannot be written: {os_error_text(error)}") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write(source: Stream, partition: Partition, draft: Path) -> _Part:
    """Write one partition, a sentence at a time. Returns what store.json says of it."""
    small: dict[str, list[int]] = {name: [] for name in ARRAYS if name != "features"}
    paths = {name: draft / f"{partition}_{name}.npy" for name in ARRAYS}
    guessed: Counter[str] = Counter()
    rows = source.checked_rows(partition, finite=True)
    first = next(rows)
    n_features = first.x_TC.shape[1]
    with paths["features"].open("wb") as file:
        start = _header(file, (0, n_features))
        for row in chain([first], rows):
            file.write(np.ascontiguousarray(row.x_TC, dtype=ARRAYS["features"]).data)
            small["lengths"].append(len(row.x_TC))
            small["labels"] += row.labels_L.tolist()
            small["label_lengths"].append(len(row.labels_L))
            small["days"].append(row.day)
            guessed.update(row.guessed)
        file.seek(0)
        assert (
            _header(file, (sum(small["lengths"]), n_features)) == start
        )  # numpy leaves room in it for the number of rows
    arrays = {name: np.array(numbers, dtype=ARRAYS[name]) for name, numbers in small.items()}
    for name, array in arrays.items():
        np.save(paths[name], array)
    features_NC = np.load(paths["features"], mmap_mode="r")
    written = _sentences(source, partition, {"features": features_NC, **arrays})
    return _Part(
        sentences=len(written),
        bins=len(features_NC),
        features=n_features,
        labels=len(written.labels_L),
        fingerprint=written.fingerprint(),  # of what was written, which this reads once more
        finite=True,
        guessed=guessed,
        bytes={path.name: path.stat().st_size for path in paths.values()},
    )


def _header(file: BinaryIO, shape: tuple[int, int]) -> int:
    """Write an .npy header. Returns where the data begin."""
    np.lib.format.write_array_header_1_0(
        file, {"descr": ARRAYS["features"], "fortran_order": False, "shape": shape}
    )
    return file.tell()


def _sentences(
    source: Source, partition: Partition, arrays: dict[str, NDArray[Any]], part: _Part | None = None
) -> Sentences:
    return Sentences(
        features_NC=arrays["features"],
        lengths_S=arrays["lengths"],
        labels_L=arrays["labels"],
        label_lengths_S=arrays["label_lengths"],
        days_S=arrays["days"],
        n_days=source.n_days,
        source=f"{source.name}, {partition}",
        day_names=source.day_names,
        guessed=part.guessed if part else {},
        stored_fingerprint=part.fingerprint if part else None,
    )
