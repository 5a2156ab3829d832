"""The trainer in examples/, which hpo knows nothing of: from launch through a kill to export."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.commands import one_line, report_of, run_hpo, start, until
from helpers.paths import ROOT
from helpers.script_studies import trained

from hpo import open_study
from hpo.store.database import Database
from hpo.study.paths import study_folder, trial_folder
from hpo.study.version import version_of
from hpo.trainer import load_trainer
from hpo.worker.checkpoint import checkpoints
from hpo.worker.dataset import load_dataset

EXAMPLES = ROOT / "examples"


SOURCE = (EXAMPLES / "digits.py").read_text()


def space_of(folder: Path, **changes: Any) -> Path:
    """The space of the example with some keys replaced, in another folder."""
    space = yaml.safe_load((EXAMPLES / "digits.yaml").read_text())
    path = folder / "digits.yaml"
    path.write_text(yaml.safe_dump(space | {"trainer": f"{EXAMPLES}/digits.py:digits"} | changes))
    return path


def with_change(source: str, before: str, after: str) -> str:
    assert before in source
    return source.replace(before, after)


def test_the_example_is_small() -> None:
    lines = SOURCE.splitlines()
    assert len(lines) <= 80
    assert max(map(len, lines)) <= 100


@pytest.mark.slow
@pytest.mark.usefixtures("database")
def test_from_launch_to_export(tmp_path: Path) -> None:
    two_workers = ("--workers", "2", "--device", "cpu")
    launched = run_hpo("launch", "--study", EXAMPLES / "digits.yaml", "--trials", "4", *two_workers)
    assert launched.returncode == 0, launched.stderr
    assert "1350 images train, 150 validate" in launched.stdout
    assert "Best accuracy " in launched.stdout
    assert "PER" not in launched.stdout

    study = open_study("digits")
    complete = [record for record in study.records() if record.value is not None]
    best = max(complete, key=lambda record: record.value or 0.0)
    best_in_report = report_of("digits")["best"]
    assert best_in_report["trial"] == best.number
    assert best_in_report["value"] == best.value
    assert best_in_report["accuracy"] == best.value
    low, high = best_in_report["interval"]
    assert low < best.value < high <= 1
    folder = trial_folder(study_folder(study), best.number)
    assert sorted(path.name for path in folder.iterdir()) == ["best.pt", "last.pt"]

    seeds = ("--top", "1", "--seeds", "2")
    confirmed = run_hpo("confirm", "--study", "digits", *seeds, *two_workers, "--json")
    assert confirmed.returncode == 0, confirmed.stderr
    findings = json.loads(confirmed.stdout)
    for config in findings["configs"]:
        assert len(config["seeds"]) == 2
        assert 0.5 < config["accuracy"] <= 1
    assert findings["sentences"] == 297

    page = tmp_path / "digits.html"
    assert run_hpo("report", "--study", "digits", "--html", page).returncode == 0
    assert "Confirmed accuracy" in page.read_text()
    assert "PER" not in page.read_text()
    exported = tmp_path / "best.yaml"
    assert run_hpo("export", "--study", "digits", "--out", exported).returncode == 0
    content = yaml.safe_load(exported.read_text())
    assert content == {"trainer": study.spec.trainer, "base": best.config}
    weights = torch.load(folder / "last.pt", weights_only=True)
    assert weights["facts"]["accuracy"] == best.value
    assert weights["config"] == best.config

    one_line(run_hpo("ensemble", "--study", "digits"), 2, "it offers no ensembles")
    lab_format = ("--format", "neural_seq_decoder", "--out", tmp_path / "x")
    one_line(run_hpo("export", "--study", "digits", *lab_format), 2, "it offers no export")


def has_checkpoint() -> bool:
    """Whether the first trial of digits has a checkpoint and more than 100 steps."""
    try:
        study = open_study("digits")
        files = checkpoints(trial_folder(study_folder(study), 0))
        return bool(files) and study.records()[0].step > 100
    except Exception:
        # The launch has not created the study yet.
        return False


def worker_of_the_only_trial() -> int:
    """The process id of the worker."""
    with open_study("digits").engine.begin() as connection:
        identity = connection.exec_driver_sql("SELECT process FROM hpo_trial").scalar_one()
    return int(identity.partition(":")[0])


@pytest.mark.slow
@pytest.mark.usefixtures("database")
def test_a_killed_training_resumes_as_if_nothing_had_happened(tmp_path: Path) -> None:
    space = space_of(
        tmp_path,
        base={"steps": 6000, "evaluate_every": 50},
        attempts={"checkpoint_seconds": 0},
        budget={"trials": 1},
        stopping=None,
    )
    line = ("launch", "--study", space, "--workers", "2", "--device", "cpu")
    launcher = start(*line)
    until(has_checkpoint)
    # The worker is killed, and the launcher, which would start another one.
    worker = worker_of_the_only_trial()
    launcher.kill()
    os.kill(worker, signal.SIGKILL)
    launcher.wait()

    done = run_hpo(*line)
    assert done.returncode == 0, done.stderr
    study = open_study("digits")
    record = study.records()[0]
    assert record.state == "complete"
    assert record.attempts == 2
    assert record.step == 6000
    curve = study.curves([record])[0]
    assert [point.step for point in curve] == list(range(50, 6001, 50))

    trainer = load_trainer(study.spec.trainer)
    data = load_dataset(study.spec, None, "cpu")
    undisturbed = trainer.start(study.spec.config(record.config), data)
    expected = {
        progress.step: progress.score.value for progress in undisturbed.train() if progress.score
    }
    assert {point.step: point.value for point in curve} == expected


@pytest.mark.parametrize(
    ("trainer", "parts"),
    [
        ("nowhere.py:x", ("there is no file", "nowhere.py")),
        ("digits.py", ("Valid: FILE.py:NAME or PACKAGE.MODULE:NAME",)),
        ("digits.py:DIGITS", ("digits.py has no DIGITS. Valid: digits",)),
        ("digits.py:Training", ("Training is a type, not an hpo.Trainer",)),
        ("broken.py:x", ("broken.py cannot be loaded (ZeroDivisionError: division by zero)",)),
        ("syntax.py:x", ("cannot be loaded (SyntaxError",)),
        ("no_such_package.train:x", ("cannot be loaded (ModuleNotFoundError",)),
        ("json:x", ("json has no x", "(it holds no hpo.Trainer)")),
    ],
)
@pytest.mark.usefixtures("database")
def test_a_trainer_that_cannot_be_loaded_is_one_line(
    tmp_path: Path, trainer: str, parts: tuple[str, ...]
) -> None:
    (tmp_path / "digits.py").write_text(SOURCE)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "syntax.py").write_text("def\n")
    one_line(run_hpo("launch", "--study", space_of(tmp_path, trainer=trainer)), 2, *parts)


# What is replaced in the example, by what, and a part of the message.
FAULTS = {
    "load_data raises": (
        "images, labels = load_digits(return_X_y=True)",
        'raise KeyError("images")',
        "load_data ended with KeyError: 'images'",
    ),
    "describe refuses": (
        'return [f"{len(self.train)}',
        'raise hpo.errors.DataError("too few") or [f"{len(self.train)}',
        "too few",
    ),
    "an unknown field": (
        "units: int = 32",
        "width: int = 32",
        "parameters.units: there is no 'units'",
    ),
    "nothing is loaded": (
        "return Digits(x, y,",
        "return None and Digits(x, y,",
        "load_data gives a NoneType without fingerprint",
    ),
    "facts that cannot be stored": (
        "facts: dict[str, Any] = {}",
        "facts: dict[str, Any] = {'a': {1}}",
        "whose facts cannot be stored",
    ),
    "a fingerprint that is a number": (
        ".hexdigest()[:16]",
        ".digest()[0]",
        "whose fingerprint is a int",
    ),
    "a default of another type": (
        "units: int = 32",
        'units: int = "many"',
        "cannot be made from its defaults (units: ",
    ),
    "a field without a default": (
        "units: int = 32",
        "units: int",
        "cannot be made from its defaults (units: field required",
    ),
    "a value that JSON cannot hold": (
        "units: int = 32",
        "units: object = object()",
        "has a value that cannot be stored",
    ),
    "no configuration at all": (
        "config=DigitsConfig",
        "config=Digits",
        "Valid: a subclass of hpo.Config",
    ),
    "no direction": (
        'direction="maximize"',
        'direction="higher"',
        "cannot be loaded (Metric: direction: input should be",
    ),
}


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_trainer_before_any_trial_is_one_line(tmp_path: Path, fault: str) -> None:
    before, after, message = FAULTS[fault]
    source = SOURCE.replace("import torch\n", "import hpo.errors\nimport torch\n", 1)
    (tmp_path / "faulty.py").write_text(with_change(source, before, after))
    done = run_hpo("launch", "--study", space_of(tmp_path, trainer="faulty.py:digits"))
    one_line(done, 2, message)


# The changes of the example that give its configuration fields of more types.
IMPORTS = """import hashlib
from enum import Enum
from pathlib import Path
"""
TYPES = """class Kind(Enum):
    small = "small"
    large = "large"


