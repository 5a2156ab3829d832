"""hpo doctor: checks what a worker on this machine needs, before one fails for the lack of it.

Each check returns findings and raises nothing. Conclusions from numbers are drawn in pure functions
(`judge_...`).
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
from hpo.text import plural
from hpo.worker.dataset import load_dataset
from hpo.worker.disk import DiskUse, disk_use, largest, size

# Seconds between the clock of this machine and that of the database server.
SKEW_WARN = 2.0
SKEW_FAIL = 60.0
CONNECTIONS_PER_WORKER = 2
# Room for fewer workers than this is worth a warning.
FEW_WORKERS = 8
# In bytes. A trial of the full decoder keeps 1.1 GB of weights.
LITTLE_SPACE = 10e9
ROUND_TRIPS = 5
# Prefix of the file that each host leaves in the folder of artifacts.
PROBE = ".hpo-doctor-"
Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """The result of one check: a line that says, where needed, what to do."""

    name: str
    level: Level
    text: str


def examine(
    study: str | None, database: str | None, data: Path | None, artifacts: Path | None
) -> list[Finding]:
    """Run every check. The arguments are those of the command line."""
    findings = [versions(), *gpus()]
    if database and has_password(database):
        advice = (
            "--database contains a password, which `ps` shows to other users: set "
            "HPO_DATABASE_URL, or use ~/.pgpass"
        )
        findings.append(Finding("password", "warn", advice))
    opened = None
    try:
        opened = open_database(database)
        findings += server(opened)
    except HpoError as error:
        findings.append(Finding("database", "fail", _first_line(error)))
    findings += folder(artifacts)
    if study and opened:
        findings += members(opened, study, data)
    return findings


def as_text(findings: Iterable[Finding]) -> str:
    """A table with one line for each finding."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.level:4}  {finding.name:11}  {finding.text}")
    return "\n".join(lines)


# ---- this machine


def versions() -> Finding:
    """The versions of hpo and of the packages that shape results."""
    packages = (
        f"hpo {code_version()}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"optuna {version('optuna')}"
    )
    return Finding("versions", "ok", packages)


def gpus() -> list[Finding]:
    """One finding for each GPU that PyTorch sees, or one that says why it sees none."""
    drivers = _drivers()
    count = torch.cuda.device_count()
    if count == 0:
        return [_no_gpu(drivers)]
    driver = drivers[0] if drivers else "unknown"
    return [_gpu(index, driver) for index in range(count)]


def _no_gpu(drivers: list[str]) -> Finding:
    cuda = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    build = f"PyTorch {torch.__version__} is built {cuda}"
    if drivers:
        problem = (
            f"the driver ({drivers[0]}) lists {len(drivers)}, but PyTorch sees none: {build}. "
            f"Install a build that this driver supports"
        )
        return Finding("GPU", "fail", problem)
    fault = _computing_fault(torch.device("cpu"))
    if fault:
        return Finding("GPU", "fail", fault)
    return Finding("GPU", "warn", f"none found; training on the CPU is slow. {build}")


def _gpu(index: int, driver: str) -> Finding:
    name = f"GPU {index}"
    try:
        free, total = torch.cuda.mem_get_info(index)
        model = torch.cuda.get_device_name(index)
    except RuntimeError as error:
        return Finding(name, "fail", f"cannot be used: {_first_line(error)}")
    memory = f"{total / 1e9:.0f} GB ({free / 1e9:.0f} free)"
    about = f"{model}, {memory}, driver {driver}, CUDA {torch.version.cuda}"
    fault = _computing_fault(torch.device("cuda", index))
    if fault:
        return Finding(name, "fail", f"{about}; {fault}")
    return Finding(name, "ok", f"{about}; a test computation succeeded")


def _drivers() -> list[str]:
    """The driver's version for each GPU that nvidia-smi lists; empty if there is no nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.split() if done.returncode == 0 else []


def _computing_fault(device: torch.device) -> str | None:
    """What is wrong with a matrix product on this device; None if it is right."""
    try:
        product = torch.eye(256, device=device) @ torch.full((256, 256), 2.0, device=device)
        is_right = bool((product == 2).all())
    except RuntimeError as error:
        return f"a matrix product fails: {_first_line(error)}"
    return None if is_right else "a matrix product has a wrong result: the device is faulty"


# ---- the database


@dataclass(frozen=True)
class RoundTrip:
    """One query of the server's clock. All times are in seconds since the epoch."""

    sent: float
    server_time: float
    received: float

    @property
    def seconds(self) -> float:
        return self.received - self.sent


