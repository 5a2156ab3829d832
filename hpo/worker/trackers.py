"""Experiment trackers that a lab uses already: TensorBoard, MLflow and W&B, each through its own package, imported when it is used.

Each has a thread with a queue for every attempt, so a disk or a server that is slow costs no step. What a tracker raises costs
a line in the log and the rest of the attempt in that tracker. An attempt first tells its run the whole curve before it, in
place of what is there: a worker that was killed had told of evaluations after the checkpoint that the trial goes on from.
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
CLOSE_SECONDS = 10.0  # so long the end of an attempt waits for what is not written yet
PACKAGES = {
    "tensorboard": "tensorboard",
    "mlflow": "mlflow-skinny",
    "wandb": "wandb",
}  # a tracker and its module: what pip installs
DEFAULTS = {  # what a person has set in the environment stays
    "MLFLOW_ALLOW_FILE_STORE": "true",  # not SQLite, MLflow's own default: workers of several hosts write in one network folder
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_MODE": "offline",
    "WANDB_CONSOLE": "off",  # else it takes over the worker's output
    "WANDB_SILENT": "true",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB__DISABLE_META": "true",  # among it the command line, which may hold a database's password
    "WANDB__DISABLE_STATS": "true",
}
MLFLOW_STATUS = {
    Completed: "FINISHED",
    Stopped: "KILLED",
    Failed: "FAILED",
    Interrupted: "SCHEDULED",
}


@dataclass(frozen=True)
class Subject:
    """A trial as its run in a tracker begins."""

    folder: Path  # of the study's trackers: the study's / FOLDER
    study: str
    number: int
    attempt: int
    id: str  # among all studies
    config: dict[str, Any]  # by dotted name
    metric: str  # its key

    @property
    def final(self) -> str:
        """What the value at the end of the training is called."""
        return f"final_{self.metric}"

    @property
    def name(self) -> str:
        return f"trial-{self.number}"

    @property
    def link(self) -> str:
        return f"study {self.study}, trial {self.number}: hpo logs --study {self.study} --trial {self.number}"


class _TensorBoard:
    """A folder of event files. A new one says that it replaces what the others have."""

    def __init__(self, subject: Subject):
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        writer: Any = SummaryWriter
        hyperparameters: Any = hparams
        self._writer = writer(str(subject.folder / "tensorboard" / subject.name), purge_step=0)
        values = {
            name: value if isinstance(value, (bool, int, float, str)) else str(value)
            for name, value in subject.config.items()
        }
        experiment, begin, self._success = hyperparameters(values, {subject.final: 0.0})
        for summary in (experiment, begin):
            self._writer.file_writer.add_summary(summary)
        self._writer.add_text("trial", subject.link)
        self._writer.flush()
        self._final = subject.final

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
    """A run that is found again by a tag. Nothing can be taken out of one, so of a step it keeps what was told first."""

    def __init__(self, subject: Subject):
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param, RunTag

        self._metric, self._tag, self._final = Metric, RunTag, subject.final
        with FileLock(
            subject.folder / "mlflow.lock", timeout=60
        ):  # the first worker makes the store and the experiment
            store = (
                os.environ.get("MLFLOW_TRACKING_URI")
                or (subject.folder / "mlflow").absolute().as_uri()
            )
            self._client: Any = MlflowClient(tracking_uri=store)
            experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or subject.study)
        mine = f"tags.`hpo.id` = '{subject.id}'"
        there = (
            self._client.search_runs([experiment], mine, max_results=1)
            if subject.attempt > 1
            else []
        )
        run = (
            there[0]
            if there
            else self._client.create_run(
                experiment, run_name=subject.name, tags={"hpo.id": subject.id}
            )
        )
        self._run = run.info.run_id
        self._told = (
            {metric.step for metric in self._client.get_metric_history(self._run, subject.metric)}
            if there
            else set()
        )
        self._client.update_run(self._run, status="RUNNING")
        tags = {
            "hpo.study": subject.study,
            "hpo.trial": str(subject.number),
            "hpo.outcome": "running",
            "mlflow.note.content": subject.link,
        }
        self._client.log_batch(
            self._run,
            params=[Param(name, str(value)) for name, value in subject.config.items()],
            tags=[RunTag(name, value) for name, value in tags.items()],
        )

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        try:
            return str(self._client.create_experiment(name))
        except MlflowException:  # it is there
            found = self._client.get_experiment_by_name(name)
            if found is None:
                raise
            return str(found.experiment_id)

    def point(self, step: int, values: dict[str, float]) -> None:
        now = int(1000 * time.time())
        if step not in self._told:
            self._client.log_batch(
                self._run,
                metrics=[self._metric(name, value, now, step) for name, value in values.items()],
            )

    def end(self, step: int, outcome: Outcome) -> None:
        if isinstance(outcome, Completed):
            self._client.log_metric(self._run, self._final, outcome.score.value, step=step)
        self._client.set_tag(self._run, "hpo.outcome", _text(outcome))
        over = (
            self._client.update_run
            if isinstance(outcome, Interrupted)
            else self._client.set_terminated
        )
        over(self._run, status=MLFLOW_STATUS[type(outcome)])

    def close(self) -> None:
        pass


class _WandB:
    """A run of a fixed id. Offline it is a folder for every attempt: the last has the whole run, and the others go."""

    def __init__(self, subject: Subject):
        import wandb

        offline = os.environ["WANDB_MODE"] == "offline"
        for old in (
            (subject.folder / "wandb").glob(f"offline-run-*-{subject.id}") if offline else ()
        ):
            shutil.rmtree(old, ignore_errors=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or subject.study, group=subject.study, name=subject.name, id=subject.id,
            dir=str(subject.folder), config=subject.config, notes=subject.link, resume=None if offline else "allow", reinit="create_new",
        )  # fmt: skip
        self._run.summary["outcome"], self._code = "running", 0
        self._final = subject.final

    def point(self, step: int, values: dict[str, float]) -> None:
        if step >= self._run.step:  # one that is resumed online has those before
            self._run.log(values, step=step)

    def end(self, step: int, outcome: Outcome) -> None:
        self._run.summary["outcome"], self._code = _text(outcome), int(isinstance(outcome, Failed))
        if isinstance(outcome, Completed):
            self._run.summary[self._final] = outcome.score.value

    def close(self) -> None:
        self._run.finish(exit_code=self._code)


WRITERS: dict[str, Callable[[Subject], Any]] = {
    "tensorboard": _TensorBoard,
    "mlflow": _MLflow,
    "wandb": _WandB,
}


def _text(outcome: Outcome) -> str:
    return ": ".join(word for word in in_words(outcome) if word)


class Tracker(threading.Thread):
    """One tracker of one attempt. Takes points, then perhaps the outcome, then None; nobody waits for it."""

    def __init__(
        self, name: str, subject: Subject, still: Callable[[], bool], say: Callable[[str], None]
    ):
        """still: whether the trial is ours to write of; say: is told, in this thread, what went wrong."""
        super().__init__(name=name, daemon=True)
        self._subject, self._still, self._say = subject, still, say
        self.queue: SimpleQueue[Point | Outcome | None] = SimpleQueue()
        self.start()

    def run(self) -> None:
        number = self._subject.number
        if problem := missing(self.name):
            self._say(f"trial {number}: {problem}. It trains on without")
            return
        try:
            self._write()
        except BaseException as error:  # whatever a foreign package raises
            what = (str(error).strip() or "no message").splitlines()[0]
            self._say(
                f"trial {number}: {self.name} gets no more of this attempt: {type(error).__name__}: {what}"
            )

    def _write(self) -> None:
        for variable in DEFAULTS:
            if variable.startswith(self.name.upper()):
                os.environ.setdefault(variable, DEFAULTS[variable])
        self._subject.folder.mkdir(parents=True, exist_ok=True)
        writer, step = WRITERS[self.name](self._subject), 0
        while (told := self.queue.get()) is not None:
            if isinstance(told, Outcome):
                writer.end(step, told)
            elif self._still():
                step = told.step
                writer.point(step, self._values(told))
        writer.close()

    def _values(self, point: Point) -> dict[str, float]:
        """By name, as a tracker draws them."""
        values = {self._subject.metric: point.value, "loss": point.loss, **point.metrics}
        if point.validation_loss is not None:
            values["validation_loss"] = point.validation_loss
        return values


class Trackers:
    """Those of one attempt. Nothing here raises or waits, but `close`, for a while."""

    def __init__(self, threads: Sequence[Tracker] = (), curve: Sequence[Point] = ()):
        """curve: before the attempt."""
        self._threads = threads
        for point in curve:
            self.point(point)

    def point(self, point: Point) -> None:
        for thread in self._threads:
            thread.queue.put(point)

    def close(self, outcome: Outcome | None = None) -> None:
        """The attempt is over, with `outcome` if one was stored. A tracker that is slow goes on beside the next trial."""
        until = time.monotonic() + CLOSE_SECONDS
        for thread in self._threads:
            if outcome is not None:
                thread.queue.put(outcome)
            thread.queue.put(None)
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))


def missing(name: str) -> str | None:
    """What to do about a package that is not installed here; None: it is."""
    found = find_spec(name)
    if (
        found is not None and found.origin is not None
    ):  # else a folder of that name is in the working directory, as W&B makes one
        return None
    return f"{name} is not installed here (pip install {PACKAGES[name]})"


def check(names: Sequence[str]) -> list[str]:
    """What --track was given, each once; `none` is no tracker. Raises CallerError."""
    for name in names:
        if name not in PACKAGES and name != "none":
            raise CallerError(
                f"--track {name}: no such tracker. Valid: {', '.join(PACKAGES)}, or none"
            )
    if "none" in names and len(set(names)) > 1:
        raise CallerError(
            f"--track none with --track {next(name for name in names if name != 'none')}: give one of them"
        )
    found = [name for name in dict.fromkeys(names) if name != "none"]
    for name in found:
        if problem := missing(name):
            raise CallerError(f"--track {name}: {problem}, or leave it out")
    return found


def choose(study: Study, names: list[str]) -> None:
    """For all workers of the study, from their next trial on."""
    study.set_attribute("trackers", names)


def chosen(study: Study) -> tuple[list[str], str]:
    """The trackers of the study, and its unique part, in one query."""
    attributes = study.attributes
    return [name for name in attributes.get("trackers") or () if name in PACKAGES], attributes[
        "unique"
    ]