class Inner(Settings):
    depth: int = 2


class DigitsConfig(Config):"""
FIELDS = """    units: int = 32
    kind: Kind = Kind.small
    folder: Path = Path("a/b")
    sizes: tuple[int, ...] = (3, 4)
    inner: Inner = Inner()
"""
CHECKS = """assert isinstance(config.kind, Kind)
        assert isinstance(config.folder, Path)
        assert config.sizes == (3, 4)
        torch.manual_seed(config.seed)"""
CHANGES = {
    "import hashlib\n": IMPORTS,
    "from hpo import": "from hpo.settings import Settings\nfrom hpo import",
    "class DigitsConfig(Config):": TYPES,
    "    units: int = 32\n": FIELDS,
    "torch.manual_seed(config.seed)": CHECKS,
}


def test_settings_of_many_types_are_searched_and_stored(database: Database, tmp_path: Path) -> None:
    """A path, an enumeration, a list and a group.

    They are JSON in the study, and have their own types in the training.
    """
    source = SOURCE
    for before, after in CHANGES.items():
        source = with_change(source, before, after)
    (tmp_path / "many.py").write_text(source)
    space = space_of(
        tmp_path,
        trainer="many.py:digits",
        parameters={"kind": {"choices": ["small", "large"]}, "inner.depth": {"low": 1, "high": 5}},
        starts={},
        budget={"trials": 1},
    )
    record = trained(database, space, "digits")
    assert record.state == "complete", record.reason
    assert record.config["folder"] == "a/b"
    assert record.config["sizes"] == [3, 4]
    assert record.config["kind"] == record.params["kind"]
    assert record.config["kind"] in ("small", "large")
    assert record.config["inner.depth"] == record.params["inner.depth"]
    assert record.config["inner.depth"] in range(1, 6)


def test_a_training_that_ends_early_is_scored_where_it_ends(
    database: Database, tmp_path: Path
) -> None:
    all_steps = "while self.step < self.config.steps:"
    (tmp_path / "early.py").write_text(with_change(SOURCE, all_steps, "while self.step < 130:"))
    space = space_of(tmp_path, trainer="early.py:digits", budget={"trials": 1}, stopping=None)
    record = trained(database, space, "digits")
    assert record.state == "complete"
    assert record.step == 130
    study = open_study("digits")
    curve = study.curves([record])[0]
    assert [point.step for point in curve] == [100, 130]
    assert record.last_value == record.value
    assert record.best_value == max(point.value for point in curve)

    trainer = load_trainer(study.spec.trainer)
    data = load_dataset(study.spec, None, "cpu")
    again = trainer.start(study.spec.config(record.config), data)
    for _ in again.train():
        pass
    assert record.value == again.evaluate(load_dataset(study.spec, None, "cpu")).value


NUMBERS = {
    "a loss of NumPy": ("loss.item()", "numpy.float32(loss.item())"),
    "a tensor as loss": ("loss.item()", "loss.detach()"),
    "a score of NumPy numbers": ("tuple(right.float().tolist())", "right.float().numpy()"),
    "a score that is one number": (
        "return Score(tuple(right.float().tolist()), (1.0,) * len(right))",
        "return right.float().mean()",
    ),
    "metrics of NumPy": (
        "loss.item(), score",
        "loss.item(), {'lr': numpy.float32(self.config.lr)}, score",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_of_other_libraries_are_accepted(
    database: Database, tmp_path: Path, number: str
) -> None:
    before, after = NUMBERS[number]
    source = with_change(SOURCE, before, after)
    source = source.replace("import torch\n", "import numpy\nimport torch\n", 1)
    (tmp_path / "own.py").write_text(source)
    space = space_of(tmp_path, trainer="own.py:digits", base={"steps": 100}, budget={"trials": 1})
    record = trained(database, space, "digits")
    assert record.state == "complete", record.reason
    assert record.value is not None
    assert 0 < record.value <= 1


TRAINING_FAULTS = {
    "a reason with a NUL": (
        "loss.backward()",
        "raise ValueError('no\\0thing')",
        "ValueError: no?thing",
    ),
    "start raises": (
        "torch.manual_seed(config.seed)",
        "raise RuntimeError('no such layer')",
        "RuntimeError: no such layer",
    ),
    "a step raises": (
        "loss.backward()",
        "raise ValueError('in the loop')",
        "ValueError: in the loop",
    ),
    "a state that cannot be kept": (
        '"step": self.step, "random"',
        '"step": self.step, "what": {1}, "random"',
        "state_dict()['what'] is a set",
    ),
    "a score of nothing": (
        "(1.0,) * len(right)",
        "(0.0,) * len(right)",
        "lengths that sum up to 0. Valid: one of each per item",
    ),
    "no progress": (
        "yield Progress(self.step, loss.item(),",
        "yield dict(step=self.step,",
        "train() gave a dict. Valid: hpo.Progress(",
    ),
    "a place in the file": (
        "loss.backward()",
        "raise ValueError('x')",
        "ValueError: x (faulty.py, line ",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", TRAINING_FAULTS)
def test_a_fault_of_a_training_is_the_reason_of_a_failed_trial(
    database: Database, tmp_path: Path, fault: str
) -> None:
    before, after, reason = TRAINING_FAULTS[fault]
    (tmp_path / "faulty.py").write_text(with_change(SOURCE, before, after))
    space = space_of(tmp_path, trainer="faulty.py:digits", budget={"trials": 1, "failures": 0})
    record = trained(database, space, "digits")
    assert record.state == "failed"
    assert reason in record.reason


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("loss.item()", "float('nan') if self.step == 60 else loss.item()"),
        ("tuple(right.float().tolist())", "(float('nan'),) * len(right)"),
    ],
    ids=["loss", "score"],
)
def test_a_loss_or_score_that_is_not_a_number_has_diverged(
    database: Database, tmp_path: Path, before: str, after: str
) -> None:
    (tmp_path / "nan.py").write_text(with_change(SOURCE, before, after))
    space = space_of(tmp_path, trainer="nan.py:digits", budget={"trials": 1}, stopping=None)
    record = trained(database, space, "digits")
    assert record.state == "stopped"
    assert record.cause == "non-finite"


def forget_trainers() -> None:
    """As in another process."""
    load_trainer.cache_clear()
    version_of.cache_clear()


@pytest.mark.usefixtures("database")
def test_other_code_of_the_trainer_is_another_version(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(SOURCE)
    space = space_of(tmp_path, trainer="own.py:digits", budget={"trials": 0})
    assert run_hpo("launch", "--study", space).returncode == 0
    path.write_text(with_change(SOURCE, "[:64]", "[:32]"))
    forget_trainers()
    one_line(run_hpo("launch", "--study", space), 2, "was made with hpo", "--allow-different-code")

    # The same code in another folder is the same version.
    folder = tmp_path / "moved"
    folder.mkdir()
    path.unlink()
    (folder / "own.py").write_text(SOURCE)
    forget_trainers()
    moved = space_of(tmp_path, trainer=f"{folder}/own.py:digits", budget={"trials": 0})
    assert run_hpo("launch", "--study", moved).returncode == 0
