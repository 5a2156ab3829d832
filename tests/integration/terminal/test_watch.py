"""Watching a study: its snapshot, the screen of 80 columns, lines for a pipe, a trial's log."""

import io
import logging
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.commands import invoke
from helpers.lines import refusal
from helpers.studies import DIVERGED, HERE, claim, completed, report
from rich.console import Console
from sqlalchemy import event

from hpo.process import this_host
from hpo.space.spec import StudySpec
from hpo.study import control
from hpo.study.logs import log_path, logged
from hpo.study.paths import study_folder
from hpo.study.study import Study
from hpo.terminal.live import changes, sparkline, watch_picture
from hpo.terminal.snapshot import Snapshot, snapshot

Make = Callable[..., Study]


@pytest.fixture
def study(make_study: Make, tiny_spec: StudySpec) -> Study:
    """One complete, one stopped, one running with two evaluations."""
    study = make_study(tiny_spec)
    assert study.finish(claim(study), completed(0.25))
    assert study.finish(claim(study), DIVERGED)
    trial = claim(study)
    assert report(study, trial, 2, 0.5, 1.0)
    assert report(study, trial, 4, 0.4, 2.0)
    return study


def screen(seen: Snapshot, height: int = 24) -> list[str]:
    console = Console(width=80, file=io.StringIO(), color_system=None)
    with console.capture() as capture:
        console.print(watch_picture(seen, height, None))
    return capture.get().splitlines()


def test_a_snapshot_shows_what_the_records_hold(study: Study) -> None:
    seen = snapshot(study)
    (running,) = seen.running
    assert (running.number, running.host) == (2, this_host())
    assert (running.step, running.steps, running.values) == (4, 6, (0.5, 0.4))
    assert 0 <= running.lease_age < 60
    ended = [(trial.number, trial.state, trial.value, trial.reason) for trial in seen.ended]
    assert ended == [(1, "stopped", None, "PER rose"), (0, "complete", 0.25, "")]
    assert seen.best == (0, 0.25)
    values_of_starts = {name: start.value for name, start in seen.starts.items()}
    assert values_of_starts == {"baseline": 0.25, "slow": None}
    assert (seen.spent.ended, seen.waiting, seen.halt) == (2, 0, None)


@pytest.mark.slow
def test_the_number_of_queries_for_a_snapshot_does_not_grow_with_trials(study: Study) -> None:
    def queries() -> int:
        statements: list[str] = []

        def note(connection: object, cursor: object, statement: str, *more: object) -> None:
            statements.append(statement)

        event.listen(study.engine, "before_cursor_execute", note)
        snapshot(study)
        event.remove(study.engine, "before_cursor_execute", note)
        return len(statements)

    before = queries()
    study.change_budget({"trials": "20"})
    for _ in range(8):
        study.finish(claim(study, replace(HERE, identity="other")), completed(0.3))
    assert queries() == before


def test_the_screen_fits_its_terminal(study: Study) -> None:
    lines = [line.rstrip() for line in screen(snapshot(study))]
    assert lines[0] == "s: 2/4 trials done, 1 running, 0 waiting, best PER 25.00 % (trial 0)"
    assert lines[1].startswith("budget 4 trials; spent 0")
    # 2 + 6 steps, 0.5 s each.
    assert lines[1].endswith("; about 4 s to go")
    row = next(line.split() for line in lines if line.startswith("    2 "))
    assert [*row[:3], *row[-3:]] == ["2", this_host(), "cpu", "40.0", "%", "█▁"]
    assert "4/6" in row
    # Steps a second, at the 0.5 s a step of `point`.
    assert "2.00" in row
    assert "    1 stopped: PER rose" in lines

    seen = snapshot(study)
    crowd = replace(seen, running=seen.running * 64, ended=seen.ended * 10)
    for height in (24, 10):
        shown = screen(crowd, height)
        assert len(shown) <= height
        assert max(map(len, shown)) <= 80
        assert any(line.startswith("and ") for line in shown)


def test_the_screen_shows_the_memory_of_a_worker(study: Study) -> None:
    study.change_budget({"trials": "5"})
    trial = claim(study, replace(HERE, identity="other"))
    assert study.deliver(trial, [], 1, 1.0, 3 * 2**29)
    (row,) = [line.split() for line in screen(snapshot(study)) if line.startswith("    3 ")]
    # There is no evaluation yet.
    assert row == ["3", this_host(), "cpu", "1/6", "1.5", "0", "s"]
    assert "GiB" in " ".join(screen(snapshot(study)))


def test_a_sparkline_has_a_block_per_value() -> None:
    assert sparkline([]) == ""
    assert sparkline([0.5]) == "▁"
    assert sparkline([1.0, 0.5, 0.0]) == "█▅▁"
    assert sparkline([1, 2, 3], 2) == "▁█"


