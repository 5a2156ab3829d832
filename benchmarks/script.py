"""What a worker costs in addition to a training script, and how soon a script ends that must.

    python benchmarks/script.py [SECONDS]

A worker runs `tests/stand_ins/many_ways/train.py`, which reports every second, for SECONDS (60).
The CPU seconds of worker, keeper and script between the first report and the last are read from
/proc. Then `hpo kill` stops ten scripts that obey SIGTERM and ten whose children ignore it; the
time is from the command until the last process is gone. Last, five workers get SIGTERM.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from helpers.script_studies import study_file  # noqa: E402

from hpo.space.load import load_spec  # noqa: E402
from hpo.store.database import open_database  # noqa: E402
from hpo.study.control import kill  # noqa: E402
from hpo.study.paths import study_folder  # noqa: E402
from hpo.study.study import Study  # noqa: E402
from hpo.worker.dataset import look_at_data  # noqa: E402

TICKS = os.sysconf("SC_CLK_TCK")
GRACE_SECONDS = 1


def main(seconds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("HPO_HOME", f"{folder}/home")
        overhead(Path(folder), seconds)
        for way in ("exact", "deaf"):
            stops(Path(folder), way)
        leaves(Path(folder))
        subprocess.run(
            [sys.executable, "-m", "hpo.cli", "database", "stop"],
            check=True,
            stdout=subprocess.DEVNULL,
        )


def make_study(folder: Path, name: str, section: dict[str, Any], trials: int, steps: int) -> Study:
    """section: of the study file, `script:`."""
    path = study_file(folder, section, budget={"trials": trials}, base={"steps": steps})
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(content | {"stopping": None}))
    spec = load_spec(path)
    return Study.create_or_open(open_database(None), name, spec, look_at_data(None, spec).facts)


def start_worker(study: Study) -> "subprocess.Popen[bytes]":
    words = [sys.executable, "-m", "hpo.cli", "worker", "--study", study.name, "--device", "cpu"]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def overhead(folder: Path, seconds: int) -> None:
    """CPU time of worker, keeper and script."""
    fixed = {"seconds": 1.0, "every": 1, "forgets": True}
    study = make_study(folder, "overhead", {"fixed": fixed}, 1, seconds + 30)
    worker = start_worker(study)
    wait(lambda: study.records()[0].step >= 3)
    script = scripts_in(study_folder(study))[0]
    keeper = parent(script)
    pids = {"worker": worker.pid, "keeper": keeper, "script": script}
    before = {name: cpu_seconds(pid) for name, pid in pids.items()}
    begin = time.monotonic()
    time.sleep(seconds)
    passed = time.monotonic() - begin
    used = {name: cpu_seconds(pid) - before[name] for name, pid in pids.items()}
    worker.terminate()
    worker.wait()
    overhead = used["worker"] + used["keeper"]
    print(f"a script that reports every second, for {passed:.0f} s, CPU seconds a minute:")
    for name, value in used.items():
        print(f"  {name:7} {60 * value / passed:.3f}")
    print(f"  worker and keeper: {100 * overhead / passed:.2f} % of a core")


def stops(folder: Path, way: str) -> None:
    """From `hpo kill` until the script is gone. way: `exact` or `deaf`, of the stand-in."""
    fixed = {"way": way, "seconds": 0.1, "every": 1, "forgets": True}
    section = {"fixed": fixed, "grace_seconds": GRACE_SECONDS}
    study = make_study(folder, f"stops-{way}", section, 10, 10_000)
    worker = start_worker(study)
    latencies = []
    for number in range(10):
        wait(partial(has_step, study, number, 3))
        processes = scripts_in(study_folder(study))
        begin = time.monotonic()
        kill(study, number, "benchmark")
        wait(partial(all_gone, processes))
        latencies.append(time.monotonic() - begin)
    worker.wait()
    if way == "deaf":
        what = f"children deaf to SIGTERM, grace {GRACE_SECONDS} s"
    else:
        what = "obeys SIGTERM"
    print(f"hpo kill to all processes gone ({what}): {spread(latencies)}")


def leaves(folder: Path) -> None:
    """From SIGTERM to the worker, as a scheduler sends it, until the script is gone."""
    fixed = {"seconds": 0.1, "every": 1}
    section = {"fixed": fixed, "grace_seconds": GRACE_SECONDS}
    study = make_study(folder, "leaves", section, 1, 10_000)
    latencies = []
    for number in range(5):
        worker = start_worker(study)
        wait(lambda: bool(scripts_in(study_folder(study))))
        processes = scripts_in(study_folder(study))
        time.sleep(1 + number / 5)
        begin = time.monotonic()
        worker.terminate()
        wait(partial(all_gone, processes))
        latencies.append(time.monotonic() - begin)
        worker.wait()
    print(f"SIGTERM to the worker to all processes of the script gone: {spread(latencies)}")


def spread(latencies: list[float]) -> str:
    return f"median {median(latencies):.2f} s, most {max(latencies):.2f} s"


def has_step(study: Study, number: int, step: int) -> bool:
    """Whether the trial has come to the step."""
    return any(record.number == number and record.step >= step for record in study.records())


def scripts_in(folder: Path) -> list[int]:
    """The ids of the processes of scripts that run for the study of this folder."""
    pids = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if f"HPO_FOLDER={folder}" in environment:
            pids.append(int(entry.name))
    return sorted(pids)


def fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()


def parent(pid: int) -> int:
    return int(fields(pid)[1])


def alive(pid: int) -> bool:
    try:
        return fields(pid)[0] not in "ZX"
    except OSError:
        return False


def all_gone(pids: list[int]) -> bool:
    return not any(map(alive, pids))


def cpu_seconds(pid: int) -> float:
    user, system = fields(pid)[11:13]
    return (int(user) + int(system)) / TICKS


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("waited in vain")
        time.sleep(0.01)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
