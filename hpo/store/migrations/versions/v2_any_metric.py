"""Makes room for any metric.

A curve holds a value, losses, and whatever else a trainer reports as JSON. All scores are in one
table. In the stored findings `per` becomes `value`.
"""

import json
import re
from typing import Any

from alembic import op
from sqlalchemy import text
from sqlalchemy.engine import Connection

revision = "2"
down_revision = "1"

# Imported runs, which have no attempt, have NaN for unknown values. JSON cannot hold NaN.
CURVE = """
ALTER TABLE hpo_curve RENAME COLUMN per TO value;
ALTER TABLE hpo_curve ALTER COLUMN validation_loss DROP NOT NULL;
ALTER TABLE hpo_curve ADD COLUMN metrics JSON;
UPDATE hpo_curve SET
    validation_loss = CASE
        WHEN attempt IS NULL THEN nullif(validation_loss, 'NaN')
        ELSE validation_loss
    END,
    metrics = json_strip_nulls(json_build_object(
        'lr', CASE WHEN abs(lr) < 'Infinity' THEN lr END,
        'grad_norm', CASE WHEN abs(grad_norm) < 'Infinity' THEN grad_norm END,
        'step_seconds', CASE WHEN abs(step_seconds) < 'Infinity' THEN step_seconds END
    ));
ALTER TABLE hpo_curve ALTER COLUMN metrics SET NOT NULL;
ALTER TABLE hpo_curve DROP COLUMN grad_norm, DROP COLUMN lr, DROP COLUMN step_seconds;
"""
SCORES = """
ALTER TABLE hpo_score
    ALTER COLUMN errors TYPE DOUBLE PRECISION[],
    ALTER COLUMN lengths TYPE DOUBLE PRECISION[];
INSERT INTO hpo_score (trial_id, partition, errors, lengths)
    SELECT trial_id, 'validation', errors, lengths FROM hpo_trial WHERE errors IS NOT NULL
    ON CONFLICT DO NOTHING;
ALTER TABLE hpo_trial DROP COLUMN errors, DROP COLUMN lengths;
"""


def upgrade() -> None:
    op.execute(CURVE)
    op.execute(SCORES)
    _rename_in_findings(op.get_bind())


def _rename_in_findings(connection: Connection) -> None:
    update = text(
        "UPDATE hpo_result SET content = :content WHERE study_id = :study AND kind = :kind"
    )
    findings = connection.execute(text("SELECT study_id, kind, content FROM hpo_result")).all()
    for finding in findings:
        content = json.dumps(renamed(finding.content))
        connection.execute(
            update, {"content": content, "study": finding.study_id, "kind": finding.kind}
        )


def renamed(finding: Any) -> Any:
    """The finding with `value` for `per` in every key: search_per becomes search_value."""
    if isinstance(finding, dict):
        return {_renamed_key(key): renamed(item) for key, item in finding.items()}
    if isinstance(finding, list):
        return [renamed(item) for item in finding]
    return finding


def _renamed_key(key: str) -> str:
    return re.sub(r"(?<![a-z])per(?![a-z])", "value", key)
