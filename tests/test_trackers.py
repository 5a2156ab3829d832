"""Experiment trackers: real packages, and what they wrote read back with their own readers."""

import logging
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from hpo.cli import main
from hpo.decoder.data import Data, load_data
from hpo.errors import CallerError
from hpo.search import trackers
from hpo.search.spec import StudySpec
from hpo.search.study import Study
from hpo.search.trackers import check, choose, chosen
from hpo.search.worker import Worker

RECORD = {"device": "cpu", "code_version": "0", "data": "f"}
Make = Callable[..., Study]
needs = {name: pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed (pip install -e .[trackers])")
         for name in ("mlflow", "wandb")}  # fmt: skip


@pytest.fixture
def data(tiny_data: Path, tiny_spec: StudySpec) -> Data:
    return load_data(tiny_data, tiny_spec.base.model, 0.2, 0, torch.device("cpu"))[0]


def curve(study: Study, number: int) -> list[tuple[int, float]]:
    record = study.records()[number]
    return [(int(point["step"]), point["per"]) for point in study.curves([record])[number]]


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def assert_tensorboard_has(study: Study, folder: Path) -> None:
    for record in study.records():
        found = events(folder / "trackers" / "tensorboard" / f"trial-{record.number}")
        assert [(event.step, event.value) for event in found.Scalars("per")] == [
            (step, pytest.approx(per, abs=1e-6)) for step, per in curve(study, record.number)
        ]
        assert {"per", "validation_loss", "loss", "grad_norm", "lr", "step_seconds"} <= set(found.Tags()["scalars"])
        assert found.Scalars("final_per")[0].value == pytest.approx(record.per, abs=1e-6)


def test_tensorboard_has_the_curves_that_the_study_has(make_study: Make, tiny_spec: StudySpec, data: Data, tmp_path: Path) -> None:
    study = make_study(tiny_spec)
    choose(study, ["tensorboard"])
    assert Worker(study, data, tmp_path, RECORD).run() == 4
    assert_tensorboard_has(study, tmp_path)
    texts = events(tmp_path / "trackers" / "tensorboard" / "trial-1").Tensors("outcome/text_summary")
    assert b"complete" in texts[0].tensor_proto.string_val[0]


def test_a_trial_that_goes_on_has_each_step_once(make_study: Make, tiny_spec: StudySpec, data: Data, tmp_path: Path) -> None:
    """A worker is told to leave at each of the first looks; whatever it had told before its checkpoint counts once."""
    study = make_study(tiny_spec)
    choose(study, ["tensorboard"])
    for looks in (3, 4, 5):
        left = iter([False] * looks)
        Worker(study, data, tmp_path, RECORD, lambda left=left: next(left, True)).run()  # type: ignore[misc]
    Worker(study, data, tmp_path, RECORD).run()
    assert max(record.attempts for record in study.records()) > 1
    assert_tensorboard_has(study, tmp_path)


def test_a_tracker_that_cannot_write_costs_a_line_and_no_trial(
    make_study: Make, tiny_spec: StudySpec, data: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = make_study(tiny_spec)
    choose(study, ["tensorboard"])
    (tmp_path / "trackers").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        assert Worker(study, data, tmp_path, RECORD).run() == 4
    assert [record.state for record in study.records()] == ["complete"] * 4
    assert "trial 0: tensorboard gets no more of this attempt: FileExistsError" in caplog.text


def test_a_package_that_is_missing_on_one_machine_costs_no_trial(
    make_study: Make, tiny_spec: StudySpec, data: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(tiny_spec)
    choose(study, ["tensorboard"])
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING):
        assert Worker(study, data, tmp_path, RECORD).run() == 4
    assert "tensorboard is not installed here (pip install tensorboard). It trains on without" in caplog.text


@needs["mlflow"]
def test_mlflow_has_the_curves_and_outcomes(make_study: Make, tiny_spec: StudySpec, data: Data, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    study = make_study(tiny_spec)
    choose(study, ["mlflow"])
    left = iter([False] * 5)
    Worker(study, data, tmp_path, RECORD, lambda: next(left, True)).run()
    Worker(study, data, tmp_path, RECORD).run()
    client = MlflowClient(tracking_uri=(tmp_path / "trackers" / "mlflow").absolute().as_uri())
    experiment = client.get_experiment_by_name(study.name)
    assert experiment
    runs = {int(run.data.tags["hpo.trial"]): run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {0, 1, 2, 3}
    for record in study.records():
        run = runs[record.number]
        told = sorted((metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "per"))
        assert told == [(step, pytest.approx(per)) for step, per in curve(study, record.number)]
        assert (run.info.status, run.data.tags["hpo.outcome"]) == ("FINISHED", "complete")
        assert run.data.params["optimizer.lr"] == str(record.config["optimizer.lr"])
        assert run.data.metrics["final_per"] == pytest.approx(record.per)


@needs["wandb"]
def test_wandb_writes_an_offline_run_a_trial(make_study: Make, tiny_spec: StudySpec, data: Data, tmp_path: Path) -> None:
    study = make_study(tiny_spec)
    choose(study, ["wandb"])
    assert Worker(study, data, tmp_path, RECORD).run() == 4
    folders = sorted((tmp_path / "trackers" / "wandb").glob("offline-run-*"))
    assert [folder.name.rsplit("-", 1)[1] for folder in folders] == ["0", "1", "2", "3"]
    assert all(next(folder.glob("*.wandb")).stat().st_size > 0 for folder in folders)


def test_what_track_takes() -> None:
    assert check(["tensorboard", "tensorboard"]) == ["tensorboard"]
    assert check(["none"]) == []
    with pytest.raises(CallerError, match="Valid: tensorboard, mlflow, wandb, or none"):
        check(["tensorbord"])
    with pytest.raises(CallerError, match="give one of them"):
        check(["none", "tensorboard"])


def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(CallerError, match="pip install mlflow-skinny"):
        check(["mlflow"])


def test_a_typo_is_one_line_before_anything_is_made() -> None:
    done = CliRunner().invoke(main, ["launch", "--study", "lr-aug", "--track", "tensorbord"])
    assert done.exit_code == 2
    assert "no such tracker" in done.output and done.output.count("\n") == 1


def test_it_is_kept_with_the_study(make_study: Make, tiny_spec: StudySpec) -> None:
    study = make_study(tiny_spec)
    assert chosen(study)[0] == []
    choose(study, ["tensorboard", "mlflow"])
    assert chosen(make_study(tiny_spec))[0] == ["tensorboard", "mlflow"]
