"""Reader of a raw competition folder: train/, test/, competitionHoldOut/, a .mat file per session.

The public recipe: 128 channels of threshold crossings, then 128 of spike power (area 6v), z-scored
within each block of each file; the labels are the phonemes of the sentence's text. A day is a
session; days are numbered by the sorted sessions of train/.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from numpy.typing import NDArray

from hpo.data.folders import without_stray
from hpo.data.kinds import MAT_STARTS, unreadable
from hpo.data.phonemes import labels_of
from hpo.data.sentences import Partition, Row, Stream
from hpo.errors import DataError

FOLDERS: dict[Partition, str] = {
    "train": "train",
    "test": "test",
    "competition": "competitionHoldOut",
}
# The fields of a file, and the kinds of dtype that each may have.
FIELD_KINDS = {"sentenceText": "U", "tx1": "O", "spikePow": "O", "blockIdx": "iuf"}
# The first channels of each array, from area 6v. The others (area 44) carry nothing on speech.
CHANNELS = 128
# Added to every standard deviation, because channels may be dead.
SD_FLOOR = 1e-8


class MatFolder(Stream):
    def __init__(self, folder: Path):
        self._folder = folder
        self.name = folder.name
        self.day_names = tuple(file.stem for file in self._files("train"))
        self.n_days = len(self.day_names)
        self.partitions = tuple(partition for partition in FOLDERS if self._files(partition))

    def _files(self, partition: Partition) -> list[Path]:
        folder = self._folder / FOLDERS[partition]
        return without_stray(folder, folder.glob("*.mat"))

    def rows(self, partition: Partition) -> Iterator[Row]:
        for file in self._files(partition):
            if file.stem not in self.day_names:
                raise DataError(
                    f"{file}: {FOLDERS['train']}/ has no session {file.stem}, so no input layer is "
                    f"trained for it. Valid: sessions that train/ has too; remove the file"
                )
            yield from _sentences(file, self.day_names.index(file.stem))


def _sentences(file: Path, day: int) -> Iterator[Row]:
    fields = _load(file)
    features = []
    for number, (tx1, power) in enumerate(zip(fields["tx1"], fields["spikePow"], strict=True)):
        features.append(_features(tx1, power, f"{file}: sentence {number}"))
    # Blocks are renumbered from 0.
    _, block_S = np.unique(fields["blockIdx"], return_inverse=True)
    scales = []
    for block in range(block_S.max() + 1):
        in_block = [x_TC for x_TC, own in zip(features, block_S, strict=True) if own == block]
        scales.append(_mean_and_sd(np.concatenate(in_block)))
    texts = fields["sentenceText"].tolist()
    for x_TC, block, text in zip(features, block_S, texts, strict=True):
        mean_C, sd_C = scales[block]
        z_TC = ((x_TC - mean_C) / (sd_C + SD_FLOOR)).astype(np.float32)
        labels_L, guessed = labels_of(text)
        yield Row(day, z_TC, labels_L, guessed)


def _load(file: Path) -> dict[str, NDArray[Any]]:
    """The four fields, each with one entry per sentence. Raises DataError.

    Files as MATLAB writes them, compressed and with checksums, reveal damage. In a file saved
    without compression, flipped bits can crash the process in scipy (1.17).
    """
    try:
        contents = scipy.io.loadmat(file, variable_names=tuple(FIELD_KINDS))
    # v7.3 is HDF5.
    except NotImplementedError:
        raise DataError(
            f"{file}: a MATLAB v7.3 file. Valid: v5 to v7.2; save it again with save(..., '-v7')"
        ) from None
    # A broken file can raise nearly anything: ValueError, TypeError, zlib.error, ...
    except Exception as error:
        raise unreadable(
            file, ".mat file", f"{type(error).__name__}: {error}", MAT_STARTS
        ) from None
    for name in FIELD_KINDS:
        if name not in contents:
            raise DataError(
                f"{file}: no {name!r}. Needed: {', '.join(FIELD_KINDS)}. "
                f"Save the file again with all of them"
            )
    fields = {name: np.asarray(contents[name]).ravel() for name in FIELD_KINDS}
    _check_fields(file, fields)
    return fields


def _check_fields(file: Path, fields: dict[str, NDArray[Any]]) -> None:
    for name, kinds in FIELD_KINDS.items():
        if fields[name].dtype.kind not in kinds:
            raise DataError(
                f"{file}: {name} is {fields[name].dtype}. "
                f"Valid: sentenceText text, tx1 and spikePow cells, blockIdx numbers"
            )
    lengths = {len(field) for field in fields.values()}
    if len(lengths) > 1 or lengths == {0}:
        counts = ", ".join(f"{len(field)} {name}" for name, field in fields.items())
        raise DataError(
            f"{file}: {counts}. Valid: as many of each, an entry a sentence, and at least one"
        )


def _features(tx1_TC: Any, power_TC: Any, place: str) -> NDArray[np.float32]:
    """Both arrays side by side, bins x 2 CHANNELS. Raises DataError."""
    _check_array(tx1_TC, f"{place}: tx1")
    _check_array(power_TC, f"{place}: spikePow")
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


def _check_array(x_TC: Any, place: str) -> None:
    is_array = isinstance(x_TC, np.ndarray)
    if is_array and x_TC.dtype.kind in "iuf" and x_TC.ndim == 2 and x_TC.shape[1] >= CHANNELS:
        return
    shown = f"{x_TC.dtype} {x_TC.shape}" if is_array else type(x_TC).__name__
    raise DataError(f"{place} is {shown}. Valid: numbers, bins x at least {CHANNELS} channels")


def _mean_and_sd(x_NC: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Per channel, over the finite values.

    One NaN must not spread to the whole block, or nobody could tell where it was. Computed in
    float64, because the tiny SD_FLOOR would amplify the rounding of a dead channel's mean.
    """
    finite_NC = np.isfinite(x_NC)
    count_C = np.maximum(finite_NC.sum(axis=0), 1)
    mean_C = np.where(finite_NC, x_NC, 0).sum(axis=0, dtype=np.float64) / count_C
    squares_NC = np.where(finite_NC, x_NC - mean_C, 0) ** 2
    return mean_C, np.sqrt(squares_NC.sum(axis=0) / count_C)
