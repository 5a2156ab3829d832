"""hpo doctor: looks at what a worker on this machine needs before one fails for the lack of it.

Each check returns findings and raises nothing; what it concludes from numbers is in functions of their own, of numbers alone.
"""

import platform
import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from sqlalchemy import Connection, text

from hpo.errors import HpoError
from hpo.process import this_host
from hpo.store.database import Database, home, open_database, open_engine
from hpo.store.url import check_version, has_password
from hpo.study.study import Study
from hpo.study.trial import Record
from hpo.study.version import code_version, same_results
from hpo.worker.dataset import load_dataset

SKEW_WARN, SKEW_FAIL = 2.0, 60.0  # seconds between the clock here and the database's
CONNECTIONS_PER_WORKER = 2
FEW_WORKERS = 8  # room for fewer than this is worth a warning
LITTLE_SPACE = 10e9  # bytes; a trial of the full decoder keeps 1.1 GB of weights
PROBE = ".hpo-doctor-"
Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    name: str
    level: Level
    text: str  # one line; what to do, if there is something


def examine(
    study: str | None, database: str | None, data: Path | None, artifacts: Path | None
) -> list[Finding]:
    """Every check. The arguments are those of the command line."""
    findings = [versions(), *gpus()]
    if database and has_password(database):
        findings.append(
            Finding(
                "password",
                "warn",
                "--database holds one, which `ps` shows to others: set HPO_DATABASE_URL, or use ~/.pgpass",
            )
        )
    opened = None
    try:
        opened = open_database(database)
        findings += server(opened)
    except HpoError as error:
        findings.append(Finding("database", "fail", _line(error)))
    findings += folder(artifacts)
    if study and opened:
        findings += members(opened, study, data)
    return findings


def as_text(findings: Iterable[Finding]) -> str:
    return "\n".join(
        f"{finding.level:4}  {finding.name:11}  {finding.text}" for finding in findings
    )


# ---- this machine


def versions() -> Finding:
    return Finding("versions", "ok", f"hpo {code_version()}, Python {platform.python_version()}, torch {torch.__version__}, "
                                     f"optuna {version('optuna')}")  # fmt: skip


def gpus() -> list[Finding]:
    """A finding per GPU that PyTorch sees; one that says why there is none."""
    drivers = _drivers()
    if not torch.cuda.device_count():
        built = f"PyTorch {torch.__version__} is built {f'for CUDA {torch.version.cuda}' if torch.version.cuda else 'without CUDA'}"
        if drivers:
            what = f"the driver ({drivers[0]}) shows {len(drivers)}, PyTorch none: {built}. Install one that this driver runs"
            return [Finding("GPU", "fail", what)]
        fault = _product_fault(torch.device("cpu"))
        return [
            Finding(
                "GPU",
                "fail" if fault else "warn",
                fault or f"none; training on the CPU works, slowly. {built}",
            )
        ]
    return [
        _gpu(index, drivers[0] if drivers else "unknown")
        for index in range(torch.cuda.device_count())
    ]


def _gpu(index: int, driver: str) -> Finding:
    name = f"GPU {index}"
    try:
        free, total = torch.cuda.mem_get_info(index)
        memory = f"{total / 1e9:.0f} GB ({free / 1e9:.0f} free)"
        versions = f"driver {driver}, CUDA {torch.version.cuda}"
        what = f"{torch.cuda.get_device_name(index)}, {memory}, {versions}"
    except RuntimeError as error:
        return Finding(name, "fail", f"cannot be used: {_line(error)}")
    fault = _product_fault(torch.device("cuda", index))
    return Finding(name, "fail" if fault else "ok", f"{what}; {fault or 'a matrix product runs'}")


