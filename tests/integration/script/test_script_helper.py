"""hpo_report.py beside a script, in its own processes and with every installed Python."""

import ast
import json
import math
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import hpo.script

HELPER = Path(str(hpo.script.__file__)).parent / "hpo_report.py"


def pythons() -> list[str]:
    """This Python, and one of each version from 3.6 on that this machine has."""
    versions = [f"python3.{minor}" for minor in range(6, 15)]
    by_pyenv = Path.home() / ".pyenv/versions"
    paths = [sys.executable]
    for version in versions:
        installed = sorted(by_pyenv.glob(f"*/bin/{version}"))
        path = str(installed[0]) if installed else shutil.which(version)
        if path and path not in paths and works(path):
            paths.append(path)
    return paths


def works(python: str) -> bool:
    """pyenv may have a shim for a version that is not installed."""
    return subprocess.run([python, "-c", ""], capture_output=True).returncode == 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(HELPER, tmp_path / "hpo_report.py")
    return tmp_path


def run(folder: Path, script: str, python: str = sys.executable, **variables: str) -> str:
    """Write a script and run it. Returns what it prints."""
    (folder / "train.py").write_text(f"import hpo_report\n{script}")
    return run_written(folder, python, **variables)


def run_written(folder: Path, python: str = sys.executable, **variables: str) -> str:
    """Run the script that is in the folder. Returns what it prints."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HPO_")}
    done = subprocess.run(
        [python, "train.py"],
        cwd=folder,
        env=clean | {"PYTHONDONTWRITEBYTECODE": "1"} | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def rows(folder: Path) -> list[Any]:
    text = (folder / "metrics.jsonl").read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def in_a_trial(folder: Path) -> dict[str, str]:
    config = {"lr": 1e-05, "model": {"name": "é", "layers": [1, 2]}, "eps": math.inf}
    (folder / "config.json").write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
    return {
        "HPO_CONFIG": str(folder / "config.json"),
        "HPO_METRICS": str(folder / "metrics.jsonl"),
        "HPO_CHECKPOINTS": str(folder / "checkpoints"),
        "HPO_STOP": str(folder / "stop"),
        "HPO_RESUME": "",
        "HPO_SEED": "17",
    }


def test_the_helper_is_short_runs_on_python_3_6_and_needs_no_package() -> None:
    text = HELPER.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 90
    tree = ast.parse(text, feature_version=(3, 6))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module))
    assert imported == {"json", "os", "pathlib", "typing"}
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert all(ast.get_docstring(function) for function in functions)


OUTSIDE = """
print(hpo_report.config(), hpo_report.config({"lr": 1}))
print(hpo_report.report(1, 0.5, loss=2.0), hpo_report.report("no step", object()))
print(hpo_report.checkpoints(), hpo_report.resuming(), hpo_report.should_stop())
print(hpo_report.seed(), hpo_report.seed(3))
"""


@pytest.mark.parametrize("variables", [{}, {"HPO_CONFIG": "", "HPO_METRICS": "", "HPO_STOP": ""}])
def test_outside_of_a_trial_nothing_happens(folder: Path, variables: dict[str, str]) -> None:
    printed = run(folder, OUTSIDE, **variables)
    assert printed == "None {'lr': 1}\nNone None\nNone False False\n0 3\n"
    assert {path.name for path in folder.iterdir()} == {"hpo_report.py", "train.py"}


INSIDE = """
import json, math
settings = hpo_report.config({"lr": 1})
print(json.dumps(settings), hpo_report.seed(), hpo_report.checkpoints())
print(hpo_report.should_stop(), hpo_report.resuming())
hpo_report.report(100, 0.5, loss=2)
hpo_report.report(200, loss=1.5, note="\\u00e9", flag=True, nothing=None, parts={1: (0.5, 2)})
hpo_report.report(300, float("nan"), loss=float("inf"))
hpo_report.report(400, 1, errors=[1, 0], lengths=(7, 9))
"""


@pytest.mark.parametrize("python", pythons(), ids=lambda path: "-".join(Path(path).parts[-3:]))
def test_in_a_trial_the_helper_reads_its_settings_and_writes_rows(
    folder: Path, python: str
) -> None:
    settings, flags = run(folder, INSIDE, python, **in_a_trial(folder)).splitlines()
    config, _, rest = settings.partition(" 17 ")
    assert json.loads(config) == {
        "lr": 1e-05,
        "model": {"name": "é", "layers": [1, 2]},
        "eps": math.inf,
    }
    assert rest == str(folder / "checkpoints")
    assert flags == "False False"
    first, second, third, fourth = rows(folder)
    assert first == {"step": 100, "value": 0.5, "loss": 2}
    assert second == {
        "step": 200,
        "loss": 1.5,
        "note": "é",
        "flag": True,
        "nothing": None,
        "parts": {"1": [0.5, 2]},
    }
    assert math.isnan(third["value"])
    assert third["loss"] == math.inf
    assert fourth == {"step": 400, "value": 1.0, "errors": [1, 0], "lengths": [7, 9]}


def test_the_helper_sees_stop_and_resume(folder: Path) -> None:
    variables = in_a_trial(folder) | {"HPO_RESUME": "1"}
    Path(variables["HPO_STOP"]).touch()
    script = "print(hpo_report.should_stop(), hpo_report.resuming())"
    assert run(folder, script, **variables) == "True True\n"


NUMPY = """
import numpy as np
more = dict(loss=np.float64(2.5), n=np.int32(3), ok=np.bool_(True))
hpo_report.report(np.int64(100), np.float32(0.5), **more)
lengths = [np.int64(7), np.float32(9)]
hpo_report.report(np.array(200), np.array(0.25), errors=np.array([1, 0]), lengths=lengths)
hpo_report.report(300, np.float32("nan"), grid=np.ones((2, 2)), one=np.array(4))
"""


def test_values_of_numpy_are_written_as_numbers(folder: Path) -> None:
    pytest.importorskip("numpy")
    run(folder, NUMPY, **in_a_trial(folder))
    first, second, third = rows(folder)
    assert first == {"step": 100, "value": 0.5, "loss": 2.5, "n": 3, "ok": True}
    assert second == {"step": 200, "value": 0.25, "errors": [1, 0], "lengths": [7, 9.0]}
    assert math.isnan(third["value"])
    assert third["grid"] == [[1.0, 1.0], [1.0, 1.0]]
    assert third["one"] == 4


TORCH = """
import torch
loss = torch.tensor(2.5, requires_grad=True)
hpo_report.report(torch.tensor(100), torch.tensor([0.5]), loss=loss, half=loss.bfloat16())
hpo_report.report(200, loss, errors=torch.tensor([1, 0]), lengths=[torch.tensor(7), 9])
"""


@pytest.mark.slow
def test_values_of_torch_are_written_as_numbers(folder: Path) -> None:
    pytest.importorskip("torch")
    (folder / "train.py").write_text("")
    run(folder, f"import warnings; warnings.simplefilter('ignore')\n{TORCH}", **in_a_trial(folder))
    assert rows(folder) == [
        {"step": 100, "value": 0.5, "loss": 2.5, "half": 2.5},
        {"step": 200, "value": 2.5, "errors": [1, 0], "lengths": [7, 9]},
    ]


LONG = """
for step in range(1, 301):
    hpo_report.report(step, 0.5, errors=[1] * 5000)
