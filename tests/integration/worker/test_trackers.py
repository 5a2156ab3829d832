"""Experiment trackers: real packages write, and their own readers read it back."""

import json
import logging
import struct
from collections.abc import Callable, Iterator, Sequence
from errno import ENOSPC
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from helpers.data import recordings
from helpers.lines import refusal
from helpers.studies import RECORD

from hpo.curve import Point
from hpo.decoder.training import Recordings
from hpo.errors import CallerError
from hpo.space.spec import StudySpec
from hpo.study.study import Study
from hpo.worker import trackers
from hpo.worker.trackers import RunInfo, Tracker, Trackers, check, choose, chosen
from hpo.worker.worker import Worker

Make = Callable[..., Study]
needs = {
    name: pytest.mark.skipif(
        find_spec(name) is None, reason=f"{name} is not installed (pip install -e .[trackers])"
    )
    for name in ("mlflow", "wandb")
}


@pytest.fixture
def data(tiny_data: Path, tiny_spec: StudySpec) -> Recordings:
    return recordings(tiny_data, tiny_spec, 0.2)


@pytest.fixture
def study(make_study: Make, tiny_spec: StudySpec) -> Study:
    """With TensorBoard."""
    study = make_study(tiny_spec)
    choose(study, ["tensorboard"])
    return study


def curve(study: Study, number: int) -> list[tuple[int, float]]:
    record = study.records()[number]
    return [(point.step, point.value) for point in study.curves([record])[number]]


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def points_of(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events(folder).Scalars(name)]


def approximately(points: list[tuple[int, float]]) -> list[tuple[int, Any]]:
    return [(step, pytest.approx(value, abs=1e-6)) for step, value in points]


def stop_after(looks: int) -> Callable[[], bool]:
    """Asks a worker to leave when it has looked so often."""
    left = iter([False] * looks)
    return lambda: next(left, True)


def assert_tensorboard_has(study: Study, folder: Path) -> None:
    for record in study.records():
        trial = folder / "trackers" / "tensorboard" / f"trial-{record.number}"
        assert points_of(trial, "per") == approximately(curve(study, record.number))
        scalars = set(events(trial).Tags()["scalars"])
        assert {"per", "validation_loss", "loss", "grad_norm", "lr", "step_seconds"} <= scalars
        _, final_per = points_of(trial, "final_per")[0]
        assert final_per == pytest.approx(record.value, abs=1e-6)


@pytest.mark.slow
def test_tensorboard_has_the_curves_that_the_study_has(
    study: Study, data: Recordings, tmp_path: Path
) -> None:
    assert Worker(study, data, tmp_path, RECORD).run() == 4
    assert_tensorboard_has(study, tmp_path)
    trial = events(tmp_path / "trackers" / "tensorboard" / "trial-1")
    text = trial.Tensors("outcome/text_summary")[0]
    assert b"complete" in text.tensor_proto.string_val[0]


@pytest.mark.slow
def test_a_trial_that_goes_on_has_each_step_once(
    study: Study, data: Recordings, tmp_path: Path
) -> None:
    """A worker leaves at each of the first looks.

    What it had written before its checkpoint counts once.
    """
    for looks in (3, 4, 5):
        Worker(study, data, tmp_path, RECORD, stop_after(looks)).run()
    Worker(study, data, tmp_path, RECORD).run()
    assert max(record.attempts for record in study.records()) > 1
    assert_tensorboard_has(study, tmp_path)


@pytest.mark.slow
def test_a_tracker_that_cannot_write_costs_a_line_and_no_trial(
    study: Study, data: Recordings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "trackers").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        assert Worker(study, data, tmp_path, RECORD).run() == 4
    assert [record.state for record in study.records()] == ["complete"] * 4
    assert (
        "trial 0: tensorboard is off for the rest of this attempt: FileExistsError" in caplog.text
    )


def test_points_of_a_killed_attempt_after_its_checkpoint_are_replaced(tmp_path: Path) -> None:
    def attempt(number: int, before: Sequence[Point], points: Sequence[Point]) -> None:
        """An attempt as a kill leaves it: without an outcome."""
        info = RunInfo(
            tmp_path / "trackers", "s", 0, number, "unique-0", {"optimizer.lr": 0.1}, "per"
        )
        trackers = Trackers([Tracker("tensorboard", info, lambda: True, print)], before)
        for point in points:
            trackers.point(point)
        trackers.close()

    def point(step: int, per: float) -> Point:
        return Point(step, per, 1.0)

    attempt(1, [], [point(2, 0.9), point(4, 0.8), point(6, 0.7)])
    # The checkpoint was of step 2.
    attempt(2, [point(2, 0.9)], [point(4, 0.6), point(6, 0.5)])
    written = points_of(tmp_path / "trackers" / "tensorboard" / "trial-0", "per")
    assert written == approximately([(2, 0.9), (4, 0.6), (6, 0.5)])


