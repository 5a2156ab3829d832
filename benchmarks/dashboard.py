"""What an open page costs: `hpo dashboard` against plain `optuna-dashboard URL`, on the same study.

    python benchmarks/dashboard.py [--trials 5000] [--values 25 100] [--seconds 60]

The study is filled by SQL. While a page is open a trial reports every 2 s and one ends every 30 s,
as 16 workers would have it. The page's requests are replayed as Chromium was seen to make them: the
page and its script, meta, the study, the importances; then every 10 s the study from the first open
trial on, with the tag of the last answer if there was one, and the importances again when a trial
completed. CPU is that of the server's process and of Postgres, over the minute after the first
page. It uses the database of the embedded Postgres of HPO_HOME; its studies are named `bench-...`
and are not deleted.
"""

import argparse
import gzip
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import Engine, create_engine, text

from hpo.process import Process
from hpo.space.load import find_space, load_spec
from hpo.store.database import Database, open_database
from hpo.study.study import Study

RUNNING = 16
POLL_SECONDS = 10.0
REPORT_SECONDS = 2.0
END_SECONDS = 30.0
TICK = os.sysconf("SC_CLK_TCK")
FILL = """
UPDATE trials SET state = 'COMPLETE', datetime_start = now(), datetime_complete = now()
WHERE study_id = :study;
INSERT INTO trial_values (trial_id, objective, value, value_type)
SELECT trial_id, 0, 0.7, 'FINITE' FROM trials WHERE study_id = :study;
INSERT INTO trials (number, study_id, state, datetime_start, datetime_complete)
SELECT n, :study,
  (CASE WHEN n >= :trials - :running THEN 'RUNNING' WHEN n % 4 = 0 THEN 'PRUNED'
   ELSE 'COMPLETE' END)::trialstate,
  now() - make_interval(mins => :trials - n),
  CASE WHEN n < :trials - :running THEN now() - make_interval(mins => :trials - n - 1) END
FROM generate_series(:first, :trials - 1) n;
INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json)
SELECT t.trial_id, p.param_name, p.param_value * (0.5 + random() / 2), p.distribution_json
FROM trials t, trial_params p
WHERE t.study_id = :study AND t.number >= :first AND p.trial_id = :like;
INSERT INTO trial_values (trial_id, objective, value, value_type)
SELECT trial_id, 0, 0.2 + random() / 2, 'FINITE' FROM trials
WHERE study_id = :study AND number >= :first AND state = 'COMPLETE';
INSERT INTO trial_intermediate_values
  (trial_id, step, intermediate_value, intermediate_value_type)
SELECT trial_id, 100 * s, 0.2 + random() / 2, 'FINITE'
FROM trials, generate_series(1, :values) s
WHERE study_id = :study AND number >= :first AND (state != 'RUNNING' OR s < :values / 2);
INSERT INTO trial_user_attributes (trial_id, key, value_json)
SELECT trial_id, a.key, a.value FROM trials,
  (VALUES ('rule', '"own-past"'), ('cause', '"per"'),
    ('reason', '"PER 0.41 at step 700, above its best 0.33 + 0.05"')) a (key, value)
WHERE study_id = :study AND number >= :first AND state = 'PRUNED';
INSERT INTO hpo_trial (trial_id, host, process, device, code_version, data, config, attempts, step,
  seconds, gpu_seconds)
SELECT t.trial_id, 'node1', '1:1', 'cuda:0', '0', '0', h.config, 1, 100, 60, 60
FROM trials t, hpo_trial h
WHERE h.trial_id = :like AND t.study_id = :study AND t.number >= :first;
ANALYZE;
"""
OPEN = "SELECT trial_id FROM trials WHERE study_id = :study AND state = 'RUNNING' ORDER BY 1"
REPORT = """
INSERT INTO trial_intermediate_values
  (trial_id, step, intermediate_value, intermediate_value_type)
SELECT :trial, coalesce(max(step), 0) + 100, 0.3, 'FINITE'
FROM trial_intermediate_values WHERE trial_id = :trial
"""
END = (
    "INSERT INTO trial_values (trial_id, objective, value, value_type) "
    "VALUES (:trial, 0, 0.3, 'FINITE')",
    "UPDATE trials SET state = 'COMPLETE', datetime_complete = now() WHERE trial_id = :trial",
)
TITLES = (
    "values a trial",
    "server",
    "starts s",
    "first page s",
    "first page MB",
    "CPU s/min",
    "Postgres CPU s/min",
    "answers",
    "CPU s an answer",
    "kB/min",
    "memory GB",
)


