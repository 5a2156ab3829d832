"""hpo confirm: what it retrains, reuses and concludes; a tiny decoder really trains."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import invoke
from helpers.data import recordings, tiny_contents
from helpers.lines import ONE_WORKER, refusal
from helpers.studies import RECORD, TINY, worker_for

from hpo.analysis.child import open_child
from hpo.analysis.confirm import Chosen, Confirmation, as_text, choose, compare_configs, confirm
from hpo.analysis.retrain import Retrained, Train, check_data
from hpo.decoder.trainer import PER
from hpo.decoder.training import Recordings
from hpo.errors import CallerError, DataError, StudyError
from hpo.process import Process
from hpo.space.load import load_spec
from hpo.space.spec import StudySpec
from hpo.store.database import Database
from hpo.study.study import Study
from hpo.study.trial import Record, State
from hpo.trainer import Score
from hpo.worker.worker import Worker

MakeStudy = Callable[..., Study]
DIVERGES = "wild: {optimizer.lr: 1e30, optimizer.name: sgd}"


@pytest.fixture
def data(tiny_data: Path, tiny_space: Path) -> Recordings:
    return recordings(tiny_data, load_spec(tiny_space), 0.2)


@pytest.fixture
def train(data: Recordings, tiny_data: Path, tiny_space: Path, tmp_path: Path) -> Train:
    test = recordings(tiny_data, load_spec(tiny_space), partition="test")

    def run(child: Study) -> None:
        scored_on_test = child.spec.child is not None and bool(child.spec.child.score)
        held_out = {"test": test} if scored_on_test else {}
        Worker(child, data, tmp_path / child.name, RECORD, held_out=held_out).run()

    return run


@pytest.fixture
def searched(make_study: MakeStudy, tiny_space: Path, data: Recordings, tmp_path: Path) -> Study:
    """Six trials: two starts, one that diverges at once, three drawn."""
    text = TINY.replace("trials: 4", "trials: 6")
    text = text.replace("baseline: {}", "baseline: {}\n  " + DIVERGES)
    tiny_space.write_text(text.replace("high: 5e-2", "high: 1e30"))
    study = make_study(load_spec(tiny_space), "p")
    worker_for(study, data, tmp_path / "p").run()
    return study


def confirmed(
    study: Study, database: Database, train: Train, top: int = 2, seeds: int = 2
) -> Confirmation:
    child = open_child(database, study, "confirm", ("test",))
    return confirm(study, child, top, seeds, train)


@pytest.mark.slow
def test_the_best_and_the_starts_are_retrained_and_compared(
    searched: Study, database: Database, train: Train
) -> None:
    finding = confirmed(searched, database, train)
    complete = [record for record in searched.records() if record.value is not None]
    best = sorted((record.value, record.number) for record in complete)
    tops = [config for config in finding.configs if config.top]
    assert [(config.search_value, config.trial) for config in tops] == best[:2]
    assert {config.start for config in finding.configs} >= set(searched.spec.starts)
    assert searched.results()["confirm"]["configs"] == finding.model_dump(mode="json")["configs"]
    parent_seeds = {record.config["seed"] for record in searched.records()}
    for config in finding.configs:
        seeds = [seed["seed"] for seed in config.seeds]
        assert seeds == [1_000_000, 1_000_001]
        assert not parent_seeds & set(seeds)
    sure = tops[0]
    assert sure.value is not None and sure.interval is not None
    assert sure.selection is not None and sure.partition_shift is not None
    assert sure.value == pytest.approx(sum(seed["value"] for seed in sure.seeds) / 2)
    assert sure.interval[0] < sure.value < sure.interval[1]
    assert sure.optimism == pytest.approx(sure.selection + sure.partition_shift)
    assert finding.sentences == 24
    pairs = {(comparison.a, comparison.b) for comparison in finding.comparisons}
    assert len(pairs) == len(finding.comparisons)
    assert all(comparison.p_holm >= comparison.p for comparison in finding.comparisons)

    wild = next(config for config in finding.configs if config.start == "wild")
    assert (wild.value, wild.interval, wild.counts) == (None, None, "0 of 2, 2 diverged")
    (note,) = [note for note in finding.notes if note.startswith("wild: 2 of 2 seeds diverged (")]
    assert note.endswith("so it has no PER.")
    assert all("wild" not in (comparison.a, comparison.b) for comparison in finding.comparisons)
    shown = as_text("p", finding, PER)
    assert "0 of 2, 2 diverged" in shown
    assert "95 % interval" in shown
    assert max(map(len, shown.splitlines())) <= 100

    # A second confirm trains nothing; one of more seeds trains those that are missing.
    child = open_child(database, searched, "confirm")
    count = len(child.records())
    assert confirmed(searched, database, train) == finding
    assert len(child.records()) == count
    more = confirmed(searched, database, train, top=3, seeds=3)
    assert len(child.records()) > count
    assert child.budget_spent()
    not_separated = [note for note in more.notes if "are not separated" in note]
    assert more.separated == (not not_separated)
    advice = ("of seeds", "seeds each", "more seeds may do")
    for note in not_separated:
        assert any(part in note for part in advice)
    both = {config.name: config for config in more.configs}
    for config in finding.configs:
        if not config.counts.startswith("0"):
            assert both[config.name].seeds[:2] == config.seeds


STATES: dict[str, State] = {"c": "complete", "s": "stopped"}


def side(letters: str, errors: int) -> Retrained:
    """Seeds that were retrained; c: complete, s: stopped."""
    empty: dict[str, Any] = dict.fromkeys(Record.__dataclass_fields__)
    records = []
    scores = {}
    for number, letter in enumerate(letters):
        known = {"id": number, "number": number, "state": STATES[letter]}
        records.append(Record(**(empty | known)))
        if letter == "c":
            per_sentence = tuple(errors + (number + n) % 3 for n in range(60))
            scores[number] = Score(per_sentence, (50,) * 60)
    return Retrained(records, scores, PER)


@pytest.mark.parametrize(
    ("best", "start", "decided"),
    [("ccc", "ccc", True), ("ccc", "ccs", False), ("css", "ccc", False)],
)
def test_nothing_is_decided_where_seeds_diverged(
    tiny_spec: StudySpec, best: str, start: str, decided: bool
) -> None:
    chosen = [
        Chosen("trial 3", 3, None, True, 0.2, tiny_spec.config()),
        Chosen("baseline", 0, "baseline", False, 0.4, tiny_spec.config()),
    ]
    (comparison,) = compare_configs(chosen, [side(best, 10), side(start, 20)])
    assert comparison.difference == pytest.approx(-0.2, abs=0.02)
    assert comparison.p_holm < 0.01
    assert comparison.decided is decided


@pytest.mark.slow
def test_an_interrupted_confirm_goes_on_and_one_seed_says_what_it_lacks(
    searched: Study, database: Database, train: Train, data: Recordings, tmp_path: Path
) -> None:
    def train_a_little(child: Study) -> None:
        looks = iter([False] * 9)
        Worker(child, data, tmp_path / child.name, RECORD, stop=lambda: next(looks, True)).run()

    unfinished = (
        r"study p\.confirm: \d+ trainings are not finished. "
        "Run the same command again to continue"
    )
    with pytest.raises(StudyError, match=unfinished):
        confirmed(searched, database, train_a_little, seeds=1)
    assert "confirm" not in searched.results()
    finding = confirmed(searched, database, train, seeds=1)
    over_sentences = "One seed: the intervals are over sentences alone"
    assert any(note.startswith(over_sentences) for note in finding.notes)
    with pytest.raises(CallerError, match="--seeds 0: valid is 1 or more"):
        confirmed(searched, database, train, seeds=0)
    with pytest.raises(CallerError, match="--top 0: valid is 1 or more"):
        choose(searched, 0)


def test_what_cannot_be_confirmed_is_one_line(
    make_study: MakeStudy, tiny_space: Path, tiny_data: Path, write_data: Callable[[Any], Path]
) -> None:
    spec = load_spec(tiny_space)
    fingerprint = recordings(tiny_data, spec, 0.1).fingerprint
    study = make_study(spec, "p", fingerprint, path=str(tiny_data))
    nothing = "study p: no trial is complete, so there is nothing to confirm"
    with pytest.raises(StudyError, match=nothing):
        choose(study, 3)
    check_data(study, None, True)
    contents = tiny_contents()
    without_test = {**contents, "test": []}
    with pytest.raises(DataError, match="test"):
        check_data(study, write_data(without_test), True)
    contents["train"][0]["phonemes"][0][0] += 1
    other_data = r"fingerprint \w+, but study p was made on \w+. Give --data"
    with pytest.raises(StudyError, match=other_data):
        check_data(study, write_data(contents), True)


@pytest.mark.slow
def test_the_command_trains_with_workers_of_its_own(
    database: Database, tiny_space: Path, tiny_data: Path, tmp_path: Path
) -> None:
    spec = load_spec(tiny_space)
    data = recordings(tiny_data, spec, 0.1)
    facts = {
        "path": str(tiny_data),
        "fingerprint": data.fingerprint,
        "n_features": 3,
        "n_days": 2,
    }
    study = Study.create_or_open(database, "tiny", spec, facts)
    line = ("confirm", "--study", "tiny", "--top", "1", "--seeds", "1", *ONE_WORKER)
    assert "nothing to confirm" in refusal(*line)
    Worker(study, data, tmp_path / "s", RECORD, process=Process.this()).run()
    done = invoke(*line)
    assert done.exit_code == 0, done.output
    for part in (
        "study      tiny.confirm: at most",
        "fresh seeds",
        "scored on test (24 sentences)",
        "selection (fresh seeds",
    ):
        assert part in done.output
    as_json = invoke(*line, "--json")
    assert json.loads(as_json.output)["partition"] == "test"
