"""A trial's record, put together from Optuna's tables and hpo's."""

from collections.abc import Callable, Iterable

from hpo.settings import Config
from hpo.store.optuna_rows import TrialRow
from hpo.store.standing import CPU
from hpo.store.tables import IMPORTED
from hpo.store.trials import WorkRow
from hpo.study.trial import BY_HAND, Record, State, learned_nothing
from hpo.trainer import Metric

# Optuna gets at most this many values of a trial's curve.
THIN_CURVE = 25
# hpo's name of a state by Optuna's.
STATES: dict[str, State] = {
    "WAITING": "waiting",
    "RUNNING": "running",
    "COMPLETE": "complete",
    "PRUNED": "stopped",
    "FAIL": "failed",
}
ENDED_BY_HAND = "ended by hand"
FINISHED = ("COMPLETE", "PRUNED", "FAIL")


def record_of(trial: TrialRow, work: WorkRow | None, metric: Metric) -> Record:
    """The trial as one value. work: None if no worker has claimed the trial."""
    ended_by_hand = _was_ended_by_hand(trial, work)
    work = work or WorkRow(trial.id)
    attributes = trial.attributes
    curve = _known_values(trial, work)
    best_step = _best_step(curve, metric)
    cause, reason = _ending(trial, work, ended_by_hand)
    value = trial.value if trial.state == "COMPLETE" and not ended_by_hand else None
    return Record(
        id=trial.id,
        number=trial.number,
        state="stopped" if ended_by_hand else STATES[trial.state],
        start=attributes.get("start"),
        label=attributes.get("label", ""),
        params=dict(trial.params),
        config=work.config or {},
        value=value,
        last_value=curve[max(curve)] if curve else None,
        best_value=curve[best_step] if best_step is not None else None,
        best_step=best_step,
        step=work.step,
        seconds=work.seconds,
        gpu_seconds=work.gpu_seconds,
        attempts=work.attempts,
        rule=attributes.get("rule", BY_HAND if ended_by_hand else ""),
        cause=cause,
        reason=reason,
        # Without the boot and the process namespace, which follow the name.
        host=work.host.split()[0] if work.host else "",
        device=work.device or "",
        code_version=work.code_version or "",
        data=work.data or "",
        imported=attributes.get(IMPORTED, ""),
        lost_seconds=_lost_seconds(work),
        learned_nothing=learned_nothing(value, metric),
    )


def ran_on_cpus(records: Iterable[Record]) -> bool:
    """Whether trials ran, and none of them on a GPU."""
    return {record.device for record in records if record.device} == {CPU}


def _was_ended_by_hand(trial: TrialRow, work: WorkRow | None) -> bool:
    """Whether someone ended the trial with Optuna's own means: no attempt and no rule did."""
    if trial.state == "PRUNED":
        return "rule" not in trial.attributes
    if trial.state != "COMPLETE":
        return False
    if work is None:
        return True
    # An imported trial is complete without any attempt.
    return work.attempts > 0 and not work.scored


def _known_values(trial: TrialRow, work: WorkRow) -> dict[int, float]:
    """The thin curve by step, with the final value.

    The thin curve lacks the final value of a training that ended before its last step.
    """
    curve = dict(trial.curve)
    if trial.state == "COMPLETE" and trial.value is not None and work.scored:
        curve.setdefault(work.step, trial.value)
    return curve


def _best_step(curve: dict[int, float], metric: Metric) -> int | None:
    if not curve:
        return None
    return min(curve, key=lambda step: metric.sign * curve[step])


def _ending(trial: TrialRow, work: WorkRow, ended_by_hand: bool) -> tuple[str, str]:
    """Cause and reason: those of the last attempt, or those that were stored with the trial."""
    cause = trial.attributes.get("cause", "")
    reason = trial.attributes.get("reason", "")
    if ended_by_hand:
        return BY_HAND, work.reason or ENDED_BY_HAND
    if trial.state in ("WAITING", "FAIL"):
        return work.outcome or cause, work.reason or reason
    return cause, reason


def _lost_seconds(work: WorkRow) -> float:
    """The time of earlier attempts, if the last one began again at step 0."""
    if work.attempts > 1 and work.first_step == 0:
        return work.seconds_before
    return 0.0


def in_thin_curve(step: int, config: Config, existing: Callable[[], Iterable[int]] = tuple) -> bool:
    """Whether Optuna gets the evaluation at `step`.

    It gets at most THIN_CURVE of them, evenly spread, and always the last one.
    existing: gives the steps that Optuna has; called only if evaluations come at irregular steps.
    """
    if step == config.steps:
        return True
    if config.evaluates_regularly:
        return _is_in_regular_curve(step, config)
    share = _share(step, config)
    return all(_share(other, config) != share or other == step for other in existing())


def _share(step: int, config: Config) -> int:
    """Which of THIN_CURVE equal parts of the training the step lies in."""
    return step * THIN_CURVE // max(1, config.steps)


def _is_in_regular_curve(step: int, config: Config) -> bool:
    # Both divisions round up.
    evaluations = -(-config.steps // config.evaluate_every)
    every = -(-evaluations // THIN_CURVE)
    if step % config.evaluate_every != 0:
        return False
    return step // config.evaluate_every % every == 0
