"""Optuna's tables read without Optuna give what Optuna gives."""

import math
import subprocess
import sys
from collections.abc import Callable

import optuna
import pytest
from helpers.studies import claim, completed, point
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState

from hpo.errors import StudyError
from hpo.space.spec import StudySpec
from hpo.store import optuna_rows
from hpo.store.database import Database
from hpo.study.optuna_internals import id_of_trial
from hpo.study.reader import open_reader
from hpo.study.study import Study

Make = Callable[..., Study]
CHOICES = CategoricalDistribution([None, False, True, 0.5, "text", 7])
ODD: dict[str, BaseDistribution] = {
    "float": FloatDistribution(-1, 1),
    "log": FloatDistribution(1e-8, 1, log=True),
    "whole": IntDistribution(-3, 40),
    "choice": CHOICES,
}


@pytest.fixture
def odd(make_study: Make, tiny_spec: StudySpec) -> Study:
    """With trials of every kind that Optuna can hold."""
    study = make_study(tiny_spec)
    study.finish(claim(study), completed(0.3))
    study.deliver(claim(study), [point(2, 0.9)], 2, 1.0)
    for number, choice in enumerate(CHOICES.choices):
        params = {
            "choice": choice,
            "whole": number - 3,
            "log": 10.0**-number,
            "float": 0.1 * number,
        }
        complete = number == 0
        trial = optuna.create_trial(
            state=TrialState.COMPLETE if complete else TrialState.PRUNED,
            value=0.25 if complete else None,
            params=params,
            distributions=ODD,
            user_attrs={"text": "ä \" '", "deep": {"list": [1, None]}},
            intermediate_values={5: math.inf, 1: -math.inf, 3: math.nan, 4: 1e-300},
        )
        study.optuna.add_trial(trial)
    return study


def test_trials_are_those_that_optuna_reads(odd: Study) -> None:
    with odd.engine.begin() as connection:
        states = optuna_rows.trial_states(connection, odd.id)
        rows = optuna_rows.trial_rows(connection, list(states))
    trials = odd.optuna.get_trials()
    ids = [id_of_trial(trial) for trial in trials]
    assert list(states) == ids
    for trial_id, trial in zip(ids, trials, strict=True):
        row = rows[trial_id]
        assert (row.number, row.state, row.value) == (trial.number, trial.state.name, trial.value)
        assert list(row.params.items()) == list(trial.params.items())
        types = [type(value) for value in row.params.values()]
        assert types == [type(value) for value in trial.params.values()]
        assert row.attributes == trial.user_attrs
        assert repr(sorted(row.curve.items())) == repr(sorted(trial.intermediate_values.items()))


def test_attributes_are_those_that_optuna_reads_and_writes(odd: Study) -> None:
    for value in ({"a": [1, None, "ä"]}, None, "text", 0.1):
        odd.set_attribute("mine", value)
        assert odd.optuna.user_attrs["mine"] == value
        odd.optuna.set_user_attr("its", value)
        assert odd.attributes["its"] == value
    assert odd.attributes == odd.optuna.user_attrs


def test_a_reader_has_the_records_of_the_study(odd: Study, database: Database) -> None:
    reader = open_reader(database, "s")
    assert reader.records() == odd.records()
    assert reader.spec == odd.spec
    assert reader.budget == odd.budget
    assert reader.standing().ended == odd.standing().ended
    odd.change_budget({"trials": "20"})
    before = reader.records()
    odd.finish(claim(odd), completed(0.2))
    assert reader.records() == odd.records() != before


def test_a_study_that_was_deleted_is_one_line(odd: Study, database: Database) -> None:
    reader = open_reader(database, "s")
    odd.storage.delete_study(odd.id)
    for ask in (reader.records, lambda: reader.budget, lambda: reader.unique):
        with pytest.raises(StudyError, match=r"study s was deleted\. Run the launch command again"):
            ask()
    none = r"no study 's' in .* There are: none; hpo launch makes one"
    with pytest.raises(StudyError, match=none):
        open_reader(database, "s")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("studies",),
        ("status", "--study", "s"),
        ("status", "--study", "s", "--json"),
        ("logs", "--study", "s", "--trial", "0"),
        ("budget", "--study", "s", "--trials", "+1"),
        ("report", "--study", "s"),
        ("status", "--study", "missing"),
        ("kill", "--study", "missing", "--trial", "0"),
        ("delete", "--study", "missing", "--yes"),
    ],
)
def test_commands_that_read_do_not_load_optuna(
    make_study: Make, tiny_spec: StudySpec, arguments: tuple[str, ...]
) -> None:
    study = make_study(tiny_spec)
    study.finish(claim(study), completed(0.3))
    code = (
        "import sys\nfrom hpo.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    print(end.code)\n"
        "print('loaded', 'optuna' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    expected = "2" if "missing" in arguments else "0"
    assert done.stdout.splitlines()[-2:] == [expected, "loaded False"], done.stderr
