"""A training that is a script: started, followed, ended, and told what its end means."""

import json
import logging
import math
import re
import shutil
import subprocess
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from hpo.errors import StudyError
from hpo.script.code import code_state
from hpo.script.config import ScriptConfig
from hpo.script.data import ScriptData
from hpo.script.process import (
    ROWS_FILE,
    End,
    Job,
    ProcessError,
    Running,
    clear,
    end_of,
    script_environment,
)
from hpo.script.rendering import Rendered, render
from hpo.script.row import Row, RowsError
from hpo.script.rows import Rows
from hpo.script.section import CompleteScript
from hpo.script.settings import CHECKPOINTS, COMMAND, OUTPUT
from hpo.trainer import (
    Metric,
    Progress,
    Score,
    Site,
    TrainingFailedError,
    TrainingHangsError,
    Waiting,
)

# Between looks at a script.
POLL_SECONDS = 0.2
# A signal for both reaches the worker within this time of the script's end.
ASKED_SECONDS = 1.0
SHOWN_LINES = 5
# Of a pattern: so much must match before it is said how far it does.
MOST_SHARED = 3
# A bounded metric above this is surely in percent already.
SURELY_PERCENT = 20.0
# Of a value, and what its items give: scripts round.
MOST_APART = 1e-3
OUT_OF_MEMORY = re.compile(
    r"CUDA out of memory|OutOfMemoryError|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|"
    r"CUDNN_STATUS_ALLOC_FAILED|can't allocate memory|RESOURCE_EXHAUSTED|^MemoryError|Cannot allocate memory",
    re.MULTILINE,
)
# Signals that come from outside: the script may well succeed next time.
FROM_OUTSIDE = {"SIGKILL", "SIGTERM", "SIGHUP", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGXCPU"}
log = logging.getLogger(__name__)
Looks = Generator[Progress | Waiting, None, None]


class ScriptTraining:
    """An attempt at a trial. Its files lie in `attempt-N` of the trial's folder."""

    def __init__(
        self, settings: CompleteScript, config: ScriptConfig, data: ScriptData, site: Site
    ):
        self.settings = settings
        self.config = config
        self.data = data
        self.site = site
        self.step = 0
        self.folder = site.folder / f"attempt-{site.attempt}"
        self.reading = site.attempt
        """The attempt whose rows are read."""
        self._rows: Rows | None = None
        self._place: dict[str, Any] = {}
        """Of the rows that were given. Those of one look may be several, and are kept or lost one by one."""
        self._saved: dict[str, Any] = {}
        self._score: Score | None = None
        self._signs: tuple[float, ...] = ()
        """Of life, beside output: times of the curve's file and of checkpoints, as last seen at `_signs_at`."""
        self._signs_at = 0.0

    # ---- as a Training

    def state_dict(self) -> dict[str, Any]:
        """How far the rows are read; what the script has learned lies in its own checkpoints."""
        score = [list(self._score.errors), list(self._score.lengths)] if self._score else []
        return {
            "attempt": self.reading,
            "step": self.step,
            "rows": json.dumps(self._place),
            "score": score,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        if self.settings.resume == "none" or not self._checkpoints_of_last():
            return
        self._saved = {"attempt": saved["attempt"], "rows": json.loads(saved["rows"])}
        self.step = saved["step"]
        if saved["score"]:
            errors, lengths = saved["score"]
            self._score = Score(tuple(errors), tuple(lengths))

    def evaluate(self, data: Any) -> Score:
        """The last value that the script has reported."""
        if self._score is None:
            raise TrainingFailedError("the script has reported no value")
        return self._score

    def train(self) -> Looks:
        """Raises TrainingFailedError, MemoryError, and StudyError for code that has changed."""
        self._check_code()
        clear(self.site.folder)
        if self.settings.resume == "none":
            self._remove_earlier()
        elif (yield from self._earlier()):
            return
        rendered = self._prepared()
        self._read_from(self.site.attempt, self.folder)
        self._pass_over()
        try:
            running = Running.start(self._job(rendered))
        except ProcessError as error:
            raise TrainingFailedError(str(error)) from None
        try:
            yield from self._follow(running)
        finally:
            running.stop()

    # ---- before the script starts

    def _check_code(self) -> None:
        now = code_state(Path(self.settings.code)).digest
        if now != self.data.code:
            raise StudyError(
                f"{self.settings.code}: the code has changed while the study runs (state {self.data.code}, now {now}). Go back "
                f"to that state and type the same line again, or start the workers with --allow-different-code"
            )

    def _earlier_attempts(self) -> list[int]:
        """The earlier attempts whose folders are here, the oldest first."""
        names = (path.name.removeprefix("attempt-") for path in self.site.folder.glob("attempt-*"))
        numbers = sorted(int(name) for name in names if name.isdecimal())
        return [number for number in numbers if number < self.site.attempt]

    def _remove_earlier(self) -> None:
        for number in self._earlier_attempts():
            shutil.rmtree(self.site.folder / f"attempt-{number}", ignore_errors=True)

    def _earlier(self) -> Generator[Progress | Waiting, None, bool]:
        """What earlier attempts have written since the last checkpoint of ours.

        Returns whether the last of them had come to its end, which nobody could note.
        """
        first = self._saved.get("attempt", 0)
        ended = False
        for number in self._earlier_attempts():
            if number < first:
                continue
            folder = self.site.folder / f"attempt-{number}"
            place = self._saved["rows"] if number == first else None
            self._read_from(number, folder, place)
            try:
                yield from self._looks(last=True)
            except TrainingFailedError as error:
                log.warning("trial %d: attempt %d: %s", self.site.trial, number, error)
            end = end_of(folder)
            ended = (
                end is not None and end.code == 0 and not end.stopped and self._score is not None
            )
        return ended

    def _curve_file(self, folder: Path) -> Path:
        if self.settings.curve.file == OUTPUT:
            return folder / ROWS_FILE
        return folder / self.settings.curve.file

    def _prepared(self) -> Rendered:
        """The attempt's folder, made whole or not at all."""
        draft = self.site.folder / f"attempt-{self.site.attempt}.tmp"
        for old in (draft, self.folder):
            shutil.rmtree(old, ignore_errors=True)
        draft.mkdir(parents=True)
        resuming = self._copy_checkpoints(draft)
        rendered = render(
            self.settings, self.config, self.site, self.folder, self.data.path, resuming
        )
        for name, content in rendered.files.items():
            path = draft / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        (draft / COMMAND).write_text(rendered.shell_line() + "\n", encoding="utf-8")
        draft.rename(self.folder)
        return rendered

    def _checkpoints_of_last(self) -> Path | None:
        """The folder, if the attempt before has left any."""
        attempts = self._earlier_attempts()
        if not attempts:
            return None
        folder = self.site.folder / f"attempt-{attempts[-1]}" / CHECKPOINTS
        return folder if folder.is_dir() and any(folder.iterdir()) else None

    def _copy_checkpoints(self, draft: Path) -> bool:
        """Of the attempt before. Returns whether there are any.

        Copies, never hard links: a script may write in place. Older ones are removed.
        """
        goal = draft / CHECKPOINTS
        source = self._checkpoints_of_last()
        if self.settings.resume == "none" or source is None:
            goal.mkdir()
            return False
        copied = subprocess.run(
            ["cp", "-a", "--reflink=auto", str(source), str(goal)],
            capture_output=True,
            text=True,
            check=False,
        )
        if copied.returncode:
            raise TrainingFailedError(f"{source} cannot be copied: {_one_line(copied.stderr)}")
        for number in self._earlier_attempts()[:-1]:
            shutil.rmtree(self.site.folder / f"attempt-{number}" / CHECKPOINTS, ignore_errors=True)
        return True

    def _job(self, rendered: Rendered) -> Job:
        from_output = self.settings.curve.file == OUTPUT
        return Job(
            command=rendered.command,
            folder=self.folder,
            environment=script_environment(rendered.environment, self.site.secrets),
            log=self.site.log,
            log_bytes=int(self.settings.log_megabytes * 1e6),
            grace_seconds=self.settings.grace_seconds,
            patterns=tuple(self.settings.curve.pattern) if from_output else (),
        )

    # ---- while it runs

    def _follow(self, running: Running) -> Looks:
        goes_on = self.step > 0
        while True:
            # Asked before the rows are read, so that the last of them is not missed.
            end = running.end()
            for look in self._looks(last=end is not None):
                if goes_on:
                    yield Waiting(goes_on_at=look.step)
                    goes_on = False
                yield look
            if end is not None:
                yield from self._judged(end)
                return
            self._check_silence(running)
            yield Waiting()
            time.sleep(POLL_SECONDS)

    def _check_silence(self, running: Running) -> None:
        """Raises TrainingHangsError for a script that has been silent for too long, which is ended."""
        allowed = self.settings.silence_seconds
        if time.monotonic() - running.written() < allowed or self._shows_life():
            return
        running.stop()
        raise TrainingHangsError(
            f"the script has written nothing for {allowed:g} s (silence_seconds) and was ended"
        )

    def _shows_life(self) -> bool:
        """Whether the curve's file or a checkpoint was changed since this was asked last, or not long ago."""
        assert self._rows is not None
        folder = self.folder / CHECKPOINTS
        found = (self._rows.changed(), *(path.stat().st_mtime for path in folder.iterdir()))
        now = time.monotonic()
        if found != self._signs:
            self._signs, self._signs_at = found, now
        return now - self._signs_at < self.settings.silence_seconds

    def _read_from(self, attempt: int, folder: Path, place: dict[str, Any] | None = None) -> None:
        self.reading = attempt
        self._place = place or {}
        # A script that goes on with a file from its checkpoints goes back in it, each time.
        restarts = 0 if self.settings.resume == "none" else attempt - 1
        self._rows = Rows(self.settings.curve, self._curve_file(folder), place or None, restarts)

    def _pass_over(self) -> None:
        """Rows that came with the checkpoints of the attempt before."""
        assert self._rows is not None
        try:
            self._rows.pass_over()
        except RowsError as error:
            raise TrainingFailedError(str(error)) from None
        self._place = self._rows.place()

    def _looks(self, last: bool) -> Generator[Progress, None, None]:
        """The rows that are new. A checkpoint that is made between two of them has none of them: they are read again."""
        assert self._rows is not None
        try:
            rows = self._rows.read(last)
        except RowsError as error:
            raise TrainingFailedError(str(error)) from None
        for row in rows:
            yield self._progress(row)
        if rows:
            self._place = self._rows.place()

    def _progress(self, row: Row) -> Progress:
        self.step = row.step
        score = self._score_of(row)
        self._score = score or self._score
        return Progress(
            step=row.step,
            loss=row.loss,
            metrics=row.metrics,
            score=score,
            validation_loss=row.validation_loss,
        )

    def _score_of(self, row: Row) -> Score | None:
        """Of the items, where the script tells them; else of the one value."""
        score = None
        if row.errors is not None and row.lengths is not None:
            score = Score(row.errors, row.lengths)
        value = row.value if row.value is not None or score is None else score.value
        if value is None:
            return None
        if fault := out_of_bounds(value, self.settings.metric):
            raise TrainingFailedError(f"{fault}: {row.line!r}")
        if score is None or not math.isfinite(value):
            return Score.of(value)
        if abs(score.value - value) > MOST_APART * max(1.0, abs(value)):
            raise TrainingFailedError(
                f"errors and lengths give {self.settings.metric.name} {score.value:g}, but the value is {value:g}: {row.line!r}"
            )
        return score

    # ---- what its end means

    def _judged(self, end: End) -> Looks:
        """Nothing for a training that has come to its end."""
        # Some scripts count from 0.
        whole = end.code == 0 and self.step >= self.config.steps - 1
        if not whole:
            yield from self._asked_to_leave()
        if not whole and (line := self._says_diverged(end)):
            yield Progress(self.step, None, diverged=f"the script says {line!r}")
            return
        if end.stopped and not whole:
            raise TrainingFailedError("the script was asked to end, not by its worker", lost=True)
        if end.code != 0:
            raise self._trouble(end)
        if end.rows_error:
            raise TrainingFailedError(f"lines of the output are lost: {end.rows_error}")
        if self._score is None:
            raise TrainingFailedError(self._nothing_found(end))
        if not whole:
            steps = self.config.steps
            log.warning(
                "trial %d: the script ended at step %d of %d", self.site.trial, self.step, steps
            )

    def _asked_to_leave(self) -> Looks:
        """A scheduler tells all processes of a job at once: the worker may be about to hand the trial back.

        A script that obeys such a signal and ends well has not come to the end of its training.
        """
        until = time.monotonic() + ASKED_SECONDS
        while time.monotonic() < until:
            yield Waiting()
            time.sleep(POLL_SECONDS)

    def _says_diverged(self, end: End) -> str:
        pattern = self.settings.diverged
        lines = end.tail.splitlines()
        return next(
            (
                line.strip()[:200]
                for line in reversed(lines)
                if pattern and re.search(pattern, line)
            ),
            "",
        )

    def _trouble(self, end: End) -> Exception:
        said = end.last_lines(SHOWN_LINES)
        memory = self.settings.memory
        if OUT_OF_MEMORY.search(end.tail) or (memory and re.search(memory, end.tail)):
            return MemoryError(said)
        if end.error:
            return TrainingFailedError(f"the script cannot be started: {end.error}")
        if end.signal:
            lost = end.signal in FROM_OUTSIDE
            return TrainingFailedError(
                f"the script was ended by {end.signal}; it said last: {said}", lost=lost
            )
        return TrainingFailedError(
            f"the script ended with exit code {end.code}; it said last: {said}"
        )

    def _nothing_found(self, end: End) -> str:
        curve = self.settings.curve
        if curve.file == OUTPUT:
            what = f"no line of its output matches {curve.pattern[0]}"
            advice = nearest(curve.pattern[0], end.tail.splitlines())
        else:
            what = f"{curve.file} has no row with a value"
            advice = self._rows.advice() if self._rows else ""
        parts = [
            f"the script ended well, but {what}",
            advice,
            f"It said last: {end.last_lines(SHOWN_LINES)}",
        ]
        return ". ".join(part.rstrip(".") for part in parts if part)


def nearest(pattern: str, lines: Sequence[str]) -> str:
    """How far a pattern matches a line, of those that it matches furthest; empty: no line has its beginning."""
    for length in range(len(pattern) - 1, MOST_SHARED, -1):
        try:
            beginning = re.compile(pattern[:length])
        except re.error:
            continue
        for line in lines:
            if (match := beginning.search(line)) and match.group():
                rest, after = pattern[length:][:30], line[match.end() :][:30]
                return (
                    f"It matches up to {_blanks(match.group())!r}; then the pattern has {_blanks(rest)!r}, "
                    f"and the line {_blanks(after)!r}"
                )
    return ""


def _blanks(text: str) -> str:
    """With several blanks in a row made visible."""
    return re.sub(r" {2,}", lambda blanks: "\N{OPEN BOX}" * len(blanks.group()), text)


def out_of_bounds(value: float, metric: Metric) -> str:
    """Why a value cannot be of this metric; empty: it can. An error rate may be above 1 early in a training."""
    if not metric.bounded:
        return ""
    if value < 0 or (metric.direction == "maximize" and value > 1):
        return f"{metric.name} {value:g} is outside of 0 to 1 (metric: bounded)"
    if value > SURELY_PERCENT:
        return f"{metric.name} {value:g} is no fraction of 1. If it is percent: curve: {{expression: value / 100}}"
    return ""


def _one_line(text: str) -> str:
    return " ".join(text.split())
