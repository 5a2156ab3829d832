"""hpo ablate: groups of differences, the greedy path, questions: a tiny decoder really trains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from hpo.space.load import find_space, load_spec
from hpo.store.database import Database
from hpo.study.study import Study
from hpo.study.trial import BY_HAND, Record, State
from hpo.trainer import Score
from hpo.worker.worker import Worker

MakeStudy = Callable[..., Study]
EFFORT = Effort(seeds=2, select_seeds=1)
WILD = "{optimizer.lr: 1e30, optimizer.name: sgd}"
QUESTIONS = f"""
questions:
  - ask: Does it explode at a high learning rate
    compare: [{{from: baseline, change: {WILD}}}]
  - ask: Does the smoothing matter
    compare:
      - {{from: baseline, change: {{model.smoothing_kernel: 19}}}}
      - {{from: best, change: {{model.layer_norm: [false, true]}}}}
"""
SPACE = TINY.replace("baseline: {}", f"baseline: {{}}\n  wild: {WILD}")
SPACE = SPACE.replace("high: 5e-2", "high: 1e30") + QUESTIONS


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
    tiny_space.write_text(SPACE)
    study = make_study(load_spec(tiny_space), "p")
    worker_for(study, data, tmp_path / "p").run()
    return study


@pytest.fixture
def child(database: Database, searched: Study) -> Study:
    return open_child(database, searched, "ablate")


# ---- what differs


def test_run11_differs_from_the_baseline_in_what_the_lab_lists() -> None:
    """DESIGN's table of ten differences, and the eps of the optimizer."""
    spec = load_spec(find_space("lr-aug"))
    baseline, run11 = (spec.config(spec.starts[name]) for name in ("baseline", "run11"))
    groups = [list(change) for change in differences(spec, run11, baseline)]
    assert groups == [
        ["optimizer.lr"],
        ["optimizer.name"],
        # It exists with adam and with adamw, so it is a difference by itself.
        ["optimizer.eps"],
        ["optimizer.weight_decay"],
        ["optimizer.grad_clip_norm"],
        ["schedule.name"],
        ["model.layer_norm"],
        ["augment.white_noise_sd"],
        ["augment.constant_offset_sd"],
        # Their p and width are the defaults in run 11 too.
        ["augment.time_masks"],
        ["augment.feature_masks"],
    ]


def test_a_field_that_exists_on_one_side_only_changes_with_the_field_it_depends_on() -> None:
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
    # The probability of feature masks is no difference: neither side has such masks.
    assert groups == [
        {"optimizer.name", "optimizer.eps", "optimizer.momentum", "optimizer.nesterov"},
        {"schedule.name", "schedule.warmup", "schedule.end_factor"},
        {"augment.time_masks", "augment.time_mask_p", "augment.time_mask_width"},
    ]


def test_the_number_of_trainings_is_known_before() -> None:
    assert Effort(2, 1, None).trainings(changes=4) == (4 + 3 + 2) + 2 * 5
    assert Effort(2, 3, 1).trainings(changes=4) == 3 * 4 + 2 * 5
    assert Effort(2, 1, 0).trainings(changes=4) == 10
    assert Effort(2, 1, None).trainings(changes=1) == 4


# ---- the path


@pytest.mark.slow
def test_a_path_changes_one_thing_at_a_time_and_measures_with_other_seeds(
    searched: Study, child: Study, train: Train
) -> None:
    finding = ablate(searched, child, ("baseline", "slow"), EFFORT, train)
    steps = finding.steps
    first, *changes = steps
    last = steps[-1]
    assert first.changed == ()
    assert sorted(step.changed for step in changes) == [("optimizer.lr",), ("optimizer.name",)]
    records = {record.number: record for record in child.records()}
    reached = records[last.trials[0]].config
    goal = named(searched, "slow")[1].flat()
    assert {**reached, "seed": 0} == {**goal, "seed": 0}
    measured: set[int] = set()
    for step in steps:
        measured |= {records[number].config["seed"] for number in step.trials}
    assert measured == {3_000_000, 3_000_001}
    assert {record.config["seed"] for record in records.values()} - measured == {2_000_000}
    moves = [step.difference for step in changes if step.difference is not None]
    assert len(moves) == len(changes)
    assert sum(moves) == pytest.approx(finding.whole.difference)
    assert first.value is not None and last.value is not None
    assert last.value - first.value == pytest.approx(sum(moves))
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


@pytest.mark.slow
def test_a_step_that_diverges_comes_last_and_the_path_says_so(
    searched: Study, child: Study, train: Train
) -> None:
    """On the way to `wild` one step is lr 1e30, another the optimizer.

    With sgd lr 1e30 diverges; with adam it may.
    """
    finding = ablate(searched, child, ("baseline", "wild"), EFFORT, train)
    last = finding.steps[-1]
    assert (last.value, last.diverged) == (None, 2)
    assert "2 of 2 seeds diverged" in finding.whole.in_words
    assert " diverged  " in path_text("p", finding, PER)


