"""Studies of the stand-in scripts, for tests."""

import shutil
import sys
from pathlib import Path
from typing import Any

import torch

import hpo.script
from helpers.paths import STAND_INS
from hpo.curve import Point
from hpo.report.export import as_yaml_text
from hpo.space.load import load_spec
from hpo.store.database import Database
from hpo.study.study import Study
from hpo.study.trial import Record
from hpo.worker.dataset import look_at_data
from hpo.worker.worker import run_worker

HELPER = Path(str(hpo.script.__file__)).parent / "hpo_report.py"


def study_file(folder: Path, section: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A study of `many_ways/train.py`.

    `section` replaces keys of `script:`, `changes` keys of the file; None removes a key.
    """
    code = folder / "code"
    if not code.exists():
        shutil.copytree(STAND_INS / "many_ways", code)
        shutil.copy(HELPER, code)
    script: dict[str, Any] = {
        "code": "code",
        "command": [sys.executable, "{code}/train.py"],
        "config": {"from": "{code}/base.json", "file": "train.json"},
        "metric": {"name": "PER", "unit": "percent"},
        "steps": "steps",
        "seed": "seed",
        "grace_seconds": 5,
        "silence_seconds": 60,
    }
    content: dict[str, Any] = {
        "script": _with_changes(script, section or {}),
        "parameters": {"lr": {"low": 0.005, "high": 0.05, "log": True}},
        "starts": {"published": {"lr": 0.02}},
        "budget": {"trials": 1},
    }
    path = folder / "study.yaml"
    path.write_text(as_yaml_text(_with_changes(content, changes)))
    return path


def create_study(database: Database, path: Path, name: str = "script") -> Study:
    spec = load_spec(path)
    return Study.create_or_open(database, name, spec, look_at_data(None, spec).facts)


def trained(database: Database, path: Path, name: str = "script") -> Record:
    """The first trial of a study, after a worker in this process has run all of them."""
    study = create_study(database, path, name)
    run_worker(study, None, torch.device("cpu"), 1, lambda: False)
    return study.records()[0]


def curve_of(study: Study, record: Record) -> list[Point]:
    return study.curves([record])[record.number]


def values(points: list[Point]) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in points]


def scripts_running(folder: Path) -> list[int]:
    """The ids of running processes that are scripts of attempts in this folder."""
    running = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes().decode(errors="replace")
            state = (entry / "stat").read_text().rpartition(") ")[2][0]
        except OSError:
            continue
        if f"HPO_FOLDER={folder}" in environment and state not in "ZX":
            running.append(int(entry.name))
    return running


def _with_changes(content: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in (content | changes).items() if value is not None}
