"""Study, Trial, Outcome: the only door to Optuna.

Optuna's tables hold parameters, states and a thin curve (samplers, pruners and the dashboard reread those all the time);
the ledger's tables beside them hold leases, full records and the fine curve. Trials are claimed and finished under a lock
of the study, so a budget is exact over any number of workers, and a worker that lost its lease cannot write.

States: WAITING (a start, or interrupted) -> RUNNING -> COMPLETE | PRUNED (stopped by a rule) | FAIL; RUNNING -> WAITING
when a trial is interrupted or its worker is gone: number, parameters and curve stay, the next claim goes on with it.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError
from sqlalchemy.engine import Connection, Row

from hpo.decoder.config import DecoderConfig, explain
from hpo.decoder.metric import Score
from hpo.errors import SpecError, StudyError
from hpo.search import ledger
from hpo.search.database import CONNECT_ARGUMENTS, Database
from hpo.search.ledger import Process
from hpo.search.spec import StudySpec
from hpo.search.stopping import Evaluation, Stop

if TYPE_CHECKING:
    from hpo.decoder.train import Progress

optuna.logging.set_verbosity(optuna.logging.WARNING)

MOST_LOSSES = 3  # a trial whose worker is lost more often fails
THIN_CURVE = 25  # values a trial that Optuna gets, at most
NAME_LENGTH = 100

State = Literal["waiting", "running", "complete", "stopped", "failed"]
STATES: dict[TrialState, State] = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
}


@dataclass(frozen=True)
class Completed:
    """Trained to its last step. The trial's value is the PER there, not the lowest along the curve."""

    score: Score


@dataclass(frozen=True)
class Stopped:
    """Ended early by a rule. Diverging is a result: the sampler learns from it, and it is never best."""

    stop: Stop


@dataclass(frozen=True)
class Interrupted:
    """Ended by a signal, to go on later; or by `trouble` of the machine, which is counted like the loss of a worker."""

    trouble: str = ""


@dataclass(frozen=True)
class Failed:
    """Ended by an error; another trial takes its place in the budget."""

    cause: str


Outcome = Completed | Stopped | Interrupted | Failed


@dataclass(frozen=True)
class Trial:
    """A claimed trial: what its worker needs to run it."""

    id: int
    number: int
    config: DecoderConfig
    lease: str
    start: str | None
    attempt: int = 1


@dataclass(frozen=True)
class Record:
    """What is known of a trial, for displays and reports."""

    id: int
    number: int
    state: State
    start: str | None
    params: dict[str, Any]
    config: dict[str, Any]  # dotted name -> value; empty before a worker took it
    per: float | None  # at the end of the training; None unless complete
    last_per: float | None  # of the thin curve
    best_per: float | None  # lowest of the thin curve
    best_step: int | None
    step: int
    seconds: float  # training and evaluation, over all attempts
    attempts: int
    rule: str  # that stopped it
    cause: str  # by which of its limits
    reason: str  # why it was stopped or failed, for people
    host: str
    device: str
    code_version: str
    data: str  # fingerprint

    @property
    def steps(self) -> int:
        return int(self.config.get("steps", 0))


