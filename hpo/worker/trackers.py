"""Experiment trackers that a lab already uses: TensorBoard, MLflow and W&B.

Each is written through its own package, which is imported when it is used. Every attempt has a
thread with a queue for each tracker, so a slow disk or server costs no step. Tracker errors are
logged and end the tracker for the rest of the attempt; they never interrupt training.

An attempt first sends its run the whole curve so far, which replaces what the run has: a worker
that was killed has sent evaluations after the checkpoint from which the trial resumes.
"""

import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from filelock import FileLock

from hpo.curve import Point
from hpo.errors import CallerError
from hpo.study.study import Study
from hpo.study.trial import Completed, Failed, Interrupted, Outcome, Stopped, in_words

FOLDER = "trackers"
# How long the end of an attempt waits for points that are not written yet.
CLOSE_SECONDS = 10.0
# Each tracker, which is also the name of its module, and what pip installs for it.
PACKAGES = {
    "tensorboard": "tensorboard",
    "mlflow": "mlflow-skinny",
    "wandb": "wandb",
}
# Values that the user has set in the environment stay.
DEFAULTS = {
    # MLflow's own default is SQLite, but workers of several hosts write to one network folder.
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_MODE": "offline",
    # Otherwise W&B takes over the worker's output.
    "WANDB_CONSOLE": "off",
    "WANDB_SILENT": "true",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_ERROR_REPORTING": "false",
    # The metadata include the command line, which may hold a database's password.
    "WANDB__DISABLE_META": "true",
    "WANDB__DISABLE_STATS": "true",
}
MLFLOW_STATUS = {
    Completed: "FINISHED",
    Stopped: "KILLED",
    Failed: "FAILED",
    Interrupted: "SCHEDULED",
}


@dataclass(frozen=True)
class RunInfo:
    """What a tracker's run says of its trial from the beginning."""

    # The folder of the study's trackers.
    folder: Path
    study: str
    number: int
    attempt: int
    # Unique among the trials of all studies.
    id: str
    # By dotted name.
    config: dict[str, Any]
    # The metric's key.
    metric: str

    @property
    def final(self) -> str:
        """The name of the value at the end of the training."""
        return f"final_{self.metric}"

    @property
    def name(self) -> str:
        return f"trial-{self.number}"

    @property
    def link(self) -> str:
        """How to find the trial in hpo."""
        command = f"hpo logs --study {self.study} --trial {self.number}"
        return f"study {self.study}, trial {self.number}: {command}"


