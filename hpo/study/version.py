"""The version of the code that shapes results, so that no study mixes two."""

import ast
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from hpo import __version__
from hpo.errors import StudyError
from hpo.space.spec import StudySpec
from hpo.store.database import Database
from hpo.study.reader import StudyReader, existing_reader
from hpo.trainer import DEFAULT_TRAINER, load_trainer, trainer_files

PACKAGE = Path(__file__).parents[1]
# The code that decides what a sampler draws and where a rule stops a training. Each trainer names
# the files that decide how a training goes. Readers of recordings are not listed: the fingerprint
# of the data covers them.
SHAPES_RESULTS = (
    "space/cube.py",
    "space/policy.py",
    "space/stopping.py",
    "study/choice.py",
    "study/optuna_internals.py",
    "study/sampling.py",
)
# The current version, and earlier ones that gave the same 16 trials of the demo to the last digit.
# When code that shapes results changes, so does the version, and it has no entry until someone has
# compared the trials.
SAME_RESULTS = {
    "0.1.0 4e6ead6e": (
        "0.1.0 26e60bee",
        "0.1.0 5769ca51",
        "0.1.0 917c3b98",
        "0.1.0 403fcf58",
        "0.1.0 7fb3506a",
        "0.1.0 b4715655",
        "0.1.0 9b711b38",
        "0.1.0 98184a0f",
    ),
    # With scripts: the same six trials of tests/stand_ins/many_ways.
    "0.1.0 98024fff": ("0.1.0 a7282a55", "0.1.0 2422ad43"),
}
# Fields of a syntax node that differ between versions of Python or have no effect.
IGNORED_FIELDS = ("ctx", "kind", "type_comment", "type_params")


def check_code(study: StudyReader, allow_different: bool) -> None:
    """Raises StudyError if the study was made with other code, whose results may differ."""
    _check(study, code_version(study.spec), allow_different)


def check_code_of(database: Database, name: str, version: str, allow_different: bool) -> None:
    """The same check for a study that may not exist yet, before anything of it is changed.

    version: of the code that runs here.
    """
    study = existing_reader(database, name)
    if study is None:
        return
    _check(study, version, allow_different)
    study.engine.dispose()


def _check(study: StudyReader, version: str, allow_different: bool) -> None:
    if study.code == "" or allow_different or same_results(version, study.code):
        return
    own_version, _, _ = version.partition(" script ")
    study_version, _, _ = study.code.partition(" script ")
    if own_version == study_version:
        raise StudyError(
            f"study {study.name} was made with another state of the script's code ({study.code}; "
            f"here it is {version}). Go back to that state, or take --allow-different-code, or "
            "start another study with hpo launch --name"
        )
    raise StudyError(
        f"study {study.name} was made with hpo {study.code}; here it is {version}. "
        "Install that version, or take --allow-different-code"
    )


def same_results(version: str, earlier: str) -> bool:
    """Whether trials of one version can be compared with trials of the other."""
    own, _, script = version.partition(" script ")
    before, _, script_before = earlier.partition(" script ")
    if script != script_before:
        return False
    return before == own or before in SAME_RESULTS.get(own, ())


def code_version(spec: StudySpec | None = None) -> str:
    """The package's version, and a digest of the code that shapes results with this spec's trainer.

    Without a spec, the built-in trainer is meant. The state of a script's own code follows, as in
    `0.1.0 5769ca51 script 1c2d3e4f`. Comments, docstrings and line breaks in Python files of hpo
    and of trainers do not change the version. Raises SpecError for a trainer or code that does not
    exist.
    """
    if spec is None:
        return version_of(tuple(trainer_files(load_trainer(DEFAULT_TRAINER), DEFAULT_TRAINER)))
    trainer = spec.load_trainer()
    version = version_of(tuple(trainer_files(trainer, spec.trainer)))
    if trainer.state_of_code is None:
        return version
    return f"{version} script {trainer.state_of_code()}"


@cache
def version_of(files: tuple[Path, ...]) -> str:
    """The version with a trainer whose results are shaped by these files."""
    digest = hashlib.sha256()
    own_files = [PACKAGE / name for name in SHAPES_RESULTS]
    for path in [*own_files, *files]:
        digest.update(json.dumps([path.name, meaning(path.read_text())]).encode())
    return f"{__version__} {digest.hexdigest()[:8]}"


def meaning(source: str) -> Any:
    """Python code as nested lists, without comments, docstrings and layout."""
    return _plain(ast.parse(source))


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not isinstance(value, ast.AST):
        return repr(value)
    fields = []
    for name, content in ast.iter_fields(value):
        if name == "body" and isinstance(content, list) and _has_docstring(value):
            content = content[1:]
        if content is not None and content != [] and name not in IGNORED_FIELDS:
            fields.append([name, _plain(content)])
    return [type(value).__name__, fields]


def _has_docstring(node: ast.AST) -> bool:
    may_have_one = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    if not isinstance(node, may_have_one) or not node.body:
        return False
    first = node.body[0]
    return (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    )
