"""The trainer of examples/, which the search knows nothing of: from launch through a kill to export."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.commands import asked, one_line, report_of, start, until
from helpers.paths import ROOT

from hpo import open_study
from hpo.space.spec import load_spec
from hpo.store.database import Database
from hpo.study.paths import study_folder, trial_folder
from hpo.study.study import Study
from hpo.study.trial import Record
from hpo.study.version import version_of
from hpo.trainer import load_trainer
from hpo.worker.checkpoint import checkpoints
from hpo.worker.dataset import load_dataset, look_at_data
from hpo.worker.worker import run_worker

EXAMPLES = ROOT / "examples"


def space_of(folder: Path, **changes: Any) -> Path:
    """The example's space with some keys replaced, in another folder."""
    space = yaml.safe_load((EXAMPLES / "digits.yaml").read_text())
    path = folder / "digits.yaml"
    path.write_text(yaml.safe_dump(space | {"trainer": f"{EXAMPLES}/digits.py:digits"} | changes))
    return path


def trained(database: Database, space: Path, name: str = "digits") -> Record:
    """The first trial of a study, which a worker in this process has run."""
    spec = load_spec(space)
    study = Study.create_or_open(database, name, spec, look_at_data(None, spec).facts)
    run_worker(study, None, torch.device("cpu"), 1, lambda: False)
    return study.records()[0]


def test_it_is_small() -> None:
    lines = (EXAMPLES / "digits.py").read_text().splitlines()
    assert len(lines) <= 80
    assert max(map(len, lines)) <= 100


def test_from_launch_to_export(database: Database, tmp_path: Path) -> None:
    launched = asked(
        "launch",
        "--study",
        EXAMPLES / "digits.yaml",
        "--trials",
        "4",
        "--workers",
        "2",
        "--device",
        "cpu",
    )
    assert launched.returncode == 0, launched.stderr
    assert "1350 images train, 150 validate" in launched.stdout
    assert "Best accuracy " in launched.stdout and "PER" not in launched.stdout

    study = open_study("digits")
    complete = [record for record in study.records() if record.value is not None]
    best = max(complete, key=lambda record: record.value or 0.0)
    found = report_of("digits")
    assert (found["best"]["trial"], found["best"]["value"], found["best"]["accuracy"]) == (
        best.number,
        best.value,
        best.value,
    )
    assert found["best"]["interval"][0] < best.value < found["best"]["interval"][1] <= 1
    assert sorted(
        path.name for path in trial_folder(study_folder(study), best.number).iterdir()
    ) == ["best.pt", "last.pt"]

    confirmed = asked(
        "confirm",
        "--study",
        "digits",
        "--top",
        "1",
        "--seeds",
        "2",
        "--workers",
        "2",
        "--device",
        "cpu",
        "--json",
    )
    assert confirmed.returncode == 0, confirmed.stderr
    configs = json.loads(confirmed.stdout)["configs"]
    assert all(len(config["seeds"]) == 2 and 0.5 < config["accuracy"] <= 1 for config in configs)
    assert json.loads(confirmed.stdout)["sentences"] == 297

    page, exported = tmp_path / "digits.html", tmp_path / "best.yaml"
    assert asked("report", "--study", "digits", "--html", page).returncode == 0
    assert "Confirmed accuracy" in page.read_text() and "PER" not in page.read_text()
    assert asked("export", "--study", "digits", "--out", exported).returncode == 0
    assert yaml.safe_load(exported.read_text()) == {
        "trainer": study.spec.trainer,
        "base": best.config,
    }
    weights = torch.load(
        trial_folder(study_folder(study), best.number) / "last.pt", weights_only=True
    )
    assert (weights["facts"]["accuracy"], weights["config"]) == (best.value, best.config)

    one_line(asked("ensemble", "--study", "digits"), 2, "it offers no ensembles")
    one_line(
        asked(
            "export", "--study", "digits", "--format", "neural_seq_decoder", "--out", tmp_path / "x"
        ),
        2,
        "it offers no export",
    )


