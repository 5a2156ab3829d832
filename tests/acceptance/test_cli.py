"""What a person gets wrong, or asks of what is not there, on the command line."""

import os
from pathlib import Path

import pytest
from helpers.commands import Done, asked, one_line
from helpers.studies import TINY
from sqlalchemy import make_url

from hpo.store.database import Database


def launch_with(space: Path, data: Path, *more: str) -> Done:
    return asked("launch", "--study", space, "--data", data, "--device", "cpu", *more)


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (("--workers", "0"), ("--workers 0", "valid is 1 or more")),
        (("--name", "a/b"), ("study name 'a/b'", "Valid: letters")),
        (("--profile", "dmeo"), ("--profile", "'dmeo'")),
        (
            ("--set", "model.unit=3"),
            ("--set model.unit: there is no 'model.unit'", "Did you mean model.units?"),
        ),
        (("--set", "model.units=many"), ("--set model.units", "'many'")),
        (("--trials", "-1"), ("trials", "greater than or equal to 0")),
        (("--device", "gpu"), ("--device gpu", "Valid: cpu, cuda")),
        (("--database", "sqlite:///x"), ("sqlite is not supported", "postgresql://")),
    ],
)
def test_mistakes_on_the_command_line(
    database: Database,
    tiny_space: Path,
    tiny_data: Path,
    more: tuple[str, ...],
    parts: tuple[str, ...],
) -> None:
    one_line(launch_with(tiny_space, tiny_data, *more), 2, *parts)


def test_mistakes_in_files(
    database: Database, tiny_space: Path, tiny_data: Path, tmp_path: Path
) -> None:
    one_line(launch_with(Path("lr-agu"), tiny_data), 2, "Did you mean lr-aug?")
    one_line(launch_with(tiny_space, tmp_path / "nothing"), 2, "no such file")
    cut = tmp_path / "cut"
    cut.write_bytes(tiny_data.read_bytes()[:500])
    one_line(launch_with(tiny_space, cut), 2, "not a whole pickle (500 bytes")
    tiny_space.write_text(TINY.replace("optimizer.lr:", "optimizer.rl:", 1))
    one_line(launch_with(tiny_space, tiny_data), 2, "parameters.optimizer.rl", "Valid: ")


def test_what_the_machine_lacks(
    database: Database, tiny_space: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = make_url(database.url).set(port=1).render_as_string(hide_password=False)
    monkeypatch.setenv("HPO_DATABASE_URL", gone)
    one_line(launch_with(tiny_space, tiny_data), 1, "Connection refused")
    missing = make_url(database.url).set(database="nowhere").render_as_string(hide_password=False)
    monkeypatch.setenv("HPO_DATABASE_URL", missing)
    one_line(launch_with(tiny_space, tiny_data), 1, 'database "nowhere" does not exist')
    monkeypatch.setenv("HPO_DATABASE_URL", database.url)
    one_line(
        asked("launch", "--study", tiny_space, "--data", tiny_data, "--device", "cuda:7"),
        1,
        "cuda:7",
        "CUDA devices",
    )
    monkeypatch.delenv("HPO_DATABASE_URL")
    monkeypatch.setenv("HPO_HOME", "/proc/hpo")
    one_line(launch_with(tiny_space, tiny_data), 1, "HPO_HOME /proc/hpo: cannot be written")


def test_a_study_that_fails_too_often_says_so(
    database: Database, tiny_data: Path, tmp_path: Path
) -> None:
    """Nesterov needs momentum; the space allows them apart, so some draws are no valid configuration."""
    space = tmp_path / "odd.yaml"
    sizes = TINY.splitlines()[1].replace("base: {", "base: {optimizer.name: sgd, ")
    choices = "  optimizer.momentum: {choices: [0.0, 0.9]}\n  optimizer.nesterov: {choices: [false, true]}"
    space.write_text(f"{sizes}\nparameters:\n{choices}\nbudget: {{trials: 40, failures: 0}}\n")
    done = launch_with(space, tiny_data, "--workers", "1")
    one_line(done, 1, "study odd is not done: 1 trial failed, more than the budget's 0")
    assert "optimizer.nesterov needs optimizer.momentum above 0" in done.stdout


def test_questions_about_what_is_not_there(database: Database, tmp_path: Path) -> None:
    for command in (("status",), ("report",), ("export", "--out", tmp_path / "x"), ("worker",)):
        one_line(
            asked(*command, "--study", "nothing"), 2, "no study 'nothing'", "hpo launch makes one"
        )


def test_a_home_where_nothing_can_be_written_below(
    database: Database, tiny_space: Path, tiny_data: Path
) -> None:
    home = Path(os.environ["HPO_HOME"])
    home.mkdir()
    (home / "studies").touch()
    one_line(launch_with(tiny_space, tiny_data), 1, str(home / "studies"))


def test_the_embedded_database_has_a_status_and_stops(
    private_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_HOME", str(private_folder / "cli-home"))
    assert asked("database", "status").stdout.startswith("not running; data in ")
    one_line(asked("report", "--study", "none-yet"), 2, "There are: none")  # asking starts it
    assert asked("database", "status").stdout.startswith("running at 127.0.0.1:")
    assert asked("database", "stop").stdout == "stopped\n"
    assert asked("database", "stop").stdout == "it was not running\n"
