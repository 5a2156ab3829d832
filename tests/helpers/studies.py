"""Small studies, and the life of a trial without a training."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import select

from hpo import process
from hpo.curve import Point
from hpo.decoder.config import DecoderConfig
from hpo.decoder.training import Recordings
from hpo.process import Process
from hpo.space.spec import StudySpec
from hpo.space.stopping import Stop
from hpo.store.tables import curve_table
from hpo.study.study import Study
from hpo.study.trial import Completed, Stopped, Trial
from hpo.trainer import Score
from hpo.worker.worker import Worker

TINY = """
base: {model.layers: 1, model.units: 8, model.kernel: 4, model.stride: 2,
       batch_size: 4, steps: 6, evaluate_every: 2}
parameters:
  optimizer.lr: {low: 1e-4, high: 5e-2, log: true}
  optimizer.name: {choices: [adam, sgd]}
  optimizer.eps: {low: 1e-8, high: 1e-1, log: true, when: {optimizer.name: [adam]}}
starts:
  baseline: {}
  slow: {optimizer.lr: 0.001, optimizer.name: sgd}
budget: {trials: 4}
policy: tpe
sampler: {startup_trials: 3}
"""

RECORD = {"device": "cpu", "code_version": "0", "data": "f"}
HERE = Process.this()
DIVERGED = Stopped(Stop("own-past", "per", "PER rose"))


def long(steps: int, evaluate_every: int) -> str:
    """A space whose trainings run to their last step: no rule stops them."""
    lengths = f"steps: {steps}, evaluate_every: {evaluate_every}"
    return TINY.replace("steps: 6, evaluate_every: 2", lengths) + "stopping: null\n"


LONG = long(20_000, 10).replace("trials: 4", "trials: 2")


def decoder_config(spec: StudySpec, values: Mapping[str, Any] | None = None) -> DecoderConfig:
    config = spec.config(values)
    assert isinstance(config, DecoderConfig)
    return config


def point(
    step: int,
    value: float,
    loss: float = 1.0,
    validation_loss: float | None = 1.5,
    **metrics: float,
) -> Point:
    usual = {"grad_norm": 2.0, "lr": 0.1, "step_seconds": 0.5}
    return Point(step, value, loss, validation_loss, usual | metrics)


def claim(study: Study, process: Process = HERE) -> Trial:
    trial = study.claim(process, RECORD)
    assert trial is not None
    return trial


def completed(per: float) -> Completed:
    return Completed(Score((round(per * 1000),), (1000,)))


def report(study: Study, trial: Trial, step: int, per: float, seconds: float) -> bool:
    return study.deliver(trial, [point(step, per)], step, seconds)


def _points_of(trial: Trial) -> Any:
    table = curve_table.c
    return (
        select(table.step, table.value, table.attempt)
        .where(table.trial_id == trial.id)
        .order_by(table.step)
    )


def curve(study: Study, trial: Trial) -> list[tuple[int, float, int]]:
    """(step, PER, attempt) of each stored point."""
    with study.engine.begin() as connection:
        return [tuple(row) for row in connection.execute(_points_of(trial))]


def ended_process() -> Process:
    """A process that ran on this host and has ended."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = f"{child.pid}:{process.start_time(child.pid)}"
    child.communicate(b"\n")
    return Process(HERE.host, identity)


def worker_for(
    study: Study, data: Recordings, folder: Path, stop: Callable[[], bool] = lambda: False
) -> Worker:
    return Worker(study, data, folder, RECORD, stop)
