"""The private attributes of Optuna that hpo needs, and the only place that touches them.

Optuna has no public name for the database ids of trials and studies, for the cached storage of a
study, or for a suggestion from a distribution object.
"""

from typing import Any

from optuna import Study, Trial
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial


def id_of_trial(trial: FrozenTrial) -> int:
    """The trial's id in the database; `trial.number` counts within its study only."""
    # No public attribute holds it.
    return trial._trial_id  # noqa: SLF001


def id_of_study(study: Study) -> int:
    """The study's id in the database."""
    # No public attribute holds it.
    return study._study_id  # noqa: SLF001


def cached_storage(study: Study) -> BaseStorage:
    """The study's storage behind the cache that Optuna puts in front of a database."""
    # Optuna wraps the storage that it is given, and returns the wrapper nowhere else.
    return study._storage  # noqa: SLF001


def suggest(trial: Trial, name: str, distribution: BaseDistribution) -> Any:
    """The trial's value of a parameter: the one that it already has, or one from the sampler."""
    # The public methods, such as suggest_float, each build their own kind of distribution.
    return trial._suggest(name, distribution)  # noqa: SLF001
