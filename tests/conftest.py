"""Fixtures of all tests: a real Postgres with a fresh database for each test, and small data.

The Postgres is the embedded one, in a home of its own.
"""

import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# PyTorch reads it when it is imported. The models are tiny: more threads only wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from helpers.data import tiny_contents
from helpers.paths import ROOT
from helpers.servers import COLUMNS, EMPTY, TESTER_PASSWORD, execute, url_of
from helpers.studies import TINY

from hpo.data.formats import Sentences, read_sentences
from hpo.space.load import load_spec
from hpo.space.spec import StudySpec
from hpo.store.database import Database
from hpo.store.embedded import EmbeddedServer
from hpo.study.study import Study


@pytest.fixture(scope="session")
def private_folder() -> Iterator[Path]:
    """A folder that other accounts may pass through, unlike those of pytest.

    Postgres does not run as root, so tests that root starts run it as another account.
    """
    folder = Path(tempfile.mkdtemp(prefix="hpo-test-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def server(private_folder: Path) -> Iterator[EmbeddedServer]:
    home = private_folder / "home"
    home.mkdir(mode=0o711)
    embedded = EmbeddedServer(home)
    embedded.start()
    embedded.stop()
    # Tests create databases and roles, which the role of the product may not.
    create_tester = f"CREATE ROLE tester SUPERUSER LOGIN PASSWORD '{TESTER_PASSWORD}'"
    embedded.as_superuser(embedded.data, create_tester)
    embedded.start()
    yield embedded
    embedded.stop()


@pytest.fixture(scope="session")
def template(server: EmbeddedServer) -> str:
    """The name of a database that has all tables: to copy it takes 0.1 s, to create them 2 s."""
    name = "hpo_template"
    execute(server, f"CREATE DATABASE {name} OWNER hpo")
    from hpo.store.storage import open_storage

    storage = open_storage(Database(url_of(server, name), None))
    storage.engine.dispose()
    return name


@pytest.fixture(scope="session")
def columns(server: EmbeddedServer, template: str) -> list[tuple[Any, ...]]:
    """The columns of all tables, as a test should leave them."""
    return execute(server, COLUMNS, template)


class DatabasePool:
    """Databases without a study, with the tables of the template.

    To create one writes 16 MB, which hundreds of tests would wait for. So a database whose tables a
    test has left as they were is emptied and used again.
    """

    def __init__(self, server: EmbeddedServer, template: str, columns: list[tuple[Any, ...]]):
        self.server = server
        self.template = template
        self.columns = columns
        self.unused: list[str] = []

    def take(self) -> str:
        if self.unused:
            return self.unused.pop()
        name = f"test_{os.urandom(4).hex()}"
        execute(self.server, f"CREATE DATABASE {name} OWNER hpo TEMPLATE {self.template}")
        return name

    def give_back(self, name: str) -> None:
        sessions = f"SELECT pid FROM pg_stat_activity WHERE datname = '{name}'"
        execute(self.server, f"SELECT pg_terminate_backend(pid) FROM ({sessions}) AS sessions")
        if execute(self.server, COLUMNS, name) == self.columns:
            execute(self.server, EMPTY, name)
            self.unused.append(name)
        else:
            execute(self.server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def database_pool(
    server: EmbeddedServer, template: str, columns: list[tuple[Any, ...]]
) -> DatabasePool:
    return DatabasePool(server, template, columns)


@pytest.fixture
def database(
    database_pool: DatabasePool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Database]:
    """A database without a study, which commands use too, and a fresh HPO_HOME."""
    name = database_pool.take()
    database = Database(url_of(database_pool.server, name), None)
    monkeypatch.setenv("HPO_DATABASE_URL", database.url)
    monkeypatch.setenv("HPO_HOME", str(tmp_path / "home"))
    yield database
    database_pool.give_back(name)


@pytest.fixture
def write_data(tmp_path: Path) -> Callable[[Any], Path]:
    def write(contents: Any) -> Path:
        path = tmp_path / "data.pickle"
        path.write_bytes(pickle.dumps(contents))
        return path

    return write


@pytest.fixture
def tiny_data(write_data: Callable[[Any], Path]) -> Path:
    return write_data(tiny_contents())


@pytest.fixture
def tiny_space(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture
def tiny_spec(tiny_space: Path) -> StudySpec:
    return load_spec(tiny_space)


@pytest.fixture
def make_study(database: Database) -> Callable[..., Study]:
    def make(
        spec: StudySpec,
        name: str = "s",
        fingerprint: str = "f",
        extend: bool = False,
        path: str | None = None,
    ) -> Study:
        data = {"path": path, "fingerprint": fingerprint, "n_features": 3, "n_days": 2}
        return Study.create_or_open(database, name, spec, data, extend)

    return make


@pytest.fixture(scope="session")
def demo_sentences() -> Sentences:
    return read_sentences(None, "train")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data that lie beside the repository; without them, tests that need them are skipped."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no shared/data folder beside the repository")
    return folder


@pytest.fixture
def fresh(private_folder: Path) -> Iterator[EmbeddedServer]:
    """An embedded server that has never been started."""
    folder = private_folder / f"home-{os.urandom(4).hex()}"
    folder.mkdir(mode=0o711)
    embedded = EmbeddedServer(folder)
    yield embedded
    embedded.stop()
