"""Reader of the Brain-to-Text '25 folder: data_train.hdf5 and data_val.hdf5 per session.

Each file has a group per trial, with ready-made features and labels. `val` serves as the partition
`test`; data_test.hdf5 is unlabelled and not read. A day is a session; days are numbered by the
sorted sessions that have a data_train.hdf5.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpo.data.folders import without_stray
from hpo.data.kinds import HDF5_STARTS, unreadable
from hpo.data.sentences import Partition, Row, Stream
from hpo.errors import DataError, shown

FILES: dict[Partition, str] = {"train": "data_train.hdf5", "test": "data_val.hdf5"}
# Bytes of one trial in memory: half a million bins of 256 features.
LARGEST_TRIAL = 2**30
# Deflate, the strongest of HDF5's own compressions, gives at most 1,032 bytes for one.
HIGHEST_COMPRESSION = 1032
NEEDED = "datasets input_features and seq_class_ids, attributes n_time_steps and seq_len"


class Hdf5Folder(Stream):
    def __init__(self, folder: Path):
        self._folder = folder
        self.name = folder.name
        self.day_names = tuple(file.parent.name for file in self._files("train"))
        self.n_days = len(self.day_names)
        self.partitions = tuple(partition for partition in FILES if self._files(partition))
        self.absent = {"competition": "the data_test.hdf5 files have no labels"}

    def _files(self, partition: Partition) -> list[Path]:
        return without_stray(self._folder, self._folder.glob(f"*/{FILES[partition]}"))

    def rows(self, partition: Partition) -> Iterator[Row]:
        for file in self._files(partition):
            session = file.parent.name
            if session not in self.day_names:
                raise DataError(
                    f"{file}: session {session} has no {FILES['train']}, so no input layer is "
                    f"trained for it. Valid: sessions that have one; remove the file"
                )
            yield from _sentences(file, self.day_names.index(session))


def _sentences(path: Path, day: int) -> Iterator[Row]:
    try:
        with h5py.File(path, "r") as file:
            if not len(file):
                raise DataError(
                    f"{path}: no trials. Needed: groups trial_0000, trial_0001, ... with {NEEDED}"
                )
            for name in sorted(file, key=_number_order):
                yield _row(file, name, day, f"{path}: {name}")
    # HDF5 locks a file that is open for writing.
    except BlockingIOError:
        raise DataError(
            f"{path}: locked, because it is being written. Try again when that is done"
        ) from None
    # h5py raises these for a damaged file, when it is opened and later.
    except (OSError, RuntimeError) as error:
        raise unreadable(path, "file of HDF5", error, HDF5_STARTS) from None


def _number_order(name: str) -> tuple[int, str]:
    """A sort key that puts trial_10000 after trial_9999."""
    return len(name), name


def _member(group: h5py.Group, name: str, place: str) -> Any:
    """The member of that name, which must be stored in this file.

    A soft link, an external link, a dataset with external storage or a virtual dataset can refer to
    another file: a stranger's file could make us read any of our own files as its features. Raises
    KeyError if the name does not exist, DataError for such a reference.
    """
    link = group.get(name, getlink=True)
    if link is not None and not isinstance(link, h5py.HardLink):
        raise DataError(
            f"{place}: {name} is a link to something else. Valid: data in the file itself"
        )
    member = group[name]
    if isinstance(member, h5py.Dataset) and (member.external or member.is_virtual):
        raise DataError(
            f"{place}: the data of {name} lie in another file. Valid: data in the file itself"
        )
    return member


def _whole_number(trial: h5py.Group, name: str) -> int:
    """The attribute of that name, a single number."""
    if trial.attrs.get_id(name).shape not in ((), (1,)):
        raise TypeError(f"{name} is no single number")
    return int(trial.attrs[name])


def _check_stored(values: h5py.Dataset, rows: int, place: str) -> None:
    """Raises DataError if reading these rows would take far more memory than the file can fill.

    A file of a few kilobytes may declare a data set of any size.
    """
    row_bytes = math.prod(values.shape[1:]) * values.dtype.itemsize
    # What is computed with is no wider than eight bytes a number.
    needed = rows * math.prod(values.shape[1:]) * max(8, values.dtype.itemsize)
    # HDF5 unpacks whole chunks, which may be larger than the data set.
    chunk = math.prod(values.chunks or ()) * values.dtype.itemsize
    if max(needed, chunk) > LARGEST_TRIAL:
        raise DataError(
            f"{place} is {values.dtype} {values.shape} in chunks of {values.chunks}, more than "
            f"{LARGEST_TRIAL // 2**30} GiB. Valid: one sentence a trial"
        )
    stored = values.id.get_storage_size()
    is_packed = values.id.get_create_plist().get_nfilters() > 0
    if rows * row_bytes > stored * (HIGHEST_COMPRESSION if is_packed else 1):
        raise DataError(
            f"{place} is {values.dtype} {values.shape}, but the file has only {stored:,} bytes of "
            f"it. Write the file again"
        )


def _row(file: h5py.File, name: str, day: int, place: str) -> Row:
    try:
        trial = _member(file, name, place)
        x_TC = _member(trial, "input_features", place)
        labels_L = _member(trial, "seq_class_ids", place)
        bins = _whole_number(trial, "n_time_steps")
        count = _whole_number(trial, "seq_len")
        x_shape = x_TC.shape
        x_kind = x_TC.dtype.kind
        labels_shape = labels_L.shape
        labels_kind = labels_L.dtype.kind
    # int() raises OverflowError for an infinite number.
    except (KeyError, AttributeError, TypeError, ValueError, OverflowError):
        raise DataError(f"{place} is no labelled trial. Needed: {NEEDED}") from None
    # HDF5 knows data sets without a shape, h5py.Empty.
    if x_shape is None or labels_shape is None:
        raise DataError(f"{place} has a data set that is empty. Needed: {NEEDED}")
    if len(x_shape) != 2 or x_kind not in "fiu" or not 0 <= bins <= x_shape[0]:
        raise DataError(
            f"{place}: input_features is {x_TC.dtype} {x_shape}, n_time_steps {shown(bins)}. "
            f"Valid: numbers, at least n_time_steps bins x features"
        )
    if len(labels_shape) != 1 or labels_kind not in "iu" or not 0 <= count <= labels_shape[0]:
        raise DataError(
            f"{place}: seq_class_ids is {labels_L.dtype} {labels_shape}, seq_len {shown(count)}. "
            f"Valid: whole numbers, at least seq_len of them"
        )
    _check_stored(x_TC, bins, f"{place}: input_features")
    _check_stored(labels_L, count, f"{place}: seq_class_ids")
    return Row(
        day=day,
        x_TC=np.asarray(x_TC[:bins], dtype=np.float32),
        labels_L=np.asarray(labels_L[:count], dtype=np.int64),
    )
