"""Study files: what is valid, what each mistake says, profiles, settings and differences."""

from collections.abc import Iterable
from pathlib import Path

import pytest
from helpers.studies import TINY, decoder_config

from hpo.decoder.config import DecoderConfig
from hpo.errors import SpecError
from hpo.space.file import value_in_text
from hpo.space.load import BUNDLED, find_space, load_spec, parse_settings
from hpo.space.sections import Question
from hpo.space.spec import StudySpec


def load(tmp_path: Path, text: str) -> StudySpec:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    return load_spec(path)


BUDGET = "budget: {trials: 4}"
CONDITION = "when: {optimizer.name: [adam]}"
RANGE = "low: 1e-4, high: 5e-2"
CHOICES = "choices: [adam, sgd]"
LAYERS = "base: {model.layers: 1"
SLOW_LR = "optimizer.lr: 0.001"
# What is replaced in TINY, by what, and parts of the message.
MISTAKES = [
    ("budget:", "bugdet:", ["bugdet", "Did you mean budget?", "parameters"]),
    (
        "optimizer.lr: {low",
        "optimizer.lrr: {low",
        ["parameters.optimizer.lrr", "Did you mean optimizer.lr?", "optimizer.eps"],
    ),
    (LAYERS, "base: {model.layer: 1", ["base.model.layer", "Did you mean model.layers?"]),
    (LAYERS, "base: {model.layers: two", ["base.model.layers", "integer", "'two'"]),
    (LAYERS, "base: {model.layers: 1.5", ["base.model.layers", "1.5"]),
    (
        LAYERS,
        "base: {model.dropout: 1.5, model.layers: 1",
        ["base.model.dropout", "less than 1", "1.5"],
    ),
    (RANGE, "low: 1e-1, high: 5e-2", ["parameters.optimizer.lr", "low 0.1 is not below high 0.05"]),
    (RANGE, "low: 0, high: 5e-2", ["parameters.optimizer.lr", "log", "above 0"]),
    (RANGE, "low: 1e-4, hihg: 5e-2", ["parameters.optimizer.lr", "'hihg'", "Did you mean high?"]),
    (RANGE, "low: tiny, high: 5e-2", ["parameters.optimizer.lr.low", "'tiny'"]),
    (RANGE, "low: 1e-4", ["parameters.optimizer.lr", "needs low and high, or choices"]),
    (
        CHOICES,
        "choices: [adam, adma]",
        ["parameters.optimizer.name", "'adma'", "'adam', 'adamw' or 'sgd'"],
    ),
    (CHOICES, "choices: [adam]", ["parameters.optimizer.name", "2 choices or more"]),
    (CHOICES, "low: 1, high: 2", ["parameters.optimizer.name"]),
    (
        CONDITION,
        "when: {optimizer.nmae: [adam]}",
        ["optimizer.eps.when", "Did you mean optimizer.name?"],
    ),
    (
        CONDITION,
        "when: {schedule.name: [plateau]}",
        ["optimizer.eps.when", "schedule.name", "optimizer.name"],
    ),
    (
        CONDITION,
        "when: {optimizer.name: [adamw]}",
        ["optimizer.eps.when.optimizer.name", "adamw", "sgd"],
    ),
    (
        SLOW_LR,
        "optimizer.lr: 0.5",
        ["starts.slow", "optimizer.lr = 0.5 is outside", "0.0001..0.05 (log)"],
    ),
    (SLOW_LR, "optimizer.rl: 0.001", ["starts.slow.optimizer.rl", "optimizer.lr"]),
    (
        SLOW_LR,
        "optimizer.eps: 0.001",
        ["starts.slow.optimizer.eps", "does not exist with the start's other values"],
    ),
    (SLOW_LR, "batch_size: 8", ["starts.slow.batch_size", "is not searched"]),
    (BUDGET, "budget: {trials: many}", ["trials", "'many'"]),
    (BUDGET, "budget: {trails: 4}", ["budget", "'trails'", "Did you mean trials?"]),
    (BUDGET, "budget: {trials: -1}", ["trials", "greater than or equal to 0", "-1"]),
    (BUDGET, "budget: {trials: 4}\nbudget: {trials: 5}", ["line", "'budget' appears twice"]),
    (BUDGET, "budget: {trials: 4", ["not valid YAML in line"]),
    (BUDGET, "stopping: {margn: 0.1}", ["stopping", "Did you mean margin?"]),
    (TINY, "- a\n- b", ["dictionary"]),
    (TINY, "", ["dictionary"]),
    (TINY, "parameters: {}", ["parameters", "at least 1"]),
]