class _TensorBoard:
    """A folder of event files. A new file says that it replaces the contents of the others."""

    def __init__(self, info: RunInfo):
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        # Neither function has types.
        make_writer: Any = SummaryWriter
        make_hparams: Any = hparams
        self._writer = make_writer(str(info.folder / "tensorboard" / info.name), purge_step=0)
        values = {}
        for name, value in info.config.items():
            is_plain = isinstance(value, (bool, int, float, str))
            values[name] = value if is_plain else str(value)
        experiment, begin, self._success = make_hparams(values, {info.final: 0.0})
        self._writer.file_writer.add_summary(experiment)
        self._writer.file_writer.add_summary(begin)
        self._writer.add_text("trial", info.link)
        self._writer.flush()
        self._final = info.final

    def point(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def end(self, step: int, outcome: Outcome) -> None:
        self._writer.add_text("outcome", _text(outcome), step)
        if isinstance(outcome, Completed):
            self._writer.add_scalar(self._final, outcome.score.value, step)
            self._writer.file_writer.add_summary(self._success)

    def close(self) -> None:
        self._writer.close()


class _MLflow:
    """A run that later attempts find by a tag.

    MLflow cannot remove a value from a run, so each step keeps the values that were logged first.
    """

    def __init__(self, info: RunInfo):
        from mlflow.entities import Metric, Param, RunTag

        self._metric = Metric
        self._final = info.final
        self._client, experiment = self._open_store(info)
        run = self._find_run(experiment, info)
        if run is None:
            tags = {"hpo.id": info.id}
            run = self._client.create_run(experiment, run_name=info.name, tags=tags)
            self._logged_steps = set()
        else:
            history = self._client.get_metric_history(run.info.run_id, info.metric)
            self._logged_steps = {metric.step for metric in history}
        self._run = run.info.run_id
        self._client.update_run(self._run, status="RUNNING")
        tags = {
            "hpo.study": info.study,
            "hpo.trial": str(info.number),
            "hpo.outcome": "running",
            "mlflow.note.content": info.link,
        }
        self._client.log_batch(
            self._run,
            params=[Param(name, str(value)) for name, value in info.config.items()],
            tags=[RunTag(name, value) for name, value in tags.items()],
        )

    def _open_store(self, info: RunInfo) -> tuple[Any, str]:
        """MLflow's client, and the id of the study's experiment."""
        from mlflow import MlflowClient

        # The first worker creates the store and the experiment; the others wait for it.
        with FileLock(info.folder / "mlflow.lock", timeout=60):
            store = os.environ.get("MLFLOW_TRACKING_URI")
            if not store:
                store = (info.folder / "mlflow").absolute().as_uri()
            client = MlflowClient(tracking_uri=store)
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or info.study
            return client, self._experiment(client, name)

    def _experiment(self, client: Any, name: str) -> str:
        from mlflow.exceptions import MlflowException

        try:
            return str(client.create_experiment(name))
        except MlflowException:
            # It exists already.
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
            return str(experiment.experiment_id)

    def _find_run(self, experiment: str, info: RunInfo) -> Any | None:
        """The run of the trial's earlier attempts, if there is one."""
        if info.attempt == 1:
            return None
        query = f"tags.`hpo.id` = '{info.id}'"
        runs = self._client.search_runs([experiment], query, max_results=1)
        return runs[0] if runs else None

    def point(self, step: int, values: dict[str, float]) -> None:
        if step in self._logged_steps:
            return
        now = int(1000 * time.time())
        metrics = [self._metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def end(self, step: int, outcome: Outcome) -> None:
        if isinstance(outcome, Completed):
            self._client.log_metric(self._run, self._final, outcome.score.value, step=step)
        self._client.set_tag(self._run, "hpo.outcome", _text(outcome))
        status = MLFLOW_STATUS[type(outcome)]
        if isinstance(outcome, Interrupted):
            self._client.update_run(self._run, status=status)
        else:
            self._client.set_terminated(self._run, status=status)

    def close(self) -> None:
        pass


class _WandB:
    """A run with a fixed id.

    Offline, W&B makes a folder for every attempt. The newest has the whole run, so the others are
    removed.
    """

    def __init__(self, info: RunInfo):
        import wandb

        is_offline = os.environ["WANDB_MODE"] == "offline"
        if is_offline:
            for earlier in (info.folder / "wandb").glob(f"offline-run-*-{info.id}"):
                shutil.rmtree(earlier, ignore_errors=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or info.study,
            group=info.study,
            name=info.name,
            id=info.id,
            dir=str(info.folder),
            config=info.config,
            notes=info.link,
            resume=None if is_offline else "allow",
            reinit="create_new",
        )
        self._run.summary["outcome"] = "running"
        self._exit_code = 0
        self._final = info.final

    def point(self, step: int, values: dict[str, float]) -> None:
        # A run that is resumed online has the earlier steps already.
        if step >= self._run.step:
            self._run.log(values, step=step)

    def end(self, step: int, outcome: Outcome) -> None:
        self._run.summary["outcome"] = _text(outcome)
        self._exit_code = 1 if isinstance(outcome, Failed) else 0
        if isinstance(outcome, Completed):
            self._run.summary[self._final] = outcome.score.value

    def close(self) -> None:
        self._run.finish(exit_code=self._exit_code)


WRITERS: dict[str, Callable[[RunInfo], Any]] = {
    "tensorboard": _TensorBoard,
    "mlflow": _MLflow,
    "wandb": _WandB,
}


def _text(outcome: Outcome) -> str:
    return ": ".join(word for word in in_words(outcome) if word)


class Tracker(threading.Thread):
    """Writes one attempt to one tracker, in a thread.

    Its queue takes points, then perhaps the outcome, then None.
    """

    def __init__(
        self,
        name: str,
        info: RunInfo,
        may_write: Callable[[], bool],
        warn: Callable[[str], None],
    ):
        """may_write: whether the attempt still holds the trial. warn: is told, in this thread, what
        went wrong.
        """
        super().__init__(name=name, daemon=True)
        self._info = info
        self._may_write = may_write
        self._warn = warn
        self.queue: SimpleQueue[Point | Outcome | None] = SimpleQueue()
        self.start()

    def run(self) -> None:
        number = self._info.number
        problem = missing(self.name)
        if problem:
            self._warn(f"trial {number}: {problem}; training continues without it")
            return
        try:
            self._write()
        # A foreign package may raise anything.
        except BaseException as error:
            text = (str(error).strip() or "no message").splitlines()[0]
            fault = f"{type(error).__name__}: {text}"
            self._warn(f"trial {number}: {self.name} is off for the rest of this attempt: {fault}")

    def _write(self) -> None:
        for variable, value in DEFAULTS.items():
            if variable.startswith(self.name.upper()):
                os.environ.setdefault(variable, value)
        self._info.folder.mkdir(parents=True, exist_ok=True)
        writer = WRITERS[self.name](self._info)
        step = 0
        while (item := self.queue.get()) is not None:
            if isinstance(item, Outcome):
                writer.end(step, item)
            elif self._may_write():
                step = item.step
                writer.point(step, self._values(item))
        writer.close()

    def _values(self, point: Point) -> dict[str, float]:
        """The values of a point, by the names under which a tracker draws them."""
        values = {self._info.metric: point.value, "loss": point.loss, **point.metrics}
        if point.validation_loss is not None:
            values["validation_loss"] = point.validation_loss
        return values


class Trackers:
    """All trackers of one attempt. Only `close` waits, for a limited time; nothing raises."""

    def __init__(self, threads: Sequence[Tracker] = (), curve: Sequence[Point] = ()):
        """curve: the points before the attempt."""
        self._threads = threads
        for point in curve:
            self.point(point)

    def point(self, point: Point) -> None:
        for thread in self._threads:
            thread.queue.put(point)

    def close(self, outcome: Outcome | None = None) -> None:
        """End the attempt, with its outcome if one was stored.

        A slow tracker continues during the next trial.
        """
        until = time.monotonic() + CLOSE_SECONDS
        for thread in self._threads:
            if outcome is not None:
                thread.queue.put(outcome)
            thread.queue.put(None)
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))