def server(database: Database) -> list[Finding]:
    """Check the database server. Raises DatabaseError if the server goes away meanwhile."""
    with open_engine(database).connect() as connection:
        trips = [_round_trip(connection) for _ in range(ROUND_TRIPS)]
        row = connection.execute(
            text(
                "SELECT current_setting('server_version_num')::int AS version,"
                " current_user AS user_name,"
                " current_setting('max_connections')::int"
                " - current_setting('superuser_reserved_connections')::int AS connection_limit,"
                " (SELECT sum(numbackends) FROM pg_stat_database) AS connections,"
                " to_regclass('hpo_trial') IS NOT NULL"
                " OR coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)"
                " AS allowed"
            )
        ).one()
        libpq = connection.connection.dbapi_connection.info  # type: ignore[union-attr]
        tls = None
        if libpq.ssl_in_use:
            tls = f"{libpq.ssl_attribute('protocol')}, {libpq.ssl_attribute('cipher')}"
        host = libpq.host
        mode = libpq.dsn_parameters.get("sslmode", "")
    fastest = min(trips, key=lambda trip: trip.seconds)
    about = f"{database}, round trip {1e3 * fastest.seconds:.1f} ms"
    if database.embedded_in:
        about += "; for workers of this machine only"
    return [
        Finding("database", "ok", about),
        Finding("version", "ok", check_version(row.version)),
        judge_clock(fastest.sent, fastest.server_time, fastest.received),
        judge_connections(row.connection_limit, row.connections),
        judge_rights(row.allowed, row.user_name),
        judge_tls(host, tls, mode),
    ]


def _round_trip(connection: Connection) -> RoundTrip:
    query = text("SELECT extract(epoch FROM clock_timestamp())::float8")
    sent = time.time()
    server_time = connection.execute(query).scalar_one()
    return RoundTrip(sent, server_time, time.time())


def judge_clock(sent: float, server_time: float, received: float) -> Finding:
    """Compare the clocks by one round trip, in seconds since the epoch.

    Leases use the database's time alone, so a skew costs no trial; it makes logs and deadlines
    wrong.
    """
    # The smallest skew that explains the three times.
    skew = max(sent - server_time, server_time - received, 0.0)
    if skew <= SKEW_WARN:
        agreement = max(skew, received - sent)
        return Finding("clock", "ok", f"within {agreement:.3f} s of the database server's")
    level: Level = "warn" if skew <= SKEW_FAIL else "fail"
    side = "behind" if server_time > received else "ahead of"
    return Finding(
        "clock", level, f"{skew:.0f} s {side} the database server's: synchronize both with NTP"
    )


def judge_connections(limit: int, used: int) -> Finding:
    """limit, used: connections of the server."""
    workers = max(0, limit - used) // CONNECTIONS_PER_WORKER
    room = f"{used} of {limit} in use: room for {workers} more workers"
    if workers >= FEW_WORKERS:
        return Finding("connections", "ok", room)
    return Finding(
        "connections",
        "warn" if workers else "fail",
        f"{room}. Raise max_connections on the server, or close other connections",
    )


def judge_rights(allowed: bool, user: str) -> Finding:
    """allowed: whether the tables exist or the user may create them."""
    if allowed:
        return Finding("rights", "ok", f"the tables exist, or {user} may create them")
    return Finding(
        "rights",
        "fail",
        f"{user} may not create tables here: GRANT CREATE ON SCHEMA public TO {user}, or use "
        f"another database",
    )


def judge_tls(host: str, tls: str | None, mode: str) -> Finding:
    """host: as libpq connected, a path for a socket. tls: protocol and cipher, None without TLS.

    mode: sslmode of the connection.
    """
    if tls and mode.startswith("verify"):
        return Finding("TLS", "ok", tls)
    if tls:
        advice = "the server's identity is not verified (use sslmode=verify-full)"
        return Finding("TLS", "ok", f"{tls}; {advice}")
    if host in ("localhost", "::1") or host.startswith(("/", "@", "127.")):
        return Finding("TLS", "ok", "not in use: the connection stays on this machine")
    return Finding(
        "TLS",
        "warn",
        f"not in use: the traffic to {host} is not encrypted. Add "
        f"?sslmode=verify-full&sslrootcert=FILE to the URL",
    )


# ---- the folder of artifacts


def folder(given: Path | None) -> list[Finding]:
    """Check the folder of artifacts; None stands for the one under HPO_HOME.

    Writes a probe, which other machines find if they share the folder, and lists their probes.
    """
    try:
        place = _artifacts(given)
        probe = place / f"{PROBE}{this_host()}"
        probe.write_text(datetime.now(UTC).isoformat())
        free = shutil.disk_usage(place).free
        others = _probes_of_others(place, probe)
    except HpoError as error:
        return [Finding("artifacts", "fail", _first_line(error))]
    except OSError as error:
        problem = (
            f"{error.filename or given}: {error.strerror}. Set --artifacts or HPO_HOME to a "
            f"writable folder"
        )
        return [Finding("artifacts", "fail", problem)]
    space = f"{place} is writable, {free / 1e9:.0f} GB free"
    if free < LITTLE_SPACE:
        artifacts = Finding(
            "artifacts", "warn", f"{space}; a trial of the full decoder keeps 1.1 GB"
        )
    else:
        artifacts = Finding("artifacts", "ok", space)
    disk = Finding("disk", "ok", judge_disk(place))
    return [artifacts, disk, Finding("shared", "ok", judge_probes(others, datetime.now(UTC)))]


