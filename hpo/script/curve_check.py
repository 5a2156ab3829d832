"""Finds the faults of a study file's script.curve section, before anything runs."""

import re
from collections.abc import Sequence

from hpo.errors import SpecError
from hpo.script.expression import VALID_EXPRESSION, Expression
from hpo.script.forms import ending_of
from hpo.script.row import FIELDS, printable
from hpo.script.settings import OUTPUT, CurveSettings
from hpo.settings import guess


def check_curve(curve: CurveSettings, place: str) -> None:
    """Raises SpecError for the first fault. place: the study file, for the message."""
    where = f"{place}: script.curve" if place else "script.curve"
    _check_file(curve, where)
    expression = _checked_expression(curve, where)
    if curve.pattern:
        _check_patterns(curve, expression, where)
    else:
        _check_names(curve, expression, where)


def _no(what: str, name: str, valid: Sequence[str], place: str) -> str:
    return f"{place}: there is no {what} {name!r}.{guess(name, valid)} Valid: {', '.join(valid)}"


def _check_file(curve: CurveSettings, where: str) -> None:
    is_document = ending_of(curve) == ".json"
    if not curve.file.strip():
        raise SpecError(
            f"{where}.file: it is empty. Valid: a file in the attempt's folder, or {OUTPUT}"
        )
    if "*" in curve.file and not is_document:
        raise SpecError(
            f"{where}.file: {curve.file} has a *. Valid: * in the name of a .json file, without a "
            f"pattern"
        )
    if curve.rows and not is_document:
        raise SpecError(
            f"{where}.rows: {curve.rows!r} is given for {curve.file}. Valid: rows of a .json file "
            f"that is written whole, without a pattern"
        )
    if curve.file == OUTPUT and not curve.pattern:
        raise SpecError(
            f"{where}.pattern: what a script prints is read with a pattern. Give one, or another "
            f"file"
        )


def _checked_expression(curve: CurveSettings, where: str) -> Expression | None:
    if not curve.expression.strip():
        return None
    try:
        return Expression.of(curve.expression)
    except ValueError as error:
        given = printable(curve.expression)
        raise SpecError(f"{where}.expression: {given!r}: {error}. {VALID_EXPRESSION}") from None


def _check_patterns(curve: CurveSettings, expression: Expression | None, where: str) -> None:
    if curve.names:
        raise SpecError(
            f"{where}.names: a pattern names its groups itself. Leave out names or pattern"
        )
    place = f"{where}.pattern"
    groups: dict[str, None] = {}
    for pattern in curve.pattern:
        groups |= dict.fromkeys(_groups(pattern, place))
    parts = expression.names if expression else ()
    valid = (*FIELDS, *(name for name in parts if name not in FIELDS))
    for group in groups:
        if group not in valid:
            raise SpecError(_no("group", group, valid, place))
    if "step" not in groups:
        raise SpecError(
            f"{place}: no group `step`. Valid: one such as (?P<step>\\d+), in a pattern of its own "
            f"if need be"
        )
    if expression is None and "value" not in groups:
        raise SpecError(
            f"{place}: no group `value`. Valid: one such as (?P<value>[\\d.]+), or an expression"
        )
    for name in parts:
        if name not in groups:
            raise SpecError(_no("group", name, tuple(groups), f"{where}.expression"))
    _check_one_value("value" in groups, expression, where)


def _groups(pattern: str, place: str) -> list[str]:
    try:
        groups = re.compile(pattern).groupindex
    except (re.error, OverflowError, RecursionError) as error:
        raise SpecError(
            f"{place}: {printable(pattern)!r}: {error}. Valid: a regular expression of Python"
        ) from None
    if not groups:
        raise SpecError(
            f"{place}: {pattern!r} has no named group. Valid: such as (?P<value>[\\d.]+)"
        )
    return list(groups)


def _check_names(curve: CurveSettings, expression: Expression | None, where: str) -> None:
    for name, column in curve.names.items():
        if name not in FIELDS:
            raise SpecError(_no("field", name, FIELDS, f"{where}.names"))
        if not column.strip():
            raise SpecError(
                f"{where}.names.{name}: it is empty. Valid: what JSON or a column calls it"
            )
    _check_one_value("value" in curve.names, expression, where)


def _check_one_value(is_named: bool, expression: Expression | None, where: str) -> None:
    if is_named and expression is not None and "value" not in expression.names:
        raise SpecError(
            f"{where}.expression: it does not use `value`, which is read too. Valid: one of the two"
        )
