"""DecoderConfig: every number that shapes a training, with one default each.

The defaults are the public `neural_seq_decoder` baseline (PER 20.46 % on the Brain-to-Text '24 data). A field is
addressed by its dotted name (`optimizer.lr`) in study files, on the command line and in reports.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from hpo.errors import SpecError


def _number_in_text(value: Any) -> Any:
    """YAML 1.1 (PyYAML) reads `1e-4` as text, because it lacks a dot: take the number that a person means."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _whole_number(value: Any) -> Any:
    value = _number_in_text(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


Real = Annotated[float, BeforeValidator(_number_in_text), Field(strict=True, allow_inf_nan=False)]
Whole = Annotated[int, BeforeValidator(_whole_number), Field(strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Fraction = Annotated[Real, Field(ge=0, le=1)]
Positive = Annotated[Real, Field(gt=0)]
NotNegative = Annotated[Real, Field(ge=0)]
Count = Annotated[Whole, Field(ge=1)]


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelConfig(Settings):
    layers: Count = 5
    units: Count = 1024  # per layer and direction
    bidirectional: Flag = True
    kernel: Count = 32  # input bins stacked into one GRU input
    stride: Count = 4  # bins from one GRU input to the next
    dropout: Annotated[Real, Field(ge=0, lt=1)] = 0.4  # between GRU layers; none with one layer
    input_dropout: Annotated[Real, Field(ge=0, lt=1)] = 0.0
    layer_norm: Flag = False  # over the features of each bin, after the day layer
    smoothing_width: NotNegative = 2.0  # standard deviation in bins; 0 = no smoothing
    smoothing_kernel: Count = 20  # bins
    classes: Count = 40  # 39 ARPAbet phonemes + SIL, labelled 1..40; 0 is the CTC blank
    # masked: a sentence scores the same alone and in any batch. reference: noise, smoothing and GRU run into the padding, as
    # in neural_seq_decoder, whose scores move with the batch
    padding: Literal["masked", "reference"] = "masked"


class OptimizerConfig(Settings):
    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: Positive = 0.02
    eps: Positive = 0.1  # adam, adamw. The baseline's 0.1, not PyTorch's 1e-8: at lr 0.02 it decides
    beta1: Annotated[Real, Field(ge=0, lt=1)] = 0.9  # adam, adamw
    beta2: Annotated[Real, Field(ge=0, lt=1)] = 0.999  # adam, adamw
    momentum: Annotated[Real, Field(ge=0, lt=1)] = 0.9  # sgd
    nesterov: Flag = False  # sgd
    weight_decay: NotNegative = 1e-5  # L2 in the gradient for adam and sgd, decoupled for adamw
    grad_clip_norm: Positive | None = None
    ema_decay: Annotated[Real, Field(ge=0, lt=1)] | None = None  # score exponentially averaged weights; null: the weights

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.name == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError("optimizer.nesterov needs optimizer.momentum above 0")
        return self


class ScheduleConfig(Settings):
    name: Literal["constant", "linear", "warmup-cosine", "plateau"] = "constant"
    end_factor: Annotated[Real, Field(gt=0, le=1)] = 0.01  # linear, warmup-cosine: last lr / optimizer.lr
    warmup: Fraction = 0.1  # warmup-cosine: part of the steps in which lr rises from 0
    patience: Whole = Field(default=8, ge=0)  # plateau: evaluations without a better PER
    factor: Annotated[Real, Field(gt=0, lt=1)] = 0.5  # plateau: lr is multiplied by this
    min_lr: NotNegative = 1e-5  # plateau


class AugmentConfig(Settings):
    white_noise_sd: NotNegative = 0.8  # per value; features have unit variance
    constant_offset_sd: NotNegative = 0.2  # per sentence and feature
    time_masks: Whole = Field(default=0, ge=0)  # at most this many a sentence
    time_mask_p: Fraction = 0.1  # probability of each
    time_mask_width: Count = 40  # bins, at most
    feature_masks: Whole = Field(default=0, ge=0)
    feature_mask_p: Fraction = 0.1
    feature_mask_width: Count = 12


class DecoderConfig(Settings):
    """What one training is. Frozen; `with_values` makes a changed copy."""

    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    augment: AugmentConfig = AugmentConfig()
    steps: Whole = Field(default=10_000, ge=0)  # optimizer updates
    batch_size: Count = 64  # sentences
    accumulation: Count = 1  # batches per update; their gradients are averaged
    # random: neural_seq_decoder's order. similar: the sentences of POOL such batches, regrouped by length (train.py)
    batches: Literal["similar", "random"] = "similar"
    # of matrix products on CUDA: fp32; tf32; bf16 is autocast over tf32. neural_seq_decoder has tf32 in its GRU
    precision: Literal["tf32", "fp32", "bf16"] = "tf32"  # of CUDA; bf16: all but the GRU, which stays in tf32
    evaluate_every: Count = 100  # steps
    seed: Whole = Field(default=0, ge=0)

    def with_values(self, values: Mapping[str, Any], place: str = "") -> "DecoderConfig":
        """A copy with some fields replaced.

        values: dotted name -> value. place: where they come from, for the message.
        Raises SpecError for a name that does not exist or a value that is not allowed.
        """
        tree = self.model_dump()
        for name, value in values.items():
            check_field(name, f"{place}{name}")
            *groups, leaf = name.split(".")
            branch = tree
            for group in groups:
                branch = branch[group]
            branch[leaf] = value
        try:
            return DecoderConfig.model_validate(tree)
        except ValidationError as error:
            raise SpecError(explain(error, place)) from None

    def flat(self) -> dict[str, Any]:
        """Dotted name -> value, every field."""
        return _flatten(self.model_dump())


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


FIELDS: tuple[str, ...] = tuple(DecoderConfig().flat())


def check_field(name: str, place: str) -> None:
    """Raises SpecError if `name` is no field of DecoderConfig, with the likely one first and all of them after."""
    if name not in FIELDS:
        raise SpecError(unknown(name, FIELDS, place))


def unknown(name: str, valid: tuple[str, ...], place: str) -> str:
    return f"{place}: there is no {name!r}.{guess(name, valid)} Valid: {', '.join(valid)}"


def guess(name: str, valid: Sequence[str]) -> str:
    """The names that are most like it, as a question; nothing if none is."""
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.6)
    return f" Did you mean {close[0]}?" if close else ""


def explain(error: ValidationError, place: str = "") -> str:
    """The first fault of a pydantic error as one line: the place, what was given, what is valid."""
    first = error.errors()[0]
    where = place + ".".join(str(part) for part in first["loc"] if not str(part).startswith("function-"))
    what = first["msg"].removeprefix("Value error, ")
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    given = first["input"]
    shown = "" if isinstance(given, (dict, BaseModel)) else f" (given: {given!r})"
    return f"{where.rstrip('.')}: {what[0].lower() + what[1:]}{shown}{more}"
