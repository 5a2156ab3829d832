"""A trial as Optuna and the ledger have it, in one value."""

from typing import Any

from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import Row

from hpo.search.trial import Record, State

STATES: dict[TrialState, State] = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
}


def record_of(trial: FrozenTrial, row: Row[Any] | None) -> Record:
    attributes = trial.user_attrs
    curve = trial.intermediate_values
    best_step = min(curve, key=lambda step: curve[step]) if curve else None
    troubled = row is not None and trial.state in (TrialState.WAITING, TrialState.FAIL)
    return Record(
        id=trial._trial_id,
        number=trial.number,
        state=STATES[trial.state],
        start=attributes.get("start"),
        label=attributes.get("label", ""),
        params=trial.params,
        config=(row.config if row else None) or {},
        per=trial.value if trial.state == TrialState.COMPLETE else None,
        last_per=curve[max(curve)] if curve else None,
        best_per=None if best_step is None else curve[best_step],
        best_step=best_step,
        step=row.step if row else 0,
        seconds=row.seconds if row else 0.0,
        gpu_seconds=row.gpu_seconds if row else 0.0,
        attempts=row.attempts if row else 0,
        rule=attributes.get("rule", ""),
        cause=(row.outcome if troubled and row else "") or attributes.get("cause", ""),
        reason=(row.reason if troubled and row else "") or attributes.get("reason", ""),
        host=(row.host or "").split()[0] if row and row.host else "",
        device=(row.device if row else "") or "",
        code_version=(row.code_version if row else "") or "",
        data=(row.data if row else "") or "",
    )
