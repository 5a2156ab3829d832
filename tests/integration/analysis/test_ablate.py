"""hpo ablate: how differences are grouped, the greedy path, questions and their verdicts; real training of a tiny decoder."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.data import recordings
from helpers.studies import RECORD, TINY, worker_for

from hpo.analysis.ablate import (
    Ablation,
    Effort,
    Measured,
    ablate,
    differences,
    measure,
    named,
    path_text,
    questions_text,
)
from hpo.analysis.child import open_child
from hpo.analysis.retrain import Retrained, Train
from hpo.decoder.config import DecoderConfig
from hpo.decoder.trainer import PER
from hpo.decoder.training import Recordings
from hpo.errors import CallerError, StudyError
from hpo.space.spec import find_space, load_spec
from hpo.store.database import Database
from hpo.study.study import Study
from hpo.study.trial import BY_HAND, Record, State
from hpo.trainer import Score
from hpo.worker.worker import Worker

MakeStudy = Callable[..., Study]
EFFORT = Effort(seeds=2, select_seeds=1)
ASKED = (
    TINY.replace(
        "baseline: {}", "baseline: {}\n  wild: {optimizer.lr: 1e30, optimizer.name: sgd}"
    ).replace("high: 5e-2", "high: 1e30")
    + """
questions:
  - ask: Does it explode at a high learning rate
    compare: [{from: baseline, change: {optimizer.lr: 1e30, optimizer.name: sgd}}]
  - ask: Does the smoothing matter
    compare: [{from: baseline, change: {model.smoothing_kernel: 19}}, {from: best, change: {model.layer_norm: [false, true]}}]
