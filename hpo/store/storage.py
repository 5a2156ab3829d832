"""Opens a database with all its tables, Optuna's and hpo's.

Optuna is slow to import, so only `open_storage` imports it.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, create_engine

from hpo.store import leases, locks
from hpo.store.database import Database, open_engine, prepare, translated_errors
from hpo.store.tables import VERSION, upgrade_tables, version_of
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
        is_ready = version_of(connection) == VERSION
    if is_ready:
        return engine
    engine.dispose()
    return open_storage(database).engine


def open_storage(database: Database) -> "optuna.storages.RDBStorage":
    """Optuna's storage on the database, with hpo's tables next to its own."""
    import optuna

    with locks.alone(open_engine(database)):
        with translated_errors():
            storage = optuna.storages.RDBStorage(database.url, engine_kwargs=_options(database))
        prepare(storage.engine, database)
        leases.fence_transactions(storage.engine)
        with storage.engine.begin() as connection:
            upgrade_tables(connection)
    return storage
