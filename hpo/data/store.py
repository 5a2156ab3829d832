"""Our own format: a folder of .npy files, with a store.json that says what is in them.

Features are mapped, not read, so opening costs the same whatever the size. The fingerprint is
computed, and every feature found to be finite, when the store is written; opening only checks sizes
and shapes. Writing streams, so a data set may be larger than memory.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from hpo.data.sentences import Partition, Sentences, Source, Stream
from hpo.errors import CallerError, DataError, MachineError, os_error_text, shortened
from hpo.settings import explain

STORE_FILE = "store.json"
# The words whose pronunciation was guessed are in it, a line each.
LARGEST_MANIFEST = 64 * 2**20
AGAIN = "Convert the data again"
# The arrays of Sentences, each in a file of its own, and their dtypes.
ARRAYS = {
    "features": "<f4",
    "lengths": "<i8",
    "labels": "<i8",
    "label_lengths": "<i8",
    "days": "<i8",
}


class _Part(BaseModel):
    """One partition in store.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    sentences: int
    bins: int
    features: int
    labels: int
    fingerprint: str
    finite: Literal[True]
    guessed: dict[str, int]
    # File name -> size.
    bytes: dict[str, int]


class Manifest(BaseModel):
    """The contents of store.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal[1]
    source: str
    n_days: int
    day_names: tuple[str, ...]
    partitions: dict[Partition, _Part]

    def bytes(self) -> int:
        """The size of all partitions."""
        total = 0
        for part in self.partitions.values():
            total += sum(part.bytes.values())
        return total


class Store(Source):
    def __init__(self, folder: Path):
        self._folder = folder
        self.name = folder.name
        self.manifest = _read_manifest(folder / STORE_FILE)
        self.n_days = self.manifest.n_days
        self.day_names = self.manifest.day_names
        self.partitions = tuple(self.manifest.partitions)

    def sentences(self, partition: Partition) -> Sentences:
        part = self.manifest.partitions[partition]
        arrays = {
            name: self._array(f"{partition}_{name}.npy", dtype, part.bytes)
            for name, dtype in ARRAYS.items()
        }
        self._check_shapes(partition, arrays, part)
        self._check_contents(partition, arrays, part)
        return replace(
            _sentences(self, partition, arrays),
            guessed=part.guessed,
            stored_fingerprint=part.fingerprint,
        )

    def _check_shapes(
        self, partition: Partition, arrays: Mapping[str, NDArray[Any]], part: _Part
    ) -> None:
        shapes: dict[str, tuple[int, ...]] = {
            "features": (part.bins, part.features),
            "lengths": (part.sentences,),
            "labels": (part.labels,),
            "label_lengths": (part.sentences,),
            "days": (part.sentences,),
        }
        for name, array in arrays.items():
            if array.shape != shapes[name]:
                raise DataError(
                    f"{self._folder}: {partition}_{name}.npy is {array.shape}, "
                    f"{STORE_FILE} says {shapes[name]}. {AGAIN}"
                )

    def _check_contents(
        self, partition: Partition, arrays: Mapping[str, NDArray[Any]], part: _Part
    ) -> None:
        negative = any(
            arrays[name].min(initial=0) < 0 for name in ("lengths", "label_lengths", "days")
        )
        fits = (
            part.sentences > 0
            and not negative
            and arrays["lengths"].sum() == part.bins
            and arrays["label_lengths"].sum() == part.labels
            and arrays["days"].max(initial=0) < self.n_days
        )
        if not fits:
            raise DataError(
                f"{self._folder}: lengths, label_lengths or days of {partition} do not fit the "
                f"other files. {AGAIN}"
            )

    def _array(self, name: str, dtype: str, sizes: Mapping[str, int]) -> NDArray[Any]:
        """Load one file.

        Features are mapped read-only, so that workers share the pages and data may be larger than
        memory.
        """
        path = self._folder / name
        _check_size(path, sizes.get(name, -1))
        try:
            # Mapping takes no memory, whatever size the header declares.
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        # numpy reads the header with Python's own parser, which can raise nearly anything.
        except Exception as error:
            raise DataError(f"{path}: cannot be read ({shortened(error)}). {AGAIN}") from None
        if array.dtype != np.dtype(dtype):
            raise DataError(
                f"{path}: holds {shortened(array.dtype)}. Valid: {np.dtype(dtype)}. {AGAIN}"
            )
        return array if name.endswith("_features.npy") else np.array(array)


def _read_manifest(path: Path) -> Manifest:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_MANIFEST + 1)
        if len(content) > LARGEST_MANIFEST:
            raise ValueError(f"more than {LARGEST_MANIFEST // 2**20} MiB")
        return Manifest.model_validate(json.loads(content))
    except OSError as error:
        raise DataError(os_error_text(error)) from None
    except ValidationError as error:
        raise DataError(f"{explain(error, f'{path}: ')}. {AGAIN}") from None
    # Not JSON, not even text, or nested without end.
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({shortened(error)}). Copy the store again") from None


def _check_size(path: Path, expected: int) -> None:
    try:
        actual = path.stat().st_size
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}). Copy the store again"
        ) from None
    if actual != expected:
        raise DataError(
            f"{path}: {actual:,} bytes, but {STORE_FILE} says {expected:,}: "
            f"a copy that was cut short? Copy the store again"
        )


def convert(source: Source, out: Path) -> Manifest:
    """Write `source` as a store, completely or not at all.

    It is written under a temporary name next to `out` and then renamed. Raises DataError if the
    source is no Stream or its data cannot be trained on, CallerError if `out` exists, MachineError
    if it cannot be written.
    """
    if not isinstance(source, Stream):
        raise DataError(f"{source.name}: nothing to convert, it opens at once as it is")
    if out.exists() or out.is_symlink():
        raise CallerError(f"{out}: already exists. Give a new path, or remove it")
    parent = out.absolute().parent
    if not parent.is_dir():
        raise CallerError(f"{out}: there is no folder {parent} to write it in. Make it first")
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
    """A folder that becomes `out` if the block ends without an error, and is removed otherwise."""
    draft = out.with_name(f"{out.name}.{os.getpid()}.tmp")
    try:
        draft.mkdir()
        yield draft
        draft.rename(out)
    # Readers raise DataError for theirs, so this one is about writing.
    except OSError as error:
        raise MachineError(f"{out}: cannot be written: {os_error_text(error)}") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write(source: Stream, partition: Partition, draft: Path) -> _Part:
    """Write one partition, a sentence at a time. Returns its entry in store.json."""
    paths = {name: draft / f"{partition}_{name}.npy" for name in ARRAYS}
    # All arrays but the features are small enough to be collected in memory.
    small: dict[str, list[int]] = {name: [] for name in ARRAYS if name != "features"}
    guessed: Counter[str] = Counter()
    rows = source.checked_rows(partition, finite=True)
    first = next(rows)
    n_features = first.x_TC.shape[1]
    with paths["features"].open("wb") as file:
        header_size = _write_header(file, (0, n_features))
        for row in chain([first], rows):
            file.write(np.ascontiguousarray(row.x_TC, dtype=ARRAYS["features"]).data)
            small["lengths"].append(len(row.x_TC))
            small["labels"] += row.labels_L.tolist()
            small["label_lengths"].append(len(row.labels_L))
            small["days"].append(row.day)
            guessed.update(row.guessed)
        file.seek(0)
        # numpy leaves room in the header for a larger number of rows.
        size_now = _write_header(file, (sum(small["lengths"]), n_features))
        assert size_now == header_size
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
        # Reads once more what was written.
        fingerprint=written.fingerprint(),
        finite=True,
        guessed=guessed,
        bytes={path.name: path.stat().st_size for path in paths.values()},
    )


def _write_header(file: BinaryIO, shape: tuple[int, int]) -> int:
    """Write an .npy header. Returns where the data begin."""
    header = {"descr": ARRAYS["features"], "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.tell()


def _sentences(
    source: Source, partition: Partition, arrays: Mapping[str, NDArray[Any]]
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
    )
