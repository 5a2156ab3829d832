"""What an open page costs: `hpo dashboard` beside plain `optuna-dashboard URL`, on the same study in the same run.

    python benchmarks/dashboard.py [--trials 5000] [--values 25 100] [--seconds 60]

The study is put in by SQL. While a page is open a trial reports every 2 s and one ends every 30 s, as 16 workers would have
it. The page's requests are replayed as Chromium was seen to make them: the page and its script, meta, the study, the
importances, then every 10 s the study from the first open trial on, with the tag of the last answer if there was one, and the
importances again when a trial completed. CPU is of the server's process and of Postgres, over the minute after the first page.
Uses the database of the embedded Postgres of HPO_HOME; the studies are named `bench-...` and stay there.
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
from uuid import uuid4

from sqlalchemy import Engine, create_engine, text

from hpo.process import Process
from hpo.space.spec import find_space, load_spec
from hpo.store.database import Database, open_database
from hpo.study.study import Study

RUNNING = 16
POLL_SECONDS, REPORT_SECONDS, END_SECONDS = 10.0, 2.0, 30.0
TICK = os.sysconf("SC_CLK_TCK")
FILL = """
UPDATE trials SET state = 'COMPLETE', datetime_start = now(), datetime_complete = now() WHERE study_id = :study;
INSERT INTO trial_values (trial_id, objective, value, value_type) SELECT trial_id, 0, 0.7, 'FINITE' FROM trials WHERE study_id = :study;
INSERT INTO trials (number, study_id, state, datetime_start, datetime_complete)
SELECT n, :study, (CASE WHEN n >= :trials - :running THEN 'RUNNING' WHEN n % 4 = 0 THEN 'PRUNED' ELSE 'COMPLETE' END)::trialstate,
  now() - make_interval(mins => :trials - n), CASE WHEN n < :trials - :running THEN now() - make_interval(mins => :trials - n - 1) END
FROM generate_series(:first, :trials - 1) n;
INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json)
SELECT t.trial_id, p.param_name, p.param_value * (0.5 + random() / 2), p.distribution_json
FROM trials t, trial_params p WHERE t.study_id = :study AND t.number >= :first AND p.trial_id = :like;
INSERT INTO trial_values (trial_id, objective, value, value_type)
SELECT trial_id, 0, 0.2 + random() / 2, 'FINITE' FROM trials WHERE study_id = :study AND number >= :first AND state = 'COMPLETE';
INSERT INTO trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type)
SELECT trial_id, 100 * s, 0.2 + random() / 2, 'FINITE' FROM trials, generate_series(1, :values) s WHERE study_id = :study
  AND number >= :first AND (state != 'RUNNING' OR s < :values / 2);
INSERT INTO trial_user_attributes (trial_id, key, value_json) SELECT trial_id, a.key, a.value FROM trials,
  (VALUES ('rule', '"own-past"'), ('cause', '"per"'), ('reason', '"PER 0.41 at step 700, above its best 0.33 + 0.05"')) a (key, value)
  WHERE study_id = :study AND number >= :first AND state = 'PRUNED';
INSERT INTO hpo_trial (trial_id, host, process, device, code_version, data, config, attempts, step, seconds, gpu_seconds)
SELECT t.trial_id, 'node1', '1:1', 'cuda:0', '0', '0', h.config, 1, 100, 60, 60 FROM trials t, hpo_trial h
WHERE h.trial_id = :like AND t.study_id = :study AND t.number >= :first;
ANALYZE;
"""
OPEN = "SELECT trial_id FROM trials WHERE study_id = :study AND state = 'RUNNING' ORDER BY 1"
REPORT = """INSERT INTO trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type)
SELECT :trial, coalesce(max(step), 0) + 100, 0.3, 'FINITE' FROM trial_intermediate_values WHERE trial_id = :trial"""
END = (
    "INSERT INTO trial_values (trial_id, objective, value, value_type) VALUES (:trial, 0, 0.3, 'FINITE')",
    "UPDATE trials SET state = 'COMPLETE', datetime_complete = now() WHERE trial_id = :trial",
)
TITLES = ("values a trial", "server", "starts s", "first page s", "first page MB", "CPU s/min", "Postgres CPU s/min", "answers",
          "CPU s an answer", "kB/min", "memory GB")  # fmt: skip


@dataclass
class Side:
    name: str
    started: float = 0.0  # seconds until the server answers
    first: float = 0.0  # seconds of the first page
    first_bytes: int = 0
    polls: list[float] = field(default_factory=list)  # seconds of each
    poll_bytes: int = 0
    cpu: float = 0.0  # seconds in the minute after
    postgres: float = 0.0
    each: float = 0.0  # CPU seconds of both, a poll
    memory: float = 0.0  # GB


def fill(study: Study, engine: Engine, trials: int, values: int) -> None:
    """As many trials as 16 runs with the first start's parameters would have left, with random values."""
    like = study.records()[0]
    with engine.begin() as connection:
        given = {
            "study": study.id,
            "trials": trials,
            "first": len(study.spec.starts),
            "values": values,
            "running": RUNNING,
        }
        given["like"] = like.id
        for statement in FILL.split(";")[:-1]:
            names = {name: value for name, value in given.items() if f":{name}" in statement}
            connection.execute(text(statement), names)


def live(engine: Engine, study: int, end: threading.Event) -> None:
    """What workers do meanwhile."""
    ended, turn = time.monotonic(), 0
    while not end.wait(REPORT_SECONDS):
        turn += 1
        with engine.begin() as connection:
            open_ones = connection.execute(text(OPEN), {"study": study}).scalars().all()
            connection.execute(text(REPORT), {"trial": open_ones[turn % len(open_ones)]})
            if time.monotonic() - ended > END_SECONDS:
                ended = time.monotonic()
                for statement in END:
                    connection.execute(text(statement), {"trial": open_ones[0]})


