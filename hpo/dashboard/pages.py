"""What an open page asks for every few seconds: a study with its trials, as JSON.

optuna-dashboard reads and writes all of it again each time. Here each trial is kept as a piece of JSON, and only those are
made again that changed; a finished trial never does. Our part of a note, the list of files and the plots are made from the
records and stored nowhere, so they are never stale. What a person writes is stored as optuna-dashboard stores it.
"""

import json
import math
import re
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import optuna
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial
from optuna_dashboard._inmemory_cache import _CachedExtraStudyProperty
from optuna_dashboard._serializer import serialize_frozen_trial, serialize_study_detail

from hpo.dashboard.content import Parent, files_of, study_note, trial_note
from hpo.dashboard.plots import figures
from hpo.store.database import Database
from hpo.store.optuna_rows import TrialRow
from hpo.store.storage import open_storage
from hpo.store.trials import place_of, rows_of
from hpo.study.pick import best_of
from hpo.study.record import record_of
from hpo.study.study import Study
from hpo.study.trial import Record

FRESH_SECONDS = 1.0  # pages that ask within this time share one look at the database
OURS = "\n\n---\n*below: by hpo, from the trial's record; not kept when you save*\n\n"  # between a person's note and our part
OF_A_TRIAL = re.compile(
    r"dashboard:(?:artifacts:)?(\d+):"
)  # keys of a study's attributes that are about one trial


@dataclass(frozen=True)
class Piece:
    trial: FrozenTrial
    attributes: Mapping[str, Any]  # of the study, about this trial: the note of a person
    record: Record
    text: bytes


def without_ours(note: str) -> str:
    """What a person wrote of a note that was shown with our part below."""
    return note.partition(OURS.strip())[0].strip()


def _with_ours(note: dict[str, Any], ours: str) -> dict[str, Any]:
    return note | {"body": f"{note['body']}{OURS}{ours}" if note["body"] else ours}


class Pages:
    """The studies of a database, opened when they are asked for."""

    def __init__(self, database: Database, base_path: str = ""):
        self.base_path = base_path
        self._where = (
            "this machine" if database.embedded_in else f"any machine that reaches {database}"
        )
        self._backend = open_storage(database)
        self.storage = optuna.storages.get_storage(
            self._backend
        )  # with Optuna's cache: finished trials are read once
        self._lock = threading.Lock()
        self._pages: dict[int, StudyPage] = {}

    def of(self, study_id: int) -> "StudyPage | None":
        """None: there is no such study, or hpo did not make it."""
        with self._lock:
            if study_id not in self._pages:
                try:
                    name = self._backend.get_study_name_from_id(study_id)
                    if "spec" not in self._backend.get_study_user_attrs(study_id):
                        return None
                except KeyError:
                    return None
                study = Study(
                    optuna.load_study(study_name=name, storage=self.storage), self._backend
                )
                self._pages[study_id] = StudyPage(
                    study, self._where, f"{self.base_path}/dashboard/studies/{study_id}"
                )
            return self._pages[study_id]

    def place(self, trial_id: int) -> tuple[int, int]:
        """Study and number of a trial. Raises KeyError."""
        with self._backend.engine.begin() as connection:
            return place_of(connection, trial_id)

    def forget(self, study_id: int) -> None:
        """The study was deleted."""
        with self._lock:
            self._pages.pop(study_id, None)


