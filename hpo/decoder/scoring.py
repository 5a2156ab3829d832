"""Scores a decoder file on a partition, and exports a trial's decoder for the lab's own code."""

from pathlib import Path
from typing import Any

import torch

from hpo.data.formats import Partition
from hpo.decoder.artifact import Decoder, load_decoder, reference_folder, reference_notes
from hpo.decoder.data import load_for_scoring
from hpo.decoder.train import evaluate, set_precision
from hpo.errors import CallerError, DataError
from hpo.text import percent

BUNDLED = "the bundled recordings"


def score(
    model: Path, data: Path | None, partition: Partition, device: torch.device, padding: str | None
) -> dict[str, Any]:
    """Score a decoder (see load_decoder) on a partition, as JSON's types.

    padding: replaces the model's own. Raises DataError.
    """
    decoder = load_decoder(model)
    if padding:
        decoder.model.config = decoder.config.with_values({"model.padding": padding}).model
    loaded = load_for_scoring(data, partition, decoder.model.config, device)
    source = str(data) if data else BUNDLED
    try:
        check_fit(decoder, loaded.n_features, loaded.n_days)
    except DataError as error:
        raise DataError(f"{source}: {error}") from None
    set_precision(decoder.config)
    per, loss = evaluate(decoder.model.to(device), loaded, decoder.config.precision)
    return {
        "model": str(model),
        "facts": decoder.metadata,
        "warnings": list(decoder.warnings),
        "data": str(data) if data else None,
        "partition": partition,
        "padding": decoder.model.config.padding,
        "per": per.value,
        "ctc_loss": loss,
        "errors": per.errors,
        "lengths": per.lengths,
    }


def check_fit(decoder: Decoder, n_features: int, n_days: int) -> None:
    """Raises DataError if the model was trained on data with another number of features or days."""
    days, features, _ = decoder.model.day_weights.shape
    if features != n_features:
        raise DataError(
            f"the data have {n_features} features, the model takes {features}. "
            f"Give the data that it was trained on"
        )
    if n_days > days:
        raise DataError(
            f"the data have {n_days} days, the model has input layers for {days}. "
            f"Give the data that it was trained on"
        )


def score_text(score: dict[str, Any]) -> str:
    """One line for people about the result of `score`. `score` has a `device` in addition."""
    errors = sum(score["errors"])
    phonemes = sum(score["lengths"])
    data = score["data"] or BUNDLED
    return (
        f"PER {percent(score['per'])} on {score['partition']} of {data}: {errors} errors in "
        f"{phonemes} phonemes of {len(score['lengths'])} sentences (greedy decoding; "
        f"{score['device']})"
    )


def export_reference(weights: Path, out: Path) -> list[str]:
    """Write the folder that neural_seq_decoder's loadModel reads.

    Returns lines for people. Raises CallerError if it cannot be written, and DataError.
    """
    decoder = load_decoder(weights)
    try:
        reference_folder(decoder, out)
    except OSError as error:
        raise CallerError(f"--out {out}: cannot be written ({error.strerror or error})") from None
    metadata = decoder.metadata
    written = (
        f"wrote {out}: args and modelWeights of trial {metadata['trial']}, "
        f"step {metadata['step']}, PER {percent(metadata['per'])} ({metadata['partition']})"
    )
    n_days = decoder.model.day_weights.shape[0]
    notes = reference_notes(decoder.config, n_days)
    return [written, *notes, *(f"warning: {warning}" for warning in decoder.warnings)]
