"""What a file is that cannot be read, by its first bytes, and what to do about it.

"Copy it again" helps only where a copy was cut or damaged. A file of another kind stays one.
"""

import zipfile
from pathlib import Path

from hpo.errors import DataError, shortened

# Enough for the mark of a tar archive, and for HDF5 behind the text that MATLAB writes before it.
HEAD_BYTES = 1024
_HDF5 = b"\x89HDF\r\n\x1a\n"
_ZIP = b"PK\x03\x04"
_UNPACK = "Unpack it and give what is in it"
_DATA_OF_TORCH = "Load it with torch.load and write it as a pickle of NumPy arrays"
_LOGIN = "It may be a login page or an error: download the file itself"

# First bytes -> what the file is, and what to do.
_STARTS: dict[bytes, tuple[str, str]] = {
    b"\x1f\x8b": ("a gzip file", _UNPACK),
    b"BZh": ("a bzip2 file", _UNPACK),
    b"\xfd7zXZ\x00": ("an xz file", _UNPACK),
    b"\x28\xb5\x2f\xfd": ("a Zstandard file", _UNPACK),
    b"7z\xbc\xaf\x27\x1c": ("a 7-Zip archive", _UNPACK),
    b"Rar!": ("a RAR archive", _UNPACK),
    b"version https://git-lfs": ("a Git LFS pointer", "Run `git lfs pull` in its repository"),
    b"/annex/objects/": ("a git-annex pointer", "Run `git annex get` in its repository"),
    b"MATLAB 7.3": ("a MATLAB v7.3 file", "Save it again with save(..., '-v7')"),
    b"MATLAB 5.0": ("a MATLAB file", "Give the folder with train/*.mat"),
    _HDF5: ("an HDF5 file", "Give the folder with SESSION/data_train.hdf5"),
    b"\x93NUMPY": ("a .npy file of NumPy", "Write the data in a valid format"),
    b"SQLite format 3": ("an SQLite database", ""),
    b"%PDF": ("a PDF", ""),
    b"\x00\x05\x16\x07": ("a companion file of macOS", "Remove it: it holds no data"),
}
_PAGE_STARTS = (b"<!doctype html", b"<html", b"<head", b"<?xml")

# Protocols 0 and 1 have no mark; with these, dicts and lists begin.
PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"(dp", b"(lp", b"}q")
# A zip, or the number with which torch.save began before 1.6.
OLD_TORCH_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
TORCH_STARTS = (_ZIP, OLD_TORCH_START)
MAT_STARTS = (b"MATLAB 5.0",)
HDF5_STARTS = (_HDF5,)


def unreadable(path: Path, wanted: str, reason: object, starts: tuple[bytes, ...]) -> DataError:
    """The error for a file that could not be read as `wanted`, such as `pickle`.

    starts: the first bytes that such files have, none if they differ. A file that begins so was
    cut or damaged; any other one is named. reason: what its reader says.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        return DataError(f"{path}: cannot be read ({error.strerror})")
    facts = f"({size:,} bytes; {shortened(reason)})"
    if not head.strip(b"\x00"):
        return DataError(f"{path}: not a whole {wanted} {facts}. Copy it again")
    kind = None if _is_own(head, starts) else _kind(path, head)
    if kind is not None and kind[0] != f"a {wanted}":
        what, remedy = kind
        return DataError(f"{path}: {what}. Valid: a {wanted}. {remedy}".rstrip())
    if starts and not _is_own(head, starts):
        return DataError(
            f"{path}: not a {wanted} {facts}: it begins with {head[:16]!r}. Give a {wanted}"
        )
    return DataError(f"{path}: not a whole {wanted} {facts}. Copy it again")


def _is_own(head: bytes, starts: tuple[bytes, ...]) -> bool:
    """Whether a file begins as the wanted kind does. Old files of torch begin like a pickle."""
    if head.startswith(OLD_TORCH_START):
        return OLD_TORCH_START in starts
    return head.startswith(starts)


def _kind(path: Path, head: bytes) -> tuple[str, str] | None:
    """(what the file is, what to do) if it is a known kind."""
    for start, kind in _STARTS.items():
        if head.startswith(start):
            return kind
    if head.startswith(_ZIP):
        return _kind_of_zip(path)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(_PAGE_STARTS):
        return "a web page", _LOGIN
    if text.startswith((b'{"', b"[{")):
        return "a JSON text", ""
    if head[257:262] == b"ustar":
        return "a tar archive", _UNPACK
    if head[8:9] == b"{" and head[5:8] == b"\x00\x00\x00":
        return "a safetensors file", ""
    if head.startswith(OLD_TORCH_START):
        return "a file of torch.save", _DATA_OF_TORCH
    return ("a pickle", "") if head.startswith(PICKLE_STARTS) else None


def _kind_of_zip(path: Path) -> tuple[str, str]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    # A zip that was cut has no list of its entries, and a damaged one may raise nearly anything.
    except Exception:
        return "a zip archive that was cut or damaged", "Copy it again"
    if any(name.endswith("data.pkl") for name in names):
        return "a file of torch.save", _DATA_OF_TORCH
    if names and all(name.endswith(".npy") for name in names):
        return "an .npz file of NumPy", "Write the data in a valid format"
    return "a zip archive", _UNPACK
