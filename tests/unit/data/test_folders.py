"""What systems and editors leave in a folder is neither a session nor a run."""

from pathlib import Path

import pytest

from hpo.data.folders import contents_text, is_stray, without_stray


@pytest.mark.parametrize(
    "name",
    [
        ".DS_Store",
        "._t12.2022.04.28.mat",
        ".ipynb_checkpoints",
        ".git",
        ".t12.mat.swp",
        "__MACOSX",
        "Thumbs.db",
        "THUMBS.DB",
        "desktop.ini",
        "Desktop.ini",
        "@eaDir",
        "args~",
        "run1.bak",
        "run1.BAK",
        "metrics.jsonl.orig",
        "metrics.jsonl.swp",
        "#metrics.jsonl#",
        "~$runs.csv",
    ],
)
def test_names_of_systems_and_editors_are_stray(name: str) -> None:
    assert is_stray(name)


@pytest.mark.parametrize(
    "name",
    [
        "t12.2022.04.28.mat",
        "t15.2023.08.11",
        "bak",
        "run.original",
        "orig",
        "a~b",
        "#3",
        "_x",
        "x.",
    ],
)
def test_other_names_are_not(name: str) -> None:
    assert not is_stray(name)


def test_only_names_below_the_root_count(tmp_path: Path) -> None:
    root = tmp_path / ".cache" / "runs.bak"
    paths = [root / "b" / "x.csv", root / "a.csv", root / "c~" / "x.csv", root / "b" / "._x.csv"]
    assert without_stray(root, paths) == [root / "a.csv", root / "b" / "x.csv"]


def test_messages_show_stray_names_only_where_there_are_no_others(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").touch()
    assert contents_text(tmp_path) == ".DS_Store"
    (tmp_path / "x").touch()
    assert contents_text(tmp_path) == "x"
