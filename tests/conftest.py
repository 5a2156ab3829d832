"""A real Postgres for all tests (the embedded one, in a home of its own), a fresh database a test, small data."""

import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = (
    "1"  # the models are tiny: more threads, also of those beside us, only wait for each other
)

import numpy as np
import psycopg2
import pytest
from sqlalchemy import make_url

from hpo.curve import Point
from hpo.data.formats import Sentences, read_sentences
from hpo.decoder.config import DecoderConfig
from hpo.decoder.training import Recordings, load_recordings
from hpo.space.spec import StudySpec, load_spec
from hpo.store.database import Database
from hpo.store.embedded import EmbeddedServer
from hpo.study.study import Study
from hpo.trainer import DataRequest

TINY = """
base: {model.layers: 1, model.units: 8, model.kernel: 4, model.stride: 2, batch_size: 4, steps: 6, evaluate_every: 2}
parameters:
  optimizer.lr: {low: 1e-4, high: 5e-2, log: true}
  optimizer.name: {choices: [adam, sgd]}
  optimizer.eps: {low: 1e-8, high: 1e-1, log: true, when: {optimizer.name: [adam]}}
starts:
  baseline: {}
  slow: {optimizer.lr: 0.001, optimizer.name: sgd}
budget: {trials: 4}
policy: tpe
sampler: {startup_trials: 3}
"""


TESTER_PASSWORD = os.urandom(12).hex()
COLUMNS = """
SELECT relname, attname, atttypid FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid
WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND attnum > 0 ORDER BY relname, attnum
"""
EMPTY = """
DO $$ BEGIN EXECUTE (
    SELECT 'TRUNCATE ' || string_agg(quote_ident(tablename), ', ') FROM pg_tables
    WHERE schemaname = 'public' AND tablename NOT IN ('version_info', 'alembic_version', 'hpo_version')
); END $$
"""


@pytest.fixture(scope="session")
def private_folder() -> Iterator[Path]:
    """A folder that other accounts may pass through, which pytest's own are not: Postgres does not run as root."""
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
    # The role of the product may not make databases and roles, which tests need.
    embedded.as_superuser(
        embedded.data, f"CREATE ROLE tester SUPERUSER LOGIN PASSWORD '{TESTER_PASSWORD}'"
    )
    embedded.start()
    yield embedded
    embedded.stop()


@pytest.fixture(scope="session")
def template(server: EmbeddedServer) -> str:
    """The name of a database with all tables in it; copying it takes 0.1 s, making them 2 s."""
    name = "hpo_template"
    execute(server, f"CREATE DATABASE {name} OWNER hpo")
    from hpo.store.storage import open_storage

    storage = open_storage(Database(_url(server, name), None))
    storage.engine.dispose()
    return name


@pytest.fixture(scope="session")
def columns(server: EmbeddedServer, template: str) -> list[tuple[Any, ...]]:
    """Of all tables, as a test should leave them."""
    return execute(server, COLUMNS, template)


@pytest.fixture(scope="session")
def emptied() -> list[str]:
    """Databases that tests have left as they took them. To make one writes 16 MB, which hundreds of tests wait for."""
    return []


@pytest.fixture
def database(
    server: EmbeddedServer,
    template: str,
    columns: list[tuple[Any, ...]],
    emptied: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[Database]:
    """A database without a study, which is also the one that commands take, and a fresh HPO_HOME."""
    if emptied:
        name = emptied.pop()
    else:
        name = f"test_{os.urandom(4).hex()}"
        execute(server, f"CREATE DATABASE {name} OWNER hpo TEMPLATE {template}")
    fresh = Database(_url(server, name), None)
    monkeypatch.setenv("HPO_DATABASE_URL", fresh.url)
    monkeypatch.setenv("HPO_HOME", str(tmp_path / "home"))
    yield fresh
    execute(
        server, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    )
    if execute(server, COLUMNS, name) == columns:
        execute(server, EMPTY, name)
        emptied.append(name)
    else:
        execute(server, f"DROP DATABASE {name} WITH (FORCE)")


def _url(server: EmbeddedServer, name: str) -> str:
    url = server.url()
    assert url is not None
    return make_url(url).set(database=name).render_as_string(hide_password=False)


def execute(
    server: EmbeddedServer, statement: str, database: str = "postgres"
) -> list[tuple[Any, ...]]:
    """As a superuser."""
    url = make_url(_url(server, database)).set(
        drivername="postgresql", username="tester", password=TESTER_PASSWORD
    )
    connection = psycopg2.connect(url.render_as_string(hide_password=False))
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def recordings(
    path: Path | None, spec: StudySpec, fraction: float = 0.2, partition: str = "train"
) -> Recordings:
    """As a worker has them, with `fraction` of the sentences for validation."""
    return load_recordings(DataRequest(path, spec.config(), "cpu", fraction, 0, partition))


def decoder_config(spec: StudySpec, values: Mapping[str, Any] | None = None) -> DecoderConfig:
    config = spec.config(values)
    assert isinstance(config, DecoderConfig)
    return config


def point(
    step: int,
    value: float,
    loss: float = 1.0,
    validation_loss: float | None = 1.5,
    **metrics: float,
) -> Point:
    return Point(
        step,
        value,
        loss,
        validation_loss,
        {"grad_norm": 2.0, "lr": 0.1, "step_seconds": 0.5} | metrics,
    )


def tiny_contents(sentences: int = 12, days: int = 2, features: int = 3) -> dict[str, Any]:
    """A ptDecoder_ctc dict of noise in which a bin's mean tells its phoneme (1..5)."""
    generator = np.random.default_rng(0)

    def day() -> dict[str, Any]:
        columns: dict[str, Any] = {
            "sentenceDat": [],
            "phonemes": [],
            "phoneLens": [],
            "transcriptions": [],
        }
        for _ in range(sentences):
            labels = generator.integers(1, 6, size=generator.integers(2, 5))
            bins = np.repeat(labels, 8)[:, None] + generator.normal(
                size=(8 * len(labels), features)
            )
            columns["sentenceDat"].append((bins - 3).astype(np.float32))
            columns["phonemes"].append(np.pad(labels, (0, 20 - len(labels))).astype(np.int32))
            columns["phoneLens"].append(len(labels))
            columns["transcriptions"].append("?")
        columns["phoneLens"] = np.array(columns["phoneLens"])
        return columns

    return {
        "train": [day() for _ in range(days)],
        "test": [day() for _ in range(days)],
        "competition": [],
    }


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
    """Real data kept beside the repository; tests that need it are skipped where it is not."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no shared/data folder beside the repository")
    return folder