class StudyPage:
    def __init__(self, study: Study, where: str, address: str):
        self.study = study
        self._where, self._address = where, address
        self._lock = threading.Lock()
        self._pieces: dict[int, Piece] = {}  # by number
        self._space = _CachedExtraStudyProperty()
        self._figures: dict[str, str] = {}
        self._parent: Parent | None = None
        self._head, self._best = b"", b""
        self._looked = -math.inf
        self._version, self._started = 0, uuid4().hex[:8]

    def answer(self, after: int, known: str = "") -> tuple[str, bytes | None]:
        """A tag that changes when the answer does, and the answer: JSON of the study, with its trials from number `after` on.

        None instead of it if its tag is among the `known`. Raises KeyError if the study was deleted.
        """
        with self._lock:
            self._look()
            tag = f'"{self._started}-{self._version}-{after}"'
            if tag in known:
                return tag, None
            trials = b", ".join(
                piece.text for number, piece in self._pieces.items() if number >= after
            )
            body = b'%s, "best_trials": [%s], "trials": [%s]}' % (self._head, self._best, trials)
            return tag, body

    def record(self, trial_id: int) -> Record | None:
        with self._lock:
            self._look()
            return next(
                (piece.record for piece in self._pieces.values() if piece.record.id == trial_id),
                None,
            )

    def _look(self) -> None:
        """Read what changed since the last look."""
        if time.monotonic() - self._looked < FRESH_SECONDS:
            return
        storage, study_id = self.study.storage, self.study.id
        trials = storage.get_all_trials(study_id, deepcopy=False)
        about, attributes = _by_trial(storage.get_study_system_attrs(study_id))
        stale = [trial for trial in trials if not self._is_fresh(trial, about[trial._trial_id])]
        with self.study.engine.begin() as connection:
            rows = rows_of(connection, [trial._trial_id for trial in stale])
        self._parent = self._parent or self._first_start(trials)
        changed = False
        for trial in stale:
            before = self._pieces.get(trial.number)
            piece = self._piece(
                trial,
                about[trial._trial_id],
                record_of(_row_of(trial), rows.get(trial._trial_id), self.study.spec.metric),
            )
            self._pieces[trial.number] = piece
            changed = changed or before is None or before.text != piece.text
        self._space.update(stale)
        if changed:
            pieces = list(self._pieces.values())
            self._figures = figures(
                [(piece.record, piece.trial.intermediate_values) for piece in pieces],
                self.study.spec,
            )
            best = best_of([piece.record for piece in pieces], self.study.spec.metric)
            self._best = self._pieces[best.number].text if best else b""
        head = self._study(attributes)
        self._version += changed or head != self._head
        self._head = head
        self._looked = time.monotonic()

    def _is_fresh(self, trial: FrozenTrial, attributes: Mapping[str, Any]) -> bool:
        """Optuna's cache gives the same object again of a trial that is finished."""
        piece = self._pieces.get(trial.number)
        return piece is not None and piece.trial is trial and piece.attributes == attributes

    def _piece(self, trial: FrozenTrial, attributes: Mapping[str, Any], record: Record) -> Piece:
        content = serialize_frozen_trial(self.study.id, trial, dict(attributes))
        content["note"] = _with_ours(
            content["note"],
            trial_note(record, trial.user_attrs, self._parent, self.study.spec.metric),
        )
        content["artifacts"] += files_of(record)
        return Piece(trial, attributes, record, json.dumps(content).encode())

    def _study(self, attributes: dict[str, Any]) -> bytes:
        """All but the trials, without the last brace."""
        space, study = self._space, self.study.optuna
        frozen = FrozenStudy(
            self.study.name,
            None,
            study.user_attrs,
            attributes,
            self.study.id,
            directions=study.directions,
        )
        content = serialize_study_detail(frozen, [], [], space.intersection_search_space, space.union_search_space, space.union_user_attrs,
                                         space.has_intermediate_values, self._figures, [])  # fmt: skip
        del content["trials"], content["best_trials"]
        records = [piece.record for piece in self._pieces.values()]
        content["objective_names"] = [self.study.spec.metric.name]
        content["note"] = _with_ours(
            content["note"], study_note(self.study, records, self._where, self._address)
        )
        return json.dumps(content).encode().removesuffix(b"}")

    def _first_start(self, trials: Sequence[FrozenTrial]) -> Parent | None:
        """What other configurations are compared with: the first start."""
        spec = self.study.spec
        for name in list(spec.starts)[:1]:
            for trial in trials:
                if trial.user_attrs.get("start") == name:
                    config = spec.config(spec.start_values(name)).flat()
                    return Parent(
                        trial.number, name, config, f"{self._address}/trials?numbers={trial.number}"
                    )
        return None


def _row_of(trial: FrozenTrial) -> TrialRow:
    return TrialRow(
        id=trial._trial_id,
        number=trial.number,
        state=trial.state.name,
        value=trial.value,
        params=trial.params,
        attributes=trial.user_attrs,
        curve=trial.intermediate_values,
    )


def _by_trial(
    attributes: Mapping[str, Any],
) -> tuple[defaultdict[int, dict[str, Any]], dict[str, Any]]:
    """A study's attributes: those about a trial by its id, and the others. optuna-dashboard goes through all for each trial."""
    about: defaultdict[int, dict[str, Any]] = defaultdict(dict)
    others: dict[str, Any] = {}
    for key, value in attributes.items():
        match = OF_A_TRIAL.match(key)
        (about[int(match[1])] if match else others)[key] = value
    return about, others
