"""Study: made, reopened, extended and filled; with `claims` the only door to Optuna.

Optuna's tables hold parameters, states and a thin curve (samplers, pruners and the dashboard reread those all the time);
our tables beside them hold leases, attempts, full records and the fine curve.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import optuna
from optuna.trial import TrialState

from hpo.errors import StudyError
from hpo.settings import Config
from hpo.space.spec import StudySpec
from hpo.store import locks
from hpo.store.database import Database, open_database
from hpo.store.storage import open_storage
from hpo.study.claims import Claims
from hpo.study.names import check_name
from hpo.study.reader import open_reader
from hpo.study.sampling import fixed_key, fixed_trial

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Study(Claims):
    """Made with its starts waiting, and reopened by whoever names it."""

    @classmethod
    def create_or_open(
        cls,
        database: Database,
        name: str,
        spec: StudySpec,
        data: Mapping[str, Any],
        extend: bool = False,
    ) -> "Study":
        """Make the study with its starts waiting, or reopen it if spec and data are the same.

        data: `path` (None: the trainer's own), `fingerprint`, and what the trainer tells of them.
        extend: take a spec of which only budget or ranges grew.
        Raises StudyError if the study exists with another spec or on other data.
        """
        check_name(name)
        storage = open_storage(database)
        with locks.locked(storage.engine, 0):
            direction = spec.metric.direction
            made = optuna.create_study(
                storage=storage, study_name=name, load_if_exists=True, direction=direction
            )
            if made.direction.name.lower() != direction:
                there = made.direction.name.lower()
                raise StudyError(
                    f"study {name} is there already, to {there}, not to {direction}. Take --name for a new one"
                )
            study = cls(made, storage)
            if "spec" not in study.attributes:  # new, or its maker died before it was whole
                study._make(spec, data)
            elif study.data["fingerprint"] != data["fingerprint"]:
                source = study.data["path"] or spec.load_trainer().bundled
                raise StudyError(
                    f"study {name} was made on other data ({source}, fingerprint {study.data['fingerprint']}; "
                    f"given {data['fingerprint']}). Take --name for a new study"
                )
            elif spec.differences(study.spec):
                study._extend(spec, data, extend)
            else:
                study.warn_of_removed(study.attributes)
                study._keep(spec.reopened(study.spec))
        return study

    @classmethod
    def open(cls, database: Database, name: str) -> "Study":
        """Raises StudyError if there is no such study, with those that there are."""
        open_reader(database, name).engine.dispose()
        storage = open_storage(database)
        return cls(optuna.load_study(study_name=name, storage=storage), storage)

    def _make(self, spec: StudySpec, data: Mapping[str, Any]) -> None:
        there = [trial.user_attrs.get("start") for trial in self.optuna.get_trials(deepcopy=False)]
        if None in there:
            raise StudyError(
                f"study {self.name} is there already and was not made by hpo. Take --name for a new one"
            )
        self.set_attribute("unique", uuid4().hex[:8])
        for start in spec.starts:
            if start not in there:
                self.optuna.enqueue_trial(spec.start_values(start), user_attrs={"start": start})
        self._store(spec, data)

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
            raise StudyError(f"study {self.name} exists with another spec (different: {places}). Take --name for a new study; --extend "
                             f"is for a budget or ranges that only grew")  # fmt: skip
        if not extend:
            raise StudyError(f"study {self.name} exists with a smaller spec (grown: {places}). Take --extend to go on with it, or --name "
                             f"for a new study")  # fmt: skip
        budget = {
            name: value for name, value in spec.budget if value != getattr(self.spec.budget, name)
        }
        live = self.budget.model_copy(update=budget)  # what `hpo budget` has changed since stays so
        self._store(spec.extended(self.spec), data)
        self.set_attribute("budget", live.model_dump(mode="json"))

    def settle(self, artifacts: Path | None, code: str) -> None:
        """Remember where the files of trials go, and the first time the version of the code."""
        if artifacts:
            self.set_attribute("artifacts", str(artifacts.absolute()))
        if not self.code:
            self.set_attribute("code", code)

    def enqueue(self, wanted: Sequence[tuple[Config, str]]) -> list[int]:
        """Let trials of these configurations (each with a label) wait, in a child study; the budget becomes what it has.

        Returns their ids in this order: one that has the same configuration, seed included, and did not fail is taken again.
        """
        with locks.locked(self.engine, self.id):
            trials = [
                trial
                for trial in self.storage.get_all_trials(self.id, deepcopy=False)
                if trial.state != TrialState.FAIL
            ]
            there = {fixed_key(trial.user_attrs["fixed"]): trial._trial_id for trial in trials}
            for config, label in wanted:
                if (key := fixed_key(config.flat())) not in there:
                    there[key] = self.storage.create_new_trial(
                        self.id, fixed_trial(self.spec, config, label)
                    )
            self.set_attribute(
                "budget",
                self.budget.model_copy(update={"trials": len(there)}).model_dump(mode="json"),
            )
        return [there[fixed_key(config.flat())] for config, _ in wanted]


def open_study(name: str, database: str | None = None) -> Study:
    """A study by its name. database: a URL of Postgres; None: as the commands take it (HPO_DATABASE_URL, else the embedded one).

    Raises StudyError, DatabaseError.
    """
    return Study.open(open_database(database), name)
