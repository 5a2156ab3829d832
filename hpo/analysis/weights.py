"""The weights of finished trials: where they are, what they score on a partition, and the lab's own format."""

from pathlib import Path
from typing import Any

from hpo.data.formats import Partition
from hpo.decoder.artifact import Decoder, load_decoder, reference_folder, reference_notes
from hpo.decoder.config import DecoderConfig
from hpo.decoder.data import load_for_scoring
from hpo.decoder.train import evaluate, set_precision
from hpo.errors import CallerError, DataError, StudyError
from hpo.study.paths import study_folder, trial_folder
from hpo.study.pick import pick_trial
from hpo.study.study import Study
from hpo.text import percent
from hpo.trainer import load_trainer
from hpo.worker.checkpoint import TORCH_WEIGHTS
from hpo.worker.device import choose_device, device_name


def weights_of(study: Study, trial: str, which: str) -> Path:
    """The file of a complete trial's weights. trial: `best` or a number; which: `last` (what its value is of) or `best`.

    Raises StudyError if the trial kept none, or kept them on another machine.
    """
    record = pick_trial(study, trial)
    weights = load_trainer(study.spec.trainer).weights or TORCH_WEIGHTS
    path = trial_folder(study_folder(study), record.number) / f"{which}{weights.suffix}"
    if record.state != "complete":
        raise StudyError(f"study {study.name}: trial {record.number} is {record.state}; only complete trials keep weights")
    if not path.is_file():
        raise StudyError(f"study {study.name}: the weights of trial {record.number} are not here. It ran on {record.host}: copy its "
                         f"{path.name} from there to {path}, or run this there")  # fmt: skip
    return path


def score(model: Path, data: Path | None, partition: Partition, device: str | None, padding: str | None) -> dict[str, Any]:
    """Score a decoder (see load_decoder) on a partition. padding: instead of the model's own. Raises DataError."""
    decoder = load_decoder(model)
    if padding:
        decoder.model.config = decoder.config.with_values({"model.padding": padding}).model
    chosen = choose_device(device)
    loaded = load_for_scoring(data, partition, decoder.model.config, chosen)
    check_fit(decoder, loaded.n_features, loaded.n_days)
    set_precision(decoder.config)
    found, loss = evaluate(decoder.model.to(chosen), loaded, decoder.config.precision)
    return {
        "model": str(model),
        "facts": decoder.facts,
        "data": str(data) if data else None,
        "partition": partition,
        "device": device_name(chosen),
        "padding": decoder.model.config.padding,
        "per": found.value,
        "ctc_loss": loss,
        "errors": found.errors,
        "lengths": found.lengths,
    }


def check_fit(decoder: Decoder, n_features: int, n_days: int) -> None:
    """Raises DataError if the data are not such as the model was trained on."""
    days, features, _ = decoder.model.day_weights.shape
    if features != n_features:
        raise DataError(f"the data have {n_features} features, the model takes {features}. Give the data that it was trained for")
    if n_days > days:
        raise DataError(f"the data have {n_days} days, the model has input layers for {days}. Give the data that it was trained for")


def score_text(score: dict[str, Any]) -> str:
    errors, labels = sum(score["errors"]), sum(score["lengths"])
    return (f"PER {percent(score['per'])} on {score['partition']}: {errors} errors in {labels} phonemes of {len(score['lengths'])} "
            f"sentences (greedy decoding; {score['device']})")  # fmt: skip


def export_reference(study: Study, trial: str, which: str, out: Path) -> list[str]:
    """Write the folder that neural_seq_decoder's loadModel reads. Returns lines for people. Raises CallerError, StudyError."""
    decoder = load_decoder(weights_of(study, trial, which))
    try:
        reference_folder(decoder, out)
    except OSError as error:
        raise CallerError(f"--out {out}: cannot be written ({error.strerror or error})") from None
    trained: DecoderConfig = decoder.config
    return [f"wrote {out}: args and modelWeights of trial {decoder.facts['trial']}, step {decoder.facts['step']}, "
            f"PER {percent(decoder.facts['per'])} ({decoder.facts['partition']})",
            *reference_notes(trained, decoder.model.day_weights.shape[0])]  # fmt: skip
