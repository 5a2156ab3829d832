"""What the end of a script means: why it failed, whether it diverged, why no value was found."""

import re
from collections.abc import Sequence

from hpo.script.process import End
from hpo.script.settings import OUTPUT, CurveSettings
from hpo.trainer import TrainingFailedError

SHOWN_LINES = 5
SHOWN_CHARACTERS = 200
# Matches of a shorter beginning of a pattern are accidental.
SHORTEST_BEGINNING = 4
SHOWN_REST = 30
OUT_OF_MEMORY = re.compile(
    r"CUDA out of memory|OutOfMemoryError|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|"
    r"CUDNN_STATUS_ALLOC_FAILED|can't allocate memory|RESOURCE_EXHAUSTED|^MemoryError|"
    r"Cannot allocate memory",
    re.MULTILINE,
)
# Signals that come from outside: the script may well succeed next time.
FROM_OUTSIDE = {"SIGKILL", "SIGTERM", "SIGHUP", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGXCPU"}


def divergence_line(end: End, pattern: str) -> str:
    """The last line of the output that matches `pattern` of a divergence, or empty."""
    if not pattern:
        return ""
    for line in reversed(end.tail.splitlines()):
        if re.search(pattern, line):
            return line.strip()[:SHOWN_CHARACTERS]
    return ""


def failure(end: End, memory_pattern: str) -> Exception:
    """The error to raise for a script that ended by itself with an error.

    A MemoryError if its output says so, in common words or those of `memory_pattern`; else a
    TrainingFailedError.
    """
    last_lines = end.last_lines(SHOWN_LINES)
    says_memory = bool(memory_pattern) and re.search(memory_pattern, end.tail)
    if OUT_OF_MEMORY.search(end.tail) or says_memory:
        return MemoryError(last_lines)
    if end.error:
        return TrainingFailedError(f"the script cannot be started: {end.error}")
    if end.signal:
        return TrainingFailedError(
            f"the script was ended by {end.signal}; its last output: {last_lines}",
            lost=end.signal in FROM_OUTSIDE,
        )
    return TrainingFailedError(
        f"the script ended with exit code {end.code}; its last output: {last_lines}"
    )


def no_value_message(end: End, curve: CurveSettings, advice: str) -> str:
    """Why a script that succeeded has no value. advice: of the reader of its curve's file."""
    fault = f"{curve.file} has no row with a value"
    if curve.file == OUTPUT:
        fault = f"no line of its output matches {curve.pattern[0]}"
        advice = partial_match(curve.pattern[0], end.tail.splitlines())
    parts = [
        f"the script succeeded, but {fault}",
        advice,
        f"Its last output: {end.last_lines(SHOWN_LINES)}",
    ]
    return ". ".join(part.rstrip(".") for part in parts if part)


def partial_match(pattern: str, lines: Sequence[str]) -> str:
    """How far a pattern matches the line that it matches furthest.

    Empty if no line matches its beginning.
    """
    for length in range(len(pattern) - 1, SHORTEST_BEGINNING - 1, -1):
        try:
            beginning = re.compile(pattern[:length])
        except re.error:
            continue
        for line in lines:
            match = beginning.search(line)
            if match and match.group():
                rest_of_pattern = pattern[length:][:SHOWN_REST]
                rest_of_line = line[match.end() :][:SHOWN_REST]
                return (
                    f"It matches up to {_visible_blanks(match.group())!r}; "
                    f"then the pattern has {_visible_blanks(rest_of_pattern)!r}, "
                    f"and the line {_visible_blanks(rest_of_line)!r}"
                )
    return ""


def _visible_blanks(text: str) -> str:
    """The text with runs of several blanks made visible."""
    return re.sub(r" {2,}", _open_boxes, text)


def _open_boxes(blanks: re.Match[str]) -> str:
    return "\N{OPEN BOX}" * len(blanks.group())
