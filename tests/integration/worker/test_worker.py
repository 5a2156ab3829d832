"""One worker in this process, with a real study and real training that goes wrong."""

import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.commands import run_hpo, until
from helpers.data import recordings
from helpers.script_studies import create_study, study_file
from helpers.studies import (
    DIVERGED,
    TINY,
    claim,
    completed,
    decoder_config,
    worker_for,
)
from sqlalchemy import select, text

from hpo.analysis.weights import weights_of as analysis_weights_of
from hpo.decoder.artifact import load_decoder, save_decoder
from hpo.decoder.config import DecoderConfig
from hpo.decoder.training import GruTraining, Recordings
from hpo.errors import MemoryShortError, StudyError, WorkerError
from hpo.process import Process
from hpo.space.load import load_spec
from hpo.store.database import Database
from hpo.store.tables import trial_table
from hpo.study.pick import best_first
from hpo.study.study import Study
from hpo.study.trial import Cause, Completed, Failed, Stopped, Trial
from hpo.worker.attempt import Attempt
from hpo.worker.checkpoint import begin, checkpoints
from hpo.worker.dataset import look_at_data
from hpo.worker.keeping import rule_of
from hpo.worker.signals import STOP_SIGNALS, StopFlag
from hpo.worker.worker import run_worker

Make = Callable[..., Study]


@pytest.fixture
def data(tiny_data: Path, tiny_space: Path) -> Recordings:
    return recordings(tiny_data, load_spec(tiny_space), 0.2)


def weights_of(trial: Trial, data: Recordings) -> dict[str, torch.Tensor]:
    assert isinstance(trial.config, DecoderConfig)
    return GruTraining(trial.config, data).state.scored.state_dict()


@pytest.mark.slow
def test_a_trial_completes_with_its_final_score(
    make_study: Make, tiny_space: Path, data: Recordings, tmp_path: Path
) -> None:
    study = make_study(load_spec(tiny_space))
    worker = worker_for(study, data, tmp_path)
    assert worker.run() == 4
    records = study.records()
    assert [record.state for record in records] == ["complete"] * 4
    for record in records:
        assert study.scores([record.id])[record.id].value == record.value
        assert record.last_value == record.value
        assert (record.step, record.steps) == (6, 6)
        assert record.seconds > 0


def test_training_that_is_not_finite_stops_at_its_step(
    make_study: Make, tiny_space: Path, data: Recordings, tmp_path: Path
) -> None:
    """With lr 1e30 the weights leave the range of float32 in one update.

    The next evaluation would be far away.
    """
    wild = "wild: {optimizer.lr: 1e30, optimizer.name: sgd}"
    space = TINY.replace("steps: 6, evaluate_every: 2", "steps: 900, evaluate_every: 900")
    space = space.replace("high: 5e-2", "high: 1e30")
    tiny_space.write_text(space.replace("baseline: {}", wild))
    study = make_study(load_spec(tiny_space))
    worker = worker_for(study, data, tmp_path)
    trial = claim(study, worker.process)
    outcome = worker.run_trial(trial)
    assert isinstance(outcome, Stopped)
    assert outcome.stop.cause == "non-finite"
    record = study.records()[0]
    assert (record.state, record.rule, record.cause) == ("stopped", "own-past", "non-finite")
    assert record.step < 10
    assert "gradient norm" in record.reason


@pytest.mark.slow
def test_an_error_in_the_training_is_a_failed_trial_with_its_cause(
    make_study: Make, tiny_space: Path, data: Recordings, tmp_path: Path
) -> None:
    study = make_study(load_spec(tiny_space))
    # The model is built for other features than the batches have.
    data.data.n_features = 7
    worker = worker_for(study, data, tmp_path)
    # The budget's ten failures, and the one that is too many, each tried twice.
    assert worker.run() == 22
    assert {record.state for record in study.records()} == {"failed"}
    assert study.records()[0].reason.startswith("RuntimeError: ")


