"""Files of another kind than expected: each is named, and the message says what to do."""

import bz2
import gzip
import io
import lzma
import pickle
import tarfile
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from helpers.data import assert_refused, tiny_contents
from safetensors.torch import save

from hpo.decoder.artifact import load_decoder
from hpo.errors import DataError

WHOLE = pickle.dumps(tiny_contents())
UNPACK = "Unpack it and give what is in it"


def of_torch(zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def of_numpy(many: bool) -> bytes:
    file = io.BytesIO()
    if many:
        np.savez(file, a=np.zeros(3))
    else:
        np.save(file, np.zeros(3))
    return file.getvalue()


def of_hdf5() -> bytes:
    file = io.BytesIO()
    with h5py.File(file, "w") as written:
        written["a"] = np.zeros(3)
    return file.getvalue()


def a_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.pickle", WHOLE)
    return file.getvalue()


def a_tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("data.pickle"))
    return file.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
ANNEX = b"/annex/objects/SHA256E-s10--ab.pickle\n"
PAGE = b"\n<!DOCTYPE html>\n<html><title>Log in</title></html>"
MATLAB_73 = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512) + of_hdf5()
FOREIGN = {
    "gzip": (gzip.compress(WHOLE), f"a gzip file. Valid: a pickle. {UNPACK}"),
    "bzip2": (bz2.compress(WHOLE), f"a bzip2 file. Valid: a pickle. {UNPACK}"),
    "xz": (lzma.compress(WHOLE), f"an xz file. Valid: a pickle. {UNPACK}"),
    "zip": (a_zip(), f"a zip archive. Valid: a pickle. {UNPACK}"),
    "tar": (a_tar(), f"a tar archive. Valid: a pickle. {UNPACK}"),
    "torch": (of_torch(True), "a file of torch.save. Valid: a pickle. Load it with torch.load"),
    "old torch": (of_torch(False), "a file of torch.save. Valid: a pickle. Load it with torch"),
    "safetensors": (save({"a": torch.zeros(3)}), "a safetensors file. Valid: a pickle."),
    "npz": (of_numpy(True), "an .npz file of NumPy. Valid: a pickle."),
    "npy": (of_numpy(False), "a .npy file of NumPy. Valid: a pickle."),
    "HDF5": (of_hdf5(), "an HDF5 file. Valid: a pickle. Give the folder with SESSION/data_train"),
    "MATLAB 7.3": (MATLAB_73, r"a MATLAB v7.3 file. Valid: a pickle. Save it again with save"),
    "LFS": (LFS, "a Git LFS pointer. Valid: a pickle. Run `git lfs pull` in its repository"),
    "annex": (ANNEX, "a git-annex pointer. Valid: a pickle. Run `git annex get`"),
    "web page": (PAGE, "a web page. Valid: a pickle. It may be a login page or an error"),
    "JSON": (b'{"error": 403}', "a JSON text. Valid: a pickle."),
    "text": (b"hello", r"not a pickle \(5 bytes; .*\): it begins with b'hello'. Give a pickle"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_of_another_kind_is_named(tmp_path: Path, kind: str) -> None:
    contents, message = FOREIGN[kind]
    path = tmp_path / "data.pickle"
    path.write_bytes(contents)
    assert_refused(path, f"data.pickle: {message}")
    with pytest.raises(DataError) as caught:
        load_decoder(tmp_path / "data.pickle")
    assert "Copy it again" not in str(caught.value) or kind in ("safetensors", "text")


@pytest.mark.parametrize(
    "contents",
    [WHOLE[:-9], b"", bytes(5000), pickle.dumps([1], 0)[:-2]],
    ids=["cut", "empty", "zeros", "cut text"],
)
def test_only_a_file_that_was_cut_is_to_be_copied_again(tmp_path: Path, contents: bytes) -> None:
    path = tmp_path / "data.pickle"
    path.write_bytes(contents)
    assert_refused(path, r"data.pickle: not a whole pickle \([\d,]+ bytes; .*\)\. Copy it again")


@pytest.mark.parametrize(
    ("contents", "what"),
    [(LFS, "Git LFS pointer"), (gzip.compress(b"x"), "gzip file")],
    ids=["pointer", "gzip"],
)
@pytest.mark.parametrize(
    ("place", "wanted"),
    [("train/a.mat", "a .mat file"), ("s/data_train.hdf5", "a file of HDF5")],
)
def test_files_in_folders_are_named_too(
    tmp_path: Path, place: str, wanted: str, contents: bytes, what: str
) -> None:
    path = tmp_path / place
    path.parent.mkdir()
    path.write_bytes(contents)
    assert_refused(tmp_path, f"{path.name}: a {what}. Valid: {wanted}. ")


def test_a_pickle_in_place_of_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "args").write_bytes(pickle.dumps({"strideLen": 4}))
    (tmp_path / "modelWeights").write_bytes(LFS)
    with pytest.raises(DataError, match=r"modelWeights: a Git LFS pointer\. Valid"):
        load_decoder(tmp_path)
