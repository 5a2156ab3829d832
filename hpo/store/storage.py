"""Opens a database with all its tables, Optuna's and hpo's.

Optuna is slow to import, so only `open_storage` imports it.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, create_engine

from hpo.errors import DatabaseError
from hpo.store import leases, locks
from hpo.store.database import Database, open_engine, prepare, translated_errors
from hpo.store.tables import (
    OPTUNA,
    VERSION,
    optuna_schema_of,
    upgrade_tables,
    version_of,
)
from hpo.store.url import connect

if TYPE_CHECKING:
    import optuna

# A process keeps two connections, one of them for the lock of a study. It opens a third for a
# moment if another thread works meanwhile.
ENGINE_OPTIONS: dict[str, Any] = {
    "pool_size": 2,
    "max_overflow": 1,
    "pool_pre_ping": True,
}


def _options(database: Database) -> dict[str, Any]:
    return {**ENGINE_OPTIONS, "creator": partial(connect, database.url)}


def ready_engine(database: Database) -> Engine:
    """An engine on the database. Creates or migrates the tables first if they need it."""
    engine = prepare(create_engine(database.url, **_options(database)), database)
    with engine.connect() as connection:
        is_ready = version_of(connection) == VERSION and optuna_schema_of(connection) == OPTUNA
    if is_ready:
        return engine
    engine.dispose()
    return open_storage(database).engine


def open_storage(database: Database) -> "optuna.storages.RDBStorage":
    """Optuna's storage on the database, with hpo's tables next to its own.

    Raises DatabaseError if the tables are of another Optuna, or of a later hpo.
    """
    with locks.alone(open_engine(database)):
        storage = unchecked_storage(database)
        _check_optuna(storage)
        prepare(storage.engine, database)
        leases.fence_transactions(storage.engine)
        with storage.engine.begin() as connection:
            upgrade_tables(connection)
    return storage


def unchecked_storage(database: Database) -> "optuna.storages.RDBStorage":
    """Optuna's storage on the database, whose tables may be of another version.

    Without a check of Optuna's, because its message names commands that need a URL.
    """
    import optuna

    with translated_errors():
        return optuna.storages.RDBStorage(
            database.url, engine_kwargs=_options(database), skip_compatibility_check=True
        )


@dataclass(frozen=True)
class OptunaVersions:
    """The versions of Optuna's tables in a database, and of those that the Optuna here needs."""

    stored: str
    needed: str

    @property
    def is_current(self) -> bool:
        return self.stored == self.needed


def optuna_versions(storage: "optuna.storages.RDBStorage") -> OptunaVersions:
    """Which tables of Optuna the storage has and needs."""
    return OptunaVersions(storage.get_current_version(), storage.get_head_version())


def _check_optuna(storage: "optuna.storages.RDBStorage") -> None:
    """Raises DatabaseError if the tables are those of another Optuna."""
    import optuna

    versions = optuna_versions(storage)
    if versions.is_current:
        return
    advice = "Upgrade it here: pip install --upgrade optuna bci-hpo"
    if versions.stored in storage.get_all_versions():
        advice = "Stop all workers, then: hpo database upgrade, which dumps the database first"
    raise DatabaseError(
        f"database: its Optuna tables have version {versions.stored}, and Optuna "
        f"{optuna.__version__} here needs {versions.needed}. {advice}"
    )