"""


def test_lines_of_several_processes_do_not_mix(folder: Path) -> None:
    """Not even where rows are far longer than a buffer."""
    variables = in_a_trial(folder)
    # Written once: a process that starts meanwhile would read a file that is cut short.
    (folder / "train.py").write_text(f"import hpo_report\n{LONG}")
    with ThreadPoolExecutor(3) as pool:
        writers = [pool.submit(run_written, folder, **variables) for _ in range(3)]
    for writer in writers:
        writer.result()
    written = rows(folder)
    assert sorted(row["step"] for row in written) == sorted(list(range(1, 301)) * 3)
    assert all(row["errors"] == [1] * 5000 for row in written)


def test_a_row_is_written_at_once(folder: Path) -> None:
    script = """
import os
hpo_report.report(1, 0.5)
os._exit(0)
"""
    run(folder, script, **in_a_trial(folder))
    assert rows(folder) == [{"step": 1, "value": 0.5}]


def test_rows_are_appended_to_those_of_an_earlier_attempt(folder: Path) -> None:
    variables = in_a_trial(folder)
    for step in (1, 2):
        run(folder, f"hpo_report.report({step}, 0.5)", **variables)
    assert [row["step"] for row in rows(folder)] == [1, 2]


def test_a_value_that_is_no_number_is_an_error_of_the_script(folder: Path) -> None:
    (folder / "train.py").write_text("import hpo_report\nhpo_report.report(1, loss=object())\n")
    done = subprocess.run(
        [sys.executable, "train.py"],
        cwd=folder,
        env=os.environ | in_a_trial(folder),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "TypeError" in done.stderr
