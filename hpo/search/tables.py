"""Our tables beside Optuna's, and what we read of Optuna's own."""

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

metadata = MetaData()
optuna_trials = Table("trials", metadata, Column("trial_id", Integer, primary_key=True), Column("number", Integer),
                      Column("study_id", Integer), Column("state", String), Column("datetime_complete", DateTime))  # fmt: skip
optuna_attributes = Table("trial_user_attributes", metadata, Column("trial_user_attribute_id", Integer, primary_key=True),
                          Column("trial_id", Integer), Column("key", String), Column("value_json", String))  # fmt: skip
IMPORTED = "imported"  # the user attribute of a trial that was trained outside; its value is the run's name

optuna_studies = Table("studies", metadata, Column("study_id", Integer, primary_key=True), Column("study_name", String))


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
    Column("gpu_seconds", Double, nullable=False, server_default="0"),  # seconds / trainings on the GPU, summed up
    Column("memory", BigInteger),  # bytes that the holder's process has taken so far at most, on its GPU or of the machine
    Column("errors", ARRAY(Integer)),  # of the final score, a sentence each
    Column("lengths", ARRAY(Integer)),
)
Index("hpo_trial_held", trial_table.c.host, trial_table.c.device, postgresql_where=trial_table.c.lease.is_not(None))
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
    Column("per", Double, nullable=False),
    Column("validation_loss", Double, nullable=False),
    Column("loss", Double, nullable=False),  # training, mean since the last point
    Column("grad_norm", Double, nullable=False),  # largest since the last point
    Column("lr", Double, nullable=False),
    Column("step_seconds", Double, nullable=False),  # mean since the last point, evaluation not included
)
score_table = Table(
    "hpo_score",  # of partitions that no search sees
    metadata,
    Column("trial_id", Integer, _trial(), primary_key=True),
    Column("partition", String, primary_key=True),
    Column("errors", ARRAY(Integer), nullable=False),
    Column("lengths", ARRAY(Integer), nullable=False),
)
result_table = Table(
    "hpo_result",
    metadata,
    Column("study_id", Integer, ForeignKey("studies.study_id", ondelete="CASCADE"), primary_key=True),
    Column("kind", String, primary_key=True),
    Column("made", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("content", JSON, nullable=False),
)


def create_tables(connection: Connection) -> None:
    """What is missing: tables, and columns that tables of an earlier version lack."""
    metadata.create_all(connection)
    there = inspect(connection)
    for table in (trial_table, attempt_table, curve_table, score_table, result_table):
        names = {column["name"] for column in there.get_columns(table.name)}
        for column in table.columns:
            if column.name not in names:
                default = f" NOT NULL DEFAULT {column.server_default.arg}" if not column.nullable else ""  # type: ignore[union-attr]
                connection.execute(
                    text(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {column.type.compile(connection.dialect)}{default}")
                )
