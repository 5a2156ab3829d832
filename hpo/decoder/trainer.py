"""The built-in decoder as a trainer: `trainer: hpo.decoder.trainer:gru_ctc`, the default of spaces.

Nothing heavy is imported until a training needs it: commands that only read a study look here for
its metric and its fields.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo.decoder.config import DecoderConfig
from hpo.decoder.step_size import STEP_SIZE
from hpo.text import plural
from hpo.trainer import (
    Arguments,
    DataRequest,
    Ensembles,
    Metric,
    PastRuns,
    Score,
    Trainer,
    Translated,
    Weights,
)

if TYPE_CHECKING:
    from hpo.decoder.combine import Mean

PER = Metric(
    name="PER",
    unit="percent",
    bounded=True,
    items="sentences",
    description=(
        "the phoneme error rate (PER: total edit distance over total reference length, "
        "greedy decoding)"
    ),
)
# Decoders that agree in these have the same frames, which can be averaged one by one.
MATCHING = ("model.kernel", "model.stride", "model.classes")
MEANS: "tuple[Mean, ...]" = ("geometric", "arithmetic")
ABOUT_ARGUMENTS = (
    "base: goes into a study file. args: the names of neural_seq_decoder and its descendants,",
    "which have none for eps: set it in their code (0.1, in some descendants 1e-8).",
    "An empty value does not apply.",
)


def _load_data(request: DataRequest) -> Any:
    from hpo.decoder.training import load_recordings

    return load_recordings(request)


def _start(config: DecoderConfig, recordings: Any) -> Any:
    from hpo.decoder.training import GruTraining

    return GruTraining(config, recordings)


def _collect_weights(training: Any) -> dict[str, Any]:
    """The weights that are evaluated: the averaged ones if they exist."""
    weights: dict[str, Any] = training.state.scored.state_dict()
    return weights


def _write_weights(
    path: Path, collected: dict[str, Any], config: Any, facts: dict[str, Any]
) -> None:
    from hpo.decoder.artifact import save_decoder

    save_decoder(path, collected, config, facts)


def _lab_arguments(config: Any, facts: Mapping[str, Any]) -> dict[str, Any]:
    from hpo.decoder.lab import lab_arguments

    return lab_arguments(config, facts["n_features"], facts["n_days"])


def _outputs(recordings: Any, paths: Mapping[int, Path]) -> Any:
    from hpo.decoder.combine import outputs_of

    return outputs_of(recordings, paths)


def _select(outputs: Any, mean: Any, max_size: int) -> list[int]:
    from hpo.decoder.combine import select

    return select(outputs, mean, max_size)


def _scores_along(path: Sequence[int], outputs: Any, mean: Any) -> list[Score]:
    from hpo.decoder.combine import scores_along

    return scores_along(path, outputs, mean)


def _read_pickle(path: Path) -> Any:
    from hpo.data.pickles import unpickle
    from hpo.decoder.lab import plain_arguments

    contents = unpickle(path)
    return plain_arguments(contents) if isinstance(contents, dict) else contents


def _translate(arguments: Mapping[str, Any]) -> Translated:
    from hpo.decoder.lab import from_lab_arguments

    return from_lab_arguments(arguments)


def _weight_faults(folder: Path, warnings: list[str]) -> list[str]:
    from hpo.decoder.artifact import weight_faults

    return weight_faults(folder, warnings)


def _data_warnings(path: Path | None, fraction: float, seed: int) -> list[str]:
    from hpo.decoder.repeated import warn_of_repeated

    return warn_of_repeated(path, fraction, seed)


def _lr_factor(config: DecoderConfig, step: int) -> float:
    from hpo.decoder.train import lr_factor

    return lr_factor(config, step)


def _summary(config: DecoderConfig) -> str:
    model = config.model
    return (
        f"{model.layers} x {model.units} units, kernel {model.kernel}, stride {model.stride}, "
        f"{config.steps} steps of {config.batch_size} sentences"
    )


def _sizes(config: DecoderConfig) -> dict[str, str]:
    model = config.model
    return {
        "model.layers": plural(model.layers, "GRU layer"),
        "model.units": f"{model.units} units a layer",
        "model.kernel": f"windows of {model.kernel} bins",
        "model.stride": f"stride {model.stride}",
        "batch_size": f"batches of {config.batch_size} sentences",
        "steps": f"{config.steps} optimizer updates",
    }


gru_ctc = Trainer(
    config=DecoderConfig,
    load_data=_load_data,
    start=_start,
    metric=PER,
    weights=Weights(".safetensors", _collect_weights, _write_weights),
    feature=STEP_SIZE,
    pairs=(
        ("optimizer.lr", "optimizer.eps"),
        ("optimizer.lr", "model.layer_norm"),
        ("optimizer.lr", "augment.white_noise_sd"),
    ),
    free=("precision",),
    # Not config.py: a study stores the value of every field, so a changed default has no effect.
    code=(
        "augment.py",
        "data.py",
        "gru.py",
        "metric.py",
        "model.py",
        "step_size.py",
        "train.py",
        "training.py",
    ),
    bundled="the bundled spoken-digit recordings (real speech, no neural data)",
    what="a GRU decoder trained with CTC",
    cut="each day's training sentences",
    summary=_summary,
    sizes=_sizes,
    offers={
        "arguments": Arguments(ABOUT_ARGUMENTS, _lab_arguments),
        "ensemble": Ensembles(MATCHING, MEANS, _outputs, _select, _scores_along),
        "data_warnings": _data_warnings,
        "evaluate": True,
        "past_runs": PastRuns(_read_pickle, _translate, _lr_factor, _weight_faults),
        "reference folder": True,
    },
)
