"""Errors of the system and of other libraries, as people read them."""

import errno
import os
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from hpo.errors import os_error_text
from hpo.store.database import Database
from hpo.store.storage import open_storage


def test_other_databases_in_the_process_keep_their_own_errors(database: Database) -> None:
    """Such as MLflow's, or that of a lab's own trainer."""
    open_storage(database)
    engine = create_engine("sqlite://")
    with engine.connect() as connection, pytest.raises(OperationalError, match="no such table"):
        connection.execute(text("SELECT * FROM missing"))


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "Free the space"),
        (errno.EDQUOT, "quota"),
        (errno.EACCES, "permissions"),
        (errno.EPERM, "permissions"),
        (errno.EROFS, "can be written"),
        (errno.ENOENT, "that exists"),
        (errno.EMFILE, "ulimit -n"),
        (errno.ESTALE, "mount it again"),
        (errno.ECONNREFUSED, "try again later"),
        (errno.ETIMEDOUT, "try again later"),
    ],
)
def test_the_advice_fits_the_error(number: int, advice: str) -> None:
    line = os_error_text(OSError(number, os.strerror(number), "/data/x"))
    assert line.startswith(f"/data/x: {os.strerror(number)}. ")
    assert advice in line
    if number != errno.ENOSPC:
        assert "Free the space" not in line


def test_an_unknown_error_gets_no_advice(tmp_path: Path) -> None:
    assert os_error_text(OSError("torn")) == "torn"
    assert os_error_text(OSError()) == "OSError"
    with pytest.raises(FileNotFoundError) as raised:
        (tmp_path / "missing").read_text()
    assert os_error_text(raised.value) == (
        f"{tmp_path}/missing: No such file or directory. Give a place that exists"
    )