def test_a_killed_training_goes_on_as_if_nothing_had_happened(
    database: Database, tmp_path: Path
) -> None:
    base = {"steps": 6000, "evaluate_every": 50}
    space = space_of(
        tmp_path, base=base, attempts={"checkpoint_seconds": 0}, budget={"trials": 1}, stopping=None
    )
    line = ("launch", "--study", space, "--workers", "2", "--device", "cpu")
    process = start(*line)
    study = None

    def trial() -> Record:
        return open_study("digits").records()[0]

    def has_checkpoint() -> bool:
        try:
            return (
                bool(checkpoints(trial_folder(study_folder(open_study("digits")), 0)))
                and trial().step > 100
            )
        except Exception:  # not made yet
            return False

    until(has_checkpoint)
    worker = open_study(
        "digits"
    ).engine  # the worker's own process is killed, and with it the launcher
    with worker.begin() as connection:
        pid = int(
            connection.exec_driver_sql("SELECT process FROM hpo_trial")
            .scalar_one()
            .partition(":")[0]
        )
    process.kill()
    os.kill(pid, signal.SIGKILL)
    process.wait()
    done = asked(*line)
    assert done.returncode == 0, done.stderr
    study = open_study("digits")
    record = trial()
    assert (record.state, record.attempts, record.step) == ("complete", 2, 6000)
    curve = study.curves([record])[0]
    assert [point.step for point in curve] == list(range(50, 6001, 50))

    trainer = load_trainer(study.spec.trainer)
    undisturbed = trainer.start(
        study.spec.config(record.config), load_dataset(study.spec, None, "cpu")
    )
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
def test_a_trainer_that_cannot_be_loaded_is_one_line(
    database: Database, tmp_path: Path, trainer: str, parts: tuple[str, ...]
) -> None:
    (tmp_path / "digits.py").write_text((EXAMPLES / "digits.py").read_text())
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "syntax.py").write_text("def\n")
    one_line(asked("launch", "--study", space_of(tmp_path, trainer=trainer)), 2, *parts)


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


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_a_trainer_before_any_trial_are_one_line(
    database: Database, tmp_path: Path, fault: str
) -> None:
    before, after, said = FAULTS[fault]
    source = (
        (EXAMPLES / "digits.py")
        .read_text()
        .replace("import torch\n", "import hpo.errors\nimport torch\n", 1)
    )
    assert before in source
    (tmp_path / "faulty.py").write_text(source.replace(before, after))
    one_line(asked("launch", "--study", space_of(tmp_path, trainer="faulty.py:digits")), 2, said)


def test_settings_of_many_types_are_searched_and_stored(database: Database, tmp_path: Path) -> None:
    """A path, an enumeration, a list and a group: as JSON in the study, as themselves in the training."""
    source = (EXAMPLES / "digits.py").read_text()
    fields = """    units: int = 32
    kind: Kind = Kind.small
    folder: Path = Path("a/b")
    sizes: tuple[int, ...] = (3, 4)
    inner: Inner = Inner()
"""
    types = """class Kind(Enum):
    small = "small"
    large = "large"


class Inner(Settings):
    depth: int = 2


class DigitsConfig(Config):"""
    source = source.replace("    units: int = 32\n", fields).replace(
        "class DigitsConfig(Config):", types
    )
    source = source.replace(
        "import hashlib\n", "import hashlib\nfrom enum import Enum\nfrom pathlib import Path\n"
    )
    source = source.replace(
        "from hpo import", "from hpo.settings import Settings\nfrom hpo import", 1
    )
    check = "assert isinstance(config.kind, Kind) and isinstance(config.folder, Path) and config.sizes == (3, 4)\n        "
    source = source.replace(
        "torch.manual_seed(config.seed)", check + "torch.manual_seed(config.seed)"
    )
    (tmp_path / "many.py").write_text(source)
    parameters = {"kind": {"choices": ["small", "large"]}, "inner.depth": {"low": 1, "high": 5}}
    space = space_of(
        tmp_path, trainer="many.py:digits", parameters=parameters, starts={}, budget={"trials": 1}
    )
    record = trained(database, space)
    assert record.state == "complete", record.reason
    assert (record.config["folder"], record.config["sizes"]) == ("a/b", [3, 4])
    assert record.config["kind"] == record.params["kind"] in ("small", "large")
    assert record.config["inner.depth"] == record.params["inner.depth"] in range(1, 6)