def _drivers() -> list[str]:
    """The driver's version for each GPU that nvidia-smi lists; empty without one."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.split() if done.returncode == 0 else []


def _product_fault(device: torch.device) -> str | None:
    try:
        product = torch.eye(256, device=device) @ torch.full((256, 256), 2.0, device=device)
        return (
            None
            if bool((product == 2).all())
            else "a matrix product comes out wrong: the device is faulty"
        )
    except RuntimeError as error:
        return f"a matrix product fails: {_line(error)}"


# ---- the database


def server(database: Database) -> list[Finding]:
    """Raises DatabaseError if the server goes away in between."""
    with open_engine(database).connect() as connection:
        trips = [_trip(connection) for _ in range(5)]
        before, there, after = min(trips, key=lambda trip: trip[2] - trip[0])
        number, user, limit, used, may = connection.execute(text(
            "SELECT current_setting('server_version_num')::int, current_user,"
            " current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int,"
            " (SELECT sum(numbackends) FROM pg_stat_database),"
            " to_regclass('hpo_trial') IS NOT NULL OR coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)"
        )).one()  # fmt: skip
        libpq = connection.connection.dbapi_connection.info  # type: ignore[union-attr]
        tls = (
            f"{libpq.ssl_attribute('protocol')}, {libpq.ssl_attribute('cipher')}"
            if libpq.ssl_in_use
            else None
        )
        host, mode = libpq.host, libpq.dsn_parameters.get("sslmode", "")
    what = f"{database}, {1e3 * (after - before):.1f} ms a round trip"
    if database.embedded_in:
        what += "; for workers of this machine only"
    return [
        Finding("database", "ok", what),
        Finding("version", "ok", check_version(number)),
        judge_clock(before, there, after),
        judge_connections(limit, used),
        judge_rights(may, user),
        judge_tls(host, tls, mode),
    ]


def _trip(connection: Connection) -> tuple[float, float, float]:
    """(time here, time of the database, time here), seconds since 1970."""
    before = time.time()
    there = connection.execute(
        text("SELECT extract(epoch FROM clock_timestamp())::float8")
    ).scalar_one()
    return before, there, time.time()


def judge_clock(before: float, there: float, after: float) -> Finding:
    """Leases are the database's time alone, so a skew costs no trial; it makes logs and deadlines lie."""
    skew = max(before - there, there - after, 0.0)  # the least that explains the three
    if skew <= SKEW_WARN:
        return Finding(
            "clock", "ok", f"agrees with the database's to {max(skew, after - before):.3f} s"
        )
    level: Level = "warn" if skew <= SKEW_FAIL else "fail"
    return Finding(
        "clock",
        level,
        f"{skew:.0f} s {'behind' if there > after else 'ahead of'} the database's: set both by NTP",
    )


def judge_connections(limit: int, used: int) -> Finding:
    workers = max(0, limit - used) // CONNECTIONS_PER_WORKER
    what = f"{used} of {limit} in use: room for {workers} more workers"
    if workers >= FEW_WORKERS:
        return Finding("connections", "ok", what)
    return Finding(
        "connections",
        "warn" if workers else "fail",
        f"{what}. Raise max_connections in the server, or end other programs",
    )


def judge_rights(may: bool, user: str) -> Finding:
    if may:
        return Finding("rights", "ok", f"{user} may make the tables, or they are there")
    return Finding(
        "rights",
        "fail",
        f"{user} may make no tables here: GRANT CREATE ON SCHEMA public TO {user}, or give another database",
    )


def judge_tls(host: str, tls: str | None, mode: str) -> Finding:
    """host: as libpq connected; a path for a socket. tls: protocol and cipher; None if none is in use."""
    if tls:
        checked = (
            ""
            if mode.startswith("verify")
            else "; whose server it is was not checked: sslmode=verify-full does"
        )
        return Finding("TLS", "ok", tls + checked)
    if host in ("localhost", "::1") or host.startswith(("/", "@", "127.")):
        return Finding("TLS", "ok", "not in use: nothing leaves this machine")
    return Finding(
        "TLS",
        "warn",
        f"not in use: the network sees all that goes to {host}. Add ?sslmode=verify-full&sslrootcert=FILE to the URL",
    )


# ---- the folder of artifacts