def cpu(pid: int, reaped: bool = False) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return sum(map(int, fields[11 : 15 if reaped else 13])) / TICK


def postgres_cpu(data: Path) -> float:
    total, master = 0.0, int((data / "postmaster.pid").read_text().split()[0])
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if link.readlink() == data:
                pid = int(link.parent.name)
                total += cpu(pid, pid == master)  # backends that have ended are in the postmaster's
        except OSError:
            continue
    return total


class Page:
    """A browser's requests."""

    def __init__(self, port: int):
        self.port, self.bytes = port, 0
        self._tags: dict[str, tuple[str, bytes]] = {}

    def get(self, path: str) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=900)
        headers = {"Accept-Encoding": "gzip"}
        if path in self._tags:
            headers["If-None-Match"] = self._tags[path][0]
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        self.bytes += len(body)
        if answer.status == 304:
            return self._tags[path][1]
        assert answer.status == 200, (path, answer.status, body[:200])
        body = gzip.decompress(body) if answer.getheader("Content-Encoding") == "gzip" else body
        if tag := answer.getheader("ETag"):
            self._tags[path] = tag, body
        connection.close()
        return body


def measure(name: str, command: Callable[[int], list[str]], environment: dict[str, str], database: Database, study: int,
            seconds: float) -> Side:  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    side, begin = Side(name), time.monotonic()
    server = subprocess.Popen(
        command(port),
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    engine, end = create_engine(database.url), threading.Event()
    changes = threading.Thread(target=live, args=(engine, study, end))
    try:
        page = Page(port)
        while True:
            try:
                page.get("/api/meta")
                break
            except OSError:
                assert server.poll() is None
                time.sleep(0.1)
        side.started, begin = time.monotonic() - begin, time.monotonic()
        page.bytes = 0
        changes.start()
        for path in (f"/dashboard/studies/{study}", "/static/bundle.js", "/api/meta"):
            page.get(path)
        trials = json.loads(page.get(f"/api/studies/{study}?after=0"))["trials"]
        page.get(f"/api/studies/{study}/param_importances")
        side.first, side.first_bytes, page.bytes = time.monotonic() - begin, page.bytes, 0
        assert database.embedded_in is not None
        before = cpu(server.pid), postgres_cpu(database.embedded_in)
        begin = time.monotonic()
        complete = sum(trial["state"] == "Complete" for trial in trials)
        while time.monotonic() - begin < seconds:
            time.sleep(POLL_SECONDS)
            sent = time.monotonic()
            after = next(
                (
                    place
                    for place, trial in enumerate(trials)
                    if trial["state"] in ("Running", "Waiting")
                ),
                len(trials),
            )
            trials[after:] = json.loads(page.get(f"/api/studies/{study}?after={after}"))["trials"]
            now = sum(trial["state"] == "Complete" for trial in trials)
            if now != complete:
                page.get(f"/api/studies/{study}/param_importances")
            complete = now
            side.polls.append(time.monotonic() - sent)
        per_minute = 60 / (time.monotonic() - begin)
        spent = cpu(server.pid) - before[0], postgres_cpu(database.embedded_in) - before[1]
        side.cpu, side.postgres = (seconds * per_minute for seconds in spent)
        side.each = sum(spent) / len(side.polls)
        side.poll_bytes = int(page.bytes * per_minute)
        memory = Path(f"/proc/{server.pid}/status").read_text().partition("VmHWM:")[2].split()[0]
        side.memory = int(memory) / 1e6
    finally:
        end.set()
        changes.join()
        server.kill()
        server.wait()
        engine.dispose()
    return side


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--values", type=int, nargs="+", default=[25, 100])
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    os.environ.pop("HPO_DATABASE_URL", None)
    database = open_database()
    spec = load_spec(find_space("lr-aug"))
    print(f"| {' | '.join(TITLES)} |\n|{'---|' * len(TITLES)}", flush=True)
    for values in arguments.values:
        data = {"path": None, "fingerprint": "f", "n_features": 3, "n_days": 2}
        study = Study.create_or_open(database, f"bench-{uuid4().hex[:8]}", spec, data)
        study.claim(Process.this(), {"device": "cpu", "code_version": "0", "data": "f"})
        engine = create_engine(database.url)
        fill(study, engine, arguments.trials, values)
        engine.dispose()
        sides = [
            measure("hpo", lambda port: [sys.executable, "-m", "hpo.cli", "dashboard", "--no-browser", "--port", str(port)],
                    {}, database, study.id, arguments.seconds),
            measure("plain", lambda port: [str(Path(sys.executable).parent / "optuna-dashboard"), database.url, "--port", str(port)],
                    {}, database, study.id, arguments.seconds),
        ]  # fmt: skip
        for side in sides:
            cells = (values, side.name, f"{side.started:.1f}", f"{side.first:.1f}", f"{side.first_bytes / 1e6:.1f}", f"{side.cpu:.1f}",
                     f"{side.postgres:.1f}", len(side.polls), f"{side.each:.2f}", f"{side.poll_bytes / 1e3:.0f}",
                     f"{side.memory:.2f}")  # fmt: skip
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
        ours, plain = sides
        print(f"plain / hpo: CPU a minute {(plain.cpu + plain.postgres) / (ours.cpu + ours.postgres):.1f} x, CPU an answer "
              f"{plain.each / ours.each:.1f} x, first page {plain.first / ours.first:.1f} x", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