def test_each_change_is_a_line(study: Study) -> None:
    first = snapshot(study)
    assert [line.split(";")[0] for line in changes(None, first)] == [
        "trial 0 (baseline) complete PER 25.00 %",
        "trial 1 (slow) stopped: PER rose",
        f"trial 2 is running on {this_host()} cpu",
    ]
    assert changes(first, snapshot(study)) == []
    control.halt(study, "paused", "lunch")
    control.kill(study, 2)
    last = snapshot(study)
    killed, halted = changes(first, last)
    assert killed.startswith(f"trial 2 stopped: by hand, {control.current_user()}; 3/4 trials done")
    assert halted == f"the study is {last.halt}"


def test_a_pipe_gets_plain_lines_until_the_study_is_over(study: Study) -> None:
    control.kill(study, 2)
    study.change_budget({"trials": "3"})
    done = invoke("status", "--study", "s", "--watch")
    assert done.exit_code == 0
    assert "\x1b" not in done.stdout
    assert [line.split(";")[0].split()[1] for line in done.stdout.splitlines()] == ["0", "1", "2"]
    both = refusal("status", "--study", "s", "--watch", "--json")
    assert "--watch with --json: give one of the two" in both


@pytest.mark.slow
def test_the_screen_comes_and_goes_with_a_key(study: Study) -> None:
    screen_end, process_end = pty.openpty()
    command = [sys.executable, "-m", "hpo.cli", "status", "--study", "s", "--watch"]
    process = subprocess.Popen(
        command,
        stdin=process_end,
        stdout=process_end,
        stderr=process_end,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "80"},
    )
    os.close(process_end)
    output = b""
    deadline = time.monotonic() + 100

    def read_until(part: bytes) -> None:
        nonlocal output
        while part not in output:
            assert select.select([screen_end], [], [], deadline - time.monotonic())[0], output
            output += os.read(screen_end, 65536)

    read_until(b"1 running")
    # A screen of its own.
    assert b"\x1b[?1049h" in output
    os.write(screen_end, b"q")
    read_until(b"\x1b[?1049l")
    assert process.wait(30) == 0
    os.close(screen_end)


# ---- logs

LINES = """\
2030-01-01 09:00:00,000 trial 2: begins (start slow)
2030-01-01 09:00:09,000 trial 2: interrupted (a signal)
2030-01-01 10:00:02,000 trial 2: begins
2030-01-01 10:00:03,000 trial 2
Traceback (most recent call last):
ValueError: no
"""


def test_the_log_of_a_trial_is_its_file(study: Study) -> None:
    folder = study_folder(study) / "logs"
    folder.mkdir(parents=True)
    path = folder / "trial-2.log"
    path.write_text(LINES + "half a li")
    (folder / "trial-12.log").write_text("2030-01-01 10:00:04,000 trial 12: begins\n")
    done = invoke("logs", "--study", "s", "--trial", "2")
    assert done.stdout == LINES
    assert done.stderr == ""
    missing = invoke("logs", "--study", "s", "--trial", "0")
    assert missing.stdout == ""
    place = folder / "trial-0.log"
    elsewhere = f"1 of 1 attempts are not in {place} here. Look in {this_host()}:{place}"
    assert elsewhere in missing.stderr
    assert "there is no trial 9" in refusal("logs", "--study", "s", "--trial", "9")


def test_log_lines_of_a_trial_go_to_its_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = log_path(tmp_path, 3)
    log = logging.getLogger("hpo.worker")
    for attempt in (1, 2):
        with logged(path), caplog.at_level("INFO"):
            log.info("trial 3: begins %d", attempt)
            try:
                raise ValueError("no")
            except ValueError:
                log.exception("trial 3")
        log.info("of another trial")
    text = path.read_text()
    begins = [line.split(",")[1][4:] for line in text.splitlines() if "begins" in line]
    assert begins == ["trial 3: begins 1", "trial 3: begins 2"]
    assert text.count("ValueError: no") == 2
    assert "another" not in text
    (tmp_path / "file").touch()
    with logged(log_path(tmp_path / "file", 3)):
        log.info("goes on")
    assert "cannot be written" in caplog.text


@pytest.mark.slow
def test_a_log_is_followed_until_its_trial_is_over(study: Study) -> None:
    folder = study_folder(study) / "logs"
    folder.mkdir(parents=True)
    path = folder / "trial-2.log"
    path.write_text("2030-01-01 10:00:02,000 trial 2: begins\n")
    command = [sys.executable, "-m", "hpo.cli", "logs", "--study", "s", "--trial", "2", "-f"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().endswith("trial 2: begins\n")
    with path.open("a") as file:
        file.write("2030-01-01 10:00:03,000 trial 2: more\n")
    assert process.stdout.readline().endswith("trial 2: more\n")
    control.kill(study, 2)
    assert process.wait(60) == 0
    process.stdout.close()
