"""What an open page asks for every few seconds: a study with its trials, as JSON.

optuna-dashboard reads and serialises everything again at each request. Here the JSON of
each trial is kept, and only that of trials that changed is made again; a finished trial never
changes. hpo's part of a note, the list of files and the plots are made from the records and never
stored, so they are never out of date. Notes that users write are stored as optuna-dashboard stores
them.
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

from hpo.dashboard.content import Reference, files_of, study_note, trial_note
from hpo.dashboard.plots import figures
from hpo.space.upgrade import made_by_hpo
from hpo.store.database import Database
from hpo.store.optuna_rows import TrialRow
from hpo.store.storage import open_storage
from hpo.store.trials import rows_of, study_and_number_of
from hpo.study.optuna_internals import id_of_trial
from hpo.study.pick import best_of
from hpo.study.record import record_of
from hpo.study.study import Study
from hpo.study.trial import Record

# Requests within this time share one look at the database.
FRESH_SECONDS = 1.0
# Stands between a user's note and the part that hpo adds when it is shown.
OURS = "\n\n---\n*below: by hpo, from the trial's record; not kept when you save*\n\n"
# Keys of a study's attributes that belong to one trial, with its id.
KEY_OF_A_TRIAL = re.compile(r"dashboard:(?:artifacts:)?(\d+):")


@dataclass(frozen=True)
class Piece:
    """A trial as the page shows it.

    attributes: those of the study's attributes that belong to this trial, such as the user's note.
    text: its JSON.
    """

    trial: FrozenTrial
    attributes: Mapping[str, Any]
    record: Record
    text: bytes


def without_our_part(note: str) -> str:
    """The user's part of a note that was shown with hpo's part below it."""
    return note.partition(OURS.strip())[0].strip()


def _with_our_part(note: dict[str, Any], ours: str) -> dict[str, Any]:
    users = note["body"]
    body = f"{users}{OURS}{ours}" if users else ours
    return note | {"body": body}


class Pages:
    """The studies of a database, each opened when it is first asked for."""

    def __init__(self, database: Database, base_path: str = ""):
        self.base_path = base_path
        if database.embedded_in:
            self._worker_place = "this machine"
        else:
            self._worker_place = f"any machine that reaches {database}"
        self._backend = open_storage(database)
        # Optuna's cache in front of the database reads a finished trial once.
        self.storage = optuna.storages.get_storage(self._backend)
        self._lock = threading.Lock()
        self._pages: dict[int, StudyPage] = {}

    def of(self, study_id: int) -> "StudyPage | None":
        """The page of a study, or None if there is no such study or hpo did not make it."""
        with self._lock:
            if study_id not in self._pages:
                page = self._open(study_id)
                if page is None:
                    return None
                self._pages[study_id] = page
            return self._pages[study_id]

    def place(self, trial_id: int) -> tuple[int, int]:
        """Id of the study, and number within it, of a trial. Raises KeyError."""
        with self._backend.engine.begin() as connection:
            return study_and_number_of(connection, trial_id)

    def forget(self, study_id: int) -> None:
        """Drop a study that was deleted."""
        with self._lock:
            self._pages.pop(study_id, None)

    def _open(self, study_id: int) -> "StudyPage | None":
        try:
            name = self._backend.get_study_name_from_id(study_id)
            attributes = self._backend.get_study_user_attrs(study_id)
        except KeyError:
            return None
        if not made_by_hpo(attributes):
            return None
        study = Study(optuna.load_study(study_name=name, storage=self.storage), self._backend)
        address = f"{self.base_path}/dashboard/studies/{study_id}"
        return StudyPage(study, self._worker_place, address)


class StudyPage:
    """One study as JSON, kept up to date between requests.

    worker_place: where workers can join, in words. address: the path of the study's page.
    """

    def __init__(self, study: Study, worker_place: str, address: str):
        self.study = study
        self._worker_place = worker_place
        self._address = address
        self._lock = threading.Lock()
        # By trial number.
        self.pieces: dict[int, Piece] = {}
        self._space = _CachedExtraStudyProperty()
        self._figures: dict[str, str] = {}
        self._reference: Reference | None = None
        # JSON of the study without its trials, and of its best trial.
        self._head = b""
        self._best = b""
        self._refreshed_at = -math.inf
        # Together they make the tag of an answer: this process, and how often the answer changed.
        self._process_tag = uuid4().hex[:8]
        self._version = 0

    def answer(self, after: int, known_tags: str = "") -> tuple[str, bytes | None]:
        """A tag, and JSON of the study with its trials from number `after` on.

        The tag changes whenever the JSON does. The JSON is None if its tag is among `known_tags`.
        Raises KeyError if the study was deleted.
        """
        with self._lock:
            self._refresh()
            tag = f'"{self._process_tag}-{self._version}-{after}"'
            if tag in known_tags:
                return tag, None
            shown = [piece.text for number, piece in self.pieces.items() if number >= after]
            trials = b", ".join(shown)
            body = b'%s, "best_trials": [%s], "trials": [%s]}' % (self._head, self._best, trials)
            return tag, body

    def record(self, trial_id: int) -> Record | None:
        with self._lock:
            self._refresh()
            for piece in self.pieces.values():
                if piece.record.id == trial_id:
                    return piece.record
            return None

    def _refresh(self) -> None:
        """Read what changed since the last look at the database."""
        if time.monotonic() - self._refreshed_at < FRESH_SECONDS:
            return
        storage = self.study.storage
        trials = storage.get_all_trials(self.study.id, deepcopy=False)
        attributes_of, study_attributes = _by_trial(storage.get_study_system_attrs(self.study.id))
        changed_trials = []
        for trial in trials:
            if not self._is_fresh(trial, attributes_of[id_of_trial(trial)]):
                changed_trials.append(trial)

        if self._reference is None:
            self._reference = self._first_start(trials)
        text_changed = self._update_pieces(changed_trials, attributes_of)
        self._space.update(changed_trials)
        if text_changed:
            self._update_figures()
        head = self._head_of(study_attributes)
        if text_changed or head != self._head:
            self._version += 1
        self._head = head
        self._refreshed_at = time.monotonic()

    def _is_fresh(self, trial: FrozenTrial, attributes: Mapping[str, Any]) -> bool:
        """Whether the piece of this trial is up to date.

        Optuna's cache returns the same object again for a trial that is finished.
        """
        piece = self.pieces.get(trial.number)
        return piece is not None and piece.trial is trial and piece.attributes == attributes

    def _update_pieces(
        self, trials: Sequence[FrozenTrial], attributes_of: Mapping[int, dict[str, Any]]
    ) -> bool:
        """Make the pieces of these trials again. Returns whether the text of one changed."""
        with self.study.engine.begin() as connection:
            rows = rows_of(connection, [id_of_trial(trial) for trial in trials])
        changed = False
        for trial in trials:
            trial_id = id_of_trial(trial)
            record = record_of(_row_of(trial), rows.get(trial_id), self.study.spec.metric)
            piece = self._piece(trial, attributes_of[trial_id], record)
            before = self.pieces.get(trial.number)
            if before is None or before.text != piece.text:
                changed = True
            self.pieces[trial.number] = piece
        return changed

    def _piece(self, trial: FrozenTrial, attributes: Mapping[str, Any], record: Record) -> Piece:
        content = serialize_frozen_trial(self.study.id, trial, dict(attributes))
        note = trial_note(record, trial.user_attrs, self._reference, self.study.spec.metric)
        content["note"] = _with_our_part(content["note"], note)
        content["artifacts"] += files_of(record)
        return Piece(trial, attributes, record, json.dumps(content).encode())

    def _update_figures(self) -> None:
        curves = [(piece.record, piece.trial.intermediate_values) for piece in self.pieces.values()]
        self._figures = figures(curves, self.study.spec)
        best = best_of([record for record, _ in curves], self.study.spec.metric)
        self._best = self.pieces[best.number].text if best else b""

    def _head_of(self, attributes: dict[str, Any]) -> bytes:
        """JSON of the study without its trials and without the closing brace."""
        study = FrozenStudy(
            self.study.name,
            None,
            self.study.optuna.user_attrs,
            attributes,
            self.study.id,
            directions=self.study.optuna.directions,
        )
        content = serialize_study_detail(
            study,
            best_trials=[],
            trials=[],
            intersection=self._space.intersection_search_space,
            union=self._space.union_search_space,
            union_user_attrs=self._space.union_user_attrs,
            has_intermediate_values=self._space.has_intermediate_values,
            plotly_graph_objects=self._figures,
            skipped_trial_numbers=[],
        )
        del content["trials"], content["best_trials"]
        content["objective_names"] = [self.study.spec.metric.name]
        records = [piece.record for piece in self.pieces.values()]
        note = study_note(self.study, records, self._worker_place, self._address)
        content["note"] = _with_our_part(content["note"], note)
        return json.dumps(content).encode().removesuffix(b"}")

    def _first_start(self, trials: Sequence[FrozenTrial]) -> Reference | None:
        """The trial of the first start, which notes compare other trials with."""
        spec = self.study.spec
        if not spec.starts:
            return None
        name = next(iter(spec.starts))
        for trial in trials:
            if trial.user_attrs.get("start") == name:
                config = spec.config(spec.start_values(name)).flat()
                link = f"{self._address}/trials?numbers={trial.number}"
                return Reference(trial.number, name, config, link)
        return None


def _row_of(trial: FrozenTrial) -> TrialRow:
    return TrialRow(
        id=id_of_trial(trial),
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
    """A study's attributes in two parts: those that belong to a trial, by its id, and the others.

    One pass over all of them; optuna-dashboard makes one for each trial.
    """
    of_trials: defaultdict[int, dict[str, Any]] = defaultdict(dict)
    of_study: dict[str, Any] = {}
    for key, value in attributes.items():
        match = KEY_OF_A_TRIAL.match(key)
        if match:
            of_trials[int(match[1])][key] = value
        else:
            of_study[key] = value
    return of_trials, of_study
