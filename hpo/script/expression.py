"""The value of a row, computed of its other numbers: mean(per_0, per_1)."""

import ast
import math
import operator
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hpo.script.numerals import as_number
from hpo.script.row import printable
from hpo.settings import guess


def _divide(one: float, other: float) -> float:
    return one / other if other else math.nan


def _least(values: Sequence[float]) -> float:
    return math.nan if any(math.isnan(value) for value in values) else min(values)


def _largest(values: Sequence[float]) -> float:
    return math.nan if any(math.isnan(value) for value in values) else max(values)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: _divide,
}
_FUNCTIONS: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": _mean,
    "min": _least,
    "max": _largest,
    "sum": sum,
}
VALID_EXPRESSION = (
    "Valid: numbers, names, + - * / ( ) and mean, min, max, sum, as in mean(per_0, per_1)"
)
_LONGEST_EXPRESSION = 10_000
_DEEPEST_EXPRESSION = 100


@dataclass(frozen=True)
class Expression:
    """The value, computed of a row's numbers."""

    text: str
    tree: ast.expr
    names: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> "Expression":
        """Raises ValueError, which says what is wrong."""
        tree = _parsed(text)
        names: dict[str, None] = {}
        _check_node(tree, names, _DEEPEST_EXPRESSION)
        if not names:
            raise ValueError("it uses no name, so its value is always the same")
        return cls(text, tree, tuple(names))

    def value(self, numbers: Mapping[str, float]) -> float | None:
        """None: a name is missing."""
        if any(name not in numbers for name in self.names):
            return None
        return _evaluated(self.tree, numbers)


def _parsed(text: str) -> ast.expr:
    if len(text) > _LONGEST_EXPRESSION:
        raise ValueError(f"it is longer than {_LONGEST_EXPRESSION} letters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"it cannot be read ({error.msg} at position {error.offset})") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"it cannot be read ({str(error) or 'too deep'})") from None


def _check_node(node: ast.expr, names: dict[str, None], depth: int) -> None:
    """Collects the names. Raises ValueError for anything but arithmetic."""
    if not depth:
        raise ValueError(f"it is deeper than {_DEEPEST_EXPRESSION}")
    if isinstance(node, ast.Name):
        names[node.id] = None
    for part in _parts(node):
        _check_node(part, names, depth - 1)


def _parts(node: ast.expr) -> list[ast.expr]:
    """The operands. Raises ValueError for anything but arithmetic."""
    if isinstance(node, ast.Name) or _is_number(node):
        return []
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        return [node.operand]
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return [node.left, node.right]
    if isinstance(node, ast.Call):
        return _arguments(node)
    raise ValueError(f"it uses {printable(ast.unparse(node))}")


def _is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def _arguments(call: ast.Call) -> list[ast.expr]:
    if not isinstance(call.func, ast.Name) or call.func.id not in _FUNCTIONS:
        name = printable(ast.unparse(call.func))
        raise ValueError(f"it uses {name}(...).{guess(name, tuple(_FUNCTIONS))}")
    if not call.args or call.keywords:
        text = printable(ast.unparse(call))
        raise ValueError(f"it uses {text}, and {call.func.id} takes one number or more")
    return call.args


def _evaluated(node: ast.expr, numbers: Mapping[str, float]) -> float:
    if isinstance(node, ast.Name):
        return numbers[node.id]
    if isinstance(node, ast.Constant):
        return as_number(node.value)
    parts = [_evaluated(part, numbers) for part in _parts(node)]
    if isinstance(node, ast.UnaryOp):
        return -parts[0] if isinstance(node.op, ast.USub) else parts[0]
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](*parts)
    assert isinstance(node, ast.Call)
    assert isinstance(node.func, ast.Name)
    return float(_FUNCTIONS[node.func.id](parts))


def name_of(column: str) -> str:
    """As an expression writes it: `val/per` is val_per."""
    return re.sub(r"\W", "_", column)
