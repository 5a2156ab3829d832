"""Options that many tests type, and the line with which a command refuses."""

from helpers.commands import invoke

ON_CPU = ("--device", "cpu")
ONE_WORKER = ("--workers", "1", *ON_CPU)
TWO_WORKERS = ("--workers", "2", *ON_CPU)


def refusal(*arguments: object) -> str:
    """The one line on stderr with which a command refuses these arguments."""
    done = invoke(*arguments)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.output
    return done.stderr
