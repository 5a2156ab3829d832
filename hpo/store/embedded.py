"""A Postgres server that hpo runs on this machine.

All processes of one HPO_HOME share it. It listens on 127.0.0.1 only, and runs until
`hpo database stop`: nobody counts its users, so no process that dies can take it from the others.
The first process that needs it starts it, under a file lock.
"""

import fcntl
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg2
from filelock import FileLock, Timeout

from hpo.errors import DatabaseError, os_error_text
from hpo.store import programs
from hpo.store.filesystem import is_lasting, network_filesystem
from hpo.store.owner import Owner, read_owner, write_owner
from hpo.store.url import EMBEDDED_AUTH, EMBEDDED_HOST, connect, look_at

START_SECONDS = 60
# How long the last processes of a killed server may take to end.
LEAVE_SECONDS = 10
POLL_SECONDS = 0.05
# The first version that knows require_auth.
OLDEST_LIBPQ = 16
# For a user whose home is on a network file system. Each server gets a folder of a random name.
USER_FOLDER = Path("/var/tmp")  # noqa: S108
CONFIGURATION = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 200
"""

# initdb creates one role, a superuser. Superusers may run programs, so its password would be as
# good as a shell. So `hpo` becomes a role that owns its database and nothing more, with the
# password that it had. The superuser is now called `postgres` and has no password, so it cannot
# connect: only someone who may read the files can act as it, in single-user mode. A role may not
# rename itself, so a temporary superuser renames the first one.
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
        self.account = programs.unprivileged_account() if os.geteuid() == 0 else None
        self._lock = FileLock(home / "postgres.lock", timeout=2 * START_SECONDS)
        # For root: says where the server's folder is if the account cannot reach the home.
        self._pointer = home / "postgres.location"
        self._owner = home / "postgres.owner"

    @property
    def root(self) -> Path:
        """The folder of this server. A new home has a new one, even under an old name."""
        if self._pointer.exists():
            return Path(self._pointer.read_text())
        return self.home / "postgres"

    @property
    def data(self) -> Path:
        """Postgres's data folder."""
        return self.root / "data"

    @property
    def log(self) -> Path:
        """The file that the server logs to."""
        return self.root / "log"

    @property
    def _password(self) -> Path:
        return self.root / "password"

    @property
    def _pid_file(self) -> Path:
        return self.data / "postmaster.pid"

    # ---- starting and stopping

    def start(self) -> str:
        """Start the server if it is down. Returns its URL. Raises DatabaseError."""
        with self._locked():
            url = self.url()
            if url:
                return url
            self._check_owner()
            try:
                write_owner(self._owner, read_owner(self._owner))
                self._create()
                self._launch()
                self._separate_old_roles()
            except OSError as error:
                reason = os_error_text(error)
                raise DatabaseError(
                    f"embedded Postgres in {self.root}: {reason}. Or set HPO_HOME elsewhere"
                ) from None
            url = self.url()
            if url:
                return url
        raise DatabaseError(f"embedded Postgres did not start: {self._last_words()}")

    def url(self) -> str | None:
        """The server's URL; None unless it is up and accepts the password of this home."""
        try:
            # Postgres writes its port to line 4 of the file.
            port = int(self._pid_file.read_text().splitlines()[3])
            password = self._password.read_text()
        except (OSError, IndexError, ValueError):
            return None
        check_libpq(psycopg2.extensions.libpq_version())
        url = (
            f"postgresql+psycopg2://hpo:{password}@{EMBEDDED_HOST}:{port}/postgres"
            f"?require_auth={EMBEDDED_AUTH}"
        )
        if look_at(url).problem is not None:
            return None
        return url

    def stop(self) -> bool:
        """Stop the server, even if other processes use it. Returns whether it was up."""
        with self._locked():
            if not self.url():
                self._check_owner()
                return False
            self._stop()
            return True

    def _stop(self) -> None:
        done = self._run("pg_ctl", "stop", "--wait", "--mode=fast", f"--pgdata={self.data}")
        if done.returncode:
            raise DatabaseError(
                f"embedded Postgres in {self.data} does not stop: {done.stdout.strip()}"
            )

    def _launch(self) -> None:
        """Start the server on existing data. The caller checks whether it answers."""
        self._wait_for_old_processes()
        if self.url():
            return
        # A crash left the file. Its pid may belong to a zombie or to another program by now.
        self._pid_file.unlink(missing_ok=True)
        port = self._free_port()
        with self._locked_files() as folder:
            self._run(
                "pg_ctl",
                "start",
                "--wait",
                f"--timeout={START_SECONDS}",
                # pg_ctl hands both to a shell, which would read a `$` of the home.
                f"--pgdata={self.data.relative_to(self.root)}",
                f"--log={self.log.relative_to(self.root)}",
                f"--options=-p {port}",
                inherited=(folder,),
            )

    def _wait_for_old_processes(self) -> None:
        """Wait while a server is starting, or the backends of a killed one are ending."""
        deadline = time.monotonic() + START_SECONDS
        while self.processes() and not self.url():
            if time.monotonic() > deadline:
                raise DatabaseError(
                    f"processes {self.processes()} hold {self.data} but do not answer: "
                    f"{self._last_words()}"
                )
            time.sleep(POLL_SECONDS)

    def _free_port(self) -> int:
        """The port of the last start if it is still free, else a new one.

        Workers that survive a crash of the server find it again at the same port.
        """
        note = self.root / "port"
        any_port = 0
        candidates = [int(note.read_text()), any_port] if note.exists() else [any_port]
        for candidate in candidates:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", candidate))
                except OSError:
                    continue
                port = int(probe.getsockname()[1])
                note.touch(mode=0o600)
                note.write_text(str(port))
                return port
        raise DatabaseError("embedded Postgres: no free port on 127.0.0.1")

    def processes(self) -> list[int]:
        """The live processes in the data folder: postmaster and backends. Empty without /proc."""
        data = self.data.resolve()
        processes = []
        for link in Path("/proc").glob("[0-9]*/cwd"):
            try:
                if link.readlink() == data:
                    processes.append(int(link.parent.name))
            except OSError:
                # The process has ended, or belongs to another user.
                continue
        return processes

    def _last_words(self) -> str:
        """The last fatal line of the server's log, and where the log is."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError:
            lines = []
        fatal = [line for line in lines if "FATAL" in line or "PANIC" in line]
        reason = fatal[-1] if fatal else "no reason given"
        return f"{reason} (log: {self.log})"

    # ---- the place that owns the files

    def owner(self) -> Owner | None:
        """The place that may run a server on these files. Raises DatabaseError.

        None if no server ever ran on them, or only one of an earlier version.
        """
        return read_owner(self._owner)

    def owner_elsewhere(self) -> Owner | None:
        """The owner if it is not this place. Raises DatabaseError."""
        owner = self.owner()
        if owner is None or owner.is_here():
            return None
        return owner

    def _check_owner(self) -> None:
        """Check that this place may start a server on these files and clean up after a dead one.

        Raises DatabaseError.
        """
        owner = self.owner_elsewhere()
        if owner is not None:
            raise DatabaseError(
                f"the embedded Postgres of {self.home} belongs to {owner}. "
                f"Work there, or set HPO_DATABASE_URL to a server that both reach. "
                f"If that place is gone for good: hpo database adopt"
            )
        may_run_elsewhere = self.owner() is None and self._pid_file.exists()
        if may_run_elsewhere and not self.processes():
            raise DatabaseError(
                f"a server of an earlier version runs on {self.data}, on another machine, "
                f"or has crashed on this one. "
                f"Work where it runs, or set HPO_DATABASE_URL. "
                f"If it runs nowhere: hpo database adopt"
            )

    def adopt(self) -> None:
        """Make this place the owner. The caller knows that no other place runs a server here.

        Raises DatabaseError.
        """
        with self._locked():
            if self.root.exists():
                # Raises DatabaseError if a server holds the files after all.
                with self._locked_files():
                    pass
            self._owner.unlink(missing_ok=True)
            write_owner(self._owner, None)
            if self.account and self.root.exists():
                # The same account may have another number on another machine.
                for path in (self.root, *self.root.rglob("*")):
                    self._give_to_account(path)

    def has_data(self) -> bool:
        """Whether a database exists."""
        return (self.data / "PG_VERSION").exists()

    def where(self) -> str:
        """The data folder and, if it is not in the home, why."""
        name = network_filesystem(self.home)
        if name is None or self.data.is_relative_to(self.home):
            return str(self.data)
        return (
            f"{self.data} (on a disk of this machine alone, because HPO_HOME is on {name}, "
            f"which others may share)"
        )

    # ---- locks

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            with self._lock:
                yield
        except Timeout:
            raise DatabaseError(
                f"{self._lock.lock_file}: another hpo has held this lock "
                f"for {2 * START_SECONDS} s. Is it stuck?"
            ) from None

    @contextmanager
    def _locked_files(self) -> Iterator[int]:
        """Lock the server's folder. Gives the lock's file descriptor, for the server to inherit.

        The lock lasts as long as one of the server's processes lives. So a server in another
        container of this machine is noticed although its processes are not visible, and programs
        that clean up old files in /var/tmp leave the folder alone. Raises DatabaseError if a
        server holds the lock.
        """
        folder = os.open(self.root, os.O_RDONLY)
        deadline = time.monotonic() + LEAVE_SECONDS
        try:
            while not _try_lock(folder):
                if time.monotonic() > deadline:
                    raise DatabaseError(
                        f"a server runs on {self.data}, in another container or on another "
                        f"machine. Stop it there first: hpo database stop"
                    )
                time.sleep(POLL_SECONDS)
            yield folder
        finally:
            os.close(folder)

    # ---- creating

    def _create(self) -> None:
        """Create the server's folder, password and data, those that do not exist yet."""
        self._choose_root()
        self._make_root()
        if self.has_data():
            return
        self._make_password()
        # A folder gets its final name when it is complete.
        draft = self.root / "data.new"
        shutil.rmtree(draft, ignore_errors=True)
        done = self._run(
            "initdb",
            f"--pgdata={draft.relative_to(self.root)}",
            "--username=hpo",
            f"--pwfile={self._password.relative_to(self.root)}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--no-locale",
        )
        if done.returncode:
            last_lines = done.stdout.strip().splitlines()[-1:]
            raise DatabaseError(f"embedded Postgres: initdb failed in {self.root}: {last_lines}")
        self.as_superuser(draft, *SEPARATE_ROLES)
        with (draft / "postgresql.conf").open("a") as file:
            file.write(CONFIGURATION)
        draft.rename(self.data)

    def _choose_root(self) -> None:
        """Write down where the server's folder is, if that is not in the home."""
        if self._pointer.exists():
            return
        root = self.local_root()
        if root is None:
            return
        draft = self._pointer.with_suffix(".new")
        draft.write_text(str(root))
        draft.rename(self._pointer)

    def local_root(self) -> Path | None:
        """A new folder on a disk of this machine, if the data cannot be in the home."""
        if self.account and not programs.may_enter(self.account, self.home):
            return programs.ROOT_FOLDER / secrets.token_hex(6)
        if network_filesystem(self.home) is None or self.has_data():
            return None
        if self.account:
            if not is_lasting(programs.ROOT_FOLDER.parent):
                return None
            return programs.ROOT_FOLDER / secrets.token_hex(6)
        if not is_lasting(USER_FOLDER):
            return None
        # Created at once, so that nobody else can have created a folder of that name.
        return Path(tempfile.mkdtemp(prefix=f"hpo-{os.geteuid()}-", dir=USER_FOLDER))

    def _make_root(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o700)
        if self.account:
            self._give_to_account(self.root)
            parent = self.root.parent
            parent.chmod(parent.stat().st_mode | 0o011)

    def _make_password(self) -> None:
        # The file is empty if the disk was full.
        if self._password.exists() and self._password.read_text():
            return
        self._password.touch(mode=0o600)
        self._password.write_text(secrets.token_urlsafe(24))
        self._give_to_account(self._password)

    def _give_to_account(self, path: Path) -> None:
        if self.account:
            os.chown(path, self.account.pw_uid, self.account.pw_gid)

    def _separate_old_roles(self) -> None:
        """Take the rights of a superuser from `hpo`, which it has in homes of earlier versions."""
        url = self.url()
        if url and _is_superuser(url):
            self._stop()
            self.as_superuser(self.data, *SEPARATE_ROLES)
            self._launch()

    # ---- programs

    def as_superuser(self, data: Path, *statements: str) -> None:
        """Run SQL on the data folder of a server that is down, as the superuser.

        Nobody needs a password there. Raises DatabaseError.
        """
        # With -j a statement ends with a semicolon and an empty line.
        sql = ";\n\n".join([*statements, ""])
        command = ("postgres", "--single", "-j", "-c", "exit_on_error=on", "-D", data, "postgres")
        done = self._run(*command, stdin=sql)
        if done.returncode == 0:
            return
        reason = f"exit code {done.returncode}"
        for line in done.stdout.splitlines():
            if "ERROR" in line or "FATAL" in line:
                reason = line
                break
        raise DatabaseError(f"embedded Postgres in {data}, in single-user mode: {reason}")

    def _run(
        self, program: str, *arguments: str | Path, stdin: str = "", inherited: tuple[int, ...] = ()
    ) -> "subprocess.CompletedProcess[str]":
        """Run a program of Postgres under the right account. inherited: open file descriptors.

        The output goes to a file, because a server would keep a pipe open.
        """
        command = [str(self._binaries() / program), *map(str, arguments)]
        output_file = self.root / "output"
        output_file.touch(mode=0o600)
        with output_file.open("w+") as output:
            done = subprocess.run(
                command,
                input=stdin,
                text=True,
                stdout=output,
                stderr=output,
                cwd=self.root,
                env={name: value for name, value in os.environ.items() if name[:2] != "PG"},
                pass_fds=inherited,
                **programs.as_account(self.account),
            )
            output.seek(0)
            return subprocess.CompletedProcess(done.args, done.returncode, output.read(), "")

    def _binaries(self) -> Path:
        """The folder of the programs that fit the data."""
        version_file = self.data / "PG_VERSION"
        version = version_file.read_text().strip() if version_file.exists() else None
        return programs.find_binaries(version, self.account)


def _try_lock(folder: int) -> bool:
    """Lock an open folder. Returns False if another process holds the lock.

    A file system without locks counts as locked by this process.
    """
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _is_superuser(url: str) -> bool:
    with closing(connect(url)) as connection:
        # The server reports it when a connection opens, without a query.
        return bool(connection.get_parameter_status("is_superuser") == "on")


def check_libpq(version: int) -> None:
    """Check that libpq protects the embedded server's password.

    version: from psycopg2.extensions.libpq_version(), which is 160002 for 16.2.
    Raises DatabaseError for a version that would send the password to any program that asks.
    """
    if version < 10000 * OLDEST_LIBPQ:
        raise DatabaseError(
            f"psycopg2 here has libpq {version // 10000}: the embedded Postgres needs "
            f"{OLDEST_LIBPQ} or later, to keep its password from others on its port. "
            f"Do: pip install -U psycopg2-binary, or give --database URL"
        )
