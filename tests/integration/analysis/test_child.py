"""Child studies: the same workers train configurations that are enqueued; nothing is drawn."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.commands import invoke
from helpers.data import recordings
from helpers.studies import RECORD, TINY, worker_for
from sqlalchemy import text

from hpo.analysis.child import fresh_seeds, open_child
from hpo.decoder.training import Recordings
from hpo.errors import SpecError, StudyError
from hpo.report.report import as_text, build_report
from hpo.space.load import load_spec
from hpo.space.spec import StudySpec
from hpo.store.database import Database
from hpo.study.pick import pick_trial
from hpo.study.study import Study
from hpo.worker.worker import Worker, run_worker

MakeStudy = Callable[..., Study]


@pytest.fixture
def data(tiny_data: Path, tiny_spec: StudySpec) -> Recordings:
    return recordings(tiny_data, tiny_spec, 0.2)


@pytest.fixture
def test_data(tiny_data: Path, tiny_spec: StudySpec) -> Recordings:
    return recordings(tiny_data, tiny_spec, partition="test")


@pytest.fixture
def parent(make_study: MakeStudy, tiny_spec: StudySpec) -> Study:
    return make_study(tiny_spec, "p")


def test_a_child_trains_what_is_enqueued_and_draws_nothing(
    database: Database, parent: Study, data: Recordings, test_data: Recordings, tmp_path: Path
) -> None:
    child = open_child(database, parent, "confirm", ("test",))
    inside = parent.spec.config({"seed": 7, "optimizer.lr": 0.01})
    # lr lies beyond the space.
    outside = inside.with_values({"optimizer.lr": 0.4, "model.units": 5, "optimizer.name": "sgd"})
    ids = child.enqueue([(inside, "trial 1"), (outside, "baseline")])
    assert child.enqueue([(outside, "another label"), (inside, "trial 1")]) == ids[::-1]
    assert child.budget.trials == 2
    worker = Worker(child, data, tmp_path, RECORD, held_out={"test": test_data})
    assert worker.run() == 2
    records = {record.id: record for record in child.records()}
    assert len(records) == 2
    first, second = (records[trial_id] for trial_id in ids)
    assert first.config == inside.flat()
    assert second.config == outside.flat()
    assert (first.label, second.label) == ("trial 1", "baseline")
    assert first.params == {
        "optimizer.lr": 0.01,
        "optimizer.name": "adam",
        "optimizer.eps": 0.1,
    }
    # Only what lies in the space.
    assert second.params == {"optimizer.name": "sgd"}
    assert child.budget_spent()
    assert {len(score.lengths) for score in child.scores(ids, "test").values()} == {24}
    assert child.scores(ids)[first.id].value == first.value
    child.enqueue([(inside.with_values({"seed": 8}), "trial 1")])
    assert child.budget.trials == 3
    assert not child.budget_spent()


@pytest.mark.slow
def test_a_search_scores_validation_only_and_no_file_can_ask_for_more(
    make_study: MakeStudy, tiny_space: Path, data: Recordings, tmp_path: Path
) -> None:
    study = make_study(load_spec(tiny_space))
    worker_for(study, data, tmp_path).run()
    with study.engine.begin() as connection:
        partitions = connection.execute(text("SELECT DISTINCT partition FROM hpo_score")).all()
    assert partitions == [("validation",)]
    tiny_space.write_text(TINY + "child: {parent: s, unique: x, score: [test]}\n")
    with pytest.raises(SpecError, match="there is no 'child'"):
        load_spec(tiny_space)


def test_the_worker_of_a_child_loads_what_it_scores(
    make_study: MakeStudy, tiny_spec: StudySpec, tiny_data: Path, database: Database
) -> None:
    fingerprint = recordings(tiny_data, tiny_spec, 0.1).fingerprint
    parent = make_study(tiny_spec, "p", fingerprint, path=str(tiny_data))

    def sentences_of_test(child: Study) -> list[int]:
        """The number that each trial was scored on."""
        ids = child.enqueue([(tiny_spec.config(), "baseline")])
        run_worker(child, None, torch.device("cpu"), 1, lambda: False)
        return [len(score.errors) for score in child.scores(ids, "test").values()]

    assert sentences_of_test(open_child(database, parent, "confirm", ("test",))) == [24]
    assert sentences_of_test(open_child(database, parent, "ablate")) == []


def test_the_score_of_a_worker_that_lost_its_trial_is_not_written(
    database: Database, parent: Study, data: Recordings, test_data: Recordings, tmp_path: Path
) -> None:
    child = open_child(database, parent, "confirm", ("test",))
    ids = child.enqueue([(parent.spec.config(), "baseline")])
    worker = Worker(child, data, tmp_path, RECORD, held_out={"test": test_data})
    trial = child.claim(worker.process, RECORD)
    assert trial is not None
    with child.engine.begin() as connection:
        connection.execute(text("UPDATE hpo_trial SET lease = 'another'"))
    assert worker.run_trial(trial) is None
    assert child.scores(ids, "test") == {}


def test_the_name_of_another_studys_child_is_refused(
    make_study: MakeStudy, parent: Study, database: Database
) -> None:
    child = open_child(database, parent, "confirm")
    assert open_child(database, parent, "confirm").id == child.id
    make_study(parent.spec, "p.ablate")
    taken = r"study p\.ablate already exists and does not belong to this p"
    with pytest.raises(StudyError, match=taken):
        open_child(database, parent, "ablate")
    of_a_child = r"study p\.confirm retrains configurations of p\. Give --study p"
    with pytest.raises(StudyError, match=of_a_child):
        open_child(database, child, "ablate")


def test_fresh_seeds_are_none_of_trials_and_each_use_has_its_own(parent: Study) -> None:
    seeds = [set(fresh_seeds(parent, use, 100)) for use in ("confirm", "select", "measure")]
    assert len(set.union(*seeds)) == 300
    assert not set.union(*seeds) & set(range(100_000))


@pytest.mark.slow
def test_report_and_status_of_a_child_name_no_best(
    database: Database, parent: Study, data: Recordings, tmp_path: Path
) -> None:
    child = open_child(database, parent, "confirm")
    child.enqueue([(parent.spec.config(), "baseline")])
    worker_for(child, data, tmp_path).run()
    shown = as_text(build_report(child), child.spec.metric)
    assert "It retrains configurations of study p, so none of its trials is best." in shown
    assert "Best" not in shown
    done = invoke("status", "--study", "p.confirm")
    assert done.exit_code == 0
    assert "baseline" in done.output
    assert "best PER" not in done.output
    printed = json.loads(invoke("report", "--study", "p.confirm", "--json").output)
    assert printed["best"] is None
    with pytest.raises(StudyError, match="none is best"):
        pick_trial(child, "best")
    assert pick_trial(child, "0").label == "baseline"
