"""The state of the code of a lab, with and without a git repository."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from hpo.errors import SpecError
from hpo.script import code as code_module
from hpo.script.code import CodeState, code_state


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    allowed = ["-c", "protocol.file.allow=always"]
    done = subprocess.run(
        ["git", *identity, *allowed, *words], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def write(folder: Path, **files: str) -> None:
    """Files by their names, with `__` for a slash and `_py` for `.py`."""
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_py", ".py").replace("_yaml", ".yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "lab"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    write(folder, train_py="lr = 1\n", model__gru_py="units = 2\n", README="read me\n")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def digest(code: Path) -> str:
    return code_state(code).digest


def commit_all(folder: Path) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "next")


def test_a_clean_repository(repository: Path) -> None:
    state = code_state(repository)
    assert state.commit == git(repository, "rev-parse", "HEAD")
    assert state.changed is False
    assert state.diff == ""
    assert state.files == 3
    assert state.note == ""
    assert len(state.digest) == 8
    assert int(state.digest, 16) >= 0
    assert code_state(repository) == state


def test_a_clone_elsewhere_has_the_same_digest(repository: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", str(repository), "clone")
    assert code_state(tmp_path / "clone") == code_state(repository)


def test_a_link_to_the_folder_is_the_folder(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(repository)
    assert code_state(tmp_path / "link") == code_state(repository)


def test_a_change_is_shown_and_changes_the_digest(repository: Path) -> None:
    before = code_state(repository)
    write(repository, train_py="lr = 3\n")
    after = code_state(repository)
    assert after.changed
    assert after.commit == before.commit
    assert after.digest != before.digest
    assert "--- a/train.py" in after.diff
    assert "+lr = 3" in after.diff
    write(repository, train_py="lr = 1\n")
    assert code_state(repository) == before


def test_committing_what_was_changed_keeps_the_digest(repository: Path) -> None:
    """So the code of a running study may be committed."""
    write(repository, train_py="lr = 3\n", new_py="x = 1\n")
    (repository / "model/gru.py").unlink()
    before = code_state(repository)
    commit_all(repository)
    after = code_state(repository)
    assert after.digest == before.digest
    assert after.files == before.files == 3
    assert after.commit != before.commit
    assert before.changed
    assert not after.changed


@pytest.mark.parametrize("stage", [False, True])
def test_removed_added_and_renamed_files_count(repository: Path, stage: bool) -> None:
    digests = {digest(repository)}
    (repository / "model/gru.py").rename(repository / "model/rnn.py")
    if stage:
        git(repository, "add", "-A")
    state = code_state(repository)
    assert state.changed
    assert state.files == 3
    digests.add(state.digest)
    (repository / "model/rnn.py").unlink()
    if stage:
        git(repository, "add", "-A")
    assert code_state(repository).files == 2
    digests.add(digest(repository))
    assert len(digests) == 3


def test_a_touched_file_is_not_changed(repository: Path) -> None:
    before = code_state(repository)
    os.utime(repository / "train.py", (1, 1))
    assert code_state(repository) == before


def test_nothing_is_written_into_the_repository(repository: Path) -> None:
    os.utime(repository / "train.py", (1, 1))
    index = (repository / ".git/index").read_bytes()
    code_state(repository)
    assert (repository / ".git/index").read_bytes() == index
    assert not (repository / ".git/index.lock").exists()


def test_a_commit_in_progress_does_not_matter(repository: Path) -> None:
    before = code_state(repository)
    (repository / ".git/index.lock").touch()
    assert code_state(repository) == before


def test_a_read_only_repository_is_read(repository: Path) -> None:
    before = code_state(repository)
    for path in [*repository.rglob("*"), repository]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert code_state(repository) == before
    finally:
        for path in [repository, *repository.rglob("*")]:
            path.chmod(0o755)


def test_untracked_code_counts(repository: Path) -> None:
    before = code_state(repository)
    write(repository, extra_py="a = 1\n")
    first = code_state(repository)
    assert first.changed
    assert first.diff == "Untracked: extra.py\n"
    assert first.digest != before.digest
    write(repository, extra_py="a = 2\n")
    assert digest(repository) != first.digest


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "training_log",
        "out.log",
        "weights.pt",
        "model/__pycache__/gru.cpython-311.pyc",
        "model/__pycache__/odd.py",
        "runs/1/args.yaml",
        "outputs/2026-01-01/config.yaml",
        "wandb/run-1/files/config.yaml",
        "mlruns/0/meta.yaml",
        ".venv/lib/a.py",
        "venv/lib/python3.9/site-packages/a.py",
        "env/lib/python3.9/site-packages/torch/a.py",
        ".ipynb_checkpoints/a.py",
        "big.json",
    ],
)
@pytest.mark.parametrize("with_git", [True, False])
def test_what_trainings_write_does_not_count(repository: Path, name: str, with_git: bool) -> None:
    if not with_git:
        shutil.rmtree(repository / ".git")
    before = code_state(repository)
    path = repository / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x" * (1_000_000 if name == "big.json" else 10))
    assert code_state(repository) == before


def test_ignored_code_does_not_count(repository: Path) -> None:
    write(repository, **{".gitignore": "local.py\nresults/\n"})
    commit_all(repository)
    before = code_state(repository)
    write(repository, local_py="x = 1\n", results__a_py="y = 1\n")
    assert code_state(repository) == before


def test_of_a_subfolder_only_its_own_files_count(repository: Path) -> None:
    before = code_state(repository / "model")
    assert before.files == 1
    assert before.commit == git(repository, "rev-parse", "HEAD")
    write(repository, train_py="lr = 3\n", new_py="x = 1\n")
    assert code_state(repository / "model") == before
    commit_all(repository)
    assert digest(repository / "model") == before.digest
    write(repository, model__gru_py="units = 3\n")
    after = code_state(repository / "model")
    assert after.digest != before.digest
    assert "--- a/gru.py" in after.diff


def test_of_a_single_file_the_content_alone_counts(repository: Path, tmp_path: Path) -> None:
    file = repository / "train.py"
    before = code_state(file)
    assert before.commit == git(repository, "rev-parse", "HEAD")
    assert before.changed is False
    assert before.files == 1
    assert before.note == ""
    write(repository, model__gru_py="units = 3\n")
    assert code_state(file) == before
    copy = tmp_path / "other_name.py"
    shutil.copy(file, copy)
    assert digest(copy) == before.digest
    assert code_state(copy).note == "not in a git repository"
    file.write_text("lr = 4\n")
    after = code_state(file)
    assert after.changed
    assert "+lr = 4" in after.diff
    assert "units" not in after.diff
    assert after.digest != before.digest


def test_an_untracked_single_file_is_changed(repository: Path) -> None:
    write(repository, new_py="x = 1\n")
    state = code_state(repository / "new.py")
    assert state.changed
    assert state.commit
    assert state.diff == "Untracked: new.py\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ein Würfel.py", "a\nb.py", "-rf.py", "[ab]*.py", ":(top)x.py"])
@pytest.mark.parametrize("tracked", [True, False])
def test_files_with_odd_names_count(repository: Path, name: str, tracked: bool) -> None:
    file = repository / name
    file.write_text("a = 1\n")
    if tracked:
        git(repository, "add", "-A")
        git(repository, "commit", "-q", "-m", "odd")
    first = code_state(repository)
    assert first.files == 4
    assert code_state(file).changed is not tracked
    file.write_text("a = 2\n")
    second = code_state(repository)
    assert second.digest != first.digest
    assert second.changed
    assert code_state(file).changed


def test_a_file_name_that_is_not_utf8_counts(repository: Path) -> None:
    (repository / os.fsdecode(b"\xff.py")).write_text("a = 1\n")
    state = code_state(repository)
    assert state.files == 4
    state.diff.encode()


def test_a_long_diff_is_cut_and_says_so(repository: Path) -> None:
    write(repository, train_py="".join(f"value_{n} = {n}\n" for n in range(50_000)))
    before = code_state(repository)
    assert len(before.diff.encode()) < 101_000
    assert before.diff.endswith("... cut here: the diff is longer than 100 kB\n")
    with (repository / "train.py").open("a") as file:
        file.write("after the cut\n")
    assert digest(repository) != before.digest


def test_a_diff_of_bytes_that_are_not_text_is_text(repository: Path) -> None:
    (repository / "train.py").write_bytes(b"lr = 1 # \xff\xfe\n")
    assert "\N{REPLACEMENT CHARACTER}" in code_state(repository).diff
    (repository / "train.py").write_bytes(b"\x00\x01")
    state = code_state(repository)
    assert "Binary files" in state.diff
    assert "\x00" not in state.diff


def test_the_configuration_of_git_changes_nothing(repository: Path, tmp_path: Path) -> None:
    write(repository, train_py="lr = 3\n", **{".gitattributes": "*.py diff=mine\n"})
    before = code_state(repository)
    marker = tmp_path / "ran"
    configuration = {
        "diff.external": f"touch {marker}",
        "diff.mine.textconv": f"touch {marker}; cat",
        "core.fsmonitor": f"touch {marker}",
        "core.quotepath": "true",
        "color.ui": "always",
        "diff.relative": "false",
    }
    for name, value in configuration.items():
        git(repository, "config", name, value)
    assert code_state(repository) == before
    assert not marker.exists()


def test_the_environment_of_a_git_hook_changes_nothing(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = code_state(repository)
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("GIT_INDEX_FILE", "/nowhere/index")
    monkeypatch.setenv("GIT_WORK_TREE", "/tmp")
    assert code_state(repository) == before


def test_links_count_by_their_target(repository: Path) -> None:
    (repository / "link.py").symlink_to("train.py")
    commit_all(repository)
    before = code_state(repository)
    (repository / "link.py").unlink()
    (repository / "link.py").symlink_to("nowhere.py")
    broken = code_state(repository)
    assert broken.digest != before.digest
    commit_all(repository)
    assert digest(repository) == broken.digest


def test_a_submodule_counts_by_its_commit(repository: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    write(other, lib_py="a = 1\n")
    commit_all(other)
    git(repository, "submodule", "--quiet", "add", str(other), "sub")
    commit_all(repository)
    before = code_state(repository)
    assert not before.changed
    write(repository / "sub", lib_py="a = 2\n")
    first = code_state(repository)
    assert first.changed
    assert "Subproject commit" in first.diff
    write(repository / "sub", lib_py="a = 3\n")
    assert len({before.digest, first.digest, digest(repository)}) == 3


def test_a_repository_within_the_code_counts_by_its_files(repository: Path) -> None:
    inner = repository / "inner"
    inner.mkdir()
    git(inner, "init", "-q")
    write(inner, lib_py="a = 1\n")
    commit_all(inner)
    first = code_state(repository)
    assert "Untracked: inner/lib.py" in first.diff
    write(inner, lib_py="a = 2\n")
    assert digest(repository) != first.digest


def plain_copy(repository: Path, to: Path) -> Path:
    shutil.copytree(repository, to, ignore=shutil.ignore_patterns(".git"))
    return to


def test_without_git_the_files_count(repository: Path, tmp_path: Path) -> None:
    one = plain_copy(repository, tmp_path / "one")
    two = plain_copy(repository, tmp_path / "two")
    state = code_state(one)
    assert state == CodeState("", False, state.digest, "", 2, "not in a git repository")
    assert code_state(two) == state
    (two / "train.py").rename(two / "start.py")
    assert digest(two) != state.digest
    (two / "start.py").rename(two / "train.py")
    write(two, model__gru_py="units = 3\n")
    assert digest(two) != state.digest


def test_programs_without_a_suffix_count(tmp_path: Path) -> None:
    write(tmp_path, run="#!/bin/sh\n", notes="hello\n")
    (tmp_path / "program").write_bytes(b"\x7fELF\x00")
    for name in ("run", "program"):
        (tmp_path / name).chmod(0o755)
    assert code_state(tmp_path).files == 1


def test_without_git_installed_the_files_count(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    state = code_state(repository)
    assert state.commit == ""
    assert state.note == "git is not installed"
    assert state.files == 2
    assert code_state(repository / "train.py").note == "git is not installed"


def test_in_a_repository_without_a_commit_the_files_count(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    write(tmp_path, train_py="a = 1\n")
    state = code_state(tmp_path)
    assert state.commit == ""
    assert state.files == 1
    assert state.note == "its git repository has no commit yet"


@pytest.mark.parametrize("ignored", [True, False])
def test_in_a_folder_that_its_repository_does_not_track_the_files_count(
    repository: Path, ignored: bool
) -> None:
    """Such as code in a home folder whose dot files are in git."""
    if ignored:
        (repository / ".git/info/exclude").write_text("mine/\n")
    write(repository, mine__train_py="a = 1\n")
    state = code_state(repository / "mine")
    assert state.commit == ""
    assert state.files == 1
    assert state.note == "its git repository does not track it"
    write(repository, mine__train_py="a = 2\n")
    assert digest(repository / "mine") != state.digest


def test_the_note_names_a_damaged_repository(repository: Path) -> None:
    (repository / ".git/index").write_bytes(b"nonsense")
    state = code_state(repository)
    assert state.commit == ""
    assert "index" in state.note
    assert "\n" not in state.note
    assert state.files == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_the_note_names_a_repository_of_another_account(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for path in [repository, *repository.rglob("*")]:
        os.chown(path, 12345, 12345)
    state = code_state(repository)
    assert state.commit == ""
    assert state.files == 2
    assert "belongs to another account" in state.note
    assert f"safe.directory {repository}" in state.note
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "safe.directory")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", str(repository))
    assert code_state(repository).commit


def test_a_missing_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"nothing: there is no such file or folder"):
        code_state(tmp_path / "nothing")
    write(tmp_path, a_py="")
    with pytest.raises(SpecError, match=r"a\.py/b: "):
        code_state(tmp_path / "a.py/b")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SpecError, match=r"pipe: there is no such file or folder"):
        code_state(tmp_path / "pipe")


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_module, "MAX_FILES", 10)
    monkeypatch.setattr(code_module, "MAX_LOOKED_AT", 40)
    write(tmp_path, **{f"f{n}_py": "" for n in range(10)})
    assert code_state(tmp_path).files == 10
    write(tmp_path, **{f"data{n}": "" for n in range(35)})
    with pytest.raises(SpecError, match="has more than 40 files"):
        code_state(tmp_path)
    write(tmp_path, more_py="")
    with pytest.raises(SpecError, match=r"has more than 10 files\. Give the folder of the code"):
        code_state(tmp_path)


@pytest.mark.parametrize("with_git", [True, False])
def test_a_thousand_files_take_less_than_a_second(tmp_path: Path, with_git: bool) -> None:
    for n in range(1000):
        folder = tmp_path / f"package{n % 20}"
        folder.mkdir(exist_ok=True)
        (folder / f"module{n}.py").write_text(f"value = {n}\n" * 200)
    if with_git:
        git(tmp_path, "init", "-q")
        commit_all(tmp_path)
    began = time.perf_counter()
    state = code_state(tmp_path)
    assert time.perf_counter() - began < 1
    assert state.files == 1000
