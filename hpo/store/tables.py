"""hpo's tables, and the columns of Optuna's own tables that hpo reads."""

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
)
from sqlalchemy.engine import Connection

from hpo.errors import DatabaseError

# The version of the tables below. hpo/store/migrations has the step to it from the version before.
VERSION = "2"
VERSION_TABLE = "hpo_version"
# The version of Optuna's tables that the code reads without Optuna.
OPTUNA = "v3.2.0.a"
# The user attribute of a trial that was trained outside. Its value is the name of the past run.
IMPORTED = "imported"

metadata = MetaData()

optuna_trials = Table(
    "trials",
    metadata,
    Column("trial_id", Integer, primary_key=True),
    Column("number", Integer),
    Column("study_id", Integer),
    Column("state", String),
    Column("datetime_complete", DateTime),
)
optuna_attributes = Table(
    "trial_user_attributes",
    metadata,
    Column("trial_user_attribute_id", Integer, primary_key=True),
    Column("trial_id", Integer),
    Column("key", String),
    Column("value_json", String),
)
optuna_studies = Table(
    "studies",
    metadata,
    Column("study_id", Integer, primary_key=True),
    Column("study_name", String),
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
    # The token of the worker that holds the trial; null if none does.
    Column("lease", String),
    Column("lease_until", DateTime(timezone=True)),
    Column("host", String),
    Column("process", String),
    Column("device", String),
    Column("code_version", String),
    # The fingerprint of the data.
    Column("data", String),
    # Values by dotted name.
    Column("config", JSON),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("step", Integer, nullable=False, server_default="0"),
    # Over all attempts.
    Column("seconds", Double, nullable=False, server_default="0"),
    # Over the attempts before this one.
    Column("seconds_before", Double, nullable=False, server_default="0"),
    # Over all attempts; where several trainings share a GPU, each is charged its part of the time.
    Column("gpu_seconds", Double, nullable=False, server_default="0"),
    # Peak bytes that the holder's process has taken, on its GPU or of the machine.
    Column("memory", BigInteger),
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
    # Counts from 1.
    Column("attempt", Integer, primary_key=True),
    Column("host", String, nullable=False),
    Column("process", String, nullable=False),
    Column("device", String, nullable=False),
    Column("code_version", String, nullable=False),
    Column("begun", DateTime(timezone=True), nullable=False, server_default=func.now()),
    # The step after which the training resumed; null if the attempt ended before that.
    Column("first_step", Integer),
    Column("last_step", Integer),
    Column("ended", DateTime(timezone=True)),
    # complete, stopped, by hand, or a Cause.
    Column("outcome", String),
    Column("reason", String),
)
curve_table = Table(
    "hpo_curve",
    metadata,
    Column("trial_id", Integer, _trial(), primary_key=True),
    Column("step", Integer, primary_key=True),
    # The attempt that measured the point; null for imported trials.
    Column("attempt", Integer),
    # The value of the metric.
    Column("value", Double, nullable=False),
    # Null if the trainer does not report one.
    Column("validation_loss", Double),
    # The training loss, as a mean since the previous point.
    Column("loss", Double, nullable=False),
    # Other values that the trainer reports, by name.
    Column("metrics", JSON, nullable=False),
)
# Scores at the end of a training.
score_table = Table(
    "hpo_score",
    metadata,
    Column("trial_id", Integer, _trial(), primary_key=True),
    # A search sees "validation" only.
    Column("partition", String, primary_key=True),
    # One value for each item.
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


# Joins a trial with its last attempt.
LAST_ATTEMPT = (attempt_table.c.trial_id == trial_table.c.trial_id) & (
    attempt_table.c.attempt == trial_table.c.attempts
)


def version_of(connection: Connection) -> str | None:
    """The version of hpo's tables in this database; None if it has none, or none with a version."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    # The name is a constant, so nothing can be injected.
    statement = text(f"SELECT version_num FROM {VERSION_TABLE}")  # noqa: S608
    version: str | None = connection.execute(statement).scalar()
    return version


def optuna_schema_of(connection: Connection) -> str | None:
    """The version of Optuna's tables in a database that has hpo's."""
    statement = text("SELECT version_num FROM alembic_version")
    version: str | None = connection.execute(statement).scalar()
    return version


def upgrade_tables(connection: Connection) -> None:
    """Create hpo's tables, or migrate those of an earlier version.

    Raises DatabaseError for the tables of a later version.
    """
    version = version_of(connection)
    if version == VERSION:
        return
    if version is not None and int(version) > int(VERSION):
        raise DatabaseError(
            f"database: its tables are of a later version of hpo "
            f"(tables {version}, this one knows {VERSION}). "
            f"Upgrade hpo here: pip install --upgrade bci-hpo"
        )
    # A migration rewrites every row of every curve, which takes as long as it takes.
    connection.execute(text("SET LOCAL statement_timeout = 0"))
    # Alembic is slow to import, and only a new or an old database needs it.
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    command.upgrade(config, "head")