@dataclass
class Side:
    """The measurements of one server."""

    name: str
    # Until the server answers.
    start_seconds: float = 0.0
    first_page_seconds: float = 0.0
    first_page_bytes: int = 0
    # Seconds of each poll.
    polls: list[float] = field(default_factory=list)
    # Per minute, after the first page.
    poll_bytes: int = 0
    cpu: float = 0.0
    postgres_cpu: float = 0.0
    # CPU seconds of both for each poll.
    cpu_of_a_poll: float = 0.0
    memory_gb: float = 0.0


def fill(study: Study, engine: Engine, trials: int, values: int) -> None:
    """Add trials as 16 workers would have left them, with random values.

    Their parameters are near those of the first start. values: evaluations of a trial.
    """
    parameters = {
        "study": study.id,
        "trials": trials,
        "first": len(study.spec.starts),
        "values": values,
        "running": RUNNING,
        "like": study.records()[0].id,
    }
    with engine.begin() as connection:
        for statement in FILL.split(";")[:-1]:
            used = {name: value for name, value in parameters.items() if f":{name}" in statement}
            connection.execute(text(statement), used)


def work(engine: Engine, study: int, end: threading.Event) -> None:
    """Do what workers do to a study, until `end` is set."""
    last_end = time.monotonic()
    turn = 0
    while not end.wait(REPORT_SECONDS):
        turn += 1
        with engine.begin() as connection:
            open_trials = connection.execute(text(OPEN), {"study": study}).scalars().all()
            connection.execute(text(REPORT), {"trial": open_trials[turn % len(open_trials)]})
            if time.monotonic() - last_end > END_SECONDS:
                last_end = time.monotonic()
                for statement in END:
                    connection.execute(text(statement), {"trial": open_trials[0]})


