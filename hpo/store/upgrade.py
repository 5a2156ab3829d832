"""Upgrades the tables of a database to those of this hpo and its Optuna, after a dump."""

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import make_url

from hpo.errors import DatabaseError, os_error_text
from hpo.store import locks, programs
from hpo.store.database import Database, open_engine, translated_errors
from hpo.store.storage import open_storage, optuna_versions, unchecked_storage
from hpo.store.tables import VERSION, version_of
from hpo.store.url import is_embedded, place_and_password, right_variables


@dataclass(frozen=True)
class Upgrade:
    """What an upgrade did."""

    # The version of Optuna's tables before it.
    before: str
    # The file that holds the database as it was.
    dump: Path


def upgrade(database: Database, folder: Path) -> Upgrade | None:
    """Dump the database to a new file in `folder`, then upgrade its tables.

    Returns None, and does nothing, if its tables are up to date. Raises DatabaseError, for tables
    of a later version too; then nothing has been changed.
    """
    engine = open_engine(database)
    with engine.connect() as connection:
        own_version = version_of(connection)
    storage = unchecked_storage(database)
    versions = optuna_versions(storage)
    is_later = versions.stored not in storage.get_all_versions()
    if is_later or (versions.is_current and own_version == VERSION):
        # Refuses tables of a later version, and creates those of a new database.
        open_storage(database)
        return None
    path = _dump(database, folder)
    with locks.alone(engine), right_variables(make_url(database.url)), translated_errors():
        storage.upgrade()
    storage.engine.dispose()
    open_storage(database).engine.dispose()
    return Upgrade(versions.stored, path)


def _dump(database: Database, folder: Path) -> Path:
    """Write the whole database to a file that pg_restore reads. Raises DatabaseError."""
    url = make_url(database.url)
    path = folder / f"{url.database}-{time.strftime('%Y%m%d-%H%M%S')}.dump"
    place, password = place_and_password(url)
    environment = {
        name: value
        for name, value in os.environ.items()
        if not (is_embedded(url) and name.startswith("PG"))
    }
    if password:
        environment["PGPASSWORD"] = password
    program = programs.find_binaries(None, None) / "pg_dump"
    command = [str(program), "--format=custom", f"--dbname={place}"]
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        path.touch(mode=0o600, exist_ok=False)
        with path.open("wb") as file:
            done = subprocess.run(command, stdout=file, stderr=subprocess.PIPE, env=environment)
    except OSError as error:
        raise DatabaseError(f"no dump, so nothing was upgraded: {os_error_text(error)}") from None
    if done.returncode:
        path.unlink()
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise DatabaseError(
            f"no dump, so nothing was upgraded: {lines[0]}. "
            f"Is the server newer than {program}? Install its postgresql-client"
        )
    return path
