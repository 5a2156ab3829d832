"""Computes the value of a row from its other numbers: mean(per_0, per_1)."""

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hpo.script.numerals import as_number
from hpo.script.row import printable
from hpo.settings import guess

VALID_EXPRESSION = (
    "Valid: numbers, names, + - * / ( ) and mean, min, max, sum, as in mean(per_0, per_1)"
)
_DEEPEST = 100


def _divide(one: float, other: float) -> float:
    return one / other if other else math.nan


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
    "min": min,
    "max": max,
    "sum": sum,
}


@dataclass(frozen=True)
class Expression:
    """Arithmetic with the numbers of a row. names: those that it uses."""

    tree: ast.expr
    names: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> "Expression":
        """Parse an expression. Raises ValueError, whose text says what is wrong."""
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except SyntaxError as error:
            raise ValueError(f"it cannot be read ({error.msg})") from None
        except (ValueError, RecursionError, MemoryError) as error:
            raise ValueError(f"it cannot be read ({error})") from None
        names = dict.fromkeys(_names(tree, _DEEPEST))
        if not names:
            raise ValueError("it uses no name, so its value never changes")
        return cls(tree, tuple(names))

    def value(self, numbers: Mapping[str, float]) -> float | None:
        """The value, or None if a number is missing."""
        if any(name not in numbers for name in self.names):
            return None
        return _evaluated(self.tree, numbers)


def _names(node: ast.expr, depth: int) -> list[str]:
    """The names that a node uses. Raises ValueError for anything but arithmetic."""
    if not depth:
        raise ValueError(f"it is nested deeper than {_DEEPEST} levels")
    if isinstance(node, ast.Name):
        return [node.id]
    names = []
    for part in _parts(node):
        names += _names(part, depth - 1)
    return names


def _parts(node: ast.expr) -> list[ast.expr]:
    """The operands of a node. Raises ValueError for anything but arithmetic."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return []
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        return [node.operand]
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return [node.left, node.right]
    if isinstance(node, ast.Call):
        return _arguments(node)
    raise ValueError(f"it uses {printable(ast.unparse(node))}")


def _arguments(call: ast.Call) -> list[ast.expr]:
    if not isinstance(call.func, ast.Name) or call.func.id not in _FUNCTIONS:
        name = printable(ast.unparse(call.func))
        raise ValueError(f"it uses {name}(...).{guess(name, tuple(_FUNCTIONS))}")
    if not call.args or call.keywords:
        text = printable(ast.unparse(call))
        raise ValueError(f"it uses {text}, but {call.func.id} takes one or more numbers")
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
    # With a NaN, the result of min and max would depend on the order.
    if any(math.isnan(part) for part in parts):
        return math.nan
    assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    return float(_FUNCTIONS[node.func.id](parts))


def name_of(column: str) -> str:
    """The name of a column in an expression: `val/per` is val_per."""
    return re.sub(r"\W", "_", column)