def cpu_seconds(pid: int, with_children: bool = False) -> float:
    """Of a process; with_children: and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    end = 15 if with_children else 13
    return sum(map(int, fields[11:end])) / TICK


def postgres_cpu_seconds(data: Path) -> float:
    total = 0.0
    postmaster = int((data / "postmaster.pid").read_text().split()[0])
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if link.readlink() == data:
                pid = int(link.parent.name)
                # Backends that have ended count as the postmaster's children.
                total += cpu_seconds(pid, with_children=pid == postmaster)
        except OSError:
            continue
    return total


def peak_memory_gb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1e6


class Page:
    """A browser's requests."""

    def __init__(self, port: int, study: int):
        self.port = port
        self.study = study
        self.bytes = 0
        # The tag and the body of the last answer, by path.
        self._answers: dict[str, tuple[str, bytes]] = {}

    def get(self, path: str) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=900)
        headers = {"Accept-Encoding": "gzip"}
        if path in self._answers:
            tag, _ = self._answers[path]
            headers["If-None-Match"] = tag
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        self.bytes += len(body)
        if answer.status == 304:
            _, body = self._answers[path]
            return body
        assert answer.status == 200, (path, answer.status, body[:200])
        if answer.getheader("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        new_tag = answer.getheader("ETag")
        if new_tag:
            self._answers[path] = (new_tag, body)
        connection.close()
        return body

    def trials(self, after: int) -> list[dict[str, Any]]:
        """The study's trials from the number `after` on."""
        answer = json.loads(self.get(f"/api/studies/{self.study}?after={after}"))
        trials: list[dict[str, Any]] = answer["trials"]
        return trials

    def importances(self) -> None:
        self.get(f"/api/studies/{self.study}/param_importances")

    def open(self) -> list[dict[str, Any]]:
        """Load the page. Returns the study's trials."""
        for path in (f"/dashboard/studies/{self.study}", "/static/bundle.js", "/api/meta"):
            self.get(path)
        trials = self.trials(0)
        self.importances()
        return trials


def measure(
    name: str, command: Callable[[int], list[str]], database: Database, study: int, seconds: float
) -> Side:
    """Start a server, and measure an open page. command: of the server, given its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    side = Side(name)
    begin = time.monotonic()
    server = subprocess.Popen(command(port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    engine = create_engine(database.url)
    end = threading.Event()
    workers = threading.Thread(target=work, args=(engine, study, end))
    try:
        page = Page(port, study)
        wait_for_server(page, server)
        side.start_seconds = time.monotonic() - begin
        begin = time.monotonic()
        page.bytes = 0
        workers.start()
        trials = page.open()
        side.first_page_seconds = time.monotonic() - begin
        side.first_page_bytes = page.bytes
        page.bytes = 0
        assert database.embedded_in is not None
        cpu_before = cpu_seconds(server.pid)
        postgres_before = postgres_cpu_seconds(database.embedded_in)
        begin = time.monotonic()
        side.polls = poll(page, trials, seconds)
        per_minute = 60 / (time.monotonic() - begin)
        cpu = cpu_seconds(server.pid) - cpu_before
        postgres = postgres_cpu_seconds(database.embedded_in) - postgres_before
        side.cpu = cpu * per_minute
        side.postgres_cpu = postgres * per_minute
        side.cpu_of_a_poll = (cpu + postgres) / len(side.polls)
        side.poll_bytes = int(page.bytes * per_minute)
        side.memory_gb = peak_memory_gb(server.pid)
    finally:
        end.set()
        if workers.ident is not None:
            workers.join()
        server.kill()
        server.wait()
        engine.dispose()
    return side


def wait_for_server(page: Page, server: "subprocess.Popen[bytes]") -> None:
    while True:
        try:
            page.get("/api/meta")
            return
        except OSError:
            assert server.poll() is None
            time.sleep(0.1)


def poll(page: Page, trials: list[dict[str, Any]], seconds: float) -> list[float]:
    """Poll as an open page does. Returns the seconds of each poll. trials: what the page shows."""
    polls: list[float] = []
    begin = time.monotonic()
    complete = count_complete(trials)
    while time.monotonic() - begin < seconds:
        time.sleep(POLL_SECONDS)
        sent = time.monotonic()
        after = first_open(trials)
        trials[after:] = page.trials(after)
        complete_now = count_complete(trials)
        if complete_now != complete:
            page.importances()
        complete = complete_now
        polls.append(time.monotonic() - sent)
    return polls


def count_complete(trials: list[dict[str, Any]]) -> int:
    return sum(trial["state"] == "Complete" for trial in trials)


def first_open(trials: list[dict[str, Any]]) -> int:
    """The place of the first trial that runs or waits; the number of trials if there is none."""
    for place, trial in enumerate(trials):
        if trial["state"] in ("Running", "Waiting"):
            return place
    return len(trials)


def row_of(values: int, side: Side) -> str:
    cells = (
        str(values),
        side.name,
        f"{side.start_seconds:.1f}",
        f"{side.first_page_seconds:.1f}",
        f"{side.first_page_bytes / 1e6:.1f}",
        f"{side.cpu:.1f}",
        f"{side.postgres_cpu:.1f}",
        str(len(side.polls)),
        f"{side.cpu_of_a_poll:.2f}",
        f"{side.poll_bytes / 1e3:.0f}",
        f"{side.memory_gb:.2f}",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--values", type=int, nargs="+", default=[25, 100])
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    os.environ.pop("HPO_DATABASE_URL", None)
    database = open_database()
    spec = load_spec(find_space("lr-aug"))

    def hpo_command(port: int) -> list[str]:
        hpo = [sys.executable, "-m", "hpo.cli"]
        return [*hpo, "dashboard", "--no-browser", "--port", str(port)]

    def plain_command(port: int) -> list[str]:
        optuna_dashboard = Path(sys.executable).parent / "optuna-dashboard"
        return [str(optuna_dashboard), database.url, "--port", str(port)]

    print(f"| {' | '.join(TITLES)} |\n|{'---|' * len(TITLES)}", flush=True)
    for values in arguments.values:
        data = {"path": None, "fingerprint": "f", "n_features": 3, "n_days": 2}
        study = Study.create_or_open(database, f"bench-{uuid4().hex[:8]}", spec, data)
        study.claim(Process.this(), {"device": "cpu", "code_version": "0", "data": "f"})
        engine = create_engine(database.url)
        fill(study, engine, arguments.trials, values)
        engine.dispose()
        hpo = measure("hpo", hpo_command, database, study.id, arguments.seconds)
        plain = measure("plain", plain_command, database, study.id, arguments.seconds)
        for side in (hpo, plain):
            print(row_of(values, side), flush=True)
        cpu_ratio = (plain.cpu + plain.postgres_cpu) / (hpo.cpu + hpo.postgres_cpu)
        print(
            f"plain / hpo: CPU a minute {cpu_ratio:.1f} x, CPU an answer "
            f"{plain.cpu_of_a_poll / hpo.cpu_of_a_poll:.1f} x, "
            f"first page {plain.first_page_seconds / hpo.first_page_seconds:.1f} x",
            flush=True,
        )


if __name__ == "__main__":
    main()
