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
    section = f"{place}: script.curve" if place else "script.curve"
    _check_file(curve, section)
    expression = _parsed_expression(curve, section)
    if curve.pattern:
        _check_patterns(curve, expression, section)
    else:
        _check_names(curve, expression, section)


def _unknown(what: str, name: str, valid: Sequence[str], place: str) -> str:
    return f"{place}: there is no {what} {name!r}.{guess(name, valid)} Valid: {', '.join(valid)}"


def _check_file(curve: CurveSettings, section: str) -> None:
    is_document = ending_of(curve) == ".json"
    if not curve.file.strip():
        raise SpecError(
            f"{section}.file: is empty. Valid: a file in the attempt's folder, or {OUTPUT}"
        )
    if "*" in curve.file and not is_document:
        raise SpecError(
            f"{section}.file: {curve.file} contains a *. Valid: * in the name of a .json file, "
            f"without a pattern"
        )
    if curve.rows and not is_document:
        raise SpecError(
            f"{section}.rows: {curve.rows!r} does not apply to {curve.file}. Valid: rows for a "
            f".json file that is written as a whole, without a pattern"
        )
    if curve.file == OUTPUT and not curve.pattern:
        raise SpecError(
            f"{section}.pattern: is missing. The output of a script needs a pattern. Give one, or "
            f"another file"
        )


def _parsed_expression(curve: CurveSettings, section: str) -> Expression | None:
    if not curve.expression.strip():
        return None
    try:
        return Expression.of(curve.expression)
    except ValueError as error:
        given = printable(curve.expression)
        raise SpecError(f"{section}.expression: {given!r}: {error}. {VALID_EXPRESSION}") from None


def _check_patterns(curve: CurveSettings, expression: Expression | None, section: str) -> None:
    if curve.names:
        raise SpecError(
            f"{section}.names: a pattern already names its groups. Leave out names or pattern"
        )
    place = f"{section}.pattern"
    groups: dict[str, None] = {}
    for pattern in curve.pattern:
        groups |= dict.fromkeys(_groups(pattern, place))
    names_in_expression = expression.names if expression else ()
    valid = tuple(dict.fromkeys([*FIELDS, *names_in_expression]))
    for group in groups:
        if group not in valid:
            raise SpecError(_unknown("group", group, valid, place))
    if "step" not in groups:
        raise SpecError(
            f"{place}: no group `step`. Valid: one such as (?P<step>\\d+), if necessary in a "
            f"pattern of its own"
        )
    if expression is None and "value" not in groups:
        raise SpecError(
            f"{place}: no group `value`. Valid: one such as (?P<value>[\\d.]+), or an expression"
        )
    for name in names_in_expression:
        if name not in groups:
            raise SpecError(_unknown("group", name, tuple(groups), f"{section}.expression"))
    _check_one_value("value" in groups, expression, section)


def _groups(pattern: str, place: str) -> list[str]:
    """The names of the groups of a pattern. Raises SpecError."""
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


def _check_names(curve: CurveSettings, expression: Expression | None, section: str) -> None:
    for name, column in curve.names.items():
        if name not in FIELDS:
            raise SpecError(_unknown("field", name, FIELDS, f"{section}.names"))
        if not column.strip():
            raise SpecError(
                f"{section}.names.{name}: is empty. Valid: a key of the JSON, or a column"
            )
    _check_one_value("value" in curve.names, expression, section)


def _check_one_value(is_named: bool, expression: Expression | None, section: str) -> None:
    if is_named and expression is not None and "value" not in expression.names:
        raise SpecError(
            f"{section}.expression: does not use `value`, which is read too. Valid: one of the two"
        )
