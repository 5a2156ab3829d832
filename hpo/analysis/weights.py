"""Find the weights of finished trials."""

from pathlib import Path

from hpo.errors import StudyError
from hpo.study.paths import study_folder, trial_folder
from hpo.study.pick import pick_trial
from hpo.study.reader import StudyReader
from hpo.worker.checkpoint import TORCH_WEIGHTS
from hpo.worker.keeping import rule_of, trials_that_keep_weights


def weights_of(study: StudyReader, trial: str, which: str) -> Path:
    """The file with the weights of a complete trial.

    trial: `best` or a number. which: `last` (those that the trial's value is measured with) or
    `best`. Raises StudyError if the trial kept no weights, or kept them on another machine.
    """
    record = pick_trial(study, trial)
    weights = study.spec.load_trainer().weights or TORCH_WEIGHTS
    path = trial_folder(study_folder(study), record.number) / f"{which}{weights.suffix}"
    if record.state != "complete":
        raise StudyError(
            f"study {study.name}: trial {record.number} is {record.state}; "
            f"only complete trials keep weights"
        )
    if not path.is_file() and record.number not in trials_that_keep_weights(study, study.records()):
        raise StudyError(
            f"study {study.name}: the weights of trial {record.number} were removed: it keeps "
            f"those {rule_of(study.spec)}. To keep those of later trials, too, set weights: "
            f"{{keep: null}} in the study file and launch it again"
        )
    if not path.is_file():
        raise StudyError(
            f"study {study.name}: the weights of trial {record.number} are not here. It ran on "
            f"{record.host}: copy its {path.name} from there to {path}, or run this there"
        )
    return path
