"""A study as it is read: its spec, budget and trials, by SQL alone. Optuna, which is slow to import, is not needed."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Engine
from sqlalchemy.engine import Connection

from hpo.curve import Point
from hpo.errors import SpecError, StudyError
from hpo.settings import explain, guess
from hpo.space.budget import Budget, Spent, over, refusal
from hpo.space.spec import StudySpec
from hpo.space.upgrade import upgraded_budget, upgraded_spec, what_changed
from hpo.store import curves, findings, leases, locks, optuna_rows, standing
from hpo.store.database import Database, open_database
from hpo.store.storage import ready_engine
from hpo.store.trials import rows_of
from hpo.study.names import check_name
from hpo.study.record import FINISHED, record_of
from hpo.study.trial import Halt, Record
from hpo.trainer import Score

NAMES_SHOWN = 20
log = logging.getLogger(__name__)


class StudyReader:
    """What is known of a study. Nothing here begins, ends or changes a trial."""

    def __init__(self, engine: Engine, study_id: int, name: str):
        self.engine = engine
        self.id = study_id
        self.name = name
        self._spec: StudySpec | None = None
        self._settled: dict[
            int, Record
        ] = {}  # of trials that do not change any more: a launch asks twice a second

    def warn_of_removed(self, attributes: Mapping[str, Any]) -> None:
        for line in what_changed(attributes["spec"], attributes.get("budget") or {}):
            log.warning("study %s: %s", self.name, line)

    # ---- what it is

    @property
    def attributes(self) -> dict[str, Any]:
        """As they are now. Raises StudyError if the study was deleted."""
        try:
            with self.engine.begin() as connection:
                return optuna_rows.study_attributes(connection, self.id)
        except KeyError:
            raise StudyError(
                f"study {self.name} was deleted. Type the launch line again for a new one"
            ) from None

    def set_attribute(self, key: str, value: Any) -> None:
        """value: JSON-ready."""
        with self.engine.begin() as connection:
            optuna_rows.set_study_attribute(connection, self.id, key, value)

    @property
    def unique(self) -> str:
        """Tells this study from others of its name, in other databases or deleted before."""
        return str(self.attributes["unique"])

    @property
    def spec(self) -> StudySpec:
        """As when this object last looked; `refresh` looks again."""
        if self._spec is None:
            try:
                self._spec = StudySpec.model_validate(upgraded_spec(self.attributes["spec"]))
            except (ValidationError, SpecError) as error:
                fault = explain(error) if isinstance(error, ValidationError) else error
                raise StudyError(
                    f"study {self.name} was made by another version of hpo ({fault}). Take --name for a new one"
                ) from None
        return self._spec

    def refresh(self) -> None:
        self._spec = None

    @property
    def data(self) -> dict[str, Any]:
        """`path` (None: the trainer's own), `fingerprint`, and what the trainer tells of them."""
        return dict(self.attributes["data"])

    @property
    def data_path(self) -> Path | None:
        """Where the data were when the study was made; None: they are the trainer's own."""
        return Path(self.data["path"]) if self.data["path"] else None

    @property
    def artifacts(self) -> Path | None:
        """The folder that all machines of the study see, if it has one."""
        path = self.attributes.get("artifacts")
        return Path(path) if path else None

    @property
    def code(self) -> str:
        """The version of the code that it was made with."""
        return str(self.attributes.get("code", ""))

    # ---- where it stands

    @property
    def halt(self) -> Halt | None:
        """That it is paused or stopped; None: it runs. Raises StudyError if it was deleted."""
        found = self.attributes.get("halt")
        return Halt(**found) if found else None

    @property
    def budget(self) -> Budget:
        """As it is now: the spec's, with what `hpo budget` has changed."""
        stored = self.attributes.get("budget")
        return Budget.model_validate(upgraded_budget(stored)) if stored else self.spec.budget

    def change_budget(self, changes: Mapping[str, str]) -> tuple[Budget, Budget]:
        """Raise or lower it while workers run, as Budget.changed reads it. Returns (before, now). Raises StudyError."""
        with locks.locked(self.engine, self.id):
            before = self.budget
            try:
                budget = before.changed(changes)
            except ValidationError as error:
                raise StudyError(explain(error, "budget ")) from None
            self.set_attribute("budget", budget.model_dump(mode="json"))
        return before, budget

    def standing(self) -> Spent:
        """What of the budget is spent."""
        with self.engine.begin() as connection:
            return self.spent_in(connection)

    def spent_in(self, connection: Connection) -> Spent:
        count = Counter(standing.counts(connection, self.id))
        spent, promised, typical = standing.gpu_time(connection, self.id)
        ended = count["COMPLETE"] + count["PRUNED"]
        return Spent(
            standing.now(connection),
            ended,
            count["RUNNING"],
            count["FAIL"],
            spent,
            promised,
            typical,
        )

    def budget_spent(self) -> bool:
        """Whether the study is over as it should be: not because too many trials failed."""
        return self.standing().failed <= self.budget.failures and self.why_over() is not None

    def why_over(self) -> str | None:
        """Why no worker would find a trial to take, even if one that runs were handed back; None if one would, or waits for a
        pause to end.
        """
        if (halt := self.halt) and halt.state == "stopped":
            return f"{halt}. To go on: the same launch line, or hpo resume --study {self.name}"
        with self.engine.begin() as connection:
            spent, waiting = self.spent_in(connection), standing.waiting(connection, self.id)
        idle, budget = replace(spent, promised=0.0, running=0), self.budget
        if any(refusal(budget, idle, row.gpu_seconds) is None for row in waiting):
            return None
        reason = refusal(budget, idle)
        if reason and spent.failed > self.budget.failures:
            return f"{reason}. Mend the cause, which hpo report names, and take --name"
        return (
            f"{reason}. To go on, raise it with hpo budget --study {self.name}" if reason else None
        )

    def over(self, budget_too: bool = True) -> str | None:
        """Why trials that run should be handed back: a person wants it, the GPU-hours are spent, or the deadline has passed.

        Without `budget_too` it costs one query.
        """
        if halt := self.halt:
            return str(halt)
        if not budget_too or (
            (budget := self.budget).gpu_hours is None and budget.deadline is None
        ):
            return None
        with self.engine.begin() as connection:
            return over(budget, self.spent_in(connection))

    def has_orphans(self) -> bool:
        """Whether trials seem to run that nobody works on; `sweep` sets them to wait."""
        with self.engine.begin() as connection:
            return bool(leases.orphans(connection, self.id, None))

    # ---- its trials

    def records(self) -> list[Record]:
        """Of the study's own trials, by number. The first time costs as much as there are trials, later what is going on."""
        return [record for record in self.all_records() if not record.imported]

    def imported(self) -> list[Record]:
        """Of the past runs that the sampler learns from."""
        return [record for record in self.all_records() if record.imported]

    def all_records(self) -> list[Record]:
        """Of all trials, by number."""
        with self.engine.begin() as connection:
            states = optuna_rows.trial_states(connection, self.id)
            unsettled = [trial_id for trial_id in states if trial_id not in self._settled]
            trials = optuna_rows.trial_rows(connection, unsettled)
            rows = rows_of(connection, unsettled)
        if not states:
            self.attributes  # noqa: B018  (raises if the study was deleted)
        metric = self.spec.metric
        new = {
            trial_id: record_of(trial, rows.get(trial_id), metric)
            for trial_id, trial in trials.items()
        }
        found = self._settled | new
        held = {trial_id for trial_id, row in rows.items() if row.lease is not None}
        self._settled |= {
            trial_id: record
            for trial_id, record in new.items()
            if states[trial_id] in FINISHED and trial_id not in held
        }
        return [found[trial_id] for trial_id in states if trial_id in found]

    def curves(self, records: Iterable[Record]) -> dict[int, list[Point]]:
        """The fine curve of each trial, by its number."""
        ids = {record.id: record.number for record in records}
        with self.engine.begin() as connection:
            found = curves.curves_of(connection, list(ids))
        return {ids[trial_id]: curve for trial_id, curve in found.items()}

    def scores(
        self, trial_ids: Sequence[int], partition: str = findings.VALIDATION
    ) -> dict[int, Score]:
        """Errors and lengths per item at the end of the training, by trial id, of the trials that have them."""
        with self.engine.begin() as connection:
            return findings.scores_of(connection, list(trial_ids), partition)

    def results(self) -> dict[str, dict[str, Any]]:
        """The findings that were kept, by kind, each with `made` (ISO 8601, UTC)."""
        with self.engine.begin() as connection:
            return findings.results_of(connection, self.id)

    def keep_result(self, kind: str, content: Mapping[str, Any]) -> None:
        """Store a finding (JSON-ready), such as `confirm`; the last one of a kind is kept."""
        with self.engine.begin() as connection:
            findings.put_result(connection, self.id, kind, dict(content))


def existing_reader(database: Database, name: str) -> StudyReader | None:
    """A study of ours by its name; None: there is none."""
    engine = ready_engine(database)
    with engine.begin() as connection:
        study_id = optuna_rows.study_id_of(connection, name)
    if study_id is None:
        engine.dispose()
        return None
    found = StudyReader(engine, study_id, name)
    if "spec" in found.attributes:
        return found
    engine.dispose()
    return None


def open_reader(database: Database, name: str) -> StudyReader:
    """Raises StudyError if there is no such study, with the nearest name and all."""
    check_name(name)
    engine = ready_engine(database)
    with engine.begin() as connection:
        study_id = optuna_rows.study_id_of(connection, name)
        names = [] if study_id is not None else optuna_rows.study_names(connection)
    if study_id is None:
        listed = ", ".join(names[:NAMES_SHOWN]) + ", ..." * (len(names) > NAMES_SHOWN)
        raise StudyError(
            f"no study {name!r} in {database}.{guess(name, names)} There are: {listed or 'none; hpo launch makes one'}"
        )
    found = StudyReader(engine, study_id, name)
    attributes = found.attributes
    if "spec" not in attributes:
        raise StudyError(f"study {name!r} was not made by hpo launch. Take another name")
    found.warn_of_removed(attributes)
    return found


def read_study(name: str, database: str | None = None) -> StudyReader:
    """A study by its name, to be read. database: a URL of Postgres; None: as the commands take it (HPO_DATABASE_URL, else the
    embedded one).

    Raises StudyError, DatabaseError.
    """
    return open_reader(open_database(database), name)
