"""Commands that only read start quickly: they load none of the libraries that train and compute."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from hpo.space.spec import StudySpec
from hpo.study.study import Study

HEAVY = ("torch", "scipy", "sklearn", "matplotlib")
RUN = f"""
import sys
from hpo.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    print("code", end.code)
print("loaded", *sorted(set({HEAVY!r}) & set(sys.modules)))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("studies",),
        ("status", "--study", "s"),
        ("status", "--study", "s", "--json"),
        ("logs", "--study", "s", "--trial", "0"),
        ("budget", "--study", "s"),
        ("kill", "--study", "s", "--trial", "0"),
        ("delete", "--study", "s", "--yes"),
    ],
)
def test_nothing_heavy_is_loaded(
    make_study: Callable[..., Study], tiny_spec: StudySpec, arguments: tuple[str, ...]
) -> None:
    make_study(tiny_spec)
    done = subprocess.run([sys.executable, "-c", RUN, *arguments], capture_output=True, text=True)
    assert "code 0" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded"


@pytest.mark.slow
def test_a_command_that_loads_them_is_noticed() -> None:
    code = "import torch, scipy, sklearn, matplotlib\n" + RUN
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "loaded matplotlib scipy sklearn torch"
