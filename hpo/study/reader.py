"""Reads a study: its spec, budget and trials.

It uses SQL alone, without Optuna, which is slow to import.
"""

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
from hpo.space.budget import Budget, Spent, refusal, spent_limit
from hpo.space.spec import StudySpec
from hpo.space.upgrade import made_by_hpo, upgrade_notes, upgraded_budget, upgraded_spec
from hpo.store import curves, findings, leases, locks, optuna_rows, standing
from hpo.store.database import Database, open_database
from hpo.store.storage import ready_engine
from hpo.store.trials import rows_of
from hpo.study.names import check_name, shown_name
from hpo.study.record import FINISHED, record_of
from hpo.study.trial import Halt, Record
from hpo.trainer import Score

NAMES_SHOWN = 20
log = logging.getLogger(__name__)


class StudyReader:
    """All that is known about a study. Nothing here begins, ends or changes a trial."""

    def __init__(self, engine: Engine, study_id: int, name: str):
        self.engine = engine
        self.id = study_id
        self.name = name
        self._spec: StudySpec | None = None
        # Records by trial id of trials that do not change any more. A launch reads all records
        # twice a second.
        self._settled: dict[int, Record] = {}

    def warn_of_removed(self, attributes: Mapping[str, Any]) -> None:
        """Log what the stored spec and budget ask for that this version no longer has."""
        for change in upgrade_notes(attributes["spec"], attributes.get("budget") or {}):
            log.warning("study %s: %s", self.name, change)

    # ---- its settings

    @property
    def attributes(self) -> dict[str, Any]:
        """The study's attributes in the database now. Raises StudyError if it was deleted."""
        try:
            with self.engine.begin() as connection:
                return optuna_rows.study_attributes(connection, self.id)
        except KeyError:
            raise StudyError(
                f"study {self.name} was deleted. Run the launch command again for a new one"
            ) from None

    def set_attribute(self, key: str, value: Any) -> None:
        """Write an attribute, JSON-ready, to the database."""
        with self.engine.begin() as connection:
            optuna_rows.set_study_attribute(connection, self.id, key, value)

    @property
    def unique(self) -> str:
        """Distinguishes this study from others of the same name, in other databases or deleted."""
        return str(self.attributes["unique"])

    @property
    def spec(self) -> StudySpec:
        """The spec when it was last read. Raises StudyError if this version cannot read it."""
        if self._spec is None:
            try:
                self._spec = StudySpec.model_validate(upgraded_spec(self.attributes["spec"]))
            except (ValidationError, SpecError) as error:
                fault = explain(error) if isinstance(error, ValidationError) else error
                raise StudyError(
                    f"study {self.name} was made by another version of hpo ({fault}). "
                    f"Take --name for a new one"
                ) from None
        return self._spec

    def refresh(self) -> None:
        """Read the spec again at its next use."""
        self._spec = None

    @property
    def data(self) -> dict[str, Any]:
        """`path` (None for the trainer's own data), `fingerprint`, and what the trainer adds."""
        return dict(self.attributes["data"])

    @property
    def data_path(self) -> Path | None:
        """Where the data were when the study was created; None for the trainer's own data."""
        path = self.data["path"]
        return Path(path) if path else None

    @property
    def artifacts(self) -> Path | None:
        """The folder that all machines of the study share, if it has one."""
        path = self.attributes.get("artifacts")
        return Path(path) if path else None

    @property
    def code(self) -> str:
        """The version of the code that the study was created with."""
        return str(self.attributes.get("code", ""))

    # ---- where it stands

    @property
    def halt(self) -> Halt | None:
        """Who paused or stopped the study; None if nobody did. Raises StudyError if deleted."""
        halt = self.attributes.get("halt")
        return Halt(**halt) if halt else None

    @property
    def budget(self) -> Budget:
        """The budget in force: the spec's, with the changes of `hpo budget`."""
        stored = self.attributes.get("budget")
        if not stored:
            return self.spec.budget
        return Budget.model_validate(upgraded_budget(stored))

    def change_budget(self, changes: Mapping[str, str]) -> tuple[Budget, Budget]:
        """Raise or lower the budget while workers run. Returns it before and after the change.

        changes: as Budget.changed reads them. Raises StudyError.
        """
        with locks.locked(self.engine, self.id):
            before = self.budget
            with self.engine.begin() as connection:
                now = standing.now(connection)
            try:
                budget = before.changed(changes, now)
            except ValidationError as error:
                raise StudyError(explain(error, "budget ")) from None
            except SpecError as error:
                raise StudyError(f"budget {error}") from None
            self.set_attribute("budget", budget.model_dump(mode="json"))
        return before, budget

    def standing(self) -> Spent:
        """How much of the budget is spent."""
        with self.engine.begin() as connection:
            return self.spent_in(connection)

    def spent_in(self, connection: Connection) -> Spent:
        """The same on an open connection."""
        count = Counter(standing.counts(connection, self.id))
        gpu_seconds, promised, typical = standing.gpu_time(connection, self.id)
        return Spent(
            now=standing.now(connection),
            ended=count["COMPLETE"] + count["PRUNED"],
            running=count["RUNNING"],
            failed=count["FAIL"],
            gpu_seconds=gpu_seconds,
            promised=promised,
            typical=typical,
            on_cpus=standing.on_cpus(connection, self.id),
        )

    def budget_spent(self) -> bool:
        """Whether the study is over as planned, and not because too many trials failed."""
        if self.standing().failed > self.budget.failures:
            return False
        return self.why_over() is not None

    def why_over(self) -> str | None:
        """Why no worker would find a trial to claim, even if running trials were handed back.

        None if a worker would find one, or waits for a pause to end.
        """
        halt = self.halt
        if halt and halt.state == "stopped":
            return f"{halt}. To resume: the same launch command, or hpo resume --study {self.name}"
        with self.engine.begin() as connection:
            spent = self.spent_in(connection)
            waiting = standing.waiting(connection, self.id)
        budget = self.budget
        if_handed_back = replace(spent, promised=0.0, running=0)
        if any(refusal(budget, if_handed_back, row.gpu_seconds) is None for row in waiting):
            return None
        reason = refusal(budget, if_handed_back)
        if not reason:
            return None
        if spent.failed > self.budget.failures:
            return f"{reason}. Fix the cause, which hpo report names, and take --name"
        return f"{reason}. To continue, raise it with hpo budget --study {self.name}"

    def why_hand_back(self, budget_too: bool = True) -> str | None:
        """Why running trials should be handed back now; None if they should not.

        Someone halted the study, its GPU-hours are spent, or its deadline has passed. Without
        `budget_too` only the first is checked, with one query.
        """
        halt = self.halt
        if halt:
            return str(halt)
        if not budget_too:
            return None
        budget = self.budget
        if budget.gpu_hours is None and budget.deadline is None:
            return None
        with self.engine.begin() as connection:
            return spent_limit(budget, self.spent_in(connection))

    def has_orphans(self) -> bool:
        """Whether there are running trials that nobody works on. A sweep hands them back."""
        with self.engine.begin() as connection:
            return bool(leases.orphans(connection, self.id, None))

    # ---- its trials

    def records(self) -> list[Record]:
        """The records of the study's own trials, by number.

        The first call reads every trial, later ones only those that may have changed.
        """
        return [record for record in self.all_records() if not record.imported]

    def imported(self) -> list[Record]:
        """The records of imported past runs, which the sampler learns from."""
        return [record for record in self.all_records() if record.imported]

    def all_records(self) -> list[Record]:
        """The records of own trials and imported past runs, by number."""
        with self.engine.begin() as connection:
            states = optuna_rows.trial_states(connection, self.id)
            unsettled = [trial_id for trial_id in states if trial_id not in self._settled]
            trials = optuna_rows.trial_rows(connection, unsettled)
            rows = rows_of(connection, unsettled)
        if not states:
            self._raise_if_deleted()
        metric = self.spec.metric
        new = {
            trial_id: record_of(trial, rows.get(trial_id), metric)
            for trial_id, trial in trials.items()
        }
        records = self._settled | new
        held = {trial_id for trial_id, row in rows.items() if row.lease is not None}
        for trial_id, record in new.items():
            if states[trial_id] in FINISHED and trial_id not in held:
                self._settled[trial_id] = record
        return [records[trial_id] for trial_id in states if trial_id in records]

    def _raise_if_deleted(self) -> None:
        _ = self.attributes

    def curves(self, records: Iterable[Record]) -> dict[int, list[Point]]:
        """The fine curves by trial number."""
        numbers = {record.id: record.number for record in records}
        with self.engine.begin() as connection:
            by_id = curves.curves_of(connection, list(numbers))
        return {numbers[trial_id]: curve for trial_id, curve in by_id.items()}

    def scores(
        self, trial_ids: Sequence[int], partition: str = findings.VALIDATION
    ) -> dict[int, Score]:
        """The scores at the end of the training by trial id, without trials that have none.

        A score has errors and lengths per item.
        """
        with self.engine.begin() as connection:
            return findings.scores_of(connection, list(trial_ids), partition)

    def results(self) -> dict[str, dict[str, Any]]:
        """The stored findings by kind. Each has its time under `made` (ISO 8601, UTC)."""
        with self.engine.begin() as connection:
            return findings.results_of(connection, self.id)

    def keep_result(self, kind: str, content: Mapping[str, Any]) -> None:
        """Store a JSON-ready finding, such as `confirm`, in place of an earlier one of its kind."""
        with self.engine.begin() as connection:
            findings.put_result(connection, self.id, kind, dict(content))


