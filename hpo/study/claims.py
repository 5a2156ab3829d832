"""The life of a trial: claimed, reported on, ended once, and handed back if its worker is gone.

States: WAITING (a start, or interrupted) -> RUNNING -> COMPLETE | PRUNED (stopped by a rule) |
FAIL. RUNNING goes back to WAITING when an attempt ends before its trial does: number, parameters
and curve stay, and the next claim resumes the trial.

Trials are claimed under a lock of the study, so a budget is exact over any number of workers.
Whatever a worker writes about its trial is fenced by its lease.
"""

import threading
from collections.abc import Mapping
from functools import partial
from uuid import uuid4

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from hpo.curve import Point
from hpo.errors import SpecError
from hpo.process import Process
from hpo.settings import Config
from hpo.space.budget import refusal
from hpo.store import curves, findings, leases, locks, standing, trials
from hpo.store.leases import Lease, LeaseLostError, Orphan
from hpo.study import choice, optuna_internals
from hpo.study.reader import StudyReader
from hpo.study.record import in_thin_curve
from hpo.study.trial import (
    BY_HAND,
    Cause,
    Completed,
    Failed,
    Outcome,
    Stopped,
    Trial,
    in_words,
    is_over,
)
from hpo.trainer import Score

# A host is bad after this many errors in a row, while trials succeed on others.
BAD_NODE_ERRORS = 2
# Why a trial goes back that a live process holds without knowing it.
LOST_DATABASE = "its worker lost the database"


