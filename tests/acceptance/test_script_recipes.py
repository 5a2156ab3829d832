"""The recipes of search_spaces/recipes, each with a stand-in of the script that it is for."""

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
from helpers.commands import asked, one_line
from helpers.paths import ROOT, STAND_INS

from hpo.curve import Point
from hpo.script.config import ScriptConfig
from hpo.script.rows import Rows
from hpo.script.settings import CurveSettings
from hpo.space.spec import StudySpec, load_spec
from hpo.store.database import Database
from hpo.study.logs import log_path
from hpo.study.paths import study_folder, trial_folder
from hpo.study.study import Study
from hpo.study.trial import Record
from hpo.worker.dataset import look_at_data
from hpo.worker.worker import run_worker

RECIPES = ROOT / "search_spaces" / "recipes"
PAGES = ROOT / "docs" / "recipes"
# Of a lab, in a recipe: to be changed.
LABS_PATH = re.compile(r"/(?:home|opt|data)/[\w./-]*")
TRIALS = 3
# That a stand-in takes for an evaluation. One that ends before it is interrupted must be slower.
PACES = (0.25, 1.0, 3.0)


@dataclass(frozen=True)
class Told:
    """Of one run of a script, read here in a way of its own."""

    values: dict[int, float]
    losses: dict[int, float]
    """Of the validation part."""


def table_of_log(text: str, pattern: str) -> Told:
    found = [
        (int(step), float(one), float(other)) for step, one, other in re.findall(pattern, text)
    ]
    return Told({step: one for step, one, _ in found}, {step: other for step, _, other in found})


def told_by_brain_to_text_25(folder: Path, output: str) -> Told:
    log = (folder / "run" / "training_log").read_text()
    return table_of_log(log, r"Val batch (\d+): PER \(avg\): (\S+) CTC Loss \(avg\): (\S+)")


def told_by_neural_seq_decoder(folder: Path, output: str) -> Told:
    told = table_of_log(output, r"batch (\d+), ctc loss:\s+(\S+), cer:\s+(\S+),")
    return Told(told.losses, told.values)


def told_by_lightning_cli(folder: Path, output: str) -> Told:
    header, *lines = (folder / "logs" / "trial" / "metrics.csv").read_text().splitlines()
    rows = [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines]
    found = [row for row in rows if row["val_per"]]
    return Told(
        {int(row["step"]): float(row["val_per"]) for row in found},
        {int(row["step"]): float(row["val_loss"]) for row in found},
    )


def told_by_hugging_face(folder: Path, output: str) -> Told:
    state = json.loads((folder / "checkpoints" / "trainer_state.json").read_text())
    found = [row for row in state["log_history"] if "eval_wer" in row]
    return Told(
        {row["step"]: row["eval_wer"] for row in found},
        {row["step"]: row["eval_loss"] for row in found},
    )


def told_by_wandb_only(folder: Path, output: str) -> Told:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = [row for row in rows if "per_0" in row]
    return Told({row["step"]: (row["per_0"] + row["per_1"]) / 2 for row in found}, {})


@dataclass(frozen=True)
class Recipe:
    name: str
    steps: int
    """Of a short training."""
    told_at: tuple[int, ...]
    """Where such a training tells its value."""
    told: Callable[[Path, str], Told]
    resumes: str
    """As its page says."""
    folder: str = "."
    """Of the script, within the code."""

    @property
    def stand_in(self) -> Path:
        return STAND_INS / self.name.replace("-", "_")


ALL = [
    Recipe(
        name="brain-to-text-25",
        steps=40,
        told_at=(0, 10, 20, 30, 39),
        told=told_by_brain_to_text_25,
        resumes="none",
        folder="model_training",
    ),
    Recipe(
        name="neural-seq-decoder",
        steps=400,
        told_at=(0, 100, 200, 300),
        told=told_by_neural_seq_decoder,
        resumes="none",
    ),
    Recipe(
        name="lightning-cli",
        steps=2000,
        told_at=(499, 999, 1499, 1999),
        told=told_by_lightning_cli,
        resumes="exact",
    ),
    Recipe(
        name="hugging-face",
        steps=2000,
        told_at=(500, 1000, 1500, 2000),
        told=told_by_hugging_face,
        resumes="exact",
    ),
    Recipe(
        name="wandb-only",
        steps=5,
        told_at=(0, 1, 2, 3, 4),
        told=told_by_wandb_only,
        resumes="none",
    ),
]
NAMES = [recipe.name for recipe in ALL]
every_recipe = pytest.mark.parametrize("recipe", ALL, ids=NAMES)