class Study:
    def __init__(self, study: optuna.Study, storage: optuna.storages.RDBStorage):
        self._study = study
        self._storage = study._storage  # the same database behind Optuna's cache
        self._engine = storage.engine
        self.id = study._study_id
        self.name = study.study_name
        self._spec: StudySpec | None = None

    @classmethod
    def create_or_open(cls, database: Database, name: str, spec: StudySpec, data: Mapping[str, Any], extend: bool = False) -> "Study":
        """Make the study with its starts waiting, or reopen it if spec and data are the same.

        data: `path` (None: bundled) and `fingerprint`. extend: take a spec of which only budget or ranges grew.
        Raises StudyError if the study exists with another spec or on other data.
        """
        check_name(name)
        storage = _storage(database)
        with ledger.locked(storage.engine, 0):
            study = cls(optuna.create_study(storage=storage, study_name=name, load_if_exists=True, direction="minimize"), storage)
            if "spec" not in study._study.user_attrs:  # new, or its maker died before it was whole
                study._make(spec, data)
            elif study.data["fingerprint"] != data["fingerprint"]:
                raise StudyError(f"study {name} was made on other data ({study.data['path'] or 'the bundled recordings'}, fingerprint "
                                 f"{study.data['fingerprint']}; given {data['fingerprint']}). Take --name for a new study")  # fmt: skip
            elif spec.digest() != study.spec.digest():
                study._extend(spec, data, extend)
        return study

    @classmethod
    def open(cls, database: Database, name: str) -> "Study":
        """Raises StudyError if there is no such study, with those that there are."""
        check_name(name)
        storage = _storage(database)
        try:
            study = cls(optuna.load_study(study_name=name, storage=storage), storage)
        except KeyError:
            names = sorted(summary.study_name for summary in optuna.get_all_study_summaries(storage, include_best_trial=False))
            raise StudyError(f"no study {name!r} in {database}. There are: {', '.join(names) or 'none; hpo launch makes one'}") from None
        if "spec" not in study._study.user_attrs:
            raise StudyError(f"study {name!r} was not made by hpo launch. Take another name")
        return study

    @property
    def unique(self) -> str:
        """Tells this study from others of its name, in other databases or deleted before."""
        return str(self._study.user_attrs["unique"])

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
        self._study.set_user_attr("digest", spec.digest())
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
        self._store(spec, data)

    @property
    def spec(self) -> StudySpec:
        """As when this object last looked; `refresh` looks again."""
        if self._spec is None:
            try:
                self._spec = StudySpec.model_validate(self._study.user_attrs["spec"])
            except ValidationError as error:
                raise StudyError(
                    f"study {self.name} was made by another version of hpo ({explain(error)}). Take --name for a new one"
                ) from None
        return self._spec

    def refresh(self) -> None:
        self._spec = None

    @property
    def data(self) -> dict[str, Any]:
        """`path` (None: bundled) and `fingerprint`."""
        return dict(self._study.user_attrs["data"])

    @property
    def data_path(self) -> Path | None:
        """Where the data were when the study was made; None: the bundled recordings."""
        return Path(self.data["path"]) if self.data["path"] else None

    # ---- the life of a trial

    def claim(self, process: Process, record: Mapping[str, str]) -> Trial | None:
        """Take a trial that waits, or a new one if the budget allows; None if there is nothing to do.

        record: device, code_version and data of the worker. Sampling, which can be slow, comes after the lock. A draw that
        makes no valid configuration (two parameters that exclude each other) is a failed trial, and the next one is taken.
        """
        while True:
            self.refresh()
            lease = uuid4().hex
            with ledger.locked(self._engine, self.id) as connection:
                self._sweep(connection)
                trial_id = self._take()
                if trial_id is None:
                    return None
                attempt = ledger.take_lease(connection, trial_id, lease, process, dict(record))
            number = self._storage.get_trial_number_from_id(trial_id)
            try:
                config, start = self._configure(trial_id, number)
            except (SpecError, ValueError) as error:
                self.finish(Trial(trial_id, number, self.spec.base, lease, None), Failed(str(error)))
                continue
            with self._engine.begin() as connection:
                if ledger.renew_lease(connection, trial_id, lease, config=config.flat()):
                    return Trial(trial_id, number, config, lease, start, attempt)

    def _configure(self, trial_id: int, number: int) -> tuple[DecoderConfig, str | None]:
        """The trial's configuration, drawn or as it was, and the name of the start that it is."""
        sampler = TPESampler(
            n_startup_trials=self.spec.sampler.startup_trials,
            multivariate=True,
            constant_liar=True,
            seed=seed_of(self.spec.sampler.seed, number),
        )
        asked = self._asked(trial_id, sampler)
        values: dict[str, Any] = {}
        for name in self.spec.parameters:
            if self.spec.active(name, values):
                values[name] = asked._suggest(name, distribution(self.spec, name))
        config = self.spec.base.with_values(values | {"seed": self.spec.base.seed + number})
        return config, asked.user_attrs.get("start")

    def _asked(self, trial_id: int, sampler: optuna.samplers.BaseSampler) -> optuna.Trial:
        """Optuna's trial, on a Study made anew because one keeps the trials that it saw first. `sampler` is asked at once."""
        return optuna.Trial(optuna.Study(self.name, self._storage, sampler), trial_id)

    def _take(self) -> int | None:
        """The id of a trial that is RUNNING for us now. The caller holds the study's lock."""
        trials = self._storage.get_all_trials(self.id, deepcopy=False)
        count = {state: sum(trial.state == state for trial in trials) for state in TrialState}
        spent = count[TrialState.COMPLETE] + count[TrialState.PRUNED] + count[TrialState.RUNNING]
        if spent >= self.spec.budget.trials or count[TrialState.FAIL] > self.spec.budget.failures:
            return None
        for trial in trials:
            if trial.state == TrialState.WAITING and self._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                return trial._trial_id
        return self._storage.create_new_trial(self.id)

    def _sweep(self, connection: Connection) -> None:
        """Set the trials that nobody works on to wait, or to fail if that happened too often: such a trial kills its
        workers, and as the first in the queue it would kill them all. The caller holds the study's lock.
        """
        running = self._storage.get_all_trials(self.id, deepcopy=False, states=(TrialState.RUNNING,))
        for trial_id in ledger.lost(connection, [trial._trial_id for trial in running]):
            self._lose(connection, trial_id, "its worker died or fell silent")

    def _lose(self, connection: Connection, trial_id: int, trouble: str) -> None:
        losses = ledger.count_loss(connection, trial_id)
        if losses > MOST_LOSSES:
            self._storage.set_trial_user_attr(trial_id, "reason", f"{trouble}; lost {losses} times")
        self._storage.set_trial_state_values(trial_id, TrialState.FAIL if losses > MOST_LOSSES else TrialState.WAITING)

    def sweep(self) -> None:
        with ledger.locked(self._engine, self.id) as connection:
            self._sweep(connection)

    def resume(self, trial: Trial, step: int) -> list[Evaluation] | None:
        """The trial goes on after `step`: forget the curve behind it, and give what is before. None: it is another's now."""
        with self._engine.begin() as connection:
            if not ledger.renew_lease(connection, trial.id, trial.lease, step=step):
                return None
            ledger.forget_curve_after(connection, trial.id, step)
            rows = ledger.curves_of(connection, [trial.id])[trial.id]
        return [Evaluation(row.step, row.per, row.validation_loss) for row in rows]

    def renew(self, trial: Trial, step: int, seconds: float) -> bool:
        """Renew the lease; `seconds` of work came since the last time. False: the trial is another's now."""
        with self._engine.begin() as connection:
            return ledger.renew_lease(connection, trial.id, trial.lease, step=step, seconds=ledger.trial_table.c.seconds + seconds)

    def report(self, trial: Trial, since: "list[Progress]", seconds: float) -> bool:
        """Store an evaluation: since[-1], with the steps since the one before. Returns and renews as `renew`."""
        last = since[-1]
        assert last.score is not None
        with self._engine.begin() as connection:
            if not ledger.renew_lease(connection, trial.id, trial.lease, step=last.step, seconds=ledger.trial_table.c.seconds + seconds):
                return False
            ledger.add_point(connection, trial.id, since)
        try:
            if in_thin_curve(last.step, trial.config):
                self._storage.set_trial_intermediate_value(trial.id, last.step, last.score.per)
        except UpdateFinishedTrialError:  # ended by hand in optuna-dashboard
            return False
        return True

    def finish(self, trial: Trial, outcome: Outcome, seconds: float = 0.0) -> bool:
        """Write the outcome. False: the trial is another's now, nothing was written."""
        with ledger.locked(self._engine, self.id) as connection:
            if not ledger.renew_lease(connection, trial.id, trial.lease, seconds=ledger.trial_table.c.seconds + seconds):
                return False
            if self._storage.get_trial(trial.id).state != TrialState.RUNNING:  # ended by hand in optuna-dashboard
                return False
            state: TrialState = TrialState.WAITING  # where one goes that a signal interrupted
            value: list[float] | None = None
            match outcome:
                case Interrupted(trouble) if trouble:
                    self._lose(connection, trial.id, trouble)
                    return True
                case Completed(score):
                    ledger.renew_lease(connection, trial.id, trial.lease, errors=list(score.errors), lengths=list(score.lengths))
                    state, value = TrialState.COMPLETE, [score.per]
                case Stopped(stop):
                    for key, text in (("rule", stop.rule), ("cause", stop.cause), ("reason", stop.reason)):
                        self._storage.set_trial_user_attr(trial.id, key, text)
                    self._asked(trial.id, RandomSampler()).set_constraint("diverged", 1.0)
                    state = TrialState.PRUNED
                case Failed(cause):
                    self._storage.set_trial_user_attr(trial.id, "reason", cause)
                    state = TrialState.FAIL
            self._storage.set_trial_state_values(trial.id, state, value)
            ledger.drop_lease(connection, trial.id)
        return True

    # ---- reading

    def budget_spent(self) -> bool:
        return sum(record.state in ("complete", "stopped") for record in self.records()) >= self.spec.budget.trials

    def runs_elsewhere(self) -> bool:
        """Whether trials run; asked by one whose own workers have left."""
        self.sweep()
        return any(record.state == "running" for record in self.records())

    def why_over(self) -> str | None:
        """Why no worker would find a trial to take, even if one that runs were handed back; None if one would."""
        counts, budget = Counter(record.state for record in self.records()), self.spec.budget
        if self.budget_spent():
            return f"the budget of {budget.trials} trials is spent. To go on, add --trials N --extend with a larger N"
        if counts["failed"] > budget.failures:
            return f"{counts['failed']} trials failed, more than the budget's {budget.failures}. See below, mend the cause, take --name"
        return None

    def records(self) -> list[Record]:
        trials = self._storage.get_all_trials(self.id, deepcopy=False)
        with self._engine.begin() as connection:
            rows = ledger.rows_of(connection, [trial._trial_id for trial in trials])
        return [_record(trial, rows.get(trial._trial_id)) for trial in trials]

    def final_score(self, trial_id: int) -> Score:
        """Errors and lengths per validation sentence of a complete trial."""
        with self._engine.begin() as connection:
            row = ledger.rows_of(connection, [trial_id])[trial_id]
        return Score(tuple(row.errors), tuple(row.lengths))


