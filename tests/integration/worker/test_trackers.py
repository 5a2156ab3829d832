"""Experiment trackers: real packages, and what they wrote read back with their own readers."""

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
from click.testing import CliRunner
from helpers.data import recordings

from hpo.cli import main
from hpo.curve import Point
from hpo.decoder.training import Recordings
from hpo.errors import CallerError
from hpo.space.spec import StudySpec
from hpo.study.study import Study
from hpo.worker import trackers
from hpo.worker.trackers import RunInfo, Tracker, Trackers, check, choose, chosen
from hpo.worker.worker import Worker

RECORD = {"device": "cpu", "code_version": "0", "data": "f"}
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


def curve(study: Study, number: int) -> list[tuple[int, float]]:
    record = study.records()[number]
    return [(point.step, point.value) for point in study.curves([record])[number]]


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
        assert {"per", "validation_loss", "loss", "grad_norm", "lr", "step_seconds"} <= set(
            found.Tags()["scalars"]
        )
        assert found.Scalars("final_per")[0].value == pytest.approx(record.value, abs=1e-6)


def test_tensorboard_has_the_curves_that_the_study_has(
    make_study: Make, tiny_spec: StudySpec, data: Recordings, tmp_path: Path
) -> None:
    study = make_study(tiny_spec)
    choose(study, ["tensorboard"])
    assert Worker(study, data, tmp_path, RECORD).run() == 4
    assert_tensorboard_has(study, tmp_path)
    texts = events(tmp_path / "trackers" / "tensorboard" / "trial-1").Tensors(
        "outcome/text_summary"
    )
    assert b"complete" in texts[0].tensor_proto.string_val[0]


def test_a_trial_that_goes_on_has_each_step_once(
    make_study: Make, tiny_spec: StudySpec, data: Recordings, tmp_path: Path
) -> None:
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
    make_study: Make,
    tiny_spec: StudySpec,
    data: Recordings,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    study = make_study(tiny_spec)
    choose(study, ["tensorboard"])
    (tmp_path / "trackers").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        assert Worker(study, data, tmp_path, RECORD).run() == 4
    assert [record.state for record in study.records()] == ["complete"] * 4
    assert (
        "trial 0: tensorboard is off for the rest of this attempt: FileExistsError" in caplog.text
    )


def test_what_a_killed_attempt_told_after_its_checkpoint_is_replaced(tmp_path: Path) -> None:
    def attempt(number: int, before: Sequence[Point], told: Sequence[Point]) -> Trackers:
        info = RunInfo(
            tmp_path / "trackers", "s", 0, number, "unique-0", {"optimizer.lr": 0.1}, "per"
        )
        found = Trackers([Tracker("tensorboard", info, lambda: True, print)], before)
        for point in told:
            found.point(point)
        return found

    def point(step: int, per: float) -> Point:
        return Point(step, per, 1.0)

    attempt(
        1, [], [point(2, 0.9), point(4, 0.8), point(6, 0.7)]
    ).close()  # as a kill leaves it: without an outcome
    attempt(
        2, [point(2, 0.9)], [point(4, 0.6), point(6, 0.5)]
    ).close()  # its checkpoint was of step 2
    found = events(tmp_path / "trackers" / "tensorboard" / "trial-0").Scalars("per")
    assert [(event.step, event.value) for event in found] == [
        (2, pytest.approx(0.9)),
        (4, pytest.approx(0.6)),
        (6, pytest.approx(0.5)),
    ]


def test_a_disk_that_fills_up_costs_a_line_and_the_rest_of_that_attempt_alone(
    make_study: Make,
    tiny_spec: StudySpec,
    data: Recordings,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter
    write, times = writer.add_scalar, count()

    def write_or_not(self: Any, name: str, value: float, step: int) -> None:
        if next(times) == 8:  # the second evaluation of the first trial
            raise OSError(ENOSPC, "No space left on device")
        write(self, name, value, step)

    monkeypatch.setattr(writer, "add_scalar", write_or_not)
    study = make_study(tiny_spec)
    choose(study, ["tensorboard"])
    with caplog.at_level(logging.WARNING):
        assert Worker(study, data, tmp_path, RECORD).run() == 4
    assert [record.state for record in study.records()] == ["complete"] * 4
    assert caplog.text.count("is off for the rest of this attempt") == 1
    assert (
        "trial 0: tensorboard is off for the rest of this attempt: OSError: [Errno 28] No space left on device"
        in caplog.text
    )
    folder = tmp_path / "trackers" / "tensorboard"
    assert (
        len(events(folder / "trial-0").Scalars("per"))
        < len(events(folder / "trial-1").Scalars("per"))
        == 3
    )


def test_a_package_that_is_missing_on_one_machine_costs_no_trial(
    make_study: Make,
    tiny_spec: StudySpec,
    data: Recordings,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = make_study(tiny_spec)
    choose(study, ["tensorboard"])
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
    left = iter([False] * 5)
    Worker(study, data, tmp_path, RECORD, lambda: next(left, True)).run()
    Worker(study, data, tmp_path, RECORD).run()
    client = MlflowClient(tracking_uri=(tmp_path / "trackers" / "mlflow").absolute().as_uri())
    experiment = client.get_experiment_by_name(study.name)
    assert experiment
    runs = {
        int(run.data.tags["hpo.trial"]): run
        for run in client.search_runs([experiment.experiment_id])
    }
    assert set(runs) == {0, 1, 2, 3}
    for record in study.records():
        run = runs[record.number]
        told = sorted(
            (metric.step, metric.value)
            for metric in client.get_metric_history(run.info.run_id, "per")
        )
        assert told == [(step, pytest.approx(per)) for step, per in curve(study, record.number)]
        assert (run.info.status, run.data.tags["hpo.outcome"]) == ("FINISHED", "complete")
        assert run.data.params["optimizer.lr"] == str(record.config["optimizer.lr"])
        assert run.data.metrics["final_per"] == pytest.approx(record.value)


def wandb_records(file: Path) -> Iterator[bytes]:
    """Records of W&B's file, a LevelDB log: after 7 bytes, blocks of 32 KiB of pieces (checksum 4, length 2, kind 1, data)."""
    log, at, record = file.read_bytes(), 7, b""
    while at < len(log):
        if (left := 32768 - at % 32768) < 7:  # the rest of a block, too short for a piece
            at += left
            continue
        length, kind = struct.unpack_from("<HB", log, at + 4)
        record += log[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


def wandb_has(file: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Lines of the history, and the summary, of W&B's file."""
    from wandb.proto.wandb_internal_pb2 import Record

    history, summary = list[dict[str, Any]](), dict[str, Any]()
    for data in wandb_records(file):
        record: Any = Record.FromString(data)
        if record.HasField("history"):
            history.append(
                {
                    item.key or item.nested_key[0]: json.loads(item.value_json)
                    for item in record.history.item
                }
            )
        for item in record.summary.update:
            summary[item.key or item.nested_key[0]] = json.loads(item.value_json)
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
        assert [(line["_step"], line["per"]) for line in history] == [
            (step, pytest.approx(per)) for step, per in curve(study, record.number)
        ]
        assert (summary["outcome"], summary["final_per"]) == (
            "complete",
            pytest.approx(record.value),
        )


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