def as_a_lab_has_it(recipe: Recipe, folder: Path) -> Path:
    """The shipped file with its paths, and nothing else, changed to those of the stand-in."""
    code, data = folder / "code", folder / "data"
    shutil.copytree(recipe.stand_in, code / recipe.folder, dirs_exist_ok=True)
    data.mkdir()

    def here(found: re.Match[str]) -> str:
        path = found.group()
        if path.endswith("/bin/python"):
            return sys.executable
        if path.startswith("/data/"):
            return str(data)
        return str(code)

    study = folder / f"{recipe.name}.yaml"
    study.write_text(LABS_PATH.sub(here, (RECIPES / study.name).read_text()))
    return study


def run_by_hand(recipe: Recipe, spec: StudySpec, config: ScriptConfig, folder: Path) -> Told:
    """What the script tells that a person starts with the files and the command of a configuration."""
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
    return recipe.told(folder, done.stdout)


def studied(database: Database, spec: StudySpec) -> tuple[Study, list[Record]]:
    """A study whose trials a worker in this process has run."""
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
    assert all(f"({name}.md)" in table and f"recipes/{name}.yaml" in table for name in NAMES)


@every_recipe
def test_what_a_lab_must_change_is_marked(recipe: Recipe) -> None:
    lines = (RECIPES / f"{recipe.name}.yaml").read_text().splitlines()
    with_paths = [line for line in lines if LABS_PATH.search(line)]
    assert len(with_paths) >= 3
    assert all("  # CHANGE" in line for line in with_paths)
    assert max(map(len, lines)) <= 110


@every_recipe
def test_as_it_is_shipped_one_line_says_what_is_missing(recipe: Recipe, database: Database) -> None:
    launched = asked("launch", "--study", RECIPES / f"{recipe.name}.yaml")
    one_line(launched, 2, f"{recipe.name}.yaml: script.code: /home/lab/", "no such folder")


@every_recipe
def test_a_study(recipe: Recipe, database: Database, tmp_path: Path) -> None:
    """The curves are those of the script started by hand with the same values."""
    spec = load_spec(as_a_lab_has_it(recipe, tmp_path), None, {"steps": recipe.steps}, TRIALS)
    study, records = studied(database, spec)
    assert [record.state for record in records] == ["complete"] * TRIALS
    assert records[0].start == next(iter(spec.starts))
    assert len({json.dumps(record.config, sort_keys=True) for record in records}) == TRIALS
    for record in records[:: TRIALS - 1]:
        config = script_config(spec, record.config)
        told = run_by_hand(recipe, spec, config, tmp_path / f"by-hand-{record.number}")
        curve = study.curves([record])[record.number]
        assert tuple(told.values) == recipe.told_at
        assert {point.step: point.value for point in curve} == pytest.approx(told.values)
        assert record.value == pytest.approx(told.values[recipe.told_at[-1]])
        assert losses_of(curve) == pytest.approx(told.losses)
    assert len({record.value for record in records}) == TRIALS


def losses_of(curve: list[Point]) -> dict[int, float]:
    return {p.step: p.validation_loss for p in curve if p.validation_loss is not None}


@every_recipe
def test_the_seed_reaches_the_script(recipe: Recipe, tmp_path: Path) -> None:
    spec = load_spec(as_a_lab_has_it(recipe, tmp_path), None, {"steps": recipe.steps})
    runs = [
        run_by_hand(recipe, spec, script_config(spec, {"seed": seed}), tmp_path / f"run-{index}")
        for index, seed in enumerate((7, 8))
    ]
    assert runs[0] != runs[1]