def test_a_training_that_ends_early_is_scored_where_it_ends(
    database: Database, tmp_path: Path
) -> None:
    source = (EXAMPLES / "digits.py").read_text()
    (tmp_path / "early.py").write_text(
        source.replace("while self.step < self.config.steps:", "while self.step < 130:")
    )
    space = space_of(tmp_path, trainer="early.py:digits", budget={"trials": 1}, stopping=None)
    record = trained(database, space)
    study = open_study("digits")
    trainer = load_trainer(study.spec.trainer)
    again = trainer.start(study.spec.config(record.config), load_dataset(study.spec, None, "cpu"))
    for _ in again.train():
        pass
    assert (record.state, record.step) == ("complete", 130)
    assert record.last_value == record.value and record.best_value == max(
        point.value for point in study.curves([record])[0]
    )
    assert record.value == again.evaluate(load_dataset(study.spec, None, "cpu")).value
    assert [point.step for point in study.curves([record])[0]] == [100, 130]


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


@pytest.mark.parametrize("what", NUMBERS)
def test_numbers_of_other_libraries_are_taken(
    database: Database, tmp_path: Path, what: str
) -> None:
    before, after = NUMBERS[what]
    source = (EXAMPLES / "digits.py").read_text()
    assert before in source
    source = source.replace(before, after).replace(
        "import torch\n", "import numpy\nimport torch\n", 1
    )
    (tmp_path / "mine.py").write_text(source)
    space = space_of(tmp_path, trainer="mine.py:digits", base={"steps": 100}, budget={"trials": 1})
    record = trained(database, space)
    assert record.state == "complete", record.reason
    assert record.value is not None and 0 < record.value <= 1


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


@pytest.mark.parametrize("fault", TRAINING_FAULTS)
def test_faults_of_a_training_are_failed_trials_with_their_reason(
    database: Database, tmp_path: Path, fault: str
) -> None:
    before, after, said = TRAINING_FAULTS[fault]
    source = (EXAMPLES / "digits.py").read_text()
    assert before in source
    (tmp_path / "faulty.py").write_text(source.replace(before, after))
    space = space_of(tmp_path, trainer="faulty.py:digits", budget={"trials": 1, "failures": 0})
    record = trained(database, space)
    assert record.state == "failed" and said in record.reason


def test_a_loss_or_score_that_is_no_number_has_diverged(database: Database, tmp_path: Path) -> None:
    source = (EXAMPLES / "digits.py").read_text()
    for name, before, after in (
        ("loss", "loss.item()", "float('nan') if self.step == 60 else loss.item()"),
        ("score", "tuple(right.float().tolist())", "(float('nan'),) * len(right)"),
    ):
        (tmp_path / f"{name}.py").write_text(source.replace(before, after))
        space = space_of(tmp_path, trainer=f"{name}.py:digits", budget={"trials": 1}, stopping=None)
        record = trained(database, space, name)
        assert (record.state, record.cause) == ("stopped", "non-finite")


def test_other_code_of_the_trainer_is_another_version(database: Database, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text((EXAMPLES / "digits.py").read_text())
    space = space_of(tmp_path, trainer="mine.py:digits", budget={"trials": 0})
    assert asked("launch", "--study", space).returncode == 0
    path.write_text(path.read_text().replace("[:64]", "[:32]"))
    load_trainer.cache_clear()
    version_of.cache_clear()
    one_line(asked("launch", "--study", space), 2, "was made with hpo", "--allow-different-code")
    moved = tmp_path / "moved"
    moved.mkdir()
    path.write_text(path.read_text().replace("[:32]", "[:64]"))
    path.rename(moved / "mine.py")
    load_trainer.cache_clear()
    version_of.cache_clear()
    again = space_of(tmp_path, trainer=f"{moved}/mine.py:digits", budget={"trials": 0})
    assert asked("launch", "--study", again).returncode == 0, "where it lies does not matter"
