"""What the worker costs beside a training script, and how soon a script is gone that is to end.

    python benchmarks/script.py [SECONDS]

A worker runs `tests/stand_ins/many_ways/train.py`, which reports every second, for SECONDS (60). CPU
seconds of the worker and of the keeper between the first report and the last, beside those of the
script, are read from /proc. Then ten scripts that obey SIGTERM, and ten whose children are deaf to
it, are stopped by `hpo kill`: from the command to the last process gone. At last five workers get
SIGTERM.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from helpers.script_studies import study_file  # noqa: E402

from hpo.space.spec import load_spec  # noqa: E402
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


def made(folder: Path, name: str, section: dict[str, Any], trials: int, steps: int) -> Study:
    path = study_file(folder, section, budget={"trials": trials}, base={"steps": steps})
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(content | {"stopping": None}))
    spec = load_spec(path)
    return Study.create_or_open(open_database(None), name, spec, look_at_data(None, spec).facts)


def worker_of(study: Study) -> "subprocess.Popen[bytes]":
    words = [sys.executable, "-m", "hpo.cli", "worker", "--study", study.name, "--device", "cpu"]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def overhead(folder: Path, seconds: int) -> None:
    fixed = {"seconds": 1.0, "every": 1, "forgets": True}
    study = made(folder, "overhead", {"fixed": fixed}, 1, seconds + 30)
    worker = worker_of(study)
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
    ours = used["worker"] + used["keeper"]
    print(f"a script that reports every second, for {passed:.0f} s, CPU seconds a minute:")
    for name, value in used.items():
        print(f"  {name:7} {60 * value / passed:.3f}")
    print(f"  worker and keeper: {100 * ours / passed:.2f} % of a core")


def stops(folder: Path, way: str) -> None:
    fixed = {"way": way, "seconds": 0.1, "every": 1, "forgets": True}
    study = made(
        folder, f"stops-{way}", {"fixed": fixed, "grace_seconds": GRACE_SECONDS}, 10, 10_000
    )
    worker = worker_of(study)
    latencies = []
    for number in range(10):
        wait(lambda number=number: any(r.number == number and r.step >= 3 for r in study.records()))
        mine = scripts_in(study_folder(study))
        begin = time.monotonic()
        kill(study, number, "benchmark")
        wait(lambda mine=mine: not any(map(alive, mine)))
        latencies.append(time.monotonic() - begin)
    worker.wait()
    what = (
        f"children deaf to SIGTERM, grace {GRACE_SECONDS} s" if way == "deaf" else "obeys SIGTERM"
    )
    print(
        f"hpo kill to all processes gone ({what}): median {median(latencies):.2f} s, most {max(latencies):.2f} s"
    )


def leaves(folder: Path) -> None:
    """A signal to the worker, as a scheduler sends it."""
    fixed = {"seconds": 0.1, "every": 1}
    study = made(folder, "leaves", {"fixed": fixed, "grace_seconds": GRACE_SECONDS}, 1, 10_000)
    latencies = []
    for number in range(5):
        worker = worker_of(study)
        wait(lambda: bool(scripts_in(study_folder(study))))
        mine = scripts_in(study_folder(study))
        time.sleep(1 + number / 5)
        begin = time.monotonic()
        worker.terminate()
        wait(lambda mine=mine: not any(map(alive, mine)))
        latencies.append(time.monotonic() - begin)
        worker.wait()
    print(
        f"SIGTERM to the worker to all processes of the script gone: median {median(latencies):.2f} s, most {max(latencies):.2f} s"
    )


def scripts_in(folder: Path) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if f"HPO_FOLDER={folder}" in environment:
            found.append(int(entry.name))
    return sorted(found)


def fields(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()


def parent(pid: int) -> int:
    return int(fields(pid)[1])


def alive(pid: int) -> bool:
    try:
        return fields(pid)[0] not in "ZX"
    except OSError:
        return False


def cpu_seconds(pid: int) -> float:
    user, system = fields(pid)[11:13]
    return (int(user) + int(system)) / TICKS


def wait(condition: Any) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("waited in vain")
        time.sleep(0.01)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
