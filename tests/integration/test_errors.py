"""What the system and other libraries say, as people read it."""

import errno
import os
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from hpo.errors import os_error_text
from hpo.store.database import Database
from hpo.store.storage import open_storage


def test_a_database_of_somebody_else_keeps_its_own_errors(database: Database) -> None:
    """MLflow's, or that of a lab's own trainer."""
    open_storage(database)
    engine = create_engine("sqlite://")
    with engine.connect() as connection, pytest.raises(OperationalError, match="no such table"):
        connection.execute(text("SELECT * FROM missing"))


@pytest.mark.parametrize(
    ("number", "said"),
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
def test_the_advice_fits_the_error(number: int, said: str) -> None:
    line = os_error_text(OSError(number, os.strerror(number), "/data/x"))
    assert line.startswith(f"/data/x: {os.strerror(number)}. ")
    assert said in line
    if number not in (errno.ENOSPC,):
        assert "Free the space" not in line


def test_an_error_that_nobody_knows_gets_no_advice(tmp_path: Path) -> None:
    assert os_error_text(OSError("torn")) == "torn"
    assert os_error_text(OSError()) == "OSError"
    with pytest.raises(FileNotFoundError) as raised:
        (tmp_path / "missing").read_text()
    assert os_error_text(raised.value) == (
        f"{tmp_path}/missing: No such file or directory. Give a place that exists"
    )
