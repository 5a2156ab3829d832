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
# What changes the draw of a sampler or where a rule stops a training. What changes the result of a training
# its trainer says; readers of recordings need not be there: the fingerprint of the data covers them.
SHAPES_RESULTS = (
    "space/cube.py",
    "space/policy.py",
    "space/stopping.py",
    "study/choice.py",
    "study/sampling.py",
)
# Of a version of now: earlier ones that gave the same 16 trials of the demo, to the digit. Once the
# code that shapes results has changed, its version has no entry, and none is right before it was compared.
SAME_RESULTS = {
    "0.1.0 26e60bee": (
        "0.1.0 5769ca51",
        "0.1.0 917c3b98",
        "0.1.0 403fcf58",
        "0.1.0 7fb3506a",
        "0.1.0 b4715655",
        "0.1.0 9b711b38",
        "0.1.0 98184a0f",
    ),
}
# Of a syntax node, what differs between versions of Python or says nothing of what it does.
IGNORED_FIELDS = ("ctx", "kind", "type_comment", "type_params")


def check_code(study: StudyReader, allow_different: bool) -> None:
    """Raises StudyError if the study was made with other code, whose results may not compare with this one's."""
    _check(study, code_version(study.spec), allow_different)


def check_code_of(database: Database, name: str, here: str, allow_different: bool) -> None:
    """The same of a study that may not be there yet, before anything of it is changed. here: the version of this code."""
    if (study := existing_reader(database, name)) is not None:
        _check(study, here, allow_different)
        study.engine.dispose()


def _check(study: StudyReader, here: str, allow_different: bool) -> None:
    if study.code == "" or allow_different or same_results(here, study.code):
        return
    if here.partition(" script ")[0] == study.code.partition(" script ")[0]:
        raise StudyError(
            f"study {study.name} was made with another state of the script's code ({study.code}; here is {here}). Go back to "
            f"that, or take --allow-different-code, or for another study hpo launch --name"
        )
    raise StudyError(
        f"study {study.name} was made with hpo {study.code}; here is {here}. Install that, or take --allow-different-code"
    )


def same_results(version: str, earlier: str) -> bool:
    """Whether trials of the one version compare with trials of the other."""
    ours, _, script = version.partition(" script ")
    before, _, script_before = earlier.partition(" script ")
    return script == script_before and (before == ours or before in SAME_RESULTS.get(ours, ()))


def code_version(spec: StudySpec | None = None) -> str:
    """The package's version, and a digest of the code that shapes the results of this spec's trainer; None: of the built-in one.

    A script's own code follows: `0.1.0 5769ca51 script 1c2d3e4f`. Comments, docstrings and the layout of the lines of Python
    files of ours and of trainers do not change it. Raises SpecError for a trainer or code that is not there.
    """
    if spec is None:
        return version_of(tuple(trainer_files(load_trainer(DEFAULT_TRAINER), DEFAULT_TRAINER)))
    trainer = spec.load_trainer()
    version = version_of(tuple(trainer_files(trainer, spec.trainer)))
    return f"{version} script {trainer.state_of_code()}" if trainer.state_of_code else version


@cache
def version_of(files: tuple[Path, ...]) -> str:
    """files: of a trainer."""
    digest = hashlib.sha256()
    for path in [*(PACKAGE / name for name in SHAPES_RESULTS), *files]:
        digest.update(json.dumps([path.name, meaning(path.read_text())]).encode())
    return f"{__version__} {digest.hexdigest()[:8]}"


def meaning(source: str) -> Any:
    """Python code as nested lists, equal for code that does the same in the same words."""
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
