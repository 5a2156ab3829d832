"""Study: created, reopened, extended and filled. With `claims` it is the only door to Optuna.

Optuna's tables hold parameters, states and a thin curve, which samplers, pruners and the dashboard
reread all the time. hpo's tables next to them hold leases, attempts, full records and the fine
curve.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import optuna
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from hpo.errors import SpecError, StudyError
from hpo.settings import Config
from hpo.space.spec import StudySpec
from hpo.space.upgrade import made_by_hpo
from hpo.store import locks, optuna_rows, standing
from hpo.store.database import Database, open_database
from hpo.store.storage import open_storage
from hpo.study import optuna_internals
from hpo.study.claims import Claims
from hpo.study.names import check_name
from hpo.study.reader import open_reader
from hpo.study.sampling import fixed_key, fixed_trial

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Study(Claims):
    """A study that can be created, extended and filled with trials."""

    @classmethod
    def create_or_open(
        cls,
        database: Database,
        name: str,
        spec: StudySpec,
        data: Mapping[str, Any],
        extend: bool = False,
    ) -> "Study":
        """Create the study with its starts waiting, or reopen it if spec and data are the same.

        data: `path` (None for the trainer's own data), `fingerprint`, and what the trainer adds.
        extend: accept a spec in which only budget or ranges have grown.
        Raises StudyError if the study exists with another spec or with other data.
        """
        check_name(name)
        storage = open_storage(database)
        with locks.locked(storage.engine, locks.LIST_OF_STUDIES):
            _check_new_deadline(storage, name, spec)
            study = cls(_create_or_load(storage, name, spec.metric.direction), storage)
            # A study without a spec is new, or the process that created it died before the end.
            if not made_by_hpo(study.attributes):
                study._make(spec, data)
            else:
                study._reopen(spec, data, extend)
        return study

    @classmethod
    def open(cls, database: Database, name: str) -> "Study":
        """The study of this name. Raises StudyError, with the existing names, if there is none."""
        open_reader(database, name).engine.dispose()
        storage = open_storage(database)
        return cls(optuna.load_study(study_name=name, storage=storage), storage)

    def _make(self, spec: StudySpec, data: Mapping[str, Any]) -> None:
        existing = self.optuna.get_trials(deepcopy=False)
        existing_starts = [trial.user_attrs.get("start") for trial in existing]
        if None in existing_starts:
            raise StudyError(
                f"study {self.name} already exists and was not made by hpo. "
                f"Take --name for a new one"
            )
        self.set_attribute("unique", uuid4().hex[:8])
        for start in spec.starts:
            if start not in existing_starts:
                self.optuna.enqueue_trial(spec.start_values(start), user_attrs={"start": start})
        self._store(spec, data)

    def _reopen(self, spec: StudySpec, data: Mapping[str, Any], extend: bool) -> None:
        if self.data["fingerprint"] != data["fingerprint"]:
            source = self.data["path"] or spec.load_trainer().bundled
            raise StudyError(
                f"study {self.name} was made on other data "
                f"({source}, fingerprint {self.data['fingerprint']}; "
                f"given {data['fingerprint']}). Take --name for a new study"
            )
        if spec.differences(self.spec):
            self._extend(spec, data, extend)
            return
        self.warn_of_removed(self.attributes)
        self._keep(spec.reopened(self.spec))

    def _store(self, spec: StudySpec, data: Mapping[str, Any]) -> None:
        self.set_attribute("data", dict(data))
        self.set_attribute("budget", spec.budget.model_dump(mode="json"))
        self.set_attribute("digest", spec.digest())
        self.set_attribute("metric", spec.metric.model_dump(mode="json"))
        self._keep(spec)

    def _keep(self, spec: StudySpec) -> None:
        self.set_attribute("spec", spec.model_dump(mode="json"))
        self._spec = spec

    def _extend(self, spec: StudySpec, data: Mapping[str, Any], extend: bool) -> None:
        places = ", ".join(spec.differences(self.spec)[:5])
        if not spec.extends(self.spec):
            raise StudyError(
                f"study {self.name} exists with another spec (different: {places}). "
                f"Take --name for a new study; --extend is for a budget or ranges that only grew"
            )
        if not extend:
            raise StudyError(
                f"study {self.name} exists with a smaller spec (grown: {places}). "
                f"Take --extend to continue it, or --name for a new study"
            )
        grown = {
            name: value for name, value in spec.budget if value != getattr(self.spec.budget, name)
        }
        # Other fields keep the changes that `hpo budget` has made.
        budget = self.budget.model_copy(update=grown)
        self._store(spec.extended(self.spec), data)
        self.set_attribute("budget", budget.model_dump(mode="json"))

    def settle(self, artifacts: Path | None, code: str) -> None:
        """Store where the files of trials go and, the first time, the version of the code."""
        if artifacts:
            self.set_attribute("artifacts", str(artifacts.absolute()))
        if not self.code:
            self.set_attribute("code", code)

    def enqueue(self, wanted: Sequence[tuple[Config, str]]) -> list[int]:
        """Let trials of these configurations, each with a label, wait in a child study.

        Returns their ids in this order. A trial of the same configuration, seed included, that did
        not fail is used again. The budget becomes the number of trials.
        """
        with locks.locked(self.engine, self.id):
            ids = self._ids_by_configuration()
            for config, label in wanted:
                key = fixed_key(config.flat())
                if key not in ids:
                    trial = fixed_trial(self.spec, config, label)
                    ids[key] = self.storage.create_new_trial(self.id, trial)
            budget = self.budget.model_copy(update={"trials": len(ids)})
            self.set_attribute("budget", budget.model_dump(mode="json"))
        return [ids[fixed_key(config.flat())] for config, _ in wanted]

    def _ids_by_configuration(self) -> dict[str, int]:
        """The ids of the trials of a child study that did not fail."""
        return {
            fixed_key(trial.user_attrs["fixed"]): optuna_internals.id_of_trial(trial)
            for trial in self.storage.get_all_trials(self.id, deepcopy=False)
            if trial.state != TrialState.FAIL
        }


def _check_new_deadline(storage: RDBStorage, name: str, spec: StudySpec) -> None:
    """Raises StudyError if the study would be over before it exists."""
    with storage.engine.begin() as connection:
        if optuna_rows.study_id_of(connection, name) is not None:
            return
        now = standing.now(connection)
    try:
        spec.budget.check_deadline(now)
    except SpecError as error:
        raise StudyError(f"study {name}: {error}") from None


def _create_or_load(
    storage: RDBStorage, name: str, direction: Literal["minimize", "maximize"]
) -> optuna.Study:
    """Optuna's study of this name. Raises StudyError if it exists with another direction."""
    study = optuna.create_study(
        storage=storage, study_name=name, load_if_exists=True, direction=direction
    )
    existing = study.direction.name.lower()
    if existing != direction:
        raise StudyError(
            f"study {name} already exists, to {existing}, not to {direction}. "
            f"Take --name for a new one"
        )
    return study


def open_study(name: str, database: str | None = None) -> Study:
    """The study of this name. Raises StudyError, DatabaseError.

    database: a URL of Postgres; None for the one that commands use (HPO_DATABASE_URL, else the
    embedded one).
    """
    return Study.open(open_database(database), name)
