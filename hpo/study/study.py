"""Study: the only door to Optuna.

Optuna's tables hold parameters, states and a thin curve (samplers, pruners and the dashboard reread those all the time);
the ledger's tables beside them hold leases, attempts, full records and the fine curve. Trials are claimed under a lock of
the study, so a budget is exact over any number of workers; what a worker writes of its trial is fenced by its lease.

States: WAITING (a start, or interrupted) -> RUNNING -> COMPLETE | PRUNED (stopped by a rule) | FAIL; RUNNING -> WAITING
when an attempt at a trial ended before it: number, parameters and curve stay, the next claim goes on with it.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import RandomSampler
from optuna.trial import TrialState
from pydantic import ValidationError
from sqlalchemy.engine import Connection

from hpo.curve import Point
from hpo.errors import SpecError, StudyError
from hpo.settings import Config, explain
from hpo.space.budget import Budget, Spent, over, refusal
from hpo.space.spec import StudySpec
from hpo.space.upgrade import upgraded_budget, upgraded_spec, what_changed
from hpo.store import ledger
from hpo.store.database import Database, open_database
from hpo.store.ledger import LeaseLostError, Process
from hpo.store.storage import check_name, no_study, open_storage
from hpo.study import choice
from hpo.study.record import in_thin_curve, record_of
from hpo.study.sampling import fixed_key, fixed_trial
from hpo.study.trial import BY_HAND, Cause, Completed, Failed, Halt, Outcome, Record, Stopped, Trial, in_words, is_over
from hpo.trainer import Score, load_trainer

optuna.logging.set_verbosity(optuna.logging.WARNING)
log = logging.getLogger(__name__)

BAD_NODE_ERRORS = 2  # in a row on one host, while others succeed


class Study:
    def __init__(self, study: optuna.Study, storage: optuna.storages.RDBStorage):
        self._study = study
        self._storage = study._storage  # the same database behind Optuna's cache
        self._engine = storage.engine
        self.id = study._study_id
        self.name = study.study_name
        self._spec: StudySpec | None = None
        self._settled: dict[int, Record] = {}  # of trials that do not change any more: a launch asks twice a second

    @classmethod
    def create_or_open(cls, database: Database, name: str, spec: StudySpec, data: Mapping[str, Any], extend: bool = False) -> "Study":
        """Make the study with its starts waiting, or reopen it if spec and data are the same.

        data: `path` (None: the trainer's own), `fingerprint`, and what the trainer tells of them.
        extend: take a spec of which only budget or ranges grew.
        Raises StudyError if the study exists with another spec or on other data.
        """
        check_name(name)
        storage = open_storage(database)
        with ledger.locked(storage.engine, 0):
            direction = spec.metric.direction
            made = optuna.create_study(storage=storage, study_name=name, load_if_exists=True, direction=direction)
            study = cls(made, storage)
            if "spec" not in study._study.user_attrs:  # new, or its maker died before it was whole
                study._make(spec, data)
            elif study.data["fingerprint"] != data["fingerprint"]:
                source = study.data["path"] or load_trainer(spec.trainer).bundled
                raise StudyError(
                    f"study {name} was made on other data ({source}, fingerprint {study.data['fingerprint']}; "
                    f"given {data['fingerprint']}). Take --name for a new study"
                )
            elif spec.digest() != study.spec.digest():
                study._extend(spec, data, extend)
            else:  # what is asked about the results may have changed
                study._warn_of_removed(study._attributes)
                study._study.set_user_attr("spec", spec.model_dump(mode="json"))
                study._spec = spec
        return study

    @classmethod
    def open(cls, database: Database, name: str) -> "Study":
        """Raises StudyError if there is no such study, with those that there are."""
        check_name(name)
        storage = open_storage(database)
        try:
            study = cls(optuna.load_study(study_name=name, storage=storage), storage)
        except KeyError:
            raise no_study(name, database, storage) from None
        attributes = study._study.user_attrs
        if "spec" not in attributes:
            raise StudyError(f"study {name!r} was not made by hpo launch. Take another name")
        study._warn_of_removed(attributes)
        return study

    def _warn_of_removed(self, attributes: Mapping[str, Any]) -> None:
        for line in what_changed(attributes["spec"], attributes.get("budget") or {}):
            log.warning("study %s: %s", self.name, line)

    @property
    def _attributes(self) -> dict[str, Any]:
        try:
            return self._study.user_attrs
        except KeyError:
            raise self._deleted() from None

    def _deleted(self) -> StudyError:
        return StudyError(f"study {self.name} was deleted. Type the launch line again for a new one")

    @property
    def unique(self) -> str:
        """Tells this study from others of its name, in other databases or deleted before."""
        return str(self._attributes["unique"])

    def _make(self, spec: StudySpec, data: Mapping[str, Any]) -> None:
        there = [trial.user_attrs.get("start") for trial in self._study.get_trials(deepcopy=False)]
        if None in there:
            raise StudyError(f"study {self.name} is there already and was not made by hpo. Take --name for a new one")
        self._study.set_user_attr("unique", uuid4().hex[:8])
        for start in spec.starts:
            if start not in there:
                self._study.enqueue_trial(spec.start_values(start), user_attrs={"start": start})
        self._store(spec, data)

    def _store(self, spec: StudySpec, data: Mapping[str, Any]) -> None:
        self._study.set_user_attr("data", dict(data))
        self._study.set_user_attr("budget", spec.budget.model_dump(mode="json"))
        self._study.set_user_attr("digest", spec.digest())
        self._study.set_user_attr("metric", spec.metric.model_dump(mode="json"))
        self._study.set_user_attr("spec", spec.model_dump(mode="json"))
        self._spec = spec

    def _extend(self, spec: StudySpec, data: Mapping[str, Any], extend: bool) -> None:
        places = ", ".join(spec.differences(self.spec)[:5])
        if not spec.extends(self.spec):
            raise StudyError(f"study {self.name} exists with another spec (different: {places}). Take --name for a new study; --extend "
                             f"is for a budget or ranges that only grew")  # fmt: skip
        if not extend:
            raise StudyError(f"study {self.name} exists with a smaller spec (grown: {places}). Take --extend to go on with it, or --name "
                             f"for a new study")  # fmt: skip
        budget = {name: value for name, value in spec.budget if value != getattr(self.spec.budget, name)}
        live = self.budget.model_copy(update=budget)  # what `hpo budget` has changed since stays so
        self._store(spec, data)
        self._study.set_user_attr("budget", live.model_dump(mode="json"))

    @property
    def budget(self) -> Budget:
        """As it is now: the spec's, with what `hpo budget` has changed."""
        stored = self._attributes.get("budget")
        return Budget.model_validate(upgraded_budget(stored)) if stored else self.spec.budget

    @property
    def halt(self) -> Halt | None:
        """That it is paused or stopped; None: it runs. Raises StudyError if it was deleted."""
        found = self._attributes.get("halt")
        return Halt(**found) if found else None

    def change_budget(self, changes: Mapping[str, str]) -> tuple[Budget, Budget]:
        """Raise or lower it while workers run, as Budget.changed reads it. Returns (before, now). Raises StudyError."""
        with ledger.locked(self._engine, self.id):
            before = self.budget
            try:
                budget = before.changed(changes)
            except ValidationError as error:
                raise StudyError(explain(error, "budget ")) from None
            self._study.set_user_attr("budget", budget.model_dump(mode="json"))
        return before, budget

    @property
    def artifacts(self) -> Path | None:
        """The folder that all machines of the study see, if it has one."""
        path = self._attributes.get("artifacts")
        return Path(path) if path else None

    @property
    def code(self) -> str:
        """The version of the code that it was made with."""
        return str(self._attributes.get("code", ""))

    def settle(self, artifacts: Path | None, code: str) -> None:
        """Remember where the files of trials go, and the first time the version of the code."""
        if artifacts:
            self._study.set_user_attr("artifacts", str(artifacts.absolute()))
        if not self.code:
            self._study.set_user_attr("code", code)

    @property
    def spec(self) -> StudySpec:
        """As when this object last looked; `refresh` looks again."""
        if self._spec is None:
            try:
                self._spec = StudySpec.model_validate(upgraded_spec(self._attributes["spec"]))
            except (ValidationError, SpecError) as error:
                fault = explain(error) if isinstance(error, ValidationError) else error
                raise StudyError(f"study {self.name} was made by another version of hpo ({fault}). Take --name for a new one") from None
        return self._spec

    def refresh(self) -> None:
        self._spec = None

    @property
    def data(self) -> dict[str, Any]:
        """`path` (None: the trainer's own), `fingerprint`, and what the trainer tells of them."""
        return dict(self._attributes["data"])

    @property
    def data_path(self) -> Path | None:
        """Where the data were when the study was made; None: they are the trainer's own."""
        return Path(self.data["path"]) if self.data["path"] else None

    # ---- the life of a trial

    def claim(self, process: Process, record: Mapping[str, str], idle: bool = False) -> Trial | None:
        """Take a trial that waits, or a new one if the budget allows; None if there is nothing to do.

        record: device, code_version and data of the worker. idle: what `process` seems to hold is of
        a claim whose answer was lost. Sampling, which can be slow, comes after the lock. A draw that
        makes no valid configuration (two parameters that exclude each other) is a failed trial, and
        the next one is taken.
        """
        while True:
            self.refresh()
            lease = uuid4().hex
            with ledger.locked(self._engine, self.id) as connection:
                self._sweep(connection, process if idle else None)
                trial_id = None if self.halt else self._take(connection, process.host)
                if trial_id is None:
                    return None
                attempt = ledger.take_lease(connection, trial_id, lease, process, dict(record), self._lease_seconds)
            number = self._storage.get_trial_number_from_id(trial_id)
            try:
                with ledger.fenced(trial_id, lease):
                    config, start = self.configure(trial_id)
            except (LeaseLostError, UpdateFinishedTrialError):  # the second: ended by hand
                continue
            except (SpecError, ValueError) as error:
                trial = Trial(trial_id, number, self.spec.config(), lease, None, attempt)
                self.finish(trial, Failed(str(error), Cause.BAD_CONFIGURATION))
                continue
            with self._engine.begin() as connection:
                if ledger.renew_lease(connection, trial_id, lease, self._lease_seconds, config=config.flat()):
                    return Trial(trial_id, number, config, lease, start, attempt)

    def configure(self, trial_id: int) -> tuple[Config, str | None]:
        """Draw the trial's parameters if it has none. Returns its configuration, and the name of the start that it is."""
        trial = self._storage.get_trial(trial_id)

        def asked_of(sampler: optuna.samplers.BaseSampler) -> optuna.Trial:
            self._storage.get_all_trials(self.id, deepcopy=False)  # Optuna's cache takes parameters of trials that it has seen only
            return self._asked(trial_id, sampler)

        return choice.configure(self.spec, trial, self._records, asked_of)

    @property
    def _lease_seconds(self) -> float:
        return self.spec.attempts.lease_seconds

    def _asked(self, trial_id: int, sampler: optuna.samplers.BaseSampler) -> optuna.Trial:
        """Optuna's trial, on a Study made anew because one keeps the trials that it saw first. `sampler` is asked at once."""
        return optuna.Trial(optuna.Study(self.name, self._storage, sampler), trial_id)

    def _take(self, connection: Connection, host: str) -> int | None:
        """The id of a trial that is RUNNING for us now. The caller holds the study's lock.

        One that an error on this host has ended is left to another host, if there is one that works.
        """
        budget, spent = self.budget, self._spent(connection)
        waiting = ledger.waiting(connection, self.id)
        bad_here = [row for row in waiting if (row.outcome, row.host) == (Cause.CODE_ERROR, host)]
        elsewhere = bool(bad_here) and ledger.works_elsewhere(connection, self.id, host)
        for row in waiting:
            if elsewhere and row in bad_here:
                continue
            if refusal(budget, spent, row.gpu_seconds) is not None:
                continue
            if self._storage.set_trial_state_values(row.trial_id, TrialState.RUNNING):
                return int(row.trial_id)
        if self.spec.child or refusal(budget, spent) is not None:
            return None
        return self._storage.create_new_trial(self.id)

    def enqueue(self, wanted: Sequence[tuple[Config, str]]) -> list[int]:
        """Let trials of these configurations (each with a label) wait, in a child study; the budget becomes what it has.

        Returns their ids in this order: one that has the same configuration, seed included, and did not fail is taken again.
        """
        with ledger.locked(self._engine, self.id):
            trials = [trial for trial in self._storage.get_all_trials(self.id, deepcopy=False) if trial.state != TrialState.FAIL]
            there = {fixed_key(trial.user_attrs["fixed"]): trial._trial_id for trial in trials}
            for config, label in wanted:
                if (key := fixed_key(config.flat())) not in there:
                    there[key] = self._storage.create_new_trial(self.id, fixed_trial(self.spec, config, label))
            self._study.set_user_attr("budget", self.budget.model_copy(update={"trials": len(there)}).model_dump(mode="json"))
        return [there[fixed_key(config.flat())] for config, _ in wanted]

    def _spent(self, connection: Connection) -> Spent:
        count = Counter(ledger.counts(connection, self.id))
        spent, promised, typical = ledger.gpu_time(connection, self.id)
        ended = count["COMPLETE"] + count["PRUNED"]
        return Spent(ledger.now(connection), ended, count["RUNNING"], count["FAIL"], spent, promised, typical)

    def _sweep(self, connection: Connection, idle: Process | None = None) -> None:
        """Set the trials that nobody works on to wait, or to fail if that happened too often: such a trial kills its
        workers, and as the first in the queue it would kill them all. The caller holds the study's lock.
        """
        for trial_id, lease, until, alive in ledger.orphans(connection, self.id, idle):
            if lease is None:
                self._storage.set_trial_state_values(trial_id, TrialState.WAITING)
            elif attempt := ledger.drop_lease(connection, trial_id, lease, until):  # else its holder was only late
                if self._storage.get_trial(trial_id).state != TrialState.RUNNING:
                    continue  # its holder's last word arrived before the lease was dropped; now no other can
                reason = "its worker lost the database" if alive else "its worker died or fell silent"
                ledger.end_attempt(connection, trial_id, attempt, Cause.INTERRUPTED if alive else Cause.LOST, reason)
                state = self._after_trouble(connection, trial_id)
                self._end(trial_id, state, {"reason": reason} if state == TrialState.FAIL else {})

    def sweep(self) -> None:
        with ledger.locked(self._engine, self.id) as connection:
            self._sweep(connection)

    def resume(self, trial: Trial, step: int, curve: list[Point]) -> bool:
        """The trial goes on after `step` with the points of `curve` behind it; others are forgotten. False: it is another's now."""
        with self._engine.begin() as connection:
            if not ledger.renew_lease(connection, trial.id, trial.lease, self._lease_seconds, step=step):
                return False
            ledger.begin_attempt(connection, trial.id, trial.attempt, step)
            ledger.forget_curve_after(connection, trial.id, step)
        return self.deliver(trial, curve, step, 0.0)

    def deliver(self, trial: Trial, points: list[Point], step: int, seconds: float, memory: int | None = None) -> bool:
        """Renew the lease after `seconds` of this attempt, and add points to the curve. Told twice it is written once.

        False: the trial is another's now, or was ended by hand in optuna-dashboard; nothing was written.
        """
        with self._engine.begin() as connection:
            if ledger.ended_by_hand(connection, trial.id, trial.lease):
                return False
            lease = trial.lease, self._lease_seconds
            if not ledger.renew_lease(connection, trial.id, *lease, worked=seconds, step=step, memory=memory):
                return False
            ledger.add_points(connection, trial.id, trial.attempt, points)
        try:
            with ledger.fenced(trial.id, trial.lease):
                for point in points:
                    if in_thin_curve(point.step, trial.config):
                        self._storage.set_trial_intermediate_value(trial.id, point.step, point.value)
        except LeaseLostError:
            return False
        except UpdateFinishedTrialError:
            return self.deliver(trial, [], step, seconds, memory)  # which sees it
        return True

    def finish(self, trial: Trial, outcome: Outcome, seconds: float = 0.0) -> bool:
        """Write the outcome after `seconds` of this attempt. Told twice it is written once. False as for `deliver`."""
        scores: dict[str, Score] = {}
        if isinstance(outcome, Completed):
            scores = {ledger.VALIDATION: outcome.score, **outcome.held_out}
        word, reason = in_words(outcome)
        with self._engine.begin() as connection:
            if ledger.ended_by_hand(connection, trial.id, trial.lease):
                return False
            if not ledger.renew_lease(connection, trial.id, trial.lease, self._lease_seconds, worked=seconds):
                return False
            ledger.put_scores(connection, trial.id, scores)
            ledger.end_attempt(connection, trial.id, trial.attempt, word, reason)
            state = self._state_after(connection, trial.id, outcome)
        attributes = {"reason": reason} if state in (TrialState.PRUNED, TrialState.FAIL) else {}
        if isinstance(outcome, Stopped):
            attributes |= {"rule": outcome.stop.rule, "cause": outcome.stop.cause}
        held = True
        try:
            with ledger.fenced(trial.id, trial.lease):
                if self._storage.get_trial(trial.id).state != state:  # else an attempt to write it did, and was not told so
                    if isinstance(outcome, Stopped):
                        self._asked(trial.id, RandomSampler()).set_constraint("diverged", 1.0)
                    self._end(trial.id, state, attributes, [outcome.score.value] if isinstance(outcome, Completed) else None)
        except LeaseLostError:
            return False
        except UpdateFinishedTrialError:
            held = False
        with self._engine.begin() as connection:
            ledger.drop_lease(connection, trial.id, trial.lease)
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
        attempts = ledger.attempts_of(connection, [trial_id])[trial_id]
        causes = [Cause(row.outcome) for row in attempts if row.outcome in set(Cause)]
        return TrialState.FAIL if is_over(causes, self.spec.attempts.max_attempts) else TrialState.WAITING

    def _end(self, trial_id: int, state: TrialState, attributes: Mapping[str, str], values: list[float] | None = None) -> None:
        for key, value in attributes.items():
            self._storage.set_trial_user_attr(trial_id, key, value)
        self._storage.set_trial_state_values(trial_id, state, values)

    def over(self, budget_too: bool = True) -> str | None:
        """Why trials that run should be handed back: a person wants it, the GPU-hours are spent, or the deadline has passed.

        Without `budget_too` it costs one query.
        """
        if halt := self.halt:
            return str(halt)
        if not budget_too or ((budget := self.budget).gpu_hours is None and budget.deadline is None):
            return None
        with self._engine.begin() as connection:
            return over(budget, self._spent(connection))

    def stopped_by_hand(self, trial: Trial) -> str | None:
        """Why a person has stopped the trial under its worker; None: nobody has."""
        with self._engine.begin() as connection:
            attempts = ledger.attempts_of(connection, [trial.id])[trial.id]
        return next((row.reason for row in attempts if (row.attempt, row.outcome) == (trial.attempt, BY_HAND)), None)

    def shares_device(self, trial: Trial) -> bool:
        """Whether other trials of any study run on the trial's device."""
        with self._engine.begin() as connection:
            return ledger.beside(connection, trial.id) > 0

    def bad_host(self, host: str) -> bool:
        """Whether the last attempts on `host` ended with an error, while other hosts bring trials to their end."""
        with self._engine.begin() as connection:
            here = ledger.outcomes(connection, self.id, host, True, BAD_NODE_ERRORS)
            others = ledger.outcomes(connection, self.id, host, False, 2 * BAD_NODE_ERRORS)
            elsewhere = ledger.works_elsewhere(connection, self.id, host)
        return elsewhere and here == [Cause.CODE_ERROR] * BAD_NODE_ERRORS and bool({"complete", "stopped"} & set(others))

    # ---- reading

    def budget_spent(self) -> bool:
        """Whether the study is over as it should be: not because too many trials failed."""
        return self.standing().failed <= self.budget.failures and self.why_over() is not None

    def runs_elsewhere(self) -> bool:
        """Whether trials run; asked by one whose own workers have left."""
        self.sweep()
        return self.standing().running > 0

    def standing(self) -> Spent:
        """What of the budget is spent."""
        with self._engine.begin() as connection:
            return self._spent(connection)

    def why_over(self) -> str | None:
        """Why no worker would find a trial to take, even if one that runs were handed back; None if one would, or waits for a
        pause to end.
        """
        if (halt := self.halt) and halt.state == "stopped":
            return f"{halt}. To go on: the same launch line, or hpo resume --study {self.name}"
        with self._engine.begin() as connection:
            spent, waiting = self._spent(connection), ledger.waiting(connection, self.id)
        idle, budget = replace(spent, promised=0.0, running=0), self.budget
        if any(refusal(budget, idle, row.gpu_seconds) is None for row in waiting):
            return None
        reason = refusal(budget, idle)
        if reason and spent.failed > self.budget.failures:
            return f"{reason}. See below, mend the cause, take --name"
        return f"{reason}. To go on, raise it with hpo budget --study {self.name}" if reason else None

    def records(self) -> list[Record]:
        """Of the study's own trials, by number. The first time costs as much as there are trials, later what is going on."""
        return [record for record in self._records() if not record.imported]

    def imported(self) -> list[Record]:
        """Of the past runs that the sampler learns from."""
        return [record for record in self._records() if record.imported]

    def _records(self) -> list[Record]:
        try:
            trials = self._storage.get_all_trials(self.id, deepcopy=False)
        except KeyError:
            raise self._deleted() from None
        metric = self.spec.metric
        new = {trial._trial_id: trial for trial in trials if trial._trial_id not in self._settled}
        with self._engine.begin() as connection:
            rows = ledger.rows_of(connection, list(new))
        found = self._settled | {trial_id: record_of(trial, rows.get(trial_id), metric) for trial_id, trial in new.items()}
        held = {trial_id for trial_id, row in rows.items() if row.lease is not None}
        self._settled |= {trial_id: found[trial_id] for trial_id in new.keys() - held if new[trial_id].state.is_finished()}
        return [found[trial._trial_id] for trial in trials]

    def curves(self, records: Iterable[Record]) -> dict[int, list[Point]]:
        """The fine curve of each trial, by its number."""
        ids = {record.id: record.number for record in records}
        with self._engine.begin() as connection:
            found = ledger.curves_of(connection, list(ids))
        return {ids[trial_id]: curve for trial_id, curve in found.items()}

    def keep_result(self, kind: str, content: Mapping[str, Any]) -> None:
        """Store a finding (JSON-ready), such as `confirm`; the last one of a kind is kept."""
        with self._engine.begin() as connection:
            ledger.put_result(connection, self.id, kind, dict(content))

    def results(self) -> dict[str, dict[str, Any]]:
        """The findings that were kept, by kind, each with `made` (ISO 8601, UTC)."""
        with self._engine.begin() as connection:
            return ledger.results_of(connection, self.id)

    def scores(self, trial_ids: Sequence[int], partition: str = ledger.VALIDATION) -> dict[int, Score]:
        """Errors and lengths per item at the end of the training, by trial id, of the trials that have them."""
        with self._engine.begin() as connection:
            return ledger.scores_of(connection, list(trial_ids), partition)


def open_study(name: str, database: str | None = None) -> Study:
    """A study by its name. database: a URL of Postgres; None: as the commands take it (HPO_DATABASE_URL, else the embedded one).

    Raises StudyError, DatabaseError.
    """
    return Study.open(open_database(database), name)
