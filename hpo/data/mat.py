"""Reader of a raw competition folder: a .mat file per session under train/, test/ and competitionHoldOut/.

The public recipe: 128 channels of threshold crossings, then of spike power (area 6v), z-scored within each block of each
file; phonemes of the sentence's text. A day is a session; days are numbered by the sorted sessions of train/.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from numpy.typing import NDArray

from hpo.data.phonemes import labels_of
from hpo.data.sentences import Partition, Row, Stream
from hpo.errors import DataError

FOLDERS: dict[Partition, str] = {
    "train": "train",
    "test": "test",
    "competition": "competitionHoldOut",
}
FIELDS = ("sentenceText", "tx1", "spikePow", "blockIdx")
CHANNELS = 128  # of each array: those in area 6v. The others (area 44) carry nothing on speech
SD_FLOOR = 1e-8  # added to every standard deviation: channels may be dead


class MatFolder(Stream):
    def __init__(self, folder: Path):
        self._folder = folder
        self.name = folder.name
        self.day_names = tuple(file.stem for file in self._files("train"))
        self.n_days = len(self.day_names)
        self.partitions = tuple(partition for partition in FOLDERS if self._files(partition))

    def _files(self, partition: Partition) -> list[Path]:
        return sorted((self._folder / FOLDERS[partition]).glob("*.mat"))

    def rows(self, partition: Partition) -> Iterator[Row]:
        for file in self._files(partition):
            if file.stem not in self.day_names:
                raise DataError(f"{file}: {FOLDERS['train']}/ has no session {file.stem}, so no input layer is trained for it. "
                                f"Valid: sessions that train/ has too; remove the file")  # fmt: skip
            yield from _sentences(file, self.day_names.index(file.stem))


def _sentences(file: Path, day: int) -> Iterator[Row]:
    fields = _load(file)
    blocks_S = np.unique(fields["blockIdx"], return_inverse=True)[1].tolist()  # counted from 0
    raw = [_features(tx1, power, f"{file}: sentence {number}")
           for number, (tx1, power) in enumerate(zip(fields["tx1"], fields["spikePow"], strict=True))]  # fmt: skip
    scales = [_mean_and_sd(np.concatenate([x for x, owner in zip(raw, blocks_S, strict=True) if owner == block]))
              for block in range(max(blocks_S) + 1)]  # fmt: skip
    for x_TC, block, text in zip(raw, blocks_S, fields["sentenceText"].tolist(), strict=True):
        mean_C, sd_C = scales[block]
        yield Row(day, ((x_TC - mean_C) / (sd_C + SD_FLOOR)).astype(np.float32), *labels_of(text))


def _load(file: Path) -> dict[str, NDArray[Any]]:
    """The four fields, one entry a sentence each. Raises DataError.

    Damage is found in files as MATLAB writes them, compressed and with checksums. scipy (1.17) can crash the process on
    flipped bits in one saved without compression.
    """
    try:
        contents = scipy.io.loadmat(file, variable_names=FIELDS)
    except NotImplementedError:  # v7.3 is HDF5
        raise DataError(
            f"{file}: a MATLAB v7.3 file. Valid: v5 to v7.2; save it again with save(..., '-v7')"
        ) from None
    except (
        Exception
    ) as error:  # a broken file can raise nearly anything: ValueError, TypeError, zlib.error, ...
        size = file.stat().st_size
        raise DataError(
            f"{file}: not a whole .mat file ({size:,} bytes; {type(error).__name__}: {error}). Copy it again"
        ) from None
    missing = [name for name in FIELDS if name not in contents]
    if missing:
        raise DataError(
            f"{file}: no {missing[0]!r}. Needed: {', '.join(FIELDS)}. If it should be there, copy the file again"
        )
    fields = {name: np.asarray(contents[name]).ravel() for name in FIELDS}
    for name, kinds in (
        ("sentenceText", "U"),
        ("tx1", "O"),
        ("spikePow", "O"),
        ("blockIdx", "iuf"),
    ):
        if fields[name].dtype.kind not in kinds:
            raise DataError(
                f"{file}: {name} is {fields[name].dtype}. Valid: sentenceText text, tx1 and spikePow cells, blockIdx numbers"
            )
    if len({len(field) for field in fields.values()}) > 1 or not len(fields["tx1"]):
        counts = ", ".join(f"{len(field)} {name}" for name, field in fields.items())
        raise DataError(
            f"{file}: {counts}. Valid: as many of each, an entry a sentence, and at least one"
        )
    return fields


def _features(tx1_TC: Any, power_TC: Any, place: str) -> NDArray[np.float32]:
    for name, x_TC in (("tx1", tx1_TC), ("spikePow", power_TC)):
        if (
            not isinstance(x_TC, np.ndarray)
            or x_TC.dtype.kind not in "iuf"
            or x_TC.ndim != 2
            or x_TC.shape[1] < CHANNELS
        ):
            given = (
                f"{x_TC.dtype} {x_TC.shape}"
                if isinstance(x_TC, np.ndarray)
                else type(x_TC).__name__
            )
            raise DataError(
                f"{place}: {name} is {given}. Valid: numbers, bins x at least {CHANNELS} channels"
            )
    if len(tx1_TC) != len(power_TC):
        raise DataError(
            f"{place}: {len(tx1_TC)} bins in tx1, {len(power_TC)} in spikePow. Valid: as many"
        )
    return np.concatenate(
        [tx1_TC[:, :CHANNELS], power_TC[:, :CHANNELS]],
        axis=1,
        dtype=np.float32,
        casting="same_kind",
    )


def _mean_and_sd(x_NC: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Per channel, over the finite values: one NaN must not spread to the block, or nobody could tell where it was.

    In float64, or the rounding of a dead channel's mean would be blown up by the tiny SD_FLOOR.
    """
    finite_NC = np.isfinite(x_NC)
    count_C = np.maximum(finite_NC.sum(axis=0), 1)
    mean_C = np.where(finite_NC, x_NC, 0).sum(axis=0, dtype=np.float64) / count_C
    return mean_C, np.sqrt((np.where(finite_NC, x_NC - mean_C, 0) ** 2).sum(axis=0) / count_C)