@pytest.mark.parametrize(("written", "mistake", "parts"), MISTAKES)
def test_every_mistake_gives_one_line_with_the_place_and_what_is_valid(
    tmp_path: Path, written: str, mistake: str, parts: list[str]
) -> None:
    assert written in TINY
    with pytest.raises(SpecError) as caught:
        load(tmp_path, TINY.replace(written, mistake, 1))
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "space.yaml"))
    assert "\n" not in message
    for part in parts:
        assert part in message


LR = "parameters: {optimizer.lr: {low: %s, high: 1e-2}}"
LONG = "x" * 50_000
BOMB = "\n".join(
    ["base:", "  a0: &a0 [x,x,x,x,x,x,x,x,x,x]"]
    + [f"  a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 8)]
)
CHOICES = "parameters: {optimizer.lr: {choices: [*a7]}}"
MANY_KEYS = "base:\n" + "".join(f"  k{number}: 1\n" for number in range(40_000))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: " + "[" * 5000 + "]" * 5000, r"is nested more than 50 levels deep"),
        ("{a: " * 3000 + "1" + "}" * 3000, r"is nested more than 50 levels deep"),
        ("base: &a {x: *a}", r"is nested more than 50 levels deep"),
        (f"{BOMB}\n{CHOICES}", r"has more than 100,000 values"),
        (MANY_KEYS, r"has more than 10000 values"),
        (
            LR % f'"{LONG}"',
            r"optimizer.lr.low: input should be a valid number \(given: 'x+\.\.\.x+'",
        ),
        (LR % ("0x" + "f" * 9000), r"has a whole number of 36,000 bits"),
        (
            f"policy: {LONG}\n{LR % '1e-4'}",
            r"policy: input should be 'gp', 'tpe' or 'random' \(given: 'x+",
        ),
        (f"trainer: {LONG}\n{LR % '1e-4'}", r"trainer 'x+\.\.\.x+': not a reference"),
        (f"? {LONG[:900]}\n: 1", r"there is no 'x+\.\.\.x+'"),
        (f"a: !{LONG} 1", r"not valid YAML in line 1: could not determine"),
        (f"a: *{LONG}", r"not valid YAML in line 1: found undefined alias"),
        ("x" * 1_000_001, r"is larger than 1 MB. Give a study file, not data"),
    ],
)
def test_a_hostile_file_gives_one_short_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        load(tmp_path, text)
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 5000, "[" * 60 + "]" * 60, "*" + "y" * 9000])
def test_a_hostile_value_gives_one_short_line(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        value_in_text(text, "--set x")
    assert len(str(caught.value)) < 350


def test_a_number_in_scientific_notation_is_a_number(tmp_path: Path) -> None:
    """YAML 1.1 reads 1e-4 as text."""
    spec = load(tmp_path, TINY)
    assert spec.parameters["optimizer.lr"].low == 1e-4
    assert spec.parameters["optimizer.eps"].low == 1e-8
    settings = parse_settings(("optimizer.weight_decay=1e-3",))
    assert settings
    assert decoder_config(spec, settings).optimizer.weight_decay == 1e-3


def test_a_condition_on_a_number_written_as_1e_2(tmp_path: Path) -> None:
    text = """
parameters:
  optimizer.eps: {choices: [1e-3, 1e-2]}
  optimizer.lr: {low: 1e-4, high: 1e-2, when: {optimizer.eps: [1e-2]}}
"""
    spec = load(tmp_path, text)
    assert spec.active("optimizer.lr", {"optimizer.eps": 0.01})
    assert not spec.active("optimizer.lr", {"optimizer.eps": 0.001})


@pytest.mark.parametrize("text", ["a: \x07", "a: [", "\xff"])
def test_text_that_is_not_yaml_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(SpecError, match=r"space.yaml: not "):
        load_spec(path)
    with pytest.raises(SpecError, match="is not a value"):
        parse_settings(("optimizer.lr=[",))


def test_the_extremes_of_a_space_have_its_smallest_and_largest_kernel(tmp_path: Path) -> None:
    spec = load(tmp_path, "parameters: {model.kernel: {choices: [4, 40]}}")
    assert [config.flat()["model.kernel"] for config in spec.extremes()] == [32, 4, 40]


def test_bundled_spaces_load_with_and_without_their_profiles() -> None:
    spaces = sorted(BUNDLED.glob("*.yaml"))
    assert [path.stem for path in spaces] == ["lr-aug", "lr-only"]
    for path in spaces:
        assert load_spec(path).profile is None
        assert load_spec(path, "demo").base["steps"] < load_spec(path).base["steps"]


def test_lr_aug_searches_what_the_lab_asks_for() -> None:
    spec = load_spec(find_space("lr-aug"))
    numbers = {name: p for name, p in spec.parameters.items() if p.choices is None}
    ranges = {name: (p.low, p.high, p.log) for name, p in numbers.items()}
    assert ranges["optimizer.lr"] == (1e-4, 5e-2, True)
    assert ranges["optimizer.eps"] == (1e-8, 1e-1, True)
    assert ranges["optimizer.weight_decay"] == (1e-6, 1e-2, True)
    assert ranges["augment.white_noise_sd"] == (0, 1.2, False)
    assert ranges["augment.constant_offset_sd"] == (0, 0.5, False)
    assert spec.parameters["optimizer.eps"].when == {"optimizer.name": ["adam", "adamw"]}
    schedules = ["constant", "linear", "warmup-cosine", "plateau"]
    assert spec.parameters["schedule.name"].choices == schedules
    assert spec.parameters["model.layer_norm"].choices == [False, True]
    assert list(spec.starts) == ["baseline", "run11"]


def parts_of(config: DecoderConfig, names: Iterable[str]) -> dict[str, object]:
    flat = config.flat()
    return {name: flat[name] for name in names}


REFERENCE = {
    "model.layers": 5,
    "model.units": 1024,
    "model.bidirectional": True,
    "model.kernel": 32,
    "model.stride": 4,
    "model.dropout": 0.4,
    "optimizer.name": "adam",
    "optimizer.lr": 0.02,
    "optimizer.eps": 0.1,
    "optimizer.weight_decay": 1e-5,
    "optimizer.beta2": 0.999,
    "optimizer.grad_clip_norm": None,
    "augment.white_noise_sd": 0.8,
    "augment.constant_offset_sd": 0.2,
    "steps": 10_000,
    "batch_size": 64,
}


def test_the_baseline_is_the_reference() -> None:
    spec = load_spec(find_space("lr-aug"))
    assert spec.config(spec.starts["baseline"]) == DecoderConfig()
    assert parts_of(decoder_config(spec), REFERENCE) == REFERENCE


RUN_11 = {
    "optimizer.name": "adamw",
    "optimizer.lr": 8e-4,
    "optimizer.eps": 1e-8,
    "optimizer.weight_decay": 1e-4,
    "optimizer.grad_clip_norm": 1.5,
    "schedule.name": "plateau",
    "schedule.patience": 8,
    "schedule.factor": 0.5,
    "schedule.min_lr": 1e-5,
    "augment.white_noise_sd": 0,
    "augment.constant_offset_sd": 0,
    "augment.time_masks": 2,
    "augment.time_mask_p": 0.1,
    "augment.time_mask_width": 40,
    "augment.feature_masks": 2,
    "augment.feature_mask_p": 0.1,
    "augment.feature_mask_width": 12,
    "model.layer_norm": True,
    "model.dropout": 0.4,
    "model.input_dropout": 0,
}


def test_the_start_run11_is_run_11_of_the_lab() -> None:
    spec = load_spec(find_space("lr-aug"))
    assert parts_of(decoder_config(spec, spec.starts["run11"]), RUN_11) == RUN_11


def test_start_values_hold_only_parameters_that_exist_in_the_start() -> None:
    values = load_spec(find_space("lr-aug")).start_values("run11")
    assert "schedule.end_factor" not in values
    assert "optimizer.momentum" not in values
    assert values["optimizer.eps"] == 1e-8


def test_profile_then_set_overlay_the_base(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    profiles = """
profiles:
  big:
    base: {model.units: 64, steps: 9}
    budget: {trials: 7}
    starts: {more: {optimizer.lr: 0.03}}
"""
    path.write_text(TINY + profiles)
    spec = load_spec(path, "big", {"steps": 11})
    assert spec.base["model.units"] == 64
    assert spec.base["steps"] == 11
    assert spec.budget.trials == 7
    assert list(spec.starts) == ["baseline", "slow", "more"]
    digests = {load_spec(path).digest(), load_spec(path, "big").digest(), spec.digest()}
    assert len(digests) == 3
    with pytest.raises(SpecError, match=r"--profile: there is no 'bgi'\. Did you mean big"):
        load_spec(path, "bgi")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"optimizer.lr": 0.1},
            r"--set optimizer.lr: this space searches optimizer.lr \(0.0001..0.05 \(log\)\)",
        ),
        ({"model.unit": 3}, r"Did you mean model\.units"),
        ({"model.units": 0}, r"--set model\.units: input should be greater than or equal to 1"),
    ],
)
def test_set_refuses_what_is_searched_unknown_or_invalid(
    tiny_space: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        load_spec(tiny_space, None, settings)


def test_parse_settings_refuses_what_is_unknown_or_has_no_value(tiny_space: Path) -> None:
    with pytest.raises(SpecError, match=r"Did you mean model\.units"):
        load_spec(tiny_space, None, parse_settings(("model.unit=3",)))
    with pytest.raises(SpecError, match="no value"):
        parse_settings(("model.units",))
    command, valid, likely = "hpo enqueue ", ("optimizer.lr", "steps"), ("optimizer.lr",)
    unknown = r"hpo enqueue optimizer\.rl=3: there is no 'optimizer.rl'. Did you mean optimizer\.lr"
    with pytest.raises(SpecError, match=unknown):
        parse_settings(("optimizer.rl=3",), command, valid, likely)


def test_a_space_is_found_by_name_in_the_working_folder_then_among_the_bundled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_space("lr-aug") == BUNDLED / "lr-aug.yaml"
    own = Path("search_spaces/lr-aug.yaml")
    own.parent.mkdir()
    own.write_text(TINY)
    assert find_space("lr-aug") == own
    unknown = r"no 'lr-agu'. Did you mean lr-aug\? Valid: lr-aug, lr-only"
    with pytest.raises(SpecError, match=unknown):
        find_space("lr-agu")
    with pytest.raises(SpecError, match="no such file"):
        find_space("missing.yaml")


@pytest.mark.parametrize(
    ("before", "after", "extends"),
    [
        ("trials: 4", "trials: 9", True),
        ("high: 5e-2", "high: 0.5", True),
        ("trials: 4", "trials: 3", False),
        ("high: 5e-2", "high: 4e-2", False),
        # Optuna cannot change choices.
        ("[adam, sgd]", "[adam, sgd, adamw]", False),
        ("model.units: 8", "model.units: 9", False),
    ],
)
def test_a_space_may_be_extended_by_trials_and_wider_ranges(
    tmp_path: Path, before: str, after: str, extends: bool
) -> None:
    base = load(tmp_path, TINY)
    changed = load(tmp_path, TINY.replace(before, after))
    assert changed.extends(base) is extends


def test_differences_names_the_changed_place(tmp_path: Path) -> None:
    more_trials = load(tmp_path, TINY.replace("trials: 4", "trials: 9"))
    assert more_trials.differences(load(tmp_path, TINY)) == ["budget.trials"]


# ---- questions

QUESTION = """
questions: [{ask: Why, compare: [{from: baseline, change: {optimizer.eps: 1e-8}}]}]
"""
WITH_QUESTION = TINY + QUESTION


def test_a_question_is_two_configurations_and_not_part_of_the_digest(tmp_path: Path) -> None:
    spec = load(tmp_path, WITH_QUESTION)
    without_question = load(tmp_path, TINY)
    assert spec.digest() == without_question.digest()
    assert spec.differences(without_question) == []
    assert spec.extends(without_question)
    # As it is stored with a study.
    again = type(spec).model_validate(spec.model_dump(mode="json"))
    before, after = again.questions[0].compare[0].sides(spec.config())
    assert before == spec.config()
    assert after.flat()["optimizer.eps"] == 1e-8
    assert after == before.with_values({"optimizer.eps": 1e-8})


def test_a_pair_of_values_sets_both_sides(tmp_path: Path) -> None:
    changes = "{optimizer.lr: [0.02, 0.01], model.layer_norm: true}"
    spec = load(tmp_path, WITH_QUESTION.replace("{optimizer.eps: 1e-8}", changes))
    contrast = spec.questions[0].compare[0]
    sides = contrast.sides(DecoderConfig().with_values({"optimizer.lr": 0.5}))
    assert [side.flat()["optimizer.lr"] for side in sides] == [0.02, 0.01]
    assert [side.flat()["model.layer_norm"] for side in sides] == [False, True]


CHANGE = "optimizer.eps: 1e-8"


@pytest.mark.parametrize(
    ("written", "mistake", "message"),
    [
        (
            "ask:",
            "asks:",
            "questions.0: there is no 'asks'. Did you mean ask? Valid: ask, compare",
        ),
        ("from:", "form:", "there is no 'form'. Did you mean from? Valid: from, change"),
        (
            "from: baseline",
            "from: basline",
            "Did you mean baseline? Valid: baseline, slow, best",
        ),
        (CHANGE, "optimizer.epsilon: 1", "Did you mean optimizer.eps?"),
        (CHANGE, "optimizer.eps: 0.1", "changes nothing, baseline has these values"),
        (CHANGE, "optimizer.eps: [1, 2, 3]", "compare.change: optimizer.eps"),
    ],
)
def test_an_invalid_question_is_one_line(
    tmp_path: Path, written: str, mistake: str, message: str
) -> None:
    with pytest.raises(SpecError) as caught:
        load(tmp_path, TINY + QUESTION.replace(written, mistake))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lr_aug_measures_its_three_questions() -> None:
    spec = load_spec(find_space("lr-aug"))

    def origins(question: Question) -> list[str]:
        return [contrast.origin for contrast in question.compare]

    first, second, third = spec.questions
    assert origins(first) == ["baseline"]
    assert origins(second) == ["baseline", "best"]
    assert origins(third) == ["baseline", "best"]
    assert spec.base["optimizer.lr"] == 0.02


# ---- differences from what a study was made with


def with_stored(spec: StudySpec, **base: object) -> StudySpec:
    """The space of a study that was made when some defaults were different."""
    return spec.model_copy(update={"base": spec.base | base})


def test_a_default_that_changes_later_is_not_a_difference(tiny_space: Path) -> None:
    spec = load_spec(tiny_space)
    stored = with_stored(spec, **{"optimizer.beta2": 0.95, "augment.white_noise_sd": 0.1})
    assert spec.differences(stored) == []
    assert spec.reopened(stored).base == stored.base, "the study keeps what it was made with"


@pytest.mark.parametrize(
    ("before", "after", "places"),
    [
        ("batch_size: 4,", "batch_size: 8,", ["base.batch_size"]),
        # The default has another value.
        ("batch_size: 4, ", "", ["base.batch_size"]),
        # The default has the same value.
        ("batch_size: 4,", "batch_size: 4, accumulation: 1,", []),
        ("batch_size: 4,", "batch_size: 4, accumulation: 2,", ["base.accumulation"]),
        ("high: 5e-2", "high: 5e-1", ["parameters.optimizer.lr.high"]),
        (
            "choices: [adam, sgd]",
            "choices: [adam, adamw, sgd]",
            ["parameters.optimizer.name.choices"],
        ),
        (
            "slow: {optimizer.lr: 0.001,",
            "slow: {optimizer.lr: 0.002,",
            ["starts.slow.optimizer.lr"],
        ),
        ("  baseline: {}\n", "", ["starts.baseline"]),
        ("trials: 4", "trials: 5", ["budget.trials"]),
        ("trials: 4", "trials: 4, failures: 10", []),
        ("policy: tpe", "policy: random", ["policy"]),
        ("startup_trials: 3", "startup_trials: 3, seed: 1", ["sampler.seed"]),
        ("policy: tpe", "policy: tpe\nstopping: null", ["stopping"]),
        ("policy: tpe", "policy: tpe\nstopping: {margin: 0.05}", []),
        ("policy: tpe", "policy: tpe\nstopping: {margin: 0.06}", ["stopping.margin"]),
        ("policy: tpe", "policy: tpe\nattempts: {max_attempts: 5}", ["attempts.max_attempts"]),
        ("policy: tpe", "policy: tpe\nvalidation: {seed: 3}", ["validation.seed"]),
    ],
)
def test_a_written_value_that_changes_is_a_difference(
    tmp_path: Path, before: str, after: str, places: list[str]
) -> None:
    assert TINY.count(before) == 1
    first, second = load(tmp_path, TINY), load(tmp_path, TINY.replace(before, after))
    assert second.differences(first) == places
    assert bool(first.differences(second)) == bool(places)


def test_a_newly_written_value_is_compared_with_the_one_of_the_study(tmp_path: Path) -> None:
    stored = with_stored(load(tmp_path, TINY), accumulation=2)
    assert load(tmp_path, TINY).differences(stored) == []
    written = load(tmp_path, TINY.replace("batch_size: 4,", "batch_size: 4, accumulation: 1,"))
    assert written.differences(stored) == ["base.accumulation"]
    same = load(tmp_path, TINY.replace("batch_size: 4,", "batch_size: 4, accumulation: 2,"))
    assert same.differences(stored) == []


def test_everything_is_compared_if_the_study_has_no_record_of_what_was_written(
    tiny_space: Path,
) -> None:
    spec = load_spec(tiny_space)
    old = spec.model_copy(update={"written": None})
    assert spec.differences(old) == []
    other_default = with_stored(old, **{"optimizer.beta2": 0.95})
    assert spec.differences(other_default) == ["base.optimizer.beta2"]


def test_a_setting_on_the_command_line_counts_as_written(tiny_space: Path) -> None:
    plain = load_spec(tiny_space)
    assert load_spec(tiny_space, None, {"steps": 6}).differences(plain) == []
    assert load_spec(tiny_space, None, {"steps": 8}).differences(plain) == ["base.steps"]
    assert load_spec(tiny_space, trials=4).differences(plain) == []
    assert load_spec(tiny_space, trials=9).differences(plain) == ["budget.trials"]
    assert load_spec(tiny_space, policy="gp").differences(plain) == ["policy"]


HINT = "The space names no trainer, so it uses the built-in decoder"


def test_a_field_of_another_trainer_gets_a_hint(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("parameters: {hidden_size: {choices: [32, 64]}}\n")
    with pytest.raises(SpecError, match=rf"there is no 'hidden_size'.*{HINT}"):
        load_spec(path)


def test_an_option_gets_no_hint_about_the_trainer(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(TINY)
    with pytest.raises(SpecError, match="--policy: there is no 'gpp'") as policy:
        load_spec(path, policy="gpp")
    with pytest.raises(SpecError, match=r"--profile: there is no 'big'|has none") as profile:
        load_spec(path, "big")
    assert HINT not in str(policy.value)
    assert HINT not in str(profile.value)