@pytest.mark.slow
def test_ends_without_a_path_are_one_line(searched: Study, child: Study, train: Train) -> None:
    with pytest.raises(CallerError, match="--from slow --to slow: they do not differ"):
        ablate(searched, child, ("slow", "slow"), EFFORT, train)
    unknown = r"'fast' is no start. Valid: baseline, wild, slow, best, or a trial's number"
    with pytest.raises(StudyError, match=unknown):
        named(searched, "fast")
    with pytest.raises(CallerError, match="--select-seeds 0: valid is 1 or more"):
        ablate(searched, child, ("baseline", "slow"), Effort(2, 0), train)
    with pytest.raises(StudyError, match="has no questions"):
        measure(searched, child, [], 2, train)


# ---- questions


@pytest.mark.slow
def test_questions_are_answered_or_left_open(searched: Study, child: Study, train: Train) -> None:
    finding = measure(searched, child, searched.spec.questions, 3, train)
    explodes, smoothing = finding.answers
    assert explodes.verdict == "decided"
    evidence = explodes.evidence[0]
    assert (evidence.diverged_changed, evidence.diverged_from) == (3, 0)
    all_against_none = "3 of 3 seeds diverged with it, 0 of 3 without (by chance at most 3.1 %)"
    assert all_against_none in explodes.answer
    assert [each.origin for each in smoothing.evidence] == ["baseline", "best"]
    all_decided = all(each.decided for each in smoothing.evidence)
    assert smoothing.verdict == ("decided" if all_decided else "not decided")
    assert searched.results()["questions"]["answers"][0]["verdict"] == "decided"
    shown = questions_text("p", finding, PER)
    assert "DECIDED" in shown
    assert max(map(len, shown.splitlines())) <= 100


STATES: dict[str, State] = {"c": "complete", "s": "stopped", "f": "failed", "k": "stopped"}


def side(letters: str, errors: int = 10) -> Retrained:
    """Seeds that were retrained; c: complete, s: stopped, f: failed, k: killed by a person."""
    empty: dict[str, Any] = dict.fromkeys(Record.__dataclass_fields__)
    records = []
    scores = {}
    for number, letter in enumerate(letters):
        rule = BY_HAND if letter == "k" else ""
        known = {"id": number, "number": number, "state": STATES[letter], "rule": rule}
        records.append(Record(**(empty | known)))
        if letter == "c":
            scores[number] = Score((errors, errors + number, errors), (50, 50, 50))
    return Retrained(records, scores, PER)


@pytest.mark.parametrize(
    ("before", "after", "decided"),
    [
        (side("ccc"), side("ccc", 20), True),
        (side("ccc"), side("ccc"), False),
        # One seed says nothing about seeds.
        (side("c"), side("c", 40), False),
        # 2 / 4^3 = 0.03.
        (side("ccc"), side("sss"), True),
        # 2 / 4^2 = 0.13.
        (side("cc"), side("ss"), False),
        (side("sss"), side("ccc"), True),
        # The one seed that completes flatters.
        (side("ccc"), side("css", 40), False),
        (side("sss"), side("sss"), False),
        (side("ccc"), side("ccf", 40), False),
        (side("ccc"), side("ssf"), False),
        # A person has ended them, so they did not diverge.
        (side("ccc"), side("kkk"), False),
    ],
)
def test_a_comparison_is_decided_by_intervals_or_by_divergence(
    before: Retrained, after: Retrained, decided: bool
) -> None:
    measured = Measured.of(before, after, PER)
    assert measured.decided is decided
    assert ("not decided" in measured.in_words) is not decided


@pytest.mark.slow
def test_the_chance_that_all_diverge_on_one_side_and_none_on_the_other() -> None:
    """It is largest where half of all trainings diverge, and there it is what is claimed."""
    claimed = Measured.of(side("ccc"), side("sss"), PER).chance_of_divergence
    assert claimed is not None
    for rate in (0.2, 0.5, 0.8):
        diverged = np.random.default_rng(0).random((20_000, 2, 3)) < rate
        counts = diverged.sum(axis=2).tolist()
        share = float(np.mean([sorted(pair) == [0, 3] for pair in counts]))
        assert share == pytest.approx(2 * (rate * (1 - rate)) ** 3, abs=0.005)
        assert share < claimed + 0.005
    assert Measured.of(side("cccc"), side("sssc"), PER).chance_of_divergence is None


@pytest.mark.slow
def test_the_configuration_of_best_is_that_trials(searched: Study) -> None:
    name, config = named(searched, "best")
    record = next(record for record in searched.records() if f"trial {record.number}" == name)
    assert DecoderConfig().with_values(record.config) == config
