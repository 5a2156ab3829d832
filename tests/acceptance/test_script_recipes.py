"""The recipes in search_spaces/recipes, each with a stand-in for the script that it is made for."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import one_line, run_hpo
from helpers.paths import ROOT, STAND_INS

from hpo.curve import Point
from hpo.script.config import ScriptConfig
from hpo.script.rows import Rows
from hpo.script.settings import CurveSettings
from hpo.space.load import load_spec
from hpo.space.spec import StudySpec
from hpo.store.database import Database
from hpo.study.logs import log_path
from hpo.study.paths import study_folder, trial_folder
from hpo.study.study import Study
from hpo.study.trial import Record
from hpo.worker.dataset import look_at_data
from hpo.worker.worker import run_worker

RECIPES = ROOT / "search_spaces" / "recipes"
PAGES = ROOT / "docs" / "recipes"
# A path of a lab in a recipe, which is to be changed.
LABS_PATH = re.compile(r"/(?:home|opt|data)/[\w./-]*")
TRIALS = 3
# Seconds between two evaluations of a stand-in. One that ends before it is interrupted is too fast.
PACES = (0.25, 1.0, 3.0)


@dataclass(frozen=True)
class Curve:
    """What one run of a script writes, read here without hpo."""

    values: dict[int, float]
    validation_losses: dict[int, float]


def matches(text: str, pattern: str) -> list[tuple[int, float, float]]:
    return [(int(step), float(a), float(b)) for step, a, b in re.findall(pattern, text)]


def curve_of_brain_to_text_25(folder: Path, output: str) -> Curve:
    log = (folder / "run" / "training_log").read_text()
    rows = matches(log, r"Val batch (\d+): PER \(avg\): (\S+) CTC Loss \(avg\): (\S+)")
    return Curve({step: per for step, per, _ in rows}, {step: loss for step, _, loss in rows})


def curve_of_neural_seq_decoder(folder: Path, output: str) -> Curve:
    rows = matches(output, r"batch (\d+), ctc loss:\s+(\S+), cer:\s+(\S+),")
    return Curve({step: cer for step, _, cer in rows}, {step: loss for step, loss, _ in rows})


def curve_of_lightning_cli(folder: Path, output: str) -> Curve:
    header, *lines = (folder / "logs" / "trial" / "metrics.csv").read_text().splitlines()
    rows = [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines]
    evaluations = [row for row in rows if row["val_per"]]
    return Curve(
        {int(row["step"]): float(row["val_per"]) for row in evaluations},
        {int(row["step"]): float(row["val_loss"]) for row in evaluations},
    )


def curve_of_hugging_face(folder: Path, output: str) -> Curve:
    state = json.loads((folder / "checkpoints" / "trainer_state.json").read_text())
    evaluations = [row for row in state["log_history"] if "eval_wer" in row]
    return Curve(
        {row["step"]: row["eval_wer"] for row in evaluations},
        {row["step"]: row["eval_loss"] for row in evaluations},
    )


def curve_of_wandb_only(folder: Path, output: str) -> Curve:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    evaluations = [row for row in rows if "per_0" in row]
    return Curve({row["step"]: (row["per_0"] + row["per_1"]) / 2 for row in evaluations}, {})


@dataclass(frozen=True)
class Recipe:
    name: str
    steps: int
    """The length of a short training."""
    evaluated_at: tuple[int, ...]
    """The steps at which such a training writes its value."""
    read_curve: Callable[[Path, str], Curve]
    resumes: str
    """What the page of the recipe says."""
    folder: str = "."
    """The folder of the script, within the code."""

    @property
    def stand_in(self) -> Path:
        return STAND_INS / self.name.replace("-", "_")


ALL = [
    Recipe(
        name="brain-to-text-25",
        steps=40,
        evaluated_at=(0, 10, 20, 30, 39),
        read_curve=curve_of_brain_to_text_25,
        resumes="none",
        folder="model_training",
    ),
    Recipe(
        name="neural-seq-decoder",
        steps=400,
        evaluated_at=(0, 100, 200, 300),
        read_curve=curve_of_neural_seq_decoder,
        resumes="none",
    ),
    Recipe(
        name="lightning-cli",
        steps=2000,
        evaluated_at=(499, 999, 1499, 1999),
        read_curve=curve_of_lightning_cli,
        resumes="exact",
    ),
    Recipe(
        name="hugging-face",
        steps=2000,
        evaluated_at=(500, 1000, 1500, 2000),
        read_curve=curve_of_hugging_face,
        resumes="exact",
    ),
    Recipe(
        name="wandb-only",
        steps=5,
        evaluated_at=(0, 1, 2, 3, 4),
        read_curve=curve_of_wandb_only,
        resumes="none",
    ),
]
NAMES = [recipe.name for recipe in ALL]
every_recipe = pytest.mark.parametrize("recipe", ALL, ids=NAMES)


def as_a_lab_has_it(recipe: Recipe, folder: Path) -> Path:
    """The shipped file with its paths changed to those of the stand-in, and nothing else."""
    code, data = folder / "code", folder / "data"
    shutil.copytree(recipe.stand_in, code / recipe.folder, dirs_exist_ok=True)
    data.mkdir()

    def path_here(match: re.Match[str]) -> str:
        path = match.group()
        if path.endswith("/bin/python"):
            return sys.executable
        if path.startswith("/data/"):
            return str(data)
        return str(code)

    study = folder / f"{recipe.name}.yaml"
    study.write_text(LABS_PATH.sub(path_here, (RECIPES / study.name).read_text()))
    return study


def run_by_hand(recipe: Recipe, spec: StudySpec, config: ScriptConfig, folder: Path) -> Curve:
    """The curve of a script that is started with the files and the command of a configuration."""
    launched = spec.load_trainer().offers["render_in_folder"]
    rendered = launched(config, folder, "s", 0, None)
    (folder / "checkpoints").mkdir(parents=True)
    for name, content in rendered.files.items():
        (folder / name).write_text(content)
    done = subprocess.run(
        rendered.command,
        cwd=rendered.folder,
        env=os.environ | dict(rendered.environment),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return recipe.read_curve(folder, done.stdout)


def studied(database: Database, spec: StudySpec) -> tuple[Study, list[Record]]:
    """A study after a worker in this process has run its trials."""
    study = Study.create_or_open(database, spec.space, spec, look_at_data(None, spec).facts)
    run_worker(study, None, torch.device("cpu"), 1, lambda: False)
    return study, study.records()


def script_config(spec: StudySpec, values: dict[str, Any]) -> ScriptConfig:
    config = spec.config(values)
    assert isinstance(config, ScriptConfig)
    return config


def test_every_recipe_has_a_page_and_a_test() -> None:
    assert sorted(path.stem for path in RECIPES.glob("*.yaml")) == sorted(NAMES)
    assert {path.stem for path in PAGES.glob("*.md")} == {*NAMES, "README"}
    table = (PAGES / "README.md").read_text()
    for name in NAMES:
        assert f"({name}.md)" in table
        assert f"recipes/{name}.yaml" in table


@every_recipe
def test_the_lines_that_a_lab_must_change_are_marked(recipe: Recipe) -> None:
    lines = (RECIPES / f"{recipe.name}.yaml").read_text().splitlines()
    with_paths = [line for line in lines if LABS_PATH.search(line)]
    assert len(with_paths) >= 3
    assert all("  # CHANGE" in line for line in with_paths)
    assert max(map(len, lines)) <= 110


@every_recipe
@pytest.mark.usefixtures("database")
def test_an_unchanged_recipe_says_in_one_line_what_is_missing(recipe: Recipe) -> None:
    launched = run_hpo("launch", "--study", RECIPES / f"{recipe.name}.yaml")
    one_line(launched, 2, f"{recipe.name}.yaml: script.code: /home/lab/", "no such folder")


@pytest.mark.slow
@every_recipe
def test_a_study_has_the_curves_of_the_script(
    recipe: Recipe, database: Database, tmp_path: Path
) -> None:
    """Those that it writes when it is started by hand with the same values."""
    spec = load_spec(as_a_lab_has_it(recipe, tmp_path), None, {"steps": recipe.steps}, TRIALS)
    study, records = studied(database, spec)
    assert [record.state for record in records] == ["complete"] * TRIALS
    assert records[0].start == next(iter(spec.starts))
    assert len({json.dumps(record.config, sort_keys=True) for record in records}) == TRIALS
    for record in (records[0], records[-1]):
        config = script_config(spec, record.config)
        expected = run_by_hand(recipe, spec, config, tmp_path / f"by-hand-{record.number}")
        curve = study.curves([record])[record.number]
        assert tuple(expected.values) == recipe.evaluated_at
        assert values_of(curve) == pytest.approx(expected.values)
        assert record.value == pytest.approx(expected.values[recipe.evaluated_at[-1]])
        assert losses_of(curve) == pytest.approx(expected.validation_losses)
    assert len({record.value for record in records}) == TRIALS


def values_of(curve: list[Point]) -> dict[int, float]:
    return {point.step: point.value for point in curve}


def losses_of(curve: list[Point]) -> dict[int, float]:
    return {p.step: p.validation_loss for p in curve if p.validation_loss is not None}


@pytest.mark.slow
@every_recipe
def test_the_seed_reaches_the_script(recipe: Recipe, tmp_path: Path) -> None:
    spec = load_spec(as_a_lab_has_it(recipe, tmp_path), None, {"steps": recipe.steps})
    first = run_by_hand(recipe, spec, script_config(spec, {"seed": 7}), tmp_path / "seed-7")
    second = run_by_hand(recipe, spec, script_config(spec, {"seed": 8}), tmp_path / "seed-8")
    assert first != second


@pytest.mark.slow
@every_recipe
@pytest.mark.usefixtures("database")
def test_hpo_try_finds_what_the_page_of_the_recipe_says(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = as_a_lab_has_it(recipe, tmp_path)
    findings: dict[str, Any] = {"resume": None}
    for seconds in PACES:
        monkeypatch.setenv("STAND_IN_SECONDS", str(seconds))
        tried = run_hpo("try", "--study", study, "--device", "cpu")
        assert tried.returncode == 0, tried.stderr
        findings = json.loads(study.with_suffix(".try.json").read_text())
        if findings["resume"] is not None:
            break
    assert findings["resume"] == recipe.resumes
    assert findings["noise"] == 0
    # The last value may come sooner, at the last step.
    assert 0 < findings["steps_between_values"] <= recipe.evaluated_at[2] - recipe.evaluated_at[1]
    assert f"hpo try` says `{recipe.resumes}`" in (PAGES / f"{recipe.name}.md").read_text()
    trainer = load_spec(study).load_trainer()
    assert trainer.resume == recipe.resumes


# The file in which a checkpoint has its step.
STEP_OF_CHECKPOINT = {
    "lightning-cli": "last.ckpt",
    "hugging-face": "checkpoint-*/trainer_state.json",
}


RESUMING = [recipe for recipe in ALL if recipe.resumes == "exact"]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RESUMING, ids=[recipe.name for recipe in RESUMING])
def test_a_trial_that_was_handed_back_resumes(
    recipe: Recipe, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After two of its four values; its curve is that of an undisturbed training."""
    monkeypatch.setenv("STAND_IN_SECONDS", "0.6")
    spec = load_spec(as_a_lab_has_it(recipe, tmp_path), None, {"steps": recipe.steps}, 1)
    study = Study.create_or_open(database, spec.space, spec, look_at_data(None, spec).facts)

    folder = trial_folder(study_folder(study), 0) / "attempt-1" / "checkpoints"
    step = f'"global_step": {recipe.steps // 2},'

    def is_halfway() -> bool:
        checkpoints = folder.glob(STEP_OF_CHECKPOINT[recipe.name])
        return any(step in path.read_text() for path in checkpoints)

    run_worker(study, None, torch.device("cpu"), 1, is_halfway)
    assert [record.state for record in study.records()] == ["waiting"]
    monkeypatch.setenv("STAND_IN_SECONDS", "0")
    run_worker(study, None, torch.device("cpu"), 1, lambda: False)
    record = study.records()[0]
    assert record.state == "complete"
    assert record.attempts == 2
    config = script_config(spec, record.config)
    expected = run_by_hand(recipe, spec, config, tmp_path / "by-hand")
    assert values_of(study.curves([record])[0]) == pytest.approx(expected.values)
    log = log_path(study_folder(study), 0).read_text()
    assert f"goes on after step {recipe.steps // 2}" in log