def missing(name: str) -> str | None:
    """What to do about a tracker's package that is not installed; None if it is installed."""
    spec = find_spec(name)
    # A spec without origin is a folder of that name in the working directory, as W&B makes one.
    if spec is not None and spec.origin is not None:
        return None
    return f"{name} is not installed here (pip install {PACKAGES[name]})"


def check(names: Sequence[str]) -> list[str]:
    """The trackers given by --track, each once; `none` stands for no tracker.

    Raises CallerError for an unknown tracker, or one whose package is missing.
    """
    for name in names:
        if name not in PACKAGES and name != "none":
            raise CallerError(
                f"--track {name}: no such tracker. Valid: {', '.join(PACKAGES)}, or none"
            )
    trackers = [name for name in dict.fromkeys(names) if name != "none"]
    if "none" in names and trackers:
        raise CallerError(f"--track none with --track {trackers[0]}: give one of them")
    for name in trackers:
        problem = missing(name)
        if problem:
            raise CallerError(f"--track {name}: {problem}, or leave it out")
    return trackers


def choose(study: Study, names: list[str]) -> None:
    """Set the trackers of the study. All workers use them from their next trial on."""
    study.set_attribute("trackers", names)


def chosen(study: Study) -> tuple[list[str], str]:
    """The trackers of the study, and the study's unique id, from one query."""
    attributes = study.attributes
    stored = attributes.get("trackers") or ()
    names = [name for name in stored if name in PACKAGES]
    return names, attributes["unique"]
