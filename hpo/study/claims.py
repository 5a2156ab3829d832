"""The life of a trial: claimed under a lock of the study, told of while it runs, ended once, and handed back if its worker is gone.

States: WAITING (a start, or interrupted) -> RUNNING -> COMPLETE | PRUNED (stopped by a rule) | FAIL; RUNNING -> WAITING
when an attempt at a trial ended before it: number, parameters and curve stay, the next claim goes on with it.

Trials are claimed under a lock of the study, so a budget is exact over any number of workers; what a worker writes of its trial
is fenced by its lease.
"""

from collections.abc import Mapping
from functools import partial
from uuid import uuid4

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import RandomSampler
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from hpo.curve import Point
from hpo.errors import SpecError
from hpo.process import Process
from hpo.settings import Config
from hpo.space.budget import refusal
from hpo.store import curves, findings, leases, locks, standing, trials
from hpo.store.leases import LeaseLostError
from hpo.study import choice
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

BAD_NODE_ERRORS = 2  # in a row on one host, while others succeed


class Claims(StudyReader):
    """A study whose trials are claimed, told of and ended."""

    def __init__(self, optuna_study: optuna.Study, storage: optuna.storages.RDBStorage):
        super().__init__(storage.engine, optuna_study._study_id, optuna_study.study_name)
        self.optuna = optuna_study
        self._thin: dict[int, set[int]] = {}
        self.storage = optuna_study._storage  # the same database behind Optuna's cache

    def claim(
        self, process: Process, record: Mapping[str, str], idle: bool = False
    ) -> Trial | None:
        """Take a trial that waits, or a new one if the budget allows; None if there is nothing to do.

        record: device, code_version and data of the worker. idle: what `process` seems to hold is of
        a claim whose answer was lost. Sampling, which can be slow, comes after the lock. A draw that
        makes no valid configuration (two parameters that exclude each other) is a failed trial, and
        the next one is taken.
        """
        while True:
            self.refresh()
            lease = uuid4().hex
            with locks.locked(self.engine, self.id) as connection:
                self._sweep(connection, process if idle else None)
                trial_id = None if self.halt else self._take(connection, process.host)
                if trial_id is None:
                    return None
                attempt = leases.take_lease(
                    connection, trial_id, lease, process, dict(record), self._lease_seconds
                )
            number = self.storage.get_trial_number_from_id(trial_id)
            try:
                with leases.fenced(trial_id, lease):
                    config, start = self.configure(trial_id)
            except (LeaseLostError, UpdateFinishedTrialError):  # the second: ended by hand
                continue
            except (SpecError, ValueError) as error:
                trial = Trial(trial_id, number, self.spec.config(), lease, None, attempt)
                self.finish(trial, Failed(str(error), Cause.BAD_CONFIGURATION))
                continue
            with self.engine.begin() as connection:
                if leases.renew_lease(
                    connection, trial_id, lease, self._lease_seconds, config=config.flat()
                ):
                    return Trial(trial_id, number, config, lease, start, attempt)

    def configure(self, trial_id: int) -> tuple[Config, str | None]:
        """Draw the trial's parameters if it has none. Returns its configuration, and the name of the start that it is."""
        trial = self.storage.get_trial(trial_id)

        def asked_of(sampler: optuna.samplers.BaseSampler) -> optuna.Trial:
            self.storage.get_all_trials(
                self.id, deepcopy=False
            )  # Optuna's cache takes parameters of trials that it has seen only
            return self.optuna_trial(trial_id, sampler)

        return choice.configure(self.spec, trial, self.all_records, asked_of)

    def optuna_trial(self, trial_id: int, sampler: optuna.samplers.BaseSampler) -> optuna.Trial:
        """Optuna's trial, on a Study made anew because one keeps the trials that it saw first. `sampler` is asked at once."""
        return optuna.Trial(optuna.Study(self.name, self.storage, sampler), trial_id)

    def _take(self, connection: Connection, host: str) -> int | None:
        """The id of a trial that is RUNNING for us now. The caller holds the study's lock.

        One that an error on this host has ended is left to another host, if there is one that works.
        """
        budget, spent = self.budget, self.spent_in(connection)
        waiting = standing.waiting(connection, self.id)
        bad_here = [row for row in waiting if (row.outcome, row.host) == (Cause.CODE_ERROR, host)]
        elsewhere = bool(bad_here) and standing.works_elsewhere(connection, self.id, host)
        for row in waiting:
            if elsewhere and row in bad_here:
                continue
            if refusal(budget, spent, row.gpu_seconds) is not None:
                continue
            if self.storage.set_trial_state_values(row.trial_id, TrialState.RUNNING):
                return int(row.trial_id)
        if self.spec.child or refusal(budget, spent) is not None:
            return None
        return self.storage.create_new_trial(self.id)

    def resume(self, trial: Trial, step: int, curve: list[Point]) -> bool:
        """The trial goes on after `step` with the points of `curve` behind it; others are forgotten. False: it is another's now."""
        with self.engine.begin() as connection:
            if not leases.renew_lease(
                connection, trial.id, trial.lease, self._lease_seconds, step=step
            ):
                return False
            leases.begin_attempt(connection, trial.id, trial.attempt, step)
            # Nothing is behind it: a point at step 0 is forgotten too.
            kept = step if step > 0 or curve else -1
            curves.forget_curve_after(connection, trial.id, kept)
        return self.deliver(trial, curve, step, 0.0)

    def deliver(
        self,
        trial: Trial,
        points: list[Point],
        step: int,
        seconds: float,
        memory: int | None = None,
    ) -> bool:
        """Renew the lease after `seconds` of this attempt, and add points to the curve. Told twice it is written once.

        False: the trial is another's now, or was ended by hand in optuna-dashboard; nothing was written.
        """
        with self.engine.begin() as connection:
            if leases.ended_by_hand(connection, trial.id, trial.lease):
                return False
            lease = trial.lease, self._lease_seconds
            if not leases.renew_lease(
                connection, trial.id, *lease, worked=seconds, step=step, memory=memory
            ):
                return False
            curves.add_points(connection, trial.id, trial.attempt, points)
        try:
            with leases.fenced(trial.id, trial.lease):
                for point in points:
                    if in_thin_curve(point.step, trial.config, partial(self._thin_steps, trial.id)):
                        self._thin.get(trial.id, set()).add(point.step)
                        self.storage.set_trial_intermediate_value(trial.id, point.step, point.value)
        except LeaseLostError:
            return False
        except UpdateFinishedTrialError:
            return self.deliver(trial, [], step, seconds, memory)  # which sees it
        return True

    def _thin_steps(self, trial_id: int) -> set[int]:
        """The steps of the points that Optuna has of a trial; asked for once, because only its holder adds some."""
        if trial_id not in self._thin:
            self._thin = {trial_id: set(self.storage.get_trial(trial_id).intermediate_values)}
        return self._thin[trial_id]

    def finish(self, trial: Trial, outcome: Outcome, seconds: float = 0.0) -> bool:
        """Write the outcome after `seconds` of this attempt. Told twice it is written once. False as for `deliver`."""
        scores: dict[str, Score] = {}
        if isinstance(outcome, Completed):
            scores = {findings.VALIDATION: outcome.score, **outcome.held_out}
        word, reason = in_words(outcome)
        with self.engine.begin() as connection:
            if leases.ended_by_hand(connection, trial.id, trial.lease):
                return False
            if not leases.renew_lease(
                connection, trial.id, trial.lease, self._lease_seconds, worked=seconds
            ):
                return False
            findings.put_scores(connection, trial.id, scores)
            leases.end_attempt(connection, trial.id, trial.attempt, word, reason)
            state = self._state_after(connection, trial.id, outcome)
        attributes = {"reason": reason} if state in (TrialState.PRUNED, TrialState.FAIL) else {}
        if isinstance(outcome, Stopped):
            attributes |= {"rule": outcome.stop.rule, "cause": outcome.stop.cause}
        held = True
        try:
            with leases.fenced(trial.id, trial.lease):
                if (
                    self.storage.get_trial(trial.id).state != state
                ):  # else an attempt to write it did, and was not told so
                    if isinstance(outcome, Stopped):
                        self.optuna_trial(trial.id, RandomSampler()).set_constraint("diverged", 1.0)
                    self.end_trial(
                        trial.id,
                        state,
                        attributes,
                        [outcome.score.value] if isinstance(outcome, Completed) else None,
                    )
        except LeaseLostError:
            return False
        except UpdateFinishedTrialError:
            held = False
        with self.engine.begin() as connection:
            leases.drop_lease(connection, trial.id, trial.lease)
        return held

    def _state_after(self, connection: Connection, trial_id: int, outcome: Outcome) -> TrialState:
        match outcome:
            case Completed():
                return TrialState.COMPLETE
            case Stopped():
                return TrialState.PRUNED
            case Failed():
                return self._after_trouble(connection, trial_id)
            case _:
                return TrialState.WAITING

    def _after_trouble(self, connection: Connection, trial_id: int) -> TrialState:
        """WAITING, or FAIL if the attempts at the trial were too many."""
        attempts = trials.attempts_of(connection, [trial_id])[trial_id]
        causes = [Cause(row.outcome) for row in attempts if row.outcome in set(Cause)]
        return (
            TrialState.FAIL
            if is_over(causes, self.spec.attempts.max_attempts)
            else TrialState.WAITING
        )

    def end_trial(
        self,
        trial_id: int,
        state: TrialState,
        attributes: Mapping[str, str],
        values: list[float] | None = None,
    ) -> None:
        for key, value in attributes.items():
            self.storage.set_trial_user_attr(trial_id, key, value)
        self.storage.set_trial_state_values(trial_id, state, values)

    @property
    def _lease_seconds(self) -> float:
        return self.spec.attempts.lease_seconds

    def _sweep(self, connection: Connection, idle: Process | None = None) -> None:
        """Set the trials that nobody works on to wait, or to fail if that happened too often: such a trial kills its
        workers, and as the first in the queue it would kill them all. The caller holds the study's lock.
        """
        for trial_id, lease, until, alive in leases.orphans(connection, self.id, idle):
            if lease is None:
                self.storage.set_trial_state_values(trial_id, TrialState.WAITING)
            elif attempt := leases.drop_lease(
                connection, trial_id, lease, until
            ):  # else its holder was only late
                if self.storage.get_trial(trial_id).state != TrialState.RUNNING:
                    continue  # its holder's last word arrived before the lease was dropped; now no other can
                reason = (
                    "its worker lost the database" if alive else "its worker died or fell silent"
                )
                leases.end_attempt(
                    connection,
                    trial_id,
                    attempt,
                    Cause.INTERRUPTED if alive else Cause.LOST,
                    reason,
                )
                state = self._after_trouble(connection, trial_id)
                self.end_trial(
                    trial_id, state, {"reason": reason} if state == TrialState.FAIL else {}
                )

    def sweep(self) -> None:
        with locks.locked(self.engine, self.id) as connection:
            self._sweep(connection)

    def runs_elsewhere(self) -> bool:
        """Whether trials run; asked by one whose own workers have left."""
        self.sweep()
        return self.standing().running > 0

    def stopped_by_hand(self, trial: Trial) -> str | None:
        """Why a person has stopped the trial under its worker; None: nobody has."""
        with self.engine.begin() as connection:
            attempts = trials.attempts_of(connection, [trial.id])[trial.id]
        return next(
            (
                row.reason
                for row in attempts
                if (row.attempt, row.outcome) == (trial.attempt, BY_HAND)
            ),
            None,
        )

    def shares_device(self, trial: Trial) -> bool:
        """Whether other trials of any study run on the trial's device."""
        with self.engine.begin() as connection:
            return leases.beside(connection, trial.id) > 0

    def bad_host(self, host: str) -> bool:
        """Whether the last attempts on `host` ended with an error, while other hosts bring trials to their end."""
        with self.engine.begin() as connection:
            here = standing.outcomes(connection, self.id, host, True, BAD_NODE_ERRORS)
            others = standing.outcomes(connection, self.id, host, False, 2 * BAD_NODE_ERRORS)
            elsewhere = standing.works_elsewhere(connection, self.id, host)
        return (
            elsewhere
            and here == [Cause.CODE_ERROR] * BAD_NODE_ERRORS
            and bool({"complete", "stopped"} & set(others))
        )
