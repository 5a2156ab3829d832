"""Lists every text of the product that users may read, by file and line, to be read in one go.

python scripts/list_texts.py [FILE_OR_FOLDER ...]

Texts are strings of at least two words: messages, help texts, table headings, sentences of reports
and pages. The values of an f-string are shown as {...}. Docstrings are left out, except those of
commands, which are their help. So are SQL, style sheets and programs in strings.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hpo"
# A string with one of these is read by a machine.
FOR_MACHINES = re.compile(
    r"SELECT |INSERT |UPDATE |DELETE |CREATE |ALTER |DROP |TRUNCATE |GRANT |REVOKE |WHERE "
    r"|function\s*\(|=>|</|\{\s*[a-z-]+:|import sys"
)
TWO_WORDS = re.compile(r"[A-Za-z]{2,}[,.:;)]? +\(?[A-Za-z]{2,}")


def main() -> None:
    places = [Path(argument).resolve() for argument in sys.argv[1:]] or [PACKAGE]
    for file in sorted(files_of(places)):
        texts = list(python_texts(file)) if file.suffix == ".py" else list(template_texts(file))
        if texts:
            print(f"\n# {file.relative_to(ROOT)}")
        for line, text in texts:
            print(f"{line:5}  {text}")


def files_of(places: list[Path]) -> Iterator[Path]:
    for place in places:
        if place.is_file():
            yield place
        else:
            yield from place.rglob("*.py")
            yield from place.rglob("*.j2")


def python_texts(file: Path) -> Iterator[tuple[int, str]]:
    """(line, text), in the order of the file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    left_out = {id(docstring) for docstring in silent_docstrings(tree)}
    # The parts of an f-string are not texts of their own.
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            left_out |= {id(part) for part in node.values}
    found = []
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        text = text_of(node)
        if text and TWO_WORDS.search(text) and not FOR_MACHINES.search(text):
            found.append((node.lineno, " ".join(text.split())))  # type: ignore[attr-defined]
    yield from sorted(found)


def text_of(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or "{...}" for part in node.values)
    return None


def silent_docstrings(tree: ast.Module) -> Iterator[ast.AST]:
    """Docstrings that no command prints: of modules, classes, functions and fields."""
    commands = [node for node in ast.walk(tree) if is_command(node)]
    help_texts = {id(command.body[0]) for command in commands}
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and id(node) not in help_texts:
            yield node.value


def is_command(node: ast.AST) -> TypeGuard[ast.FunctionDef]:
    """Whether click shows this function's docstring: it is decorated with `command` or `group`."""
    if not isinstance(node, ast.FunctionDef):
        return False
    names = [ast.unparse(decorator) for decorator in node.decorator_list]
    return any(re.search(r"\.(command|group)\b", name) for name in names)


def template_texts(file: Path) -> Iterator[tuple[int, str]]:
    """Lines of a Jinja template without their tags."""
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        text = " ".join(re.sub(r"<[^>]*>|\{%.*?%\}|\{\{.*?\}\}", " ", line).split())
        if TWO_WORDS.search(text) and not FOR_MACHINES.search(line):
            yield number, text


if __name__ == "__main__":
    main()