"""
)


@pytest.fixture
def data(tiny_data: Path, tiny_space: Path) -> Recordings:
    return recordings(tiny_data, load_spec(tiny_space), 0.2)


@pytest.fixture
def train(data: Recordings, tmp_path: Path) -> Train:
    def run(child: Study) -> None:
        Worker(child, data, tmp_path / child.name, RECORD).run()

    return run


@pytest.fixture
def searched(make_study: MakeStudy, tiny_space: Path, data: Recordings, tmp_path: Path) -> Study:
    tiny_space.write_text(ASKED)
    study = make_study(load_spec(tiny_space), "p")
    worker_for(study, data, tmp_path / "p").run()
    return study


# ---- what differs


def test_run11_differs_from_the_baseline_in_what_the_lab_lists() -> None:
    """DESIGN's table: the rate, the optimizer's name, eps, its decay, the clipping, the schedule, LayerNorm, two noises, two masks."""
    spec = load_spec(find_space("lr-aug"))
    baseline, run11 = (spec.config(spec.starts[name]) for name in ("baseline", "run11"))
    groups = [list(change) for change in differences(spec, run11, baseline)]
    assert groups == [
        ["optimizer.lr"],
        ["optimizer.name"],
        ["optimizer.eps"],  # exists with adam and adamw: a difference of its own
        ["optimizer.weight_decay"],
        ["optimizer.grad_clip_norm"],
        ["schedule.name"],
        ["model.layer_norm"],
        ["augment.white_noise_sd"],
        ["augment.constant_offset_sd"],
        ["augment.time_masks"],  # p and width: the defaults, as run 11 has them
        ["augment.feature_masks"],
    ]


def test_fields_that_exist_on_one_side_only_change_with_what_they_hang_on() -> None:
    spec = load_spec(find_space("lr-aug"))
    end = spec.config(
        {
            "optimizer.name": "sgd",
            "optimizer.momentum": 0.7,
            "optimizer.nesterov": True,
            "optimizer.eps": 1e-8,
            "schedule.name": "warmup-cosine",
            "schedule.warmup": 0.15,
            "schedule.end_factor": 0.2,
            "augment.time_masks": 2,
            "augment.time_mask_p": 0.4,
            "augment.time_mask_width": 7,
            "augment.feature_mask_p": 0.3,
            "seed": 9,
        }
    )
    groups = [set(change) for change in differences(spec, spec.config(), end)]
    assert groups == [
        {"optimizer.name", "optimizer.eps", "optimizer.momentum", "optimizer.nesterov"},
        {"schedule.name", "schedule.warmup", "schedule.end_factor"},
        {"augment.time_masks", "augment.time_mask_p", "augment.time_mask_width"},
    ]  # the probability of feature masks, of which there are none on either side, is no difference


def test_the_number_of_trainings() -> None:
    assert Effort(2, 1, None).trainings(changes=4) == (4 + 3 + 2) + 2 * 5
    assert Effort(2, 3, 1).trainings(changes=4) == 3 * 4 + 2 * 5
    assert Effort(2, 1, 0).trainings(changes=4) == 10
    assert Effort(2, 1, None).trainings(changes=1) == 4


# ---- the path


def test_a_path_changes_one_thing_at_a_time_and_measures_with_other_seeds(
    searched: Study, database: Database, train: Train
) -> None:
    child = open_child(database, searched, "ablate")
    finding = ablate(searched, child, ("baseline", "slow"), EFFORT, train)
    steps = finding.steps
    assert steps[0].changed == ()
    assert sorted(step.changed for step in steps[1:]) == [("optimizer.lr",), ("optimizer.name",)]
    records = {record.number: record for record in child.records()}
    last = dict(records[steps[-1].trials[0]].config)
    goal = named(searched, "slow")[1].flat()
    assert {**last, "seed": 0} == {**goal, "seed": 0}
    seeds = [records[number].config["seed"] for step in steps for number in step.trials]
    assert set(seeds) == {3_000_000, 3_000_001}
    assert {record.config["seed"] for record in records.values()} - set(seeds) == {2_000_000}
    moved = sum(step.difference for step in steps[1:] if step.difference is not None)
    assert all(step.difference is not None for step in steps[1:])
    assert moved == pytest.approx(finding.whole.difference)
    assert steps[0].value is not None and steps[-1].value is not None
    assert steps[-1].value - steps[0].value == pytest.approx(moved)
    shown = path_text("p", finding, PER)
    assert max(map(len, shown.splitlines())) <= 100
    assert "optimizer.lr 0.02 -> 0.001" in shown

    count = len(records)
    assert ablate(searched, child, ("baseline", "slow"), EFFORT, train).steps == steps
    assert len(child.records()) == count
    kept = searched.results()["ablation"]
    assert kept["from"] == "baseline"
    assert Ablation.model_validate(kept) == finding
    assert not child.scores([record.id for record in child.records()], "test")


def test_a_step_that_diverges_is_said_and_chosen_last(
    searched: Study, database: Database, train: Train
) -> None:
    """To `wild` lr 1e30 comes in one step and the optimizer in another; with adam lr 1e30 may or may not diverge, with sgd it does."""
    finding = ablate(
        searched, open_child(database, searched, "ablate"), ("baseline", "wild"), EFFORT, train
    )
    last = finding.steps[-1]
    assert (last.value, last.diverged) == (None, 2)
    assert "2 of 2 seeds diverged" in finding.whole.in_words
    assert " diverged  " in path_text("p", finding, PER)


def test_what_has_no_path_is_one_line(searched: Study, database: Database, train: Train) -> None:
    child = open_child(database, searched, "ablate")
    with pytest.raises(CallerError, match="--from slow --to slow: they do not differ"):
        ablate(searched, child, ("slow", "slow"), EFFORT, train)
    with pytest.raises(
        StudyError,
        match=r"'fast' is no start. Valid: baseline, wild, slow, best, or a trial's number",
    ):
        named(searched, "fast")
    with pytest.raises(CallerError, match="--select-seeds 0: valid is 1 or more"):
        ablate(searched, child, ("baseline", "slow"), Effort(2, 0), train)
    with pytest.raises(StudyError, match="has no questions"):
        measure(searched, child, [], 2, train)


# ---- questions


def test_questions_are_answered_or_said_to_be_open(
    searched: Study, database: Database, train: Train
) -> None:
    finding = measure(
        searched, open_child(database, searched, "ablate"), searched.spec.questions, 3, train
    )
    first, second = finding.answers
    assert (first.verdict, first.evidence[0].diverged_changed, first.evidence[0].diverged_from) == (
        "decided",
        3,
        0,
    )
    assert "3 of 3 seeds diverged with it, 0 of 3 without (by chance at most 3.1 %)" in first.answer
    assert [each.origin for each in second.evidence] == ["baseline", "best"]
    assert second.verdict == (
        "decided" if all(each.decided for each in second.evidence) else "not decided"
    )
    assert searched.results()["questions"]["answers"][0]["verdict"] == "decided"
    shown = questions_text("p", finding, PER)
    assert "DECIDED" in shown
    assert max(map(len, shown.splitlines())) <= 100


def side(states: str, errors: int = 10) -> Retrained:
    """c: complete, s: stopped, f: failed, k: killed."""
    word: dict[str, State] = {"c": "complete", "s": "stopped", "f": "failed", "k": "stopped"}
    empty = dict.fromkeys(Record.__dataclass_fields__)
    records = [
        Record(
            **{
                **empty,
                "id": i,
                "number": i,
                "state": word[letter],
                "rule": BY_HAND if letter == "k" else "",
            }
        )  # type: ignore[arg-type]
        for i, letter in enumerate(states)
    ]
    scores = {
        i: Score((errors, errors + i, errors), (50, 50, 50))
        for i, letter in enumerate(states)
        if letter == "c"
    }
    return Retrained(records, scores, PER)


@pytest.mark.parametrize(
    ("before", "after", "decided"),
    [
        (side("ccc"), side("ccc", 20), True),
        (side("ccc"), side("ccc"), False),
        (side("c"), side("c", 40), False),  # one seed says nothing of seeds
        (side("ccc"), side("sss"), True),  # 2 / 4^3 = 0.03
        (side("cc"), side("ss"), False),  # 2 / 4^2 = 0.13
        (side("sss"), side("ccc"), True),
        (side("ccc"), side("css", 40), False),  # the seed that came through flatters
        (side("sss"), side("sss"), False),
        (side("ccc"), side("ccf", 40), False),
        (side("ccc"), side("ssf"), False),
        (side("ccc"), side("kkk"), False),  # a person has ended them: no divergence
    ],
)
def test_what_decides(before: Retrained, after: Retrained, decided: bool) -> None:
    found = Measured.of(before, after, PER)
    assert found.decided is decided
    assert ("not decided" in found.in_words) is not decided


def test_the_chance_of_all_against_none() -> None:
    """Of all rates of divergence 1/2 gives it most often, either way round; then it comes as often as is said."""
    claimed = Measured.of(side("ccc"), side("sss"), PER).chance_of_divergence
    assert claimed is not None
    for rate in (0.2, 0.5, 0.8):
        lost = (np.random.default_rng(0).random((20_000, 2, 3)) < rate).sum(axis=2).tolist()
        share = float(np.mean([sorted(pair) == [0, 3] for pair in lost]))
        assert share == pytest.approx(2 * (rate * (1 - rate)) ** 3, abs=0.005)
        assert share < claimed + 0.005
    assert Measured.of(side("cccc"), side("sssc"), PER).chance_of_divergence is None


def test_the_configuration_of_best_is_that_trials(searched: Study) -> None:
    name, config = named(searched, "best")
    record = next(record for record in searched.records() if f"trial {record.number}" == name)
    assert DecoderConfig().with_values(record.config) == config