def test_a_raised_flag_hands_the_trial_back_between_steps(
    make_study: Make, tiny_space: Path, data: Recordings, tmp_path: Path
) -> None:
    study = make_study(load_spec(tiny_space))
    looks = iter([False, False, False, True])
    worker = worker_for(study, data, tmp_path, lambda: next(looks, True))
    assert worker.run() == 0
    record = study.records()[0]
    assert (record.state, record.step) == ("waiting", 3)
    with study.engine.begin() as connection:
        memory = connection.execute(select(trial_table.c.memory)).scalars().first()
    assert memory is not None
    assert 10**8 < memory <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert len(checkpoints(tmp_path / "trial-0")) == 1
    assert worker_for(study, data, tmp_path).run() == 4
    assert not checkpoints(tmp_path / "trial-0")
    assert study.records()[0].attempts == 2


def test_a_trial_that_needs_too_much_memory_waits_and_its_worker_leaves(
    make_study: Make, tiny_space: Path, data: Recordings, tmp_path: Path
) -> None:
    """No machine has the petabytes for these weights. After too many attempts the trial fails."""
    huge = TINY.replace("model.units: 8", "model.units: 10_000_000")
    tiny_space.write_text(huge.replace("trials: 4", "trials: 4, failures: 0"))
    study = make_study(load_spec(tiny_space))
    no_memory = (
        r"trial 0: cpu ran out of memory; the trial waits for another attempt\. "
        "Use fewer workers"
    )
    for attempt, state in ((1, "waiting"), (2, "waiting"), (3, "failed")):
        with pytest.raises(MemoryShortError, match=no_memory) as raised:
            worker_for(study, data, tmp_path).run()
        assert raised.value.exit_code == 3
        record = study.records()[0]
        assert (record.state, record.attempts) == (state, attempt)
    assert (record.cause, record.reason) == ("out of memory", "cpu ran out of memory")
    assert worker_for(study, data, tmp_path).run() == 0


