from pathlib import Path

import pytest
from helpers.studies import TINY, decoder_config

from hpo.decoder.config import DecoderConfig
from hpo.errors import SpecError
from hpo.space.spec import BUNDLED, StudySpec, find_space, load_spec, parse_settings

LR = "optimizer.lr: {low: 1e-4, high: 5e-2, log: true}"


def load(tmp_path: Path, text: str) -> StudySpec:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    return load_spec(path)


@pytest.mark.parametrize(
    ("given", "instead", "expected"),
    [
        ("budget:", "bugdet:", ["bugdet", "Did you mean budget?", "parameters"]),
        ("optimizer.lr: {low", "optimizer.lrr: {low", ["parameters.optimizer.lrr", "Did you mean optimizer.lr?", "optimizer.eps"]),
        ("base: {model.layers: 1", "base: {model.layer: 1", ["base.model.layer", "Did you mean model.layers?"]),
        ("base: {model.layers: 1", "base: {model.layers: two", ["base.model.layers", "integer", "'two'"]),
        ("base: {model.layers: 1", "base: {model.layers: 1.5", ["base.model.layers", "1.5"]),
        ("base: {model.layers: 1", "base: {model.dropout: 1.5, model.layers: 1", ["base.model.dropout", "less than 1", "1.5"]),
        ("low: 1e-4, high: 5e-2", "low: 1e-1, high: 5e-2", ["parameters.optimizer.lr", "low 0.1 is not below high 0.05"]),
        ("low: 1e-4, high: 5e-2", "low: 0, high: 5e-2", ["parameters.optimizer.lr", "log", "above 0"]),
        ("low: 1e-4, high: 5e-2", "low: 1e-4, hihg: 5e-2", ["parameters.optimizer.lr", "'hihg'", "Did you mean high?"]),
        ("low: 1e-4, high: 5e-2", "low: tiny, high: 5e-2", ["parameters.optimizer.lr.low", "'tiny'"]),
        ("low: 1e-4, high: 5e-2", "low: 1e-4", ["parameters.optimizer.lr", "needs low and high, or choices"]),
        ("choices: [adam, sgd]", "choices: [adam, adma]", ["parameters.optimizer.name", "'adma'", "'adam', 'adamw' or 'sgd'"]),
        ("choices: [adam, sgd]", "choices: [adam]", ["parameters.optimizer.name", "2 choices or more"]),
        ("choices: [adam, sgd]", "low: 1, high: 2", ["parameters.optimizer.name"]),
        ("when: {optimizer.name: [adam]}", "when: {optimizer.nmae: [adam]}", ["optimizer.eps.when", "Did you mean optimizer.name?"]),
        ("when: {optimizer.name: [adam]}", "when: {schedule.name: [plateau]}", ["optimizer.eps.when", "schedule.name", "optimizer.name"]),
        ("when: {optimizer.name: [adam]}", "when: {optimizer.name: [adamw]}", ["optimizer.eps.when.optimizer.name", "adamw", "sgd"]),
        ("optimizer.lr: 0.001", "optimizer.lr: 0.5", ["starts.slow", "optimizer.lr = 0.5 is outside", "0.0001..0.05 (log)"]),
        ("optimizer.lr: 0.001", "optimizer.rl: 0.001", ["starts.slow.optimizer.rl", "optimizer.lr"]),
        ("optimizer.lr: 0.001", "optimizer.eps: 0.001", ["starts.slow.optimizer.eps", "does not exist with the start's other values"]),
        ("optimizer.lr: 0.001", "batch_size: 8", ["starts.slow.batch_size", "is not searched"]),
        ("budget: {trials: 4}", "budget: {trials: many}", ["trials", "'many'"]),
        ("budget: {trials: 4}", "budget: {trails: 4}", ["budget", "'trails'", "Did you mean trials?"]),
        ("budget: {trials: 4}", "budget: {trials: -1}", ["trials", "greater than or equal to 0", "-1"]),
        ("budget: {trials: 4}", "budget: {trials: 4}\nbudget: {trials: 5}", ["line", "'budget' appears twice"]),
        ("budget: {trials: 4}", "budget: {trials: 4", ["not valid YAML in line"]),
        ("budget: {trials: 4}", "stopping: {margn: 0.1}", ["stopping", "Did you mean margin?"]),
        (TINY, "- a\n- b", ["dictionary"]),
        (TINY, "", ["dictionary"]),
        (TINY, "parameters: {}", ["parameters", "at least 1"]),
    ],
)  # fmt: skip
def test_every_mistake_gives_one_line_with_the_place_and_what_is_valid(
    tmp_path: Path, given: str, instead: str, expected: list[str]
) -> None:
    assert given in TINY
    with pytest.raises(SpecError) as caught:
        load(tmp_path, TINY.replace(given, instead, 1))
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "space.yaml"))
    assert "\n" not in message
    for part in expected:
        assert part in message