@pytest.mark.slow
def test_a_full_disk_costs_a_line_and_the_rest_of_that_attempt_alone(
    study: Study,
    data: Recordings,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter
    write, times = writer.add_scalar, count()

    def write_or_fail(self: Any, name: str, value: float, step: int) -> None:
        # In the second evaluation of the first trial.
        if next(times) == 8:
            raise OSError(ENOSPC, "No space left on device")
        write(self, name, value, step)

    monkeypatch.setattr(writer, "add_scalar", write_or_fail)
    with caplog.at_level(logging.WARNING):
        assert Worker(study, data, tmp_path, RECORD).run() == 4
    assert [record.state for record in study.records()] == ["complete"] * 4
    assert caplog.text.count("is off for the rest of this attempt") == 1
    no_space = "OSError: [Errno 28] No space left on device"
    off = f"trial 0: tensorboard is off for the rest of this attempt: {no_space}"
    assert off in caplog.text
    folder = tmp_path / "trackers" / "tensorboard"
    assert len(points_of(folder / "trial-0", "per")) < 3
    assert len(points_of(folder / "trial-1", "per")) == 3


@pytest.mark.slow
def test_a_package_that_is_missing_on_one_machine_costs_no_trial(
    study: Study,
    data: Recordings,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING):
        assert Worker(study, data, tmp_path, RECORD).run() == 4
    assert (
        "tensorboard is not installed here (pip install tensorboard); training continues without it"
        in caplog.text
    )


@needs["mlflow"]
def test_mlflow_has_the_curves_and_outcomes(
    make_study: Make, tiny_spec: StudySpec, data: Recordings, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    study = make_study(tiny_spec)
    choose(study, ["mlflow"])
    Worker(study, data, tmp_path, RECORD, stop_after(5)).run()
    Worker(study, data, tmp_path, RECORD).run()
    client = MlflowClient(tracking_uri=(tmp_path / "trackers" / "mlflow").absolute().as_uri())
    experiment = client.get_experiment_by_name(study.name)
    assert experiment
    by_mlflow = client.search_runs([experiment.experiment_id])
    runs = {int(run.data.tags["hpo.trial"]): run for run in by_mlflow}
    assert set(runs) == {0, 1, 2, 3}
    for record in study.records():
        run = runs[record.number]
        history = client.get_metric_history(run.info.run_id, "per")
        points = sorted((metric.step, metric.value) for metric in history)
        assert points == [(step, pytest.approx(per)) for step, per in curve(study, record.number)]
        assert run.info.status == "FINISHED"
        assert run.data.tags["hpo.outcome"] == "complete"
        assert run.data.params["optimizer.lr"] == str(record.config["optimizer.lr"])
        assert run.data.metrics["final_per"] == pytest.approx(record.value)


def wandb_records(file: Path) -> Iterator[bytes]:
    """Records of W&B's file, a LevelDB log.

    After 7 bytes come blocks of 32 KiB with pieces: checksum 4, length 2, kind 1, data.
    """
    log = file.read_bytes()
    at = 7
    record = b""
    while at < len(log):
        left = 32768 - at % 32768
        if left < 7:
            # The rest of a block is too short for a piece.
            at += left
            continue
        length, kind = struct.unpack_from("<HB", log, at + 4)
        record += log[at + 7 : at + 7 + length]
        at += 7 + length
        # A whole record, or its last piece.
        if kind in (1, 4):
            yield record
            record = b""


def values_of(items: Any) -> dict[str, Any]:
    return {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}


def wandb_has(file: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Lines of the history, and the summary, of W&B's file."""
    from wandb.proto.wandb_internal_pb2 import Record

    history: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    for data in wandb_records(file):
        record: Any = Record.FromString(data)
        if record.HasField("history"):
            history.append(values_of(record.history.item))
        summary |= values_of(record.summary.update)
    return history, summary


@needs["wandb"]
def test_wandb_writes_an_offline_run_a_trial(
    make_study: Make, tiny_spec: StudySpec, data: Recordings, tmp_path: Path
) -> None:
    study = make_study(tiny_spec)
    choose(study, ["wandb"])
    assert Worker(study, data, tmp_path, RECORD).run() == 4
    folders = sorted((tmp_path / "trackers" / "wandb").glob("offline-run-*"))
    assert [folder.name.rsplit("-", 1)[1] for folder in folders] == ["0", "1", "2", "3"]
    for record, folder in zip(study.records(), folders, strict=True):
        history, summary = wandb_has(next(folder.glob("*.wandb")))
        points = [(line["_step"], line["per"]) for line in history]
        assert points == [(step, pytest.approx(per)) for step, per in curve(study, record.number)]
        assert summary["outcome"] == "complete"
        assert summary["final_per"] == pytest.approx(record.value)


def test_track_takes_names_of_trackers_or_none() -> None:
    assert check(["tensorboard", "tensorboard"]) == ["tensorboard"]
    assert check(["none"]) == []
    with pytest.raises(CallerError, match="Valid: tensorboard, mlflow, wandb, or none"):
        check(["tensorbord"])
    with pytest.raises(CallerError, match="give one of them"):
        check(["none", "tensorboard"])


def test_the_error_about_a_missing_package_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(CallerError, match="pip install mlflow-skinny"):
        check(["mlflow"])


def test_an_unknown_tracker_is_one_line_before_a_study_is_made() -> None:
    error = refusal("launch", "--study", "lr-aug", "--track", "tensorbord")
    assert "no such tracker" in error


def test_the_choice_is_kept_with_the_study(make_study: Make, tiny_spec: StudySpec) -> None:
    study = make_study(tiny_spec)
    assert chosen(study)[0] == []
    choose(study, ["tensorboard", "mlflow"])
    assert chosen(make_study(tiny_spec))[0] == ["tensorboard", "mlflow"]