@pytest.mark.slow
def test_a_trial_with_a_loss_that_is_not_finite_is_stopped(
    database: Database, tmp_path: Path
) -> None:
    """neural_seq_decoder pads it with blanks and goes on, and its error rate stays finite."""
    study_file = as_a_lab_has_it(ALL[1], tmp_path)
    text = study_file.read_text().replace("published: {}", "too-large: {lrStart: 0.095}")
    study_file.write_text(text)
    _, records = studied(database, load_spec(study_file, None, {"steps": 400}, 1))
    assert [(record.state, record.cause) for record in records] == [("stopped", "non-finite")]
    assert records[0].step == 100


@pytest.mark.slow
def test_a_trial_with_an_error_about_a_gradient_that_is_not_finite_is_stopped(
    database: Database, tmp_path: Path
) -> None:
    study_file = as_a_lab_has_it(ALL[0], tmp_path)
    text = study_file.read_text().replace("high: 1e-2", "high: 1e-1")
    study_file.write_text(text.replace("{lr_max: 0.005,", "{lr_max: 0.05,"))
    _, records = studied(database, load_spec(study_file, None, {"steps": 40}, 1))
    assert [record.state for record in records] == ["stopped"]
    assert "non-finite" in records[0].reason


@pytest.mark.usefixtures("database")
def test_the_message_about_a_name_that_hydra_does_not_know_is_that_of_hydra(
    tmp_path: Path,
) -> None:
    study_file = as_a_lab_has_it(ALL[1], tmp_path)
    study_file.write_text(study_file.read_text().replace("outputDir: run", "outputDirs: run"))
    done = run_hpo("try", "--study", study_file, "--device", "cpu")
    one_line(done, 2, "Could not override 'outputDirs'")