def test_a_damaged_checkpoint_costs_the_progress_not_the_trial(
    make_study: Make,
    tiny_space: Path,
    data: Recordings,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    study = make_study(load_spec(tiny_space))
    looks = iter([False, False, False, True])
    worker_for(study, data, tmp_path, lambda: next(looks, True)).run()
    checkpoint = checkpoints(tmp_path / "trial-0")[0]
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    with caplog.at_level("INFO"):
        assert worker_for(study, data, tmp_path).run() == 4
    assert "trial 0: unusable checkpoint: checkpoint-00000003-" in caplog.text
    assert "trial 0: no checkpoint of an earlier attempt; restarts at step 0" in caplog.text
    assert study.records()[0].state == "complete"


def test_a_trial_that_improves_at_every_evaluation_is_checkpointed_too(
    make_study: Make, tiny_space: Path, data: Recordings, tmp_path: Path
) -> None:
    """Its best weights are written at every evaluation."""
    tiny_space.write_text(TINY + "attempts: {checkpoint_seconds: 0}")
    counts: list[int] = []

    def stop() -> bool:
        counts.append(len(checkpoints(tmp_path / "trial-0")))
        return len(counts) >= 5

    worker_for(make_study(load_spec(tiny_space)), data, tmp_path, stop).run()
    assert counts[4] > 0


def test_the_best_weights_are_kept_before_the_checkpoint_that_counts_them(
    make_study: Make, tiny_space: Path, data: Recordings, tmp_path: Path
) -> None:
    """Killed between the two, a trial would go on after its best step and never write it again."""
    tiny_space.write_text(TINY + "attempts: {checkpoint_seconds: 0}")
    study = make_study(load_spec(tiny_space))
    folder = tmp_path / "trial-0"
    best = folder / "best.safetensors"
    times: list[int] = []
    looks = iter(range(100))

    def stop() -> bool:
        # After step 2. Before, there is no score.
        if next(looks) == 2:
            until(lambda: bool(checkpoints(folder)) and best.exists())
            times.append(best.stat().st_mtime_ns)
            times.append(checkpoints(folder)[-1].stat().st_mtime_ns)
        return bool(times)

    worker_for(study, data, tmp_path, stop).run()
    assert times == sorted(times)


def test_a_worker_halted_beyond_its_lease_keeps_off_the_best_weights_of_the_next_one(
    make_study: Make, tiny_space: Path, data: Recordings, tmp_path: Path
) -> None:
    study = make_study(load_spec(tiny_space))
    best = tmp_path / "trial-0" / "best.safetensors"
    trial = claim(study, Process.this())

    def stop() -> bool:
        """After step 2 the lease has run out, on this side too. Nobody else has the trial yet."""
        if best.exists():
            attempt.reporter.lease_seconds = 0.0
        return False

    attempt = Attempt(worker_for(study, data, tmp_path, stop), trial, tmp_path / "trial-0")
    best.parent.mkdir()
    attempt.writer.submit(
        "another's", save_decoder, best, weights_of(trial, data), trial.config, {"step": 99}
    )
    attempt.writer.wait()
    attempt.run()
    attempt.writer.close()
    attempt.reporter.close()
    assert load_decoder(best).metadata["step"] == 99


def test_an_outcome_that_was_not_stored_leaves_the_last_checkpoint(
    make_study: Make, tiny_space: Path, data: Recordings, tmp_path: Path
) -> None:
    """The trial is taken at its last step: the next attempt has nothing to train any more."""
    study = make_study(load_spec(tiny_space))
    worker = worker_for(study, data, tmp_path)
    trial = claim(study, worker.process)
    attempt = Attempt(worker, trial, tmp_path / "trial-0")
    assert isinstance(attempt.run(), Completed)
    config = decoder_config(study.spec, trial.config.flat())
    begun = begin(partial(GruTraining, config, data), tmp_path / "trial-0")
    assert begun.training.step == trial.config.steps
    attempt.writer.close()
    attempt.reporter.close()
    attempt.tidy()
    assert {path.suffix for path in (tmp_path / "trial-0").iterdir()} <= {".safetensors"}


def test_a_checkpoint_that_cannot_be_written_costs_the_checkpoint_not_the_trial(
    make_study: Make, tiny_space: Path, data: Recordings, tmp_path: Path
) -> None:
    # A file where the folder should be.
    (tmp_path / "trial-0").touch()
    tiny_space.write_text(TINY + "attempts: {checkpoint_seconds: 0}")
    study = make_study(load_spec(tiny_space))
    worker = worker_for(study, data, tmp_path)
    trial = claim(study, worker.process)
    assert isinstance(worker.run_trial(trial), Completed)


def test_a_worker_whose_trial_was_taken_writes_nothing(
    make_study: Make, tiny_space: Path, data: Recordings, tmp_path: Path
) -> None:
    study = make_study(load_spec(tiny_space))
    worker = worker_for(study, data, tmp_path)
    trial = claim(study, worker.process)
    with study.engine.begin() as connection:
        connection.execute(text("UPDATE hpo_trial SET lease = 'another'"))
    assert worker.run_trial(trial) is None
    record = study.records()[0]
    assert (record.state, record.last_value, record.seconds) == ("running", None, 0)


def test_a_signal_raises_the_flag() -> None:
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    flag = StopFlag()
    try:
        flag.catch_signals()
        assert not flag()
        signal.raise_signal(signal.SIGINT)
        assert flag()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


# ---- what stays on the disk


def files_of(folder: Path) -> dict[int, list[str]]:
    """The names of the files by trial, of trials that have any."""
    found: dict[int, list[str]] = {}
    for file in sorted(folder.glob("trial-*/*")):
        found.setdefault(int(file.parent.name.removeprefix("trial-")), []).append(file.name)
    return found


def test_weights_that_drop_out_are_removed(
    make_study: Make, tiny_space: Path, data: Recordings, tmp_path: Path
) -> None:
    tiny_space.write_text(TINY.replace("trials: 4", "trials: 7") + "weights: {keep: 2}\n")
    study = make_study(load_spec(tiny_space))
    study.keep_result("ensemble", {"single": {"trial": 3}, "ensemble": {"members": []}})
    worker_for(study, data, tmp_path).run()
    records = study.records()
    best = best_first(records, study.spec.metric)[:2]
    starts = [record for record in records if record.start]
    kept = {record.number for record in (*best, *starts)} | {3}
    assert len(kept) < len(records)
    both = ["best.safetensors", "last.safetensors"]
    assert files_of(tmp_path) == dict.fromkeys(kept, both)
    dropped = next(record for record in records if record.number not in kept)
    with pytest.raises(StudyError, match=r"were removed: it keeps those of the best 2 trials"):
        analysis_weights_of(study, str(dropped.number), "last")


@pytest.mark.parametrize("keep", ["null", "100"])
def test_all_weights_are_kept_if_the_study_says_so(
    make_study: Make, tiny_space: Path, data: Recordings, tmp_path: Path, keep: str
) -> None:
    tiny_space.write_text(TINY + f"weights: {{keep: {keep}}}\n")
    study = make_study(load_spec(tiny_space))
    worker_for(study, data, tmp_path).run()
    assert sorted(files_of(tmp_path)) == [0, 1, 2, 3]


def test_a_study_of_an_earlier_version_keeps_all_weights_unless_its_user_asks(
    make_study: Make, tiny_space: Path
) -> None:
    earlier = load_spec(tiny_space).model_copy(update={"weights": None})
    study = make_study(earlier)
    assert rule_of(study.spec) is None
    assert rule_of(make_study(load_spec(tiny_space)).spec) is None
    tiny_space.write_text(TINY + "weights: {keep: 1}\n")
    assert "best trial" in str(rule_of(make_study(load_spec(tiny_space)).spec))


def test_what_killed_workers_left_of_ended_trials_goes(
    make_study: Make, tiny_space: Path, data: Recordings, tmp_path: Path
) -> None:
    """The deaths: after the outcome was stored, at the last attempt, and of a trial that waited."""
    study = make_study(load_spec(tiny_space))
    complete, failed, stopped, running = (claim(study) for _ in range(4))
    assert study.finish(complete, completed(0.5))
    assert study.finish(failed, Failed("an error", Cause.BAD_CONFIGURATION))
    assert study.finish(stopped, DIVERGED)
    weights = ["best.safetensors", "last.safetensors"]
    left = [*weights, "checkpoint-00000004-x.pt", "checkpoint.abc.tmp"]
    for trial in (complete, failed, stopped, running):
        folder = tmp_path / f"trial-{trial.number}"
        folder.mkdir()
        for name in left:
            (folder / name).touch()
    study.set_attribute("halt", {"state": "stopped", "by": "x@y", "since": "2026-01-01T00:00:00"})
    assert worker_for(study, data, tmp_path).run() == 0
    assert files_of(tmp_path) == {
        complete.number: weights,
        running.number: sorted(left),
    }
    # Without weights, the checkpoint stands for them.
    (tmp_path / "trial-0" / "last.safetensors").unlink()
    (tmp_path / "trial-0" / left[2]).touch()
    worker_for(study, data, tmp_path).run()
    assert left[2] in files_of(tmp_path)[0]


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_weights_have_the_mode_of_the_umask_and_the_group_of_their_folder(
    make_study: Make, tiny_space: Path, data: Recordings, tmp_path: Path, umask: int
) -> None:
    if os.getuid() == 0:
        os.chown(tmp_path, -1, 4321)
        tmp_path.chmod(0o2775)
    study = make_study(load_spec(tiny_space))
    before = os.umask(umask)
    try:
        worker_for(study, data, tmp_path).run()
    finally:
        os.umask(before)
    files = list(tmp_path.glob("trial-*/*.safetensors"))
    assert len(files) == 8
    for file in files:
        assert file.stat().st_mode & 0o777 == 0o666 & ~umask
        assert file.stat().st_gid == file.parent.stat().st_gid == tmp_path.stat().st_gid


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB, which is full."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("nothing can be mounted here")
    try:
        with suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_is_named_in_the_last_line_of_a_worker_and_costs_no_trial(
    database: Database, small_disk: Path, tiny_space: Path, tiny_data: Path
) -> None:
    spec = load_spec(tiny_space)
    study = Study.create_or_open(database, "s", spec, look_at_data(tiny_data, spec).facts)
    done = run_hpo("worker", "--study", "s", "--device", "cpu", "--artifacts", small_disk)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("4 trials ended here; nothing is left to do; the disk of ")
    assert "was full" in done.stdout
    assert {record.state for record in study.records()} == {"complete"}


def test_a_training_that_needs_the_full_disk_is_handed_back(
    database: Database, small_disk: Path, tmp_path: Path
) -> None:
    path = study_file(tmp_path)
    study = create_study(database, path)
    with pytest.raises(WorkerError, match=r"the disk of .* is full"):
        run_worker(study, None, torch.device("cpu"), 1, lambda: False, small_disk)
    record = study.records()[0]
    assert (record.state, record.cause) == ("waiting", "interrupted")
    (next(small_disk.glob("filler"))).unlink()
    run_worker(study, None, torch.device("cpu"), 1, lambda: False, small_disk)
    assert study.records()[0].state == "complete"