def existing_reader(database: Database, name: str) -> StudyReader | None:
    """The study of this name; None if there is none, or hpo did not create it."""
    engine = ready_engine(database)
    with engine.begin() as connection:
        study_id = optuna_rows.study_id_of(connection, name)
    if study_id is not None:
        study = StudyReader(engine, study_id, name)
        if made_by_hpo(study.attributes):
            return study
    engine.dispose()
    return None


def open_reader(database: Database, name: str) -> StudyReader:
    """The study of this name. Raises StudyError, with the names that exist, if there is none."""
    check_name(name)
    engine = ready_engine(database)
    with engine.begin() as connection:
        study_id = optuna_rows.study_id_of(connection, name)
        names = [] if study_id is not None else optuna_rows.study_names(connection)
    if study_id is None:
        raise StudyError(
            f"no study {name!r} in {database}.{guess(name, names)} There are: {_listed(names)}"
        )
    study = StudyReader(engine, study_id, name)
    attributes = study.attributes
    if not made_by_hpo(attributes):
        raise StudyError(f"study {name!r} was not made by hpo launch. Take another name")
    study.warn_of_removed(attributes)
    return study


def _listed(names: Sequence[str]) -> str:
    if not names:
        return "none; hpo launch makes one"
    shown = ", ".join(map(shown_name, names[:NAMES_SHOWN]))
    if len(names) > NAMES_SHOWN:
        shown += ", ..."
    return shown


def read_study(name: str, database: str | None = None) -> StudyReader:
    """The study of this name, for reading. Raises StudyError, DatabaseError.

    database: a URL of Postgres; None for the one that commands use (HPO_DATABASE_URL, else the
    embedded one).
    """
    return open_reader(open_database(database), name)