class Claims(StudyReader):
    """A study whose trials workers claim, report on and end."""

    def __init__(self, optuna_study: optuna.Study, storage: optuna.storages.RDBStorage):
        study_id = optuna_internals.id_of_study(optuna_study)
        super().__init__(storage.engine, study_id, optuna_study.study_name)
        self.optuna = optuna_study
        # The same database as `storage`, behind Optuna's cache.
        self.storage = optuna_internals.cached_storage(optuna_study)
        self._thin_curves: dict[int, set[int]] = {}
        # Of the threads of this process, one claims at a time.
        self._claiming = threading.Lock()
        self._is_over_here = False

    # ---- claiming

    def claim(
        self, process: Process, provenance: Mapping[str, str], idle: bool = False
    ) -> Trial | None:
        """Take a waiting trial, or a new one if the budget allows; None if there is nothing to do.

        provenance: device, code_version and data of the worker. idle: `process` works on no trial,
        so a trial that it holds comes from a claim whose answer was lost.
        """
        while True:
            self.refresh()
            reserved = self._reserve(process, provenance, idle)
            if reserved is None:
                return None
            lease, attempt = reserved
            # Sampling can be slow, so it happens after the study's lock is released.
            trial = self._configured(lease, attempt)
            if trial is not None:
                return trial

    def _reserve(
        self, process: Process, provenance: Mapping[str, str], idle: bool
    ) -> tuple[Lease, int] | None:
        """Take a trial under the study's lock. Returns its lease and the number of the attempt."""
        token = uuid4().hex
        with self._claiming, locks.locked(self.engine, self.id) as lock:
            self._sweep(process if idle else None)
            if self.halt or self._is_over_here:
                return None
            trial_id = self._take(process.host)
            if trial_id is None:
                return None
            lease = Lease(trial_id, token, self._lease_seconds)
            # If the lock is lost, so is the lease, and the trial is handed back by the next claim.
            attempt = leases.take_lease(lock.last_write(), lease, process, dict(provenance))
        return lease, attempt

    def withdraw(self, process: Process) -> None:
        """Claim no more in this process, and hand back the trial of a claim that is not over.

        For a worker that must leave while another thread still claims.
        """
        self._is_over_here = True
        with self._claiming, locks.locked(self.engine, self.id):
            self._sweep(process, "its worker was stopped before it began")

    def _configured(self, lease: Lease, attempt: int) -> Trial | None:
        """The trial with its configuration; None if it was lost, ended by hand or has failed.

        A draw that gives no valid configuration, such as two parameters that exclude each other,
        makes the trial fail.
        """
        number = self.storage.get_trial_number_from_id(lease.trial_id)
        try:
            with leases.fenced(lease.trial_id, lease.token):
                config, start = self.configure(lease.trial_id)
        except (LeaseLostError, UpdateFinishedTrialError):
            # Another worker holds the trial, or someone ended it by hand.
            return None
        except (SpecError, ValueError) as error:
            trial = Trial(lease.trial_id, number, self.spec.config(), lease.token, None, attempt)
            self.finish(trial, Failed(str(error), Cause.BAD_CONFIGURATION))
            return None
        with self.engine.begin() as connection:
            if not leases.renew_lease(connection, lease, config=config.flat()):
                return None
        return Trial(lease.trial_id, number, config, lease.token, start, attempt)

    def configure(self, trial_id: int) -> tuple[Config, str | None]:
        """Draw the trial's parameters, or keep those that it has.

        Returns its configuration, and the name of the start if it is one.
        """
        trial = self.storage.get_trial(trial_id)

        def known_to_optuna(sampler: BaseSampler) -> optuna.Trial:
            # Optuna's cache accepts parameters only for trials that it has read.
            self.storage.get_all_trials(self.id, deepcopy=False)
            return self.optuna_trial(trial_id, sampler)

        return choice.configure(self.spec, trial, self.all_records, known_to_optuna)

    def optuna_trial(self, trial_id: int, sampler: BaseSampler) -> optuna.Trial:
        """Optuna's trial. The sampler draws at once.

        The Study is a new one, because a Study keeps the trials that it has read first.
        """
        return optuna.Trial(optuna.Study(self.name, self.storage, sampler), trial_id)

    def _take(self, host: str) -> int | None:
        """Set a trial to RUNNING. Returns its id, or None. The caller holds the study's lock.

        A trial whose last attempt ended with an error on this host is left to other hosts, as long
        as one of them works.
        """
        budget = self.budget
        with self.engine.begin() as connection:
            spent = self.spent_in(connection)
            waiting = standing.waiting(connection, self.id)
            failed_here = {
                row.trial_id
                for row in waiting
                if row.outcome == Cause.CODE_ERROR and row.host == host
            }
            leave_to_others = bool(failed_here) and standing.works_elsewhere(
                connection, self.id, host
            )
        for row in waiting:
            if leave_to_others and row.trial_id in failed_here:
                continue
            if refusal(budget, spent, row.gpu_seconds) is not None:
                continue
            if self.storage.set_trial_state_values(row.trial_id, TrialState.RUNNING):
                return int(row.trial_id)
        if self.spec.child or refusal(budget, spent) is not None:
            return None
        return self.storage.create_new_trial(self.id)

    # ---- reporting

    def resume(self, trial: Trial, step: int, curve: list[Point]) -> bool:
        """Resume the trial after `step` with the points of `curve`, dropping later ones.

        Returns False if another worker holds the trial.
        """
        with self.engine.begin() as connection:
            if not leases.renew_lease(connection, self._lease_of(trial), step=step):
                return False
            leases.begin_attempt(connection, trial.id, trial.attempt, step)
            starts_from_scratch = step == 0 and not curve
            # A training from scratch measures a point at step 0 again.
            last_kept = -1 if starts_from_scratch else step
            curves.forget_curve_after(connection, trial.id, last_kept)
        return self.deliver(trial, curve, step, 0.0)

    def deliver(
        self,
        trial: Trial,
        points: list[Point],
        step: int,
        seconds: float,
        memory: int | None = None,
    ) -> bool:
        """Renew the lease after `seconds` of this attempt, and add points to the curve.

        A repeated call writes nothing twice. Returns False, and writes nothing, if another worker
        holds the trial or someone ended it by hand in optuna-dashboard.
        """
        with self.engine.begin() as connection:
            if leases.ended_by_hand(connection, trial.id, trial.lease):
                return False
            lease = self._lease_of(trial)
            if not leases.renew_lease(connection, lease, worked=seconds, step=step, memory=memory):
                return False
            curves.add_points(connection, trial.id, trial.attempt, points)
        try:
            with leases.fenced(trial.id, trial.lease):
                self._add_to_thin_curve(trial, points)
        except LeaseLostError:
            return False
        except UpdateFinishedTrialError:
            # Someone has just ended the trial by hand, which a second call notices.
            return self.deliver(trial, [], step, seconds, memory)
        return True

    def _add_to_thin_curve(self, trial: Trial, points: list[Point]) -> None:
        for point in points:
            if not in_thin_curve(point.step, trial.config, partial(self._thin_steps, trial.id)):
                continue
            if trial.id in self._thin_curves:
                self._thin_curves[trial.id].add(point.step)
            self.storage.set_trial_intermediate_value(trial.id, point.step, point.value)

    def _thin_steps(self, trial_id: int) -> set[int]:
        """The steps of the trial's points in Optuna.

        They are read once, because only the trial's holder adds points.
        """
        if trial_id not in self._thin_curves:
            steps = set(self.storage.get_trial(trial_id).intermediate_values)
            # A worker has one trial at a time: forget the others.
            self._thin_curves = {trial_id: steps}
        return self._thin_curves[trial_id]

    def stopped_by_hand(self, trial: Trial) -> str | None:
        """Why someone stopped the trial while its worker trained it; None if nobody did."""
        with self.engine.begin() as connection:
            attempts = trials.attempts_of(connection, [trial.id])[trial.id]
        for row in attempts:
            if row.attempt == trial.attempt and row.outcome == BY_HAND:
                reason: str | None = row.reason
                return reason
        return None

    def shares_device(self, trial: Trial) -> bool:
        """Whether other trials of any study run on the trial's device."""
        with self.engine.begin() as connection:
            return leases.count_sharing_device(connection, trial.id) > 0

    # ---- ending

    def finish(self, trial: Trial, outcome: Outcome, seconds: float = 0.0) -> bool:
        """Write the outcome after `seconds` of this attempt.

        A repeated call writes nothing twice. Returns False if another worker holds the trial or
        someone ended it by hand in optuna-dashboard.
        """
        state = self._record_outcome(trial, outcome, seconds)
        if state is None:
            return False
        was_held = True
        try:
            with leases.fenced(trial.id, trial.lease):
                self._tell_optuna(trial.id, state, outcome)
        except LeaseLostError:
            return False
        except UpdateFinishedTrialError:
            # Someone has just ended the trial by hand.
            was_held = False
        with self.engine.begin() as connection:
            leases.drop_lease(connection, trial.id, trial.lease)
        return was_held

    def _record_outcome(self, trial: Trial, outcome: Outcome, seconds: float) -> TrialState | None:
        """Write the outcome to hpo's tables. Returns the state that the trial is to have.

        Returns None if another worker holds the trial or someone ended it by hand.
        """
        scores: dict[str, Score] = {}
        if isinstance(outcome, Completed):
            scores = {findings.VALIDATION: outcome.score, **outcome.held_out}
        word, reason = in_words(outcome)
        with self.engine.begin() as connection:
            if leases.ended_by_hand(connection, trial.id, trial.lease):
                return None
            if not leases.renew_lease(connection, self._lease_of(trial), worked=seconds):
                return None
            findings.put_scores(connection, trial.id, scores)
            leases.end_attempt(connection, trial.id, trial.attempt, word, reason)
            return self._state_after(connection, trial.id, outcome)

    def _tell_optuna(self, trial_id: int, state: TrialState, outcome: Outcome) -> None:
        """Write the outcome to Optuna's tables."""
        if self.storage.get_trial(trial_id).state == state:
            # An earlier call wrote it, and its answer was lost.
            return
        attributes: dict[str, str] = {}
        if state in (TrialState.PRUNED, TrialState.FAIL):
            _, attributes["reason"] = in_words(outcome)
        values: list[float] | None = None
        if isinstance(outcome, Stopped):
            attributes["rule"] = outcome.stop.rule
            attributes["cause"] = outcome.stop.cause
            self.optuna_trial(trial_id, RandomSampler()).set_constraint("diverged", 1.0)
        elif isinstance(outcome, Completed):
            values = [outcome.score.value]
        self.end_trial(trial_id, state, attributes, values)

    def _state_after(self, connection: Connection, trial_id: int, outcome: Outcome) -> TrialState:
        match outcome:
            case Completed():
                return TrialState.COMPLETE
            case Stopped():
                return TrialState.PRUNED
            case Failed():
                return self._state_after_failure(connection, trial_id)
            case _:
                return TrialState.WAITING

    def _state_after_failure(self, connection: Connection, trial_id: int) -> TrialState:
        """WAITING, or FAIL after too many attempts at the trial."""
        attempts = trials.attempts_of(connection, [trial_id])[trial_id]
        causes = [Cause(row.outcome) for row in attempts if row.outcome in set(Cause)]
        if is_over(causes, self.spec.attempts.max_attempts):
            return TrialState.FAIL
        return TrialState.WAITING

    def end_trial(
        self,
        trial_id: int,
        state: TrialState,
        attributes: Mapping[str, str],
        values: list[float] | None = None,
    ) -> None:
        """Write user attributes, and then the state, to Optuna's tables."""
        for key, value in attributes.items():
            self.storage.set_trial_user_attr(trial_id, key, value)
        self.storage.set_trial_state_values(trial_id, state, values)

    @property
    def _lease_seconds(self) -> float:
        return self.spec.attempts.lease_seconds

    def _lease_of(self, trial: Trial) -> Lease:
        return Lease(trial.id, trial.lease, self._lease_seconds)

    # ---- sweeping

    def sweep(self) -> None:
        """Hand back the trials that nobody works on."""
        with locks.locked(self.engine, self.id):
            self._sweep()

    def _sweep(self, idle: Process | None = None, why: str = LOST_DATABASE) -> None:
        """Set trials that nobody works on to WAITING, or to FAIL if that happened too often.

        A trial that kills its workers would kill all of them if it always came back as the first
        in the queue. The caller holds the study's lock. why: the reason for trials of `idle`.
        """
        with self.engine.begin() as connection:
            orphans = leases.orphans(connection, self.id, idle)
        for orphan in orphans:
            if orphan.is_holder_alive:
                self._hand_back(orphan, Cause.INTERRUPTED, why)
            else:
                self._hand_back(orphan, Cause.LOST, "its worker died or fell silent")

    def _hand_back(self, orphan: Orphan, cause: Cause, reason: str) -> None:
        trial_id = orphan.trial_id
        if orphan.token is None:
            self.storage.set_trial_state_values(trial_id, TrialState.WAITING)
            return
        with self.engine.begin() as connection:
            attempt = leases.drop_lease(connection, trial_id, orphan.token, orphan.lease_until)
        if not attempt:
            # The holder was only late, and has renewed its lease.
            return
        if self.storage.get_trial(trial_id).state != TrialState.RUNNING:
            # The holder ended the trial before the lease was dropped.
            return
        with self.engine.begin() as connection:
            leases.end_attempt(connection, trial_id, attempt, cause, reason)
            state = self._state_after_failure(connection, trial_id)
        attributes = {"reason": reason} if state == TrialState.FAIL else {}
        self.end_trial(trial_id, state, attributes)

    def runs_elsewhere(self) -> bool:
        """Whether trials run, for a caller whose own workers have left."""
        self.sweep()
        return self.standing().running > 0

    def bad_host(self, host: str) -> bool:
        """Whether the last attempts on `host` ended with errors, while trials succeed elsewhere."""
        with self.engine.begin() as connection:
            here = standing.outcomes_on(connection, self.id, host, BAD_NODE_ERRORS)
            others = standing.outcomes_elsewhere(connection, self.id, host, 2 * BAD_NODE_ERRORS)
            works_elsewhere = standing.works_elsewhere(connection, self.id, host)
        errors = [outcome for outcome in here if outcome == Cause.CODE_ERROR]
        return (
            works_elsewhere
            and len(errors) == BAD_NODE_ERRORS
            and ("complete" in others or "stopped" in others)
        )
