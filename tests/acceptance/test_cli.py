"""Mistakes on the command line: each is answered in one line."""

import os
from pathlib import Path

import pytest
from helpers.commands import launch, one_line, run_hpo
from helpers.studies import TINY
from sqlalchemy import make_url

from hpo.store.database import Database


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "parts"),
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
@pytest.mark.usefixtures("database")
def test_a_mistake_in_an_option_is_one_line(
    tiny_space: Path, tiny_data: Path, option: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    one_line(launch(tiny_space, tiny_data, *option), 2, *parts)


@pytest.mark.usefixtures("database")
def test_a_mistake_in_a_file_is_one_line(tiny_space: Path, tiny_data: Path, tmp_path: Path) -> None:
    one_line(launch(Path("lr-agu"), tiny_data), 2, "Did you mean lr-aug?")
    one_line(launch(tiny_space, tmp_path / "nothing"), 2, "no such file")
    cut = tmp_path / "cut"
    cut.write_bytes(tiny_data.read_bytes()[:500])
    one_line(launch(tiny_space, cut), 2, "not a whole pickle (500 bytes")
    tiny_space.write_text(TINY.replace("optimizer.lr:", "optimizer.rl:", 1))
    one_line(launch(tiny_space, tiny_data), 2, "parameters.optimizer.rl", "Valid: ")


def test_a_missing_database_device_or_home_is_one_line(
    database: Database, tiny_space: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unreachable = make_url(database.url).set(port=1).render_as_string(hide_password=False)
    monkeypatch.setenv("HPO_DATABASE_URL", unreachable)
    one_line(launch(tiny_space, tiny_data), 1, "Connection refused")
    missing = make_url(database.url).set(database="nowhere").render_as_string(hide_password=False)
    monkeypatch.setenv("HPO_DATABASE_URL", missing)
    one_line(launch(tiny_space, tiny_data), 1, 'database "nowhere" does not exist')
    monkeypatch.setenv("HPO_DATABASE_URL", database.url)
    without_gpu = run_hpo(
        "launch", "--study", tiny_space, "--data", tiny_data, "--device", "cuda:7"
    )
    one_line(without_gpu, 1, "cuda:7", "CUDA devices")
    monkeypatch.delenv("HPO_DATABASE_URL")
    monkeypatch.setenv("HPO_HOME", "/proc/hpo")
    one_line(launch(tiny_space, tiny_data), 1, "HPO_HOME /proc/hpo: cannot be written")


# Nesterov needs momentum. Here they are searched apart, so some draws are not valid.
ODD = """
base: {optimizer.name: sgd, model.layers: 1, model.units: 8, model.kernel: 4, model.stride: 2,
       batch_size: 4, steps: 6, evaluate_every: 2}
parameters:
  optimizer.momentum: {choices: [0.0, 0.9]}
  optimizer.nesterov: {choices: [false, true]}
budget: {trials: 40, failures: 0}
"""


@pytest.mark.slow
@pytest.mark.usefixtures("database")
def test_a_study_that_fails_too_often_says_so(tiny_data: Path, tmp_path: Path) -> None:
    space = tmp_path / "odd.yaml"
    space.write_text(ODD)
    done = launch(space, tiny_data, "--workers", "1")
    one_line(done, 1, "study odd is not done: 1 trial failed, more than the budget's 0")
    assert "optimizer.nesterov needs optimizer.momentum above 0" in done.stdout


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize(
    "command", [("status",), ("report",), ("export", "--out", "x"), ("worker",)]
)
def test_a_study_that_does_not_exist_is_one_line(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run_hpo(*command, "--study", "nothing")
    one_line(done, 2, "no study 'nothing'", "hpo launch makes one")


@pytest.mark.usefixtures("database")
def test_a_home_without_room_for_studies_is_one_line(tiny_space: Path, tiny_data: Path) -> None:
    home = Path(os.environ["HPO_HOME"])
    home.mkdir()
    (home / "studies").touch()
    one_line(launch(tiny_space, tiny_data), 1, str(home / "studies"))


@pytest.mark.slow
def test_the_embedded_database_shows_its_status_and_stops(
    private_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_HOME", str(private_folder / "cli-home"))
    assert run_hpo("database", "status").stdout.startswith("not running; data in ")
    # A command that needs the database starts it.
    one_line(run_hpo("report", "--study", "none-yet"), 2, "There are: none")
    assert run_hpo("database", "status").stdout.startswith("running at 127.0.0.1:")
    assert run_hpo("database", "stop").stdout == "stopped\n"
    assert run_hpo("database", "stop").stdout == "it was not running\n"