def _record(trial: FrozenTrial, row: Row[Any] | None) -> Record:
    attributes = trial.user_attrs
    curve = trial.intermediate_values
    best_step = min(curve, key=lambda step: curve[step]) if curve else None
    return Record(
        id=trial._trial_id,
        number=trial.number,
        state=STATES[trial.state],
        start=attributes.get("start"),
        params=trial.params,
        config=(row.config if row else None) or {},
        per=trial.value if trial.state == TrialState.COMPLETE else None,
        last_per=curve[max(curve)] if curve else None,
        best_per=None if best_step is None else curve[best_step],
        best_step=best_step,
        step=row.step if row else 0,
        seconds=row.seconds if row else 0.0,
        attempts=row.attempts if row else 0,
        rule=attributes.get("rule", ""),
        cause=attributes.get("cause", ""),
        reason=attributes.get("reason", ""),
        host=(row.host or "").split()[0] if row and row.host else "",
        device=(row.device if row else "") or "",
        code_version=(row.code_version if row else "") or "",
        data=(row.data if row else "") or "",
    )


def in_thin_curve(step: int, config: DecoderConfig) -> bool:
    """Whether the evaluation at `step` goes to Optuna: evenly, at most THIN_CURVE of them, the last one always."""
    evaluations = -(-config.steps // config.evaluate_every)
    every = -(-evaluations // THIN_CURVE)
    return step == config.steps or (step % config.evaluate_every == 0 and step // config.evaluate_every % every == 0)


def check_name(name: str) -> None:
    """Raises StudyError for a study name that a folder, a URL or a shell could not hold."""
    valid = name[:1].isalnum() and len(name) <= NAME_LENGTH and all(letter.isalnum() or letter in "._-" for letter in name)
    if not (valid and name.isascii()):
        raise StudyError(f"study name {name!r}. Valid: letters, digits, '.', '_', '-'; first a letter or digit; {NAME_LENGTH} at most")


def seed_of(seed: int, number: int) -> int:
    """A seed for one trial's sampling: the same whichever worker draws it, and independent of the other trials'."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def distribution(spec: StudySpec, name: str) -> BaseDistribution:
    parameter = spec.parameters[name]
    if parameter.choices is not None:
        return CategoricalDistribution(parameter.choices)
    assert parameter.low is not None and parameter.high is not None
    if isinstance(spec.base.flat()[name], int):
        return IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log)
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log)


def _storage(database: Database) -> optuna.storages.RDBStorage:
    """Optuna's storage and our tables, made if they are missing; at most two connections."""
    options = {"pool_size": 2, "max_overflow": 0, "pool_pre_ping": True, "connect_args": CONNECT_ARGUMENTS}
    with ledger.alone(database.url, CONNECT_ARGUMENTS):
        storage = optuna.storages.RDBStorage(database.url, engine_kwargs=options)
        with storage.engine.begin() as connection:
            ledger.create_tables(connection)
    return storage
