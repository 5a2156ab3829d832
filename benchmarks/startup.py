"""What commands cost before they do anything: CPU time compared with a plain import.

    python benchmarks/startup.py [--study NAME] [--repetitions 5]

Each command runs as a process of its own, on a study in the database of HPO_DATABASE_URL or else in
the embedded one, which is started before the clock; without --study on a study that does not exist.
The yardstick is an import of the libraries that a reader of Optuna's studies would import. It
prints CPU seconds (user and system, the least of the repetitions) and the ratio to the yardstick.
"""

import argparse
import os
import resource
import subprocess
import sys

from hpo.store.database import open_database

YARDSTICK = [sys.executable, "-c", "import optuna, sqlalchemy, psycopg2"]
READING = (
    ("--help",),
    ("studies",),
    ("status", "--study", "STUDY"),
    ("status", "--study", "STUDY", "--json"),
    ("logs", "--study", "STUDY", "--trial", "0"),
    ("budget", "--study", "STUDY"),
    ("report", "--study", "STUDY"),
)
# These write through Optuna if there is something to write.
WRITING = (
    ("kill", "--study", "missing", "--trial", "0"),
    ("delete", "--study", "missing", "--yes"),
)


def cpu_seconds(command: list[str], repetitions: int) -> float:
    return min(_once(command) for _ in range(repetitions))


def _once(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, env=os.environ, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--study", default="missing")
    arguments = parser.parse_args()
    repetitions = arguments.repetitions
    open_database()
    yardstick = cpu_seconds(YARDSTICK, repetitions)
    print(f"import optuna, sqlalchemy, psycopg2  {yardstick:.2f} CPU-s")
    for command in [*READING, *WRITING]:
        words = [arguments.study if word == "STUDY" else word for word in command]
        seconds = cpu_seconds([sys.executable, "-m", "hpo.cli", *words], repetitions)
        print(f"hpo {' '.join(words):32} {seconds:.2f} CPU-s  {seconds / yardstick:.2f} x")


if __name__ == "__main__":
    main()