def judge_disk(place: Path) -> str:
    """What the studies' files in a folder of artifacts take."""
    uses = [(path, disk_use(path)) for path in sorted(place.glob("*-*")) if path.is_dir()]
    most = largest(uses)
    if most is None:
        return f"no study has files in {place}"
    total = sum((use for _, use in uses), DiskUse())
    path, use = most
    return (
        f"{plural(len(uses), 'folder')} of studies take {total}. The largest: {path.name}, "
        f"{size(use.total)}. hpo studies --disk lists them"
    )


def _artifacts(given: Path | None) -> Path:
    # A given folder must exist: it may be a share that is not mounted.
    if given is not None:
        return given
    place = home() / "studies"
    place.mkdir(exist_ok=True)
    return place


def _probes_of_others(place: Path, own: Path) -> dict[str, str]:
    """Host -> when it wrote its probe, for all hosts except this one."""
    probes = {}
    for path in sorted(place.glob(f"{PROBE}*")):
        if path != own:
            probes[path.name.removeprefix(PROBE)] = path.read_text()
    return probes


def judge_probes(others: dict[str, str], now: datetime) -> str:
    """others: host -> when it wrote its probe, in ISO format."""
    if not others:
        return (
            "no probe of another host found. To check that machines share the folder, run "
            "hpo doctor on each of them, then here again"
        )
    hosts = []
    for host, written in others.items():
        hosts.append(f"{host} (hpo doctor ran there {_ago(written, now)})")
    return f"with {', '.join(hosts)}"


def _ago(written: str, now: datetime) -> str:
    try:
        past = max(now - datetime.fromisoformat(written), timedelta())
    except (ValueError, TypeError):
        return "at an unknown time"
    if past.days:
        return f"{past.days} days ago"
    return f"{past.seconds // 3600} h {past.seconds // 60 % 60} min ago"


# ---- the study's workers


def members(database: Database, name: str, data: Path | None) -> list[Finding]:
    """Compare this machine's code and data with those of the study and of its trials."""
    try:
        study = Study.open(database, name)
        records = [record for record in study.records() if record.host]
    except HpoError as error:
        return [Finding("study", "fail", _first_line(error))]
    code = judge_code(code_version(study.spec), study.code, records)
    return [code, _examine_data(study, data, records)]


def _examine_data(study: Study, data: Path | None, records: list[Record]) -> Finding:
    path = data or study.data_path
    try:
        fingerprint = load_dataset(study.spec, path, "cpu").fingerprint
    except (HpoError, OSError) as error:
        advice = "Use --data to give the path of the study's data on this machine"
        return Finding("data", "fail", f"{_first_line(error)}. {advice}")
    source = str(path or study.spec.load_trainer().bundled)
    return judge_data(source, fingerprint, study.data["fingerprint"], records)


def judge_data(source: str, here: str, wanted: str, records: list[Record]) -> Finding:
    """here, wanted: the fingerprints of the data on this machine and of the study."""
    if here != wanted:
        return Finding(
            "data",
            "fail",
            f"{source}: fingerprint {here}, the study's is {wanted}. Give --data with the study's "
            f"data",
        )
    differing = [(record.data, record.host) for record in records if record.data != wanted]
    if differing:
        return Finding(
            "data",
            "warn",
            f"{source}: matches the study ({wanted}), but trials ran on other data: "
            f"{_by_value(differing)}",
        )
    matching = f"matches the study and all {len(records)} trials that ran"
    return Finding("data", "ok", f"{source}: {matching}")


def judge_code(here: str, wanted: str, records: list[Record]) -> Finding:
    """here, wanted: the versions of the code on this machine and of the study, if it has one."""
    if wanted and not same_results(here, wanted):
        return Finding(
            "code",
            "fail",
            f"here {here}, the study was made with {wanted}. Install that version, or start "
            f"workers with --allow-different-code",
        )
    differing = []
    for record in records:
        if not same_results(here, record.code_version):
            differing.append((record.code_version, record.host))
    if differing:
        return Finding(
            "code",
            "warn",
            f"here {here}; trials ran with {_by_value(differing)}. Install one version on all "
            f"machines, or results are not comparable",
        )
    return Finding("code", "ok", f"{here}, matches all {len(records)} trials that ran")


def _by_value(pairs: Iterable[tuple[str, str]]) -> str:
    """The (value, host) of each trial, as `value (trials: 3, on a, b), ...`."""
    hosts_of: dict[str, list[str]] = defaultdict(list)
    for value, host in pairs:
        hosts_of[value].append(host)
    parts = []
    for value, hosts in sorted(hosts_of.items()):
        names = ", ".join(sorted(set(hosts)))
        parts.append(f"{value} (trials: {len(hosts)}, on {names})")
    return ", ".join(parts)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