# ---- the stand-in for wandb


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The stand-in as in a trial that has the learning rate 0.01."""
    monkeypatch.setenv("HPO_METRICS", str(tmp_path / "metrics.jsonl"))
    monkeypatch.setenv("HPO_CONFIG", str(tmp_path / "config.json"))
    (tmp_path / "config.json").write_text('{"lr": 0.01, "model": {"units": 64}}')
    return loaded_wandb(monkeypatch)


def loaded_wandb(monkeypatch: pytest.MonkeyPatch) -> Any:
    name = "wandb_of_hpo"
    spec = importlib.util.spec_from_file_location(name, RECIPES / "wandb" / "wandb.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_numbers_are_logged_and_nothing_else(wandb: Any, tmp_path: Path) -> None:
    wandb.init(project="decoder")
    wandb.log(
        {
            "a": 1,
            "b": np.float32(0.5),
            "c": torch.tensor(2.0, requires_grad=True),
            "d": {"e": np.array(3), "f": {"g": float("nan")}},
            "text": "1",
            "flag": True,
            "list": [1, 2],
            "array": np.zeros(3),
            "tensor": torch.zeros(3),
            "image": wandb.Image(np.zeros((2, 2))),
            "nothing": None,
        }
    )
    wandb.log({"text": "only"})
    (line,) = lines_of(tmp_path)
    assert np.isnan(line.pop("d/f/g"))
    assert line == {"step": 0, "a": 1, "b": 0.5, "c": 2, "d/e": 3}


def test_steps_are_counted_as_wandb_counts_them(
    wandb: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb.log({"a": 1})
    wandb.log({"a": 2}, commit=False)
    wandb.log({"b": 3})
    wandb.log({"a": 4}, step=10)
    wandb.log({"b": 5}, step=10)
    wandb.log({"a": 6}, step=9)
    wandb.log({"a": 7}, step=11, commit=True)
    wandb.log({"a": 8, "step": 3, "errors": 4})
    assert [(line["step"], line.get("a"), line.get("b")) for line in lines_of(tmp_path)] == [
        (0, 1, None),
        (1, 2, None),
        (1, None, 3),
        (10, 4, None),
        (10, None, 5),
        (11, 7, None),
        (12, 8, None),
    ]
    assert "step 9 is before step 10" in capsys.readouterr().err
    curve = CurveSettings(expression="a + b")
    rows = Rows(curve, tmp_path / "metrics.jsonl").read(last=True)
    points = [(row.step, row.value) for row in rows]
    assert points == [(0, None), (1, 5), (10, 9), (11, None), (12, None)]
    assert rows[-1].metrics["wandb/step"] == 3


def test_the_values_of_the_trial_are_in_config(wandb: Any) -> None:
    run = wandb.init(config={"lr": 1.0, "model": {"units": 1, "layers": 2}, "name": "ours"})
    assert run.config is wandb.config
    assert wandb.config.lr == 0.01
    assert wandb.config["name"] == "ours"
    assert wandb.config.model == {"units": 64, "layers": 2}
    wandb.config.update({"lr": 2.0, "more": 3}, allow_val_change=True)
    assert wandb.config.lr == 0.01
    assert wandb.config.more == 3
    wandb.config.setdefaults({"more": 4, "other": 5})
    assert wandb.config.more == 3
    assert wandb.config.other == 5
    with pytest.raises(AttributeError):
        _ = wandb.config.missing


def test_all_other_functions_do_nothing(wandb: Any, tmp_path: Path) -> None:
    assert not wandb.run
    with wandb.init(settings=wandb.Settings(start_method="thread")) as run:
        assert wandb.run is run is wandb.init()
        run.watch(None, log="all")
        run.name = "ours"
        run.summary["best"] = 1
        wandb.define_metric("per", summary="min")
        artifact = wandb.Artifact("model", type="model")
        artifact.add_file("model.pt")
        run.log_artifact(artifact).wait()
        table = wandb.Table(columns=["a"], data=[[1]])
        table.add_data(2)
        run.log({"table": table, "plot": wandb.plot.line(table, "a", "a")})
        wandb.save("model.pt")
        wandb.alert(title="done")
    assert not wandb.run
    assert list(wandb.Api().runs("decoder")) == []
    assert not (tmp_path / "metrics.jsonl").exists()


def test_the_next_run_counts_from_0(wandb: Any, tmp_path: Path) -> None:
    wandb.init()
    wandb.log({"a": 1})
    wandb.log({"a": 2})
    wandb.finish()
    wandb.init().log({"a": 3})
    assert [line["step"] for line in lines_of(tmp_path)] == [0, 1, 0]


def test_outside_of_a_trial_one_line_says_that_nothing_is_recorded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HPO_METRICS", raising=False)
    monkeypatch.delenv("HPO_CONFIG", raising=False)
    wandb = loaded_wandb(monkeypatch)
    wandb.init(config={"lr": 1})
    wandb.log({"a": 1})
    wandb.log({"a": 2})
    assert wandb.config.lr == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "nothing is recorded" in line
    assert list(tmp_path.iterdir()) == []