@pytest.mark.parametrize("recipe", ALL, ids=NAMES)
def test_what_try_finds(
    recipe: Recipe, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is what the recipe's page says."""
    study = as_a_lab_has_it(recipe, tmp_path)
    found: dict[str, Any] = {"resume": None}
    for seconds in PACES:
        monkeypatch.setenv("STAND_IN_SECONDS", str(seconds))
        tried = asked("try", "--study", study, "--device", "cpu")
        assert tried.returncode == 0, tried.stderr
        found = json.loads(study.with_suffix(".try.json").read_text())
        if found["resume"] is not None:
            break
    assert (found["resume"], found["noise"]) == (recipe.resumes, 0)
    # The last value may come sooner, at the last step.
    assert 0 < found["steps_between_values"] <= recipe.told_at[2] - recipe.told_at[1]
    assert f"hpo try` says `{recipe.resumes}`" in (PAGES / f"{recipe.name}.md").read_text()
    trainer = load_spec(study).load_trainer()
    assert trainer.resume == recipe.resumes


# The file in which a checkpoint says how far it is.
STEP_OF_CHECKPOINT = {
    "lightning-cli": "last.ckpt",
    "hugging-face": "checkpoint-*/trainer_state.json",
}


@pytest.mark.parametrize(
    "recipe",
    [recipe for recipe in ALL if recipe.resumes == "exact"],
    ids=lambda recipe: recipe.name,
)
def test_a_trial_that_was_handed_back_goes_on(
    recipe: Recipe, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After two of its four values, and with the curve of a training that nobody disturbed."""
    monkeypatch.setenv("STAND_IN_SECONDS", "0.6")
    spec = load_spec(as_a_lab_has_it(recipe, tmp_path), None, {"steps": recipe.steps}, 1)
    study = Study.create_or_open(database, spec.space, spec, look_at_data(None, spec).facts)

    kept = trial_folder(study_folder(study), 0) / "attempt-1" / "checkpoints"

    def is_halfway() -> bool:
        found = [path.read_text() for path in kept.glob(STEP_OF_CHECKPOINT[recipe.name])]
        return any(f'"global_step": {recipe.steps // 2},' in text for text in found)

    run_worker(study, None, torch.device("cpu"), 1, is_halfway)
    assert [record.state for record in study.records()] == ["waiting"]
    monkeypatch.setenv("STAND_IN_SECONDS", "0")
    run_worker(study, None, torch.device("cpu"), 1, lambda: False)
    record = study.records()[0]
    assert (record.state, record.attempts) == ("complete", 2)
    told = run_by_hand(recipe, spec, script_config(spec, record.config), tmp_path / "by-hand")
    curve = study.curves([record])[0]
    assert {point.step: point.value for point in curve} == pytest.approx(told.values)
    log = log_path(study_folder(study), 0).read_text()
    assert f"goes on after step {recipe.steps // 2}" in log


def test_a_loss_that_is_not_finite_is_padded_with_blanks(
    database: Database, tmp_path: Path
) -> None:
    """The program of neural_seq_decoder goes on then, and its error rate stays finite."""
    study_file = as_a_lab_has_it(ALL[1], tmp_path)
    text = study_file.read_text().replace("published: {}", "too-large: {lrStart: 0.095}")
    study_file.write_text(text)
    _, records = studied(database, load_spec(study_file, None, {"steps": 400}, 1))
    assert [(record.state, record.cause) for record in records] == [("stopped", "non-finite")]
    assert records[0].step == 100


def test_an_error_at_a_gradient_that_is_not_finite_is_a_result(
    database: Database, tmp_path: Path
) -> None:
    study_file = as_a_lab_has_it(ALL[0], tmp_path)
    text = study_file.read_text().replace("high: 1e-2", "high: 1e-1")
    study_file.write_text(text.replace("{lr_max: 0.005,", "{lr_max: 0.05,"))
    _, records = studied(database, load_spec(study_file, None, {"steps": 40}, 1))
    assert [record.state for record in records] == ["stopped"]
    assert "non-finite" in records[0].reason


def test_a_name_that_hydra_does_not_know_is_told_by_hydra(
    database: Database, tmp_path: Path
) -> None:
    study_file = as_a_lab_has_it(ALL[1], tmp_path)
    study_file.write_text(study_file.read_text().replace("outputDir: run", "outputDirs: run"))
    done = asked("try", "--study", study_file, "--device", "cpu")
    one_line(done, 2, "Could not override 'outputDirs'")


# The stand-in for wandb


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """As in a trial that has the learning rate .01."""
    monkeypatch.setenv("HPO_METRICS", str(tmp_path / "metrics.jsonl"))
    monkeypatch.setenv("HPO_CONFIG", str(tmp_path / "config.json"))
    (tmp_path / "config.json").write_text('{"lr": 0.01, "model": {"units": 64}}')
    return loaded_wandb(monkeypatch)


def loaded_wandb(monkeypatch: pytest.MonkeyPatch) -> Any:
    name = "wandb_of_hpo"
    found = importlib.util.spec_from_file_location(name, RECIPES / "wandb" / "wandb.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    monkeypatch.setitem(sys.modules, name, module)
    found.loader.exec_module(module)
    return module


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_numbers_are_told_and_nothing_else(wandb: Any, tmp_path: Path) -> None:
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
    assert [(row.step, row.value) for row in rows] == [
        (0, None),
        (1, 5),
        (10, 9),
        (11, None),
        (12, None),
    ]
    assert rows[-1].metrics["wandb/step"] == 3


def test_the_trials_values_are_in_config(wandb: Any) -> None:
    run = wandb.init(config={"lr": 1.0, "model": {"units": 1, "layers": 2}, "name": "ours"})
    assert (wandb.config.lr, wandb.config["name"], run.config is wandb.config) == (
        0.01,
        "ours",
        True,
    )
    assert wandb.config.model == {"units": 64, "layers": 2}
    wandb.config.update({"lr": 2.0, "more": 3}, allow_val_change=True)
    assert (wandb.config.lr, wandb.config.more) == (0.01, 3)
    wandb.config.setdefaults({"more": 4, "other": 5})
    assert (wandb.config.more, wandb.config.other) == (3, 5)
    with pytest.raises(AttributeError):
        _ = wandb.config.missing


def test_all_else_does_nothing(wandb: Any, tmp_path: Path) -> None:
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


def test_outside_of_a_trial_it_says_so_once(
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
