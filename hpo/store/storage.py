"""The storage that Optuna and we have in a database, and the names that a study may have there."""

import optuna

from hpo.errors import StudyError
from hpo.settings import guess
from hpo.store import ledger
from hpo.store.database import (
    CONNECT_ARGUMENTS,
    Database,
    open_engine,
    translate_errors,
    translated_errors,
)
from hpo.store.tables import upgrade_tables

NAME_LENGTH = 100
NAMES_SHOWN = 20


def check_name(name: str) -> None:
    """Raises StudyError for a study name that a folder, a URL or a shell could not hold."""
    valid = name[:1].isalnum() and len(name) <= NAME_LENGTH and all(letter.isalnum() or letter in "._-" for letter in name)
    if not (valid and name.isascii()):
        raise StudyError(f"study name {name!r}. Valid: letters, digits, '.', '_', '-'; first a letter or digit; {NAME_LENGTH} at most")


def open_storage(database: Database) -> optuna.storages.RDBStorage:
    """Optuna's storage and our tables, made if they are missing; at most two connections."""
    options = {"pool_size": 2, "max_overflow": 0, "pool_pre_ping": True, "connect_args": CONNECT_ARGUMENTS}
    with ledger.alone(open_engine(database)):
        with translated_errors():
            storage = optuna.storages.RDBStorage(database.url, engine_kwargs=options)
        translate_errors(storage.engine)
        ledger.fence_transactions(storage.engine)
        with storage.engine.begin() as connection:
            upgrade_tables(connection)
    return storage


def no_study(name: str, database: Database, storage: optuna.storages.RDBStorage) -> StudyError:
    """What to say where there is no study of this name: the nearest one, and all."""
    names = sorted(optuna.get_all_study_names(storage))
    listed = ", ".join(names[:NAMES_SHOWN]) + ", ..." * (len(names) > NAMES_SHOWN)
    return StudyError(f"no study {name!r} in {database}.{guess(name, names)} There are: {listed or 'none; hpo launch makes one'}")
