"""Hyperparameter optimization for speech-BCI phoneme decoders.

These names are what a lab's own code may use: the parts of a trainer (README, "Your own training"),
and `open_study` and `read_study` to read what a study has found. docs/architecture.md is the map of
the package.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hpo.settings import Config
    from hpo.study.reader import StudyReader, read_study
    from hpo.study.study import Study, open_study
    from hpo.trainer import DataRequest, Metric, Progress, Score, Trainer, Training, Weights

# Where each name is defined. A name is imported when it is first used: `hpo --help` needs none.
_HOMES = {
    "Config": "hpo.settings",
    "DataRequest": "hpo.trainer",
    "Metric": "hpo.trainer",
    "Progress": "hpo.trainer",
    "Score": "hpo.trainer",
    "Study": "hpo.study.study",
    "StudyReader": "hpo.study.reader",
    "Trainer": "hpo.trainer",
    "Training": "hpo.trainer",
    "Weights": "hpo.trainer",
    "open_study": "hpo.study.study",
    "read_study": "hpo.study.reader",
}
__all__ = [
    "Config",
    "DataRequest",
    "Metric",
    "Progress",
    "Score",
    "Study",
    "StudyReader",
    "Trainer",
    "Training",
    "Weights",
    "__version__",
    "open_study",
    "read_study",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hpo' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
