"""The version of the code that shapes results: which changes of the code change it."""

from pathlib import Path

import pytest
from helpers.script_studies import study_file

from hpo.space.load import load_spec
from hpo.study.version import (
    PACKAGE,
    SAME_RESULTS,
    SHAPES_RESULTS,
    code_version,
    meaning,
    same_results,
)

CODE = '''
"""About."""

from math import exp

RATE = 0.1


def grow(x: float, *, by: float = 2.0) -> float:
    """Docs."""
    # A remark.
    return x * by + (RATE if x > 0 else exp(x))
'''


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"""About."""', '"""About it."""'),
        ('    """Docs."""\n', ""),
        ("    # A remark.\n", "    # Another one.\n\n"),
        (
            "return x * by + (RATE if x > 0 else exp(x))",
            "return (\n        x * by + (RATE if x > 0 else exp(x))\n    )",
        ),
        ("x: float, *, by: float = 2.0)", "\n    x: float,\n    *,\n    by: float = 2.0,\n)"),
        ("0.1", "0.10"),
    ],
)
def test_words_and_layout_do_not_change_the_meaning(before: str, after: str) -> None:
    assert CODE.count(before) == 1
    assert meaning(CODE.replace(before, after)) == meaning(CODE)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("0.1", "0.2"),
        ("2.0", "2"),
        ("x * by", "x / by"),
        ("x > 0", "x >= 0"),
        ("import exp", "import expm1 as exp"),
        ("exp(x))", "exp(-x))"),
        ("    # A remark.\n", "    x = x + 1\n"),
        ("    # A remark.\n", '    "not a docstring"\n'),
        ("*, by", "by"),
        ("def grow", "def shrink"),
    ],
)
def test_what_the_code_does_changes_the_meaning(before: str, after: str) -> None:
    assert CODE.count(before) == 1
    assert meaning(CODE.replace(before, after)) != meaning(CODE)


def test_earlier_versions_with_the_same_results_are_known() -> None:
    assert all((PACKAGE / name).is_file() for name in SHAPES_RESULTS)
    assert same_results(code_version(), code_version())
    assert not same_results(code_version(), "0.1.0 00000000")
    assert same_results(code_version(), "0.1.0 917c3b98"), (
        "compare the demo's trials with commit 359d9c5, then enter the version"
    )
    for version, earlier in SAME_RESULTS.items():
        assert same_results(version, earlier[0])
        assert not same_results("0.1.0 00000000", earlier[0])


def test_studies_of_scripts_of_earlier_versions_fit_as_long_as_nothing_changed(
    tmp_path: Path,
) -> None:
    version, _, _ = code_version(load_spec(study_file(tmp_path))).partition(" script ")
    assert same_results(version, "0.1.0 2422ad43"), (
        "compare the trials of a study of tests/stand_ins/many_ways with commit 43de254, "
        "then enter the version"
    )
