"""Creates the tables of the time before versions, where they are missing or incomplete."""

from alembic import op

revision = "1"
down_revision = None

TABLES = """
CREATE TABLE IF NOT EXISTS hpo_trial (
    trial_id INTEGER NOT NULL PRIMARY KEY REFERENCES trials (trial_id) ON DELETE CASCADE,
    lease VARCHAR,
    lease_until TIMESTAMP WITH TIME ZONE,
    host VARCHAR,
    process VARCHAR,
    device VARCHAR,
    code_version VARCHAR,
    data VARCHAR,
    config JSON,
    attempts INTEGER DEFAULT '0' NOT NULL,
    step INTEGER DEFAULT '0' NOT NULL,
    seconds DOUBLE PRECISION DEFAULT '0' NOT NULL,
    errors INTEGER[],
    lengths INTEGER[]
);
ALTER TABLE hpo_trial ADD COLUMN IF NOT EXISTS seconds_before DOUBLE PRECISION DEFAULT '0' NOT NULL;
ALTER TABLE hpo_trial ADD COLUMN IF NOT EXISTS gpu_seconds DOUBLE PRECISION DEFAULT '0' NOT NULL;
ALTER TABLE hpo_trial ADD COLUMN IF NOT EXISTS memory BIGINT;
CREATE INDEX IF NOT EXISTS hpo_trial_held ON hpo_trial (host, device) WHERE lease IS NOT NULL;
CREATE TABLE IF NOT EXISTS hpo_attempt (
    trial_id INTEGER NOT NULL REFERENCES trials (trial_id) ON DELETE CASCADE,
    attempt INTEGER NOT NULL,
    host VARCHAR NOT NULL,
    process VARCHAR NOT NULL,
    device VARCHAR NOT NULL,
    code_version VARCHAR NOT NULL,
    begun TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    first_step INTEGER,
    last_step INTEGER,
    ended TIMESTAMP WITH TIME ZONE,
    outcome VARCHAR,
    reason VARCHAR,
    PRIMARY KEY (trial_id, attempt)
);
CREATE TABLE IF NOT EXISTS hpo_curve (
    trial_id INTEGER NOT NULL REFERENCES trials (trial_id) ON DELETE CASCADE,
    step INTEGER NOT NULL,
    per DOUBLE PRECISION NOT NULL,
    validation_loss DOUBLE PRECISION NOT NULL,
    loss DOUBLE PRECISION NOT NULL,
    grad_norm DOUBLE PRECISION NOT NULL,
    lr DOUBLE PRECISION NOT NULL,
    step_seconds DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (trial_id, step)
);
ALTER TABLE hpo_curve ADD COLUMN IF NOT EXISTS attempt INTEGER;
CREATE TABLE IF NOT EXISTS hpo_score (
    trial_id INTEGER NOT NULL REFERENCES trials (trial_id) ON DELETE CASCADE,
    partition VARCHAR NOT NULL,
    errors INTEGER[] NOT NULL,
    lengths INTEGER[] NOT NULL,
    PRIMARY KEY (trial_id, partition)
);
CREATE TABLE IF NOT EXISTS hpo_result (
    study_id INTEGER NOT NULL REFERENCES studies (study_id) ON DELETE CASCADE,
    kind VARCHAR NOT NULL,
    made TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    content JSON NOT NULL,
    PRIMARY KEY (study_id, kind)
);
"""


def upgrade() -> None:
    op.execute(TABLES)