def test_the_number_that_a_person_means(tmp_path: Path) -> None:
    """PyYAML reads 1e-4 as text."""
    spec = load(tmp_path, TINY)
    assert (spec.parameters["optimizer.lr"].low, spec.parameters["optimizer.eps"].low) == (
        1e-4,
        1e-8,
    )
    assert parse_settings(("optimizer.weight_decay=1e-3",))
    assert (
        decoder_config(
            spec, parse_settings(("optimizer.weight_decay=1e-3",))
        ).optimizer.weight_decay
        == 1e-3
    )


def test_a_condition_on_a_number_written_as_1e_2(tmp_path: Path) -> None:
    text = "parameters:\n  optimizer.eps: {choices: [1e-3, 1e-2]}\n  optimizer.lr: {low: 1e-4, high: 1e-2, when: {optimizer.eps: [1e-2]}}"
    spec = load(tmp_path, text)
    assert spec.active("optimizer.lr", {"optimizer.eps": 0.01})
    assert not spec.active("optimizer.lr", {"optimizer.eps": 0.001})


@pytest.mark.parametrize("text", ["a: \x07", "a: 2024-13-01", "a: [", "\xff"])
def test_text_that_is_no_yaml(tmp_path: Path, text: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(SpecError, match=r"space.yaml: not "):
        load_spec(path)
    with pytest.raises(SpecError, match="is not a value"):
        parse_settings(("optimizer.lr=2024-13-01",))


def test_data_are_checked_against_the_largest_kernel_of_the_space(tmp_path: Path) -> None:
    spec = load(tmp_path, "parameters: {model.kernel: {choices: [4, 40]}}")
    assert [config.flat()["model.kernel"] for config in spec.extremes()] == [32, 4, 40]


def test_bundled_spaces_load_with_and_without_their_profiles() -> None:
    spaces = sorted(BUNDLED.glob("*.yaml"))
    assert [path.stem for path in spaces] == ["lr-aug", "lr-only"]
    for path in spaces:
        assert load_spec(path).profile is None
        assert load_spec(path, "demo").base["steps"] < load_spec(path).base["steps"]


def test_lr_aug_asks_what_the_lab_asks() -> None:
    spec = load_spec(find_space("lr-aug"))
    ranges = {
        name: (p.low, p.high, p.log) for name, p in spec.parameters.items() if p.choices is None
    }
    assert ranges["optimizer.lr"] == (1e-4, 5e-2, True)
    assert ranges["optimizer.eps"] == (1e-8, 1e-1, True)
    assert ranges["optimizer.weight_decay"] == (1e-6, 1e-2, True)
    assert ranges["augment.white_noise_sd"] == (0, 1.2, False)
    assert ranges["augment.constant_offset_sd"] == (0, 0.5, False)
    assert spec.parameters["optimizer.eps"].when == {"optimizer.name": ["adam", "adamw"]}
    assert spec.parameters["schedule.name"].choices == [
        "constant",
        "linear",
        "warmup-cosine",
        "plateau",
    ]
    assert spec.parameters["model.layer_norm"].choices == [False, True]
    assert list(spec.starts) == ["baseline", "run11"]


def test_the_baseline_is_the_reference() -> None:
    spec = load_spec(find_space("lr-aug"))
    assert spec.config(spec.starts["baseline"]) == DecoderConfig()
    base = decoder_config(spec)
    model, optimizer = base.model, base.optimizer
    assert (
        model.layers,
        model.units,
        model.bidirectional,
        model.kernel,
        model.stride,
        model.dropout,
    ) == (5, 1024, True, 32, 4, 0.4)
    assert (
        optimizer.name,
        optimizer.lr,
        optimizer.eps,
        optimizer.weight_decay,
        optimizer.beta2,
    ) == ("adam", 0.02, 0.1, 1e-5, 0.999)
    assert (base.augment.white_noise_sd, base.augment.constant_offset_sd) == (0.8, 0.2)
    assert (base.steps, base.batch_size, optimizer.grad_clip_norm) == (10_000, 64, None)


def test_run_11_is_the_labs() -> None:
    spec = load_spec(find_space("lr-aug"))
    config = decoder_config(spec, spec.starts["run11"])
    o, s, a = config.optimizer, config.schedule, config.augment
    assert (o.name, o.lr, o.eps, o.weight_decay, o.grad_clip_norm) == (
        "adamw",
        8e-4,
        1e-8,
        1e-4,
        1.5,
    )
    assert (s.name, s.patience, s.factor, s.min_lr) == ("plateau", 8, 0.5, 1e-5)
    assert (a.white_noise_sd, a.constant_offset_sd) == (0, 0)
    assert (a.time_masks, a.time_mask_p, a.time_mask_width) == (2, 0.1, 40)
    assert (a.feature_masks, a.feature_mask_p, a.feature_mask_width) == (2, 0.1, 12)
    assert (config.model.layer_norm, config.model.dropout, config.model.input_dropout) == (
        True,
        0.4,
        0,
    )


def test_start_values_hold_only_parameters_that_exist_in_the_start() -> None:
    values = load_spec(find_space("lr-aug")).start_values("run11")
    assert "schedule.end_factor" not in values
    assert "optimizer.momentum" not in values
    assert values["optimizer.eps"] == 1e-8


def test_profile_then_set_overlay_the_base(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    big = "{base: {model.units: 64, steps: 9}, budget: {trials: 7}, starts: {more: {optimizer.lr: 0.03}}}"
    path.write_text(TINY + f"profiles: {{big: {big}}}")
    spec = load_spec(path, "big", {"steps": 11})
    assert (
        spec.base["model.units"],
        spec.base["steps"],
        spec.budget.trials,
        list(spec.starts),
    ) == (
        64,
        11,
        7,
        ["baseline", "slow", "more"],
    )
    digests = {load_spec(path).digest(), load_spec(path, "big").digest(), spec.digest()}
    assert len(digests) == 3
    with pytest.raises(SpecError, match=r"--profile: there is no 'bgi'\. Did you mean big"):
        load_spec(path, "bgi")


def test_set_refuses_what_is_searched_or_unknown(tiny_space: Path) -> None:
    with pytest.raises(
        SpecError,
        match=r"--set optimizer.lr: this space searches optimizer.lr \(0.0001..0.05 \(log\)\)",
    ):
        load_spec(tiny_space, None, {"optimizer.lr": 0.1})
    with pytest.raises(SpecError, match=r"Did you mean model\.units"):
        load_spec(tiny_space, None, parse_settings(("model.unit=3",)))
    with pytest.raises(
        SpecError,
        match=r"hpo enqueue optimizer\.rl=3: there is no 'optimizer.rl'. Did you mean optimizer\.lr",
    ):
        parse_settings(
            ("optimizer.rl=3",), "hpo enqueue ", ("optimizer.lr", "steps"), ("optimizer.lr",)
        )
    with pytest.raises(SpecError, match="no value"):
        parse_settings(("model.units",))
    with pytest.raises(
        SpecError, match=r"--set model\.units: input should be greater than or equal to 1"
    ):
        load_spec(tiny_space, None, {"model.units": 0})


def test_spaces_are_found_by_name_here_first_then_bundled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_space("lr-aug") == BUNDLED / "lr-aug.yaml"
    mine = Path("search_spaces/lr-aug.yaml")
    mine.parent.mkdir()
    mine.write_text(TINY)
    assert find_space("lr-aug") == mine
    with pytest.raises(
        SpecError, match=r"no 'lr-agu'. Did you mean lr-aug\? Valid: lr-aug, lr-only"
    ):
        find_space("lr-agu")
    with pytest.raises(SpecError, match="no such file"):
        find_space("missing.yaml")


def test_what_may_be_extended(tiny_space: Path) -> None:
    def changed(old: str, new: str) -> StudySpec:
        tiny_space.write_text(TINY.replace(old, new))
        return load_spec(tiny_space)

    base = changed("", "")
    assert changed("trials: 4", "trials: 9").extends(base)
    assert changed("high: 5e-2", "high: 0.5").extends(base)
    assert not changed("trials: 4", "trials: 3").extends(base)
    assert not changed("high: 5e-2", "high: 4e-2").extends(base)
    assert not changed("[adam, sgd]", "[adam, sgd, adamw]").extends(
        base
    )  # Optuna cannot change choices
    assert not changed("model.units: 8", "model.units: 9").extends(base)
    assert changed("trials: 4", "trials: 9").differences(base) == ["budget.trials"]


# ---- questions

ASKED = (
    TINY + "questions: [{ask: Why, compare: [{from: baseline, change: {optimizer.eps: 1e-8}}]}]\n"
)


def test_a_question_is_two_configurations_and_no_part_of_the_digest(tmp_path: Path) -> None:
    spec, silent = load(tmp_path, ASKED), load(tmp_path, TINY)
    assert spec.digest() == silent.digest()
    assert spec.differences(silent) == []
    assert spec.extends(silent)
    again = type(spec).model_validate(spec.model_dump(mode="json"))  # as it is stored with a study
    before, after = again.questions[0].compare[0].sides(spec.config())
    assert (before, after.flat()["optimizer.eps"]) == (spec.config(), 1e-8)
    assert after == before.with_values({"optimizer.eps": 1e-8})


def test_a_pair_of_values_sets_both_sides(tmp_path: Path) -> None:
    text = ASKED.replace(
        "{optimizer.eps: 1e-8}", "{optimizer.lr: [0.02, 0.01], model.layer_norm: true}"
    )
    before, after = (
        load(tmp_path, text)
        .questions[0]
        .compare[0]
        .sides(DecoderConfig().with_values({"optimizer.lr": 0.5}))
    )
    assert [
        (side.flat()["optimizer.lr"], side.flat()["model.layer_norm"]) for side in (before, after)
    ] == [(0.02, False), (0.01, True)]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            ASKED.replace("ask:", "asks:"),
            "questions.0: there is no 'asks'. Did you mean ask? Valid: ask, compare",
        ),
        (
            ASKED.replace("from:", "form:"),
            "there is no 'form'. Did you mean from? Valid: from, change",
        ),
        (
            ASKED.replace("from: baseline", "from: basline"),
            "Did you mean baseline? Valid: baseline, slow, best",
        ),
        (
            ASKED.replace("optimizer.eps: 1e-8", "optimizer.epsilon: 1"),
            "Did you mean optimizer.eps?",
        ),
        (
            ASKED.replace("optimizer.eps: 1e-8", "optimizer.eps: 0.1"),
            "changes nothing, baseline has these values",
        ),
        (
            ASKED.replace("optimizer.eps: 1e-8", "optimizer.eps: [1, 2, 3]"),
            "compare.change: optimizer.eps",
        ),
    ],
)
def test_a_question_that_cannot_be_is_one_line(tmp_path: Path, wrong: str, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        load(tmp_path, wrong)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lr_aug_measures_its_three_questions() -> None:
    spec = load_spec(find_space("lr-aug"))
    origins = [[contrast.origin for contrast in question.compare] for question in spec.questions]
    assert origins == [["baseline"], ["baseline", "best"], ["baseline", "best"]]
    assert spec.base["optimizer.lr"] == 0.02


# ---- what a person wrote


def with_stored(spec: StudySpec, **base: object) -> StudySpec:
    """As a study of it that was made when some defaults were others."""
    return spec.model_copy(update={"base": spec.base | base})


def test_a_default_that_changes_later_is_no_difference(tiny_space: Path) -> None:
    spec = load_spec(tiny_space)
    stored = with_stored(spec, **{"optimizer.beta2": 0.95, "augment.white_noise_sd": 0.1})
    assert spec.differences(stored) == []
    assert spec.reopened(stored).base == stored.base, "the study keeps what it was made with"


@pytest.mark.parametrize(
    ("before", "after", "places"),
    [
        ("batch_size: 4,", "batch_size: 8,", ["base.batch_size"]),
        ("batch_size: 4, ", "", ["base.batch_size"]),  # the default is another value
        ("batch_size: 4,", "batch_size: 4, accumulation: 1,", []),  # what it was anyway
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
def test_what_a_person_writes_otherwise_is_a_difference(
    tmp_path: Path, before: str, after: str, places: list[str]
) -> None:
    assert TINY.count(before) == 1
    first, second = load(tmp_path, TINY), load(tmp_path, TINY.replace(before, after))
    assert second.differences(first) == places
    assert bool(first.differences(second)) == bool(places)


def test_a_value_that_is_written_now_is_compared_with_what_the_study_has(tmp_path: Path) -> None:
    stored = with_stored(load(tmp_path, TINY), accumulation=2)
    assert load(tmp_path, TINY).differences(stored) == []
    written = load(tmp_path, TINY.replace("batch_size: 4,", "batch_size: 4, accumulation: 1,"))
    assert written.differences(stored) == ["base.accumulation"]
    same = load(tmp_path, TINY.replace("batch_size: 4,", "batch_size: 4, accumulation: 2,"))
    assert same.differences(stored) == []


def test_of_a_study_that_does_not_know_what_was_written_all_is_compared(tiny_space: Path) -> None:
    spec = load_spec(tiny_space)
    old = spec.model_copy(update={"written": None})
    assert spec.differences(old) == []
    assert spec.differences(with_stored(old, **{"optimizer.beta2": 0.95})) == [
        "base.optimizer.beta2"
    ]


def test_what_is_set_on_the_command_line_is_written(tiny_space: Path) -> None:
    plain = load_spec(tiny_space)
    assert load_spec(tiny_space, None, {"steps": 6}).differences(plain) == []
    assert load_spec(tiny_space, None, {"steps": 8}).differences(plain) == ["base.steps"]
    assert load_spec(tiny_space, trials=4).differences(plain) == []
    assert load_spec(tiny_space, trials=9).differences(plain) == ["budget.trials"]
    assert load_spec(tiny_space, policy="gp").differences(plain) == ["policy"]
