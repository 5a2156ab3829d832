"""Child studies: given configurations through the same workers, and nothing drawn."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from helpers.data import recordings
from helpers.studies import RECORD, TINY, worker_for
from sqlalchemy import text

from hpo.analysis.child import fresh_seeds, open_child
from hpo.cli import main
from hpo.decoder.training import Recordings
from hpo.errors import SpecError, StudyError
from hpo.report.report import as_text, build_report
from hpo.space.spec import StudySpec, load_spec
from hpo.store.database import Database
from hpo.study.pick import pick_trial
from hpo.study.study import Study
from hpo.worker.worker import Worker, run_worker

MakeStudy = Callable[..., Study]


@pytest.fixture
def data(tiny_data: Path, tiny_spec: StudySpec) -> Recordings:
    return recordings(tiny_data, tiny_spec, 0.2)


def test_a_child_trains_what_it_is_given_and_draws_nothing(
    make_study: MakeStudy,
    tiny_spec: StudySpec,
    tiny_data: Path,
    data: Recordings,
    tmp_path: Path,
    database: Database,
) -> None:
    parent = make_study(tiny_spec, "p")
    child = open_child(database, parent, "confirm", ("test",))
    inside = tiny_spec.config({"seed": 7, "optimizer.lr": 0.01})
    outside = inside.with_values(
        {"optimizer.lr": 0.4, "model.units": 5, "optimizer.name": "sgd"}
    )  # lr beyond the space
    ids = child.enqueue([(inside, "trial 1"), (outside, "baseline")])
    assert child.enqueue([(outside, "another label"), (inside, "trial 1")]) == ids[::-1]
    assert child.budget.trials == 2
    test = recordings(tiny_data, tiny_spec, partition="test")
    assert Worker(child, data, tmp_path, RECORD, held_out={"test": test}).run() == 2
    records = {record.id: record for record in child.records()}
    assert len(records) == 2
    assert [records[i].config for i in ids] == [inside.flat(), outside.flat()]
    assert [records[i].label for i in ids] == ["trial 1", "baseline"]
    assert [records[i].params for i in ids] == [
        {"optimizer.lr": 0.01, "optimizer.name": "adam", "optimizer.eps": 0.1},
        {"optimizer.name": "sgd"},  # what the space has; lr 0.4 lies outside
    ]
    assert child.budget_spent()
    assert {len(score.lengths) for score in child.scores(ids, "test").values()} == {24}
    assert child.scores(ids)[ids[0]].value == records[ids[0]].value
    more = inside.with_values({"seed": 8})
    child.enqueue([(more, "trial 1")])
    assert (child.budget.trials, child.budget_spent()) == (3, False)


def test_a_search_scores_validation_alone_and_no_file_can_ask_for_more(
    make_study: MakeStudy, tiny_space: Path, data: Recordings, tmp_path: Path
) -> None:
    study = make_study(load_spec(tiny_space))
    worker_for(study, data, tmp_path).run()
    with study.engine.begin() as connection:
        assert connection.execute(text("SELECT DISTINCT partition FROM hpo_score")).all() == [
            ("validation",)
        ]
    tiny_space.write_text(TINY + "child: {parent: s, unique: x, score: [test]}\n")
    with pytest.raises(SpecError, match="there is no 'child'"):
        load_spec(tiny_space)


def test_the_worker_of_a_child_loads_what_it_scores(
    make_study: MakeStudy, tiny_spec: StudySpec, tiny_data: Path, database: Database
) -> None:
    fingerprint = recordings(tiny_data, tiny_spec, 0.1).fingerprint
    parent = make_study(tiny_spec, "p", fingerprint, path=str(tiny_data))
    for kind, scored in (("confirm", 24), ("ablate", 0)):
        child = open_child(database, parent, kind, ("test",) if kind == "confirm" else ())  # type: ignore[arg-type]
        ids = child.enqueue([(tiny_spec.config(), "baseline")])
        run_worker(child, None, torch.device("cpu"), 1, lambda: False)
        found = child.scores(ids, "test")
        assert [len(score.errors) for score in found.values()] == [scored] * bool(scored)


def test_the_score_of_a_worker_that_lost_its_trial_is_not_written(
    make_study: MakeStudy,
    tiny_spec: StudySpec,
    tiny_data: Path,
    data: Recordings,
    tmp_path: Path,
    database: Database,
) -> None:
    child = open_child(database, make_study(tiny_spec, "p"), "confirm", ("test",))
    ids = child.enqueue([(tiny_spec.config(), "baseline")])
    test = recordings(tiny_data, tiny_spec, partition="test")
    worker = Worker(child, data, tmp_path, RECORD, held_out={"test": test})
    trial = child.claim(worker.process, RECORD)
    assert trial is not None
    with child.engine.begin() as connection:
        connection.execute(text("UPDATE hpo_trial SET lease = 'another'"))
    assert worker.run_trial(trial) is None
    assert child.scores(ids, "test") == {}


def test_the_name_of_another_studys_child_is_refused(
    make_study: MakeStudy, tiny_spec: StudySpec, database: Database
) -> None:
    parent = make_study(tiny_spec, "p")
    assert open_child(database, parent, "confirm").id == open_child(database, parent, "confirm").id
    make_study(tiny_spec, "p.ablate")
    with pytest.raises(
        StudyError, match=r"study p\.ablate already exists and does not belong to this p"
    ):
        open_child(database, parent, "ablate")
    with pytest.raises(
        StudyError, match=r"study p\.confirm retrains configurations of p\. Give --study p"
    ):
        open_child(database, open_child(database, parent, "confirm"), "ablate")


def test_fresh_seeds_are_no_trials_and_each_use_has_its_own(
    make_study: MakeStudy, tiny_spec: StudySpec
) -> None:
    parent = make_study(tiny_spec)
    seeds = [set(fresh_seeds(parent, use, 100)) for use in ("confirm", "select", "measure")]
    assert len(set.union(*seeds)) == 300
    assert not set.union(*seeds) & set(range(100_000))


def test_report_and_status_of_a_child_name_no_best(
    make_study: MakeStudy,
    tiny_spec: StudySpec,
    data: Recordings,
    tmp_path: Path,
    database: Database,
) -> None:
    child = open_child(database, make_study(tiny_spec, "p"), "confirm")
    child.enqueue([(tiny_spec.config(), "baseline")])
    worker_for(child, data, tmp_path).run()
    shown = as_text(build_report(child), child.spec.metric)
    assert "It retrains configurations of study p, so none of its trials is best." in shown
    assert "Best" not in shown
    done = CliRunner().invoke(main, ["status", "--study", "p.confirm"])
    assert (done.exit_code, "baseline" in done.output, "best PER" in done.output) == (
        0,
        True,
        False,
    )
    assert (
        json.loads(CliRunner().invoke(main, ["report", "--study", "p.confirm", "--json"]).output)[
            "best"
        ]
        is None
    )
    with pytest.raises(StudyError, match="none is best"):
        pick_trial(child, "best")
    assert pick_trial(child, "0").label == "baseline"
