"""Our tables beside Optuna's, and what we read of Optuna's own."""

from pathlib import Path

from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    func,
    inspect,
    text,
)  # fmt: skip
from sqlalchemy.engine import Connection

from hpo.errors import DatabaseError

# Of the tables below. hpo/store/migrations has the way to it from the version before.
VERSION = "2"
VERSION_TABLE = "hpo_version"

metadata = MetaData()
optuna_trials = Table("trials", metadata, Column("trial_id", Integer, primary_key=True), Column("number", Integer),
                      Column("study_id", Integer), Column("state", String), Column("datetime_complete", DateTime))  # fmt: skip
optuna_attributes = Table("trial_user_attributes", metadata, Column("trial_user_attribute_id", Integer, primary_key=True),
                          Column("trial_id", Integer), Column("key", String), Column("value_json", String))  # fmt: skip
IMPORTED = "imported"  # the user attribute of a trial that was trained outside; its value is the run's name

optuna_studies = Table(
    "studies", metadata, Column("study_id", Integer, primary_key=True), Column("study_name", String)
)
optuna_study_attributes = Table(
    "study_user_attributes",
    metadata,
    Column("study_user_attribute_id", Integer, primary_key=True),
    Column("study_id", Integer),
    Column("key", String),
    Column("value_json", String),
)
optuna_values = Table(
    "trial_values",
    metadata,
    Column("trial_value_id", Integer, primary_key=True),
    Column("trial_id", Integer),
    Column("value", Double),
)
optuna_params = Table(
    "trial_params",
    metadata,
    Column("param_id", Integer, primary_key=True),
    Column("trial_id", Integer),
    Column("param_name", String),
    Column("param_value", Double),
    Column("distribution_json", String),
)
optuna_intermediates = Table(
    "trial_intermediate_values",
    metadata,
    Column("trial_intermediate_value_id", Integer, primary_key=True),
    Column("trial_id", Integer),
    Column("step", Integer),
    Column("intermediate_value", Double),
    Column("intermediate_value_type", String),
)


def _trial() -> ForeignKey:
    return ForeignKey("trials.trial_id", ondelete="CASCADE")


trial_table = Table(
    "hpo_trial",
    metadata,
    Column("trial_id", Integer, _trial(), primary_key=True),
    Column("lease", String),  # the holder's token; null: nobody
    Column("lease_until", DateTime(timezone=True)),
    Column("host", String),
    Column("process", String),
    Column("device", String),
    Column("code_version", String),
    Column("data", String),  # fingerprint
    Column("config", JSON),  # dotted name -> value
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("step", Integer, nullable=False, server_default="0"),
    Column("seconds", Double, nullable=False, server_default="0"),  # over all attempts
    Column("seconds_before", Double, nullable=False, server_default="0"),  # this attempt
    Column(
        "gpu_seconds", Double, nullable=False, server_default="0"
    ),  # seconds / trainings on the GPU, summed up
    Column(
        "memory", BigInteger
    ),  # bytes that the holder's process has taken so far at most, on its GPU or of the machine
)
Index(
    "hpo_trial_held",
    trial_table.c.host,
    trial_table.c.device,
    postgresql_where=trial_table.c.lease.is_not(None),
)
attempt_table = Table(
    "hpo_attempt",
    metadata,
    Column("trial_id", Integer, _trial(), primary_key=True),
    Column("attempt", Integer, primary_key=True),  # from 1
    Column("host", String, nullable=False),
    Column("process", String, nullable=False),
    Column("device", String, nullable=False),
    Column("code_version", String, nullable=False),
    Column("begun", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("first_step", Integer),  # after which it went on; null: it did not come so far
    Column("last_step", Integer),
    Column("ended", DateTime(timezone=True)),
    Column("outcome", String),  # complete, stopped, by hand, or a Cause
    Column("reason", String),
)
curve_table = Table(
    "hpo_curve",
    metadata,
    Column("trial_id", Integer, _trial(), primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("attempt", Integer),  # that measured it
    Column("value", Double, nullable=False),  # of the metric
    Column("validation_loss", Double),  # null: the trainer tells none
    Column("loss", Double, nullable=False),  # training, mean since the last point
    Column("metrics", JSON, nullable=False),  # what the trainer tells beside, by name
)
score_table = Table(
    "hpo_score",  # at the end of the training, an item each
    metadata,
    Column("trial_id", Integer, _trial(), primary_key=True),
    Column("partition", String, primary_key=True),  # validation; the others no search sees
    Column("errors", ARRAY(Double), nullable=False),
    Column("lengths", ARRAY(Double), nullable=False),
)
result_table = Table(
    "hpo_result",
    metadata,
    Column(
        "study_id", Integer, ForeignKey("studies.study_id", ondelete="CASCADE"), primary_key=True
    ),
    Column("kind", String, primary_key=True),
    Column("made", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("content", JSON, nullable=False),
)


# Joins a trial with the attempt that was made at it last.
LAST_ATTEMPT = (attempt_table.c.trial_id == trial_table.c.trial_id) & (
    attempt_table.c.attempt == trial_table.c.attempts
)


def version_of(connection: Connection) -> str | None:
    """Of the tables in this database; None: they have none yet, or there are none."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    statement = text(f"SELECT version_num FROM {VERSION_TABLE}")  # noqa: S608
    found: str | None = connection.execute(statement).scalar()
    return found


def upgrade_tables(connection: Connection) -> None:
    """Make our tables, or bring those of an earlier version to this one. Raises DatabaseError for a later version's."""
    found = version_of(connection)
    if found == VERSION:
        return
    if found is not None and int(found) > int(VERSION):
        raise DatabaseError(
            f"database: its tables are of a later version of hpo (tables {found}, this one knows {VERSION}). "
            f"Upgrade hpo here: pip install --upgrade bci-hpo"
        )
    # Each row of a curve is written anew.
    connection.execute(text("SET LOCAL statement_timeout = 0"))
    # Slow to import, and only a new or an old database needs it.
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    command.upgrade(config, "head")
