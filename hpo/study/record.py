"""A trial as Optuna's tables and ours have it, in one value."""

from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy.engine import Row

from hpo.settings import Config
from hpo.store.optuna_rows import TrialRow
from hpo.store.tables import IMPORTED
from hpo.study.trial import Record, State
from hpo.trainer import Metric

THIN_CURVE = 25  # values a trial that Optuna gets, at most
# What Optuna calls a trial's state, and we.
STATES: dict[str, State] = {
    "WAITING": "waiting",
    "RUNNING": "running",
    "COMPLETE": "complete",
    "PRUNED": "stopped",
    "FAIL": "failed",
}
FINISHED = ("COMPLETE", "PRUNED", "FAIL")


def record_of(trial: TrialRow, row: Row[Any] | None, metric: Metric) -> Record:
    attributes = trial.attributes
    curve = dict(trial.curve)
    if trial.state == "COMPLETE" and trial.value is not None and row is not None and row.scored:
        curve.setdefault(
            row.step, trial.value
        )  # of a training that ended before its last step it is not in the thin curve
    best_step = min(curve, key=lambda step: metric.sign * curve[step]) if curve else None
    unscored = trial.state == "COMPLETE" and (
        row is None or (row.attempts and not row.scored)
    )  # by hand
    troubled = row is not None and (unscored or trial.state in ("WAITING", "FAIL"))
    return Record(
        id=trial.id,
        number=trial.number,
        state="stopped" if unscored else STATES[trial.state],
        start=attributes.get("start"),
        label=attributes.get("label", ""),
        params=dict(trial.params),
        config=(row.config if row else None) or {},
        value=trial.value if trial.state == "COMPLETE" and not unscored else None,
        last_value=curve[max(curve)] if curve else None,
        best_value=None if best_step is None else curve[best_step],
        best_step=best_step,
        step=row.step if row else 0,
        seconds=row.seconds if row else 0.0,
        gpu_seconds=row.gpu_seconds if row else 0.0,
        attempts=row.attempts if row else 0,
        rule=attributes.get("rule", "by hand" if unscored else ""),
        cause=(row.outcome if troubled and row else "") or attributes.get("cause", ""),
        reason=(row.reason if troubled and row else "") or attributes.get("reason", ""),
        host=(row.host or "").split()[0] if row and row.host else "",
        device=(row.device if row else "") or "",
        code_version=(row.code_version if row else "") or "",
        data=(row.data if row else "") or "",
        imported=attributes.get(IMPORTED, ""),
        lost_seconds=row.seconds_before
        if row and row.attempts > 1 and row.first_step == 0
        else 0.0,
    )


def in_thin_curve(step: int, config: Config, existing: Callable[[], Iterable[int]] = tuple) -> bool:
    """Whether the evaluation at `step` goes to Optuna: evenly, at most THIN_CURVE of them, the last one always.

    existing: the steps of those that it has, asked for where evaluations come at any steps.
    """
    if step == config.steps:
        return True
    if not config.evaluates_regularly:
        share = step * THIN_CURVE // max(1, config.steps)
        return all(
            other * THIN_CURVE // max(1, config.steps) != share or other == step
            for other in existing()
        )
    evaluations = -(-config.steps // config.evaluate_every)
    every = -(-evaluations // THIN_CURVE)
    return step % config.evaluate_every == 0 and step // config.evaluate_every % every == 0