def folder(given: Path | None) -> list[Finding]:
    """Writes a probe that other machines find if they share the folder, and lists theirs. None: the folder under HPO_HOME."""
    try:
        place = given or home() / "studies"
        if given is None:
            place.mkdir(
                exist_ok=True
            )  # one that was given must be there: a share that is not mounted is not made up for
        probe = place / f"{PROBE}{this_host()}"
        probe.write_text(datetime.now(UTC).isoformat())
        free = shutil.disk_usage(place).free
        others = {
            path.name.removeprefix(PROBE): path.read_text()
            for path in sorted(place.glob(f"{PROBE}*"))
            if path != probe
        }
    except HpoError as error:
        return [Finding("artifacts", "fail", _line(error))]
    except OSError as error:
        what = f"{error.filename or given}: {error.strerror}. Give --artifacts or HPO_HOME a folder that can be written"
        return [Finding("artifacts", "fail", what)]
    space = f"{place} can be written, {free / 1e9:.0f} GB free"
    little = free < LITTLE_SPACE
    return [
        Finding(
            "artifacts",
            "warn" if little else "ok",
            space + ("; a trial of the full decoder keeps 1.1 GB" if little else ""),
        ),
        Finding("shared", "ok", judge_probes(others, datetime.now(UTC))),
    ]


def judge_probes(others: dict[str, str], now: datetime) -> str:
    """others: host -> when its probe was written, ISO."""
    if not others:
        return "no other host's doctor was here. To prove that machines share the folder, run hpo doctor on each, then here again"
    return "with " + ", ".join(
        f"{host} (its doctor was here {_ago(written, now)})" for host, written in others.items()
    )


def _ago(written: str, now: datetime) -> str:
    try:
        past = max(now - datetime.fromisoformat(written), timedelta())
    except (ValueError, TypeError):
        return "at an unknown time"
    return (
        f"{past.days} days ago"
        if past.days
        else f"{past.seconds // 3600} h {past.seconds // 60 % 60} min ago"
    )


# ---- the study's workers


def members(database: Database, name: str, data: Path | None) -> list[Finding]:
    """Whether this machine's code and data are those of the study and of the workers that ran its trials."""
    try:
        study = Study.open(database, name)
        records = [record for record in study.records() if record.host]
    except HpoError as error:
        return [Finding("study", "fail", _line(error))]
    path = data or study.data_path
    try:
        here = load_dataset(study.spec, path, "cpu").fingerprint
    except (HpoError, OSError) as error:
        found = Finding(
            "data", "fail", f"{_line(error)}. Say where the study's data are here: --data"
        )
    else:
        found = judge_data(
            str(path or study.spec.load_trainer().bundled), here, study.data["fingerprint"], records
        )
    return [judge_code(code_version(study.spec), study.code, records), found]


def judge_data(shown: str, here: str, wanted: str, records: list[Record]) -> Finding:
    if here != wanted:
        return Finding(
            "data",
            "fail",
            f"{shown}: fingerprint {here}, the study's is {wanted}. Give --data with the study's data",
        )
    others = _by_value((record.data, record.host) for record in records if record.data != wanted)
    if others:
        return Finding(
            "data",
            "warn",
            f"{shown}: the study's, {wanted}; but trials ran on other data: {others}",
        )
    return Finding("data", "ok", f"{shown}: the study's, as of all {len(records)} trials that ran")


def judge_code(here: str, wanted: str, records: list[Record]) -> Finding:
    if wanted and not same_results(here, wanted):
        return Finding("code", "fail", f"here {here}, the study was made with {wanted}. Install that, or start workers with "
                                       f"--allow-different-code")  # fmt: skip
    others = _by_value(
        (record.code_version, record.host)
        for record in records
        if not same_results(here, record.code_version)
    )
    if others:
        return Finding(
            "code",
            "warn",
            f"here {here}; trials ran with {others}. Install one version on all machines, or results do not compare",
        )
    return Finding("code", "ok", f"{here}, as of all {len(records)} trials that ran")


def _by_value(pairs: Iterable[tuple[str, str]]) -> str:
    """(value, host) of each trial -> `value (trials: 3, on a, b), ...`"""
    hosts: dict[str, list[str]] = defaultdict(list)
    for value, host in pairs:
        hosts[value].append(host)
    return ", ".join(
        f"{value} (trials: {len(on)}, on {', '.join(sorted(set(on)))})"
        for value, on in sorted(hosts.items())
    )


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
