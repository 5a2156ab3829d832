"""How a worker is started, here and on the nodes of a cluster."""

import sys


def worker_program() -> list[str]:
    """The command that starts a worker.

    Python searches the working folder for no module (-P): a random.py there would shadow Python's.
    A variable (PYTHONSAFEPATH) would reach the scripts that a worker starts, whose own folder it
    hides.
    """
    return [sys.executable, "-P", "-m", "hpo.cli", "worker"]
