"""Runs a training script as a Training: starts it, follows its progress, and judges its end."""

import json
import logging
import time
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

from hpo.errors import StudyError
from hpo.script.attempt_folders import AttemptFolders
from hpo.script.code import code_state
from hpo.script.config import ScriptConfig
from hpo.script.data import ScriptData
from hpo.script.endings import divergence_line, failure, no_value_message
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
from hpo.script.rendering import Attempt, Rendered, render
from hpo.script.row import Row, RowsError
from hpo.script.rows import Rows
from hpo.script.scores import score_of
from hpo.script.section import CompleteScript
from hpo.script.settings import CHECKPOINTS, COMMAND, OUTPUT
from hpo.trainer import (
    Progress,
    Score,
    Site,
    TrainingFailedError,
    TrainingHangsError,
    Waiting,
)

# Between two looks at a running script.
POLL_SECONDS = 0.2
# A signal that ends both the script and the worker reaches the worker within this time.
SIGNAL_SECONDS = 1.0
log = logging.getLogger(__name__)
Looks = Generator[Progress | Waiting, None, None]


class ScriptTraining:
    """One attempt at a trial. Its files are in `attempt-N` in the trial's folder."""

    def __init__(
        self, settings: CompleteScript, config: ScriptConfig, data: ScriptData, site: Site
    ):
        self.settings = settings
        self.config = config
        self.data = data
        self.site = site
        self.step = 0
        self._folders = AttemptFolders(site)
        self.folder = self._folders.own
        # The attempt whose rows are being read.
        self.attempt_being_read = site.attempt
        self._rows: Rows | None = None
        # Where to continue in the rows. It moves on only after all rows of a look were yielded.
        self._place: dict[str, Any] = {}
        # From the saved state: the attempt that was being read, and the place in its rows.
        self._saved_attempt = 0
        self._saved_place: dict[str, Any] = {}
        self._score: Score | None = None
        # When the curve's file and the checkpoints last changed, and when that was noticed.
        self._change_times: list[float] = []
        self._noticed_at = 0.0

    # ---- as a Training

    def state_dict(self) -> dict[str, Any]:
        """How far the rows were read. What the script has learned is in its own checkpoints."""
        score = []
        if self._score:
            score = [list(self._score.errors), list(self._score.lengths)]
        return {
            "attempt": self.attempt_being_read,
            "step": self.step,
            "rows": json.dumps(self._place),
            "score": score,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        if self.settings.resume == "none" or not self._folders.last_checkpoints():
            return
        self._saved_attempt = saved["attempt"]
        self._saved_place = json.loads(saved["rows"])
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
            self._folders.remove_earlier()
        else:
            is_complete = yield from self._earlier_progress()
            if is_complete:
                return
        rendered = self._prepare_folder()
        self._open_rows(self.site.attempt, self.folder)
        self._skip_inherited_rows()
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
        current = code_state(Path(self.settings.code)).digest
        if current != self.data.code:
            raise StudyError(
                f"{self.settings.code}: the code has changed while the study runs "
                f"(state {self.data.code}, now {current}). Restore that state and run the same "
                f"command again, or start the workers with --allow-different-code"
            )

    def _earlier_progress(self) -> Generator[Progress | Waiting, None, bool]:
        """Yield what earlier attempts wrote after the saved state.

        Returns whether the last of them completed the training without anybody noting it.
        """
        is_complete = False
        for attempt in self._folders.earlier():
            if attempt < self._saved_attempt:
                continue
            folder = self._folders.of(attempt)
            place = self._saved_place if attempt == self._saved_attempt else None
            self._open_rows(attempt, folder, place)
            try:
                yield from self._new_progress(last=True)
            except TrainingFailedError as error:
                log.warning("trial %d: attempt %d: %s", self.site.trial, attempt, error)
            is_complete = _ended_by_itself(end_of(folder)) and self._score is not None
        return is_complete

    def _prepare_folder(self) -> Rendered:
        """Make the attempt's folder, complete or not at all."""
        draft = self._folders.new_draft()
        checkpoints = draft / CHECKPOINTS
        resuming = False
        if self.settings.resume != "none":
            resuming = self._folders.copy_last_checkpoints(checkpoints)
        if not resuming:
            checkpoints.mkdir()
        attempt = Attempt(self.site, self.folder, self.data.path, resuming)
        rendered = render(self.settings, self.config, attempt)
        for name, content in rendered.files.items():
            path = draft / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        (draft / COMMAND).write_text(rendered.shell_line() + "\n", encoding="utf-8")
        draft.rename(self.folder)
        return rendered

    def _job(self, rendered: Rendered) -> Job:
        patterns: tuple[str, ...] = ()
        if self.settings.curve.file == OUTPUT:
            patterns = tuple(self.settings.curve.pattern)
        return Job(
            command=rendered.command,
            folder=self.folder,
            environment=script_environment(rendered.environment, self.site.secrets),
            log=self.site.log,
            log_bytes=int(self.settings.log_megabytes * 1e6),
            grace_seconds=self.settings.grace_seconds,
            patterns=patterns,
        )

    # ---- while it runs

    def _follow(self, running: Running) -> Looks:
        resumes = self.step > 0
        while True:
            # Ask before reading the rows, so that the last rows are not missed.
            end = running.end()
            for progress in self._new_progress(last=end is not None):
                if resumes:
                    yield Waiting(resumes_at=progress.step)
                    resumes = False
                yield progress
            if end is not None:
                yield from self._judge(end)
                return
            self._check_silence(running)
            yield Waiting()
            time.sleep(POLL_SECONDS)

    def _check_silence(self, running: Running) -> None:
        """End a script that has been silent for too long. Raises TrainingHangsError."""
        allowed = self.settings.silence_seconds
        if time.monotonic() - running.written() < allowed or self._changes_files():
            return
        running.stop()
        raise TrainingHangsError(
            f"the script has written nothing for {allowed:g} s (silence_seconds) and was ended"
        )

    def _changes_files(self) -> bool:
        """Whether a change of the curve's file or a checkpoint was noticed in `silence_seconds`."""
        assert self._rows is not None
        times = [self._rows.changed(), *_change_times(self.folder / CHECKPOINTS)]
        now = time.monotonic()
        if times != self._change_times:
            self._change_times = times
            self._noticed_at = now
        return now - self._noticed_at < self.settings.silence_seconds

    def _curve_file(self, folder: Path) -> Path:
        if self.settings.curve.file == OUTPUT:
            return folder / ROWS_FILE
        return folder / self.settings.curve.file

    def _open_rows(self, attempt: int, folder: Path, place: dict[str, Any] | None = None) -> None:
        self.attempt_being_read = attempt
        self._place = place or {}
        # A script that continues a file from its checkpoints may go back in it at each restart.
        restarts = 0 if self.settings.resume == "none" else attempt - 1
        self._rows = Rows(self.settings.curve, self._curve_file(folder), place or None, restarts)

    def _skip_inherited_rows(self) -> None:
        """Skip rows that came along with the checkpoints of the attempt before."""
        assert self._rows is not None
        try:
            self._rows.pass_over()
        except RowsError as error:
            raise TrainingFailedError(str(error)) from None
        self._place = self._rows.place()

    def _new_progress(self, last: bool) -> Generator[Progress, None, None]:
        """Yield the new rows. A state that is saved in between has none of them.

        last: the file is complete.
        """
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
        score = score_of(row, self.settings.metric)
        self._score = score or self._score
        return Progress(
            step=row.step,
            loss=row.loss,
            metrics=row.metrics,
            score=score,
            validation_loss=row.validation_loss,
        )

    # ---- after its end

    def _judge(self, end: End) -> Looks:
        """Yield nothing for a complete training. Raises TrainingFailedError or MemoryError."""
        # Some scripts count from 0.
        is_complete = end.code == 0 and self.step >= self.config.steps - 1
        if not is_complete:
            yield from self._await_signal()
            line = divergence_line(end, self.settings.diverged)
            if line:
                yield Progress(self.step, None, diverged=f"the script says {line!r}")
                return
            if end.stopped:
                raise TrainingFailedError(
                    "the script was stopped, but not by its worker", lost=True
                )
        if end.code != 0:
            raise failure(end, self.settings.memory)
        if end.rows_error:
            raise TrainingFailedError(f"lines of the output are lost: {end.rows_error}")
        if self._score is None:
            advice = self._rows.advice() if self._rows else ""
            raise TrainingFailedError(no_value_message(end, self.settings.curve, advice))
        if not is_complete:
            log.warning(
                "trial %d: the script ended at step %d of %d",
                self.site.trial,
                self.step,
                self.config.steps,
            )

    def _await_signal(self) -> Looks:
        """Give the worker time to receive a signal that may have ended the script.

        A scheduler signals all processes of a job at once. The worker may be about to hand the
        trial back, and a script that obeys such a signal has not completed its training.
        """
        deadline = time.monotonic() + SIGNAL_SECONDS
        while time.monotonic() < deadline:
            yield Waiting()
            time.sleep(POLL_SECONDS)


def _change_times(folder: Path) -> list[float]:
    """When each file of a folder that a script writes to was last changed.

    A script may rename or remove a file, or the folder, while this looks.
    """
    times: list[float] = []
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError):
                times.append(path.stat().st_mtime)
    return times


def _ended_by_itself(end: End | None) -> bool:
    """Whether a script ended successfully, without being stopped."""
    return end is not None and end.code == 0 and not end.stopped
