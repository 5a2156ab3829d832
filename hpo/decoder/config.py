"""DecoderConfig: every number that shapes a training, with one default each.

The defaults are the public `neural_seq_decoder` baseline (PER 20.46 % on the Brain-to-Text '24
data). A field is addressed by its dotted name (`optimizer.lr`) in study files, on the command line
and in reports.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hpo.settings import Config, Count, Flag, Fraction, NotNegative, Positive, Real, Settings, Whole

BelowOne = Annotated[Real, Field(ge=0, lt=1)]


class ModelConfig(Settings):
    layers: Count = Field(default=5, description="number of GRU layers")
    units: Count = Field(default=1024, description="GRU units per layer and direction")
    bidirectional: Flag = Field(default=True, description="whether the GRU also runs backward")
    kernel: Count = Field(default=32, description="input bins stacked into one GRU input")
    stride: Count = Field(default=4, description="bins from one GRU input to the next")
    dropout: BelowOne = Field(
        default=0.4, description="dropout between GRU layers; unused with one layer"
    )
    input_dropout: BelowOne = Field(default=0.0, description="dropout on the GRU's inputs")
    layer_norm: Flag = Field(
        default=False, description="LayerNorm over the features of each bin, after the day layer"
    )
    smoothing_width: NotNegative = Field(
        default=2.0,
        description="standard deviation of the Gaussian smoothing in bins; 0: no smoothing",
    )
    smoothing_kernel: Count = Field(default=20, description="taps of the smoothing, in bins")
    classes: Count = Field(
        default=40,
        description="39 ARPAbet phonemes and SIL, labelled 1..40; 0 is the CTC blank",
    )
    padding: Literal["masked", "reference"] = Field(
        default="masked",
        description=(
            "masked: a sentence scores the same alone and in any batch. "
            "reference: noise, smoothing and GRU run into the padding, as in neural_seq_decoder, "
            "whose scores depend on the batch"
        ),
    )


class OptimizerConfig(Settings):
    name: Literal["adam", "adamw", "sgd"] = Field(default="adam", description="update rule")
    lr: Positive = Field(default=0.02, description="learning rate; schedules scale it")
    eps: Positive = Field(
        default=0.1,
        description=(
            "adam, adamw: added to the denominator. The baseline has 0.1, not PyTorch's 1e-8, "
            "and at lr 0.02 that makes the difference"
        ),
    )
    beta1: BelowOne = Field(default=0.9, description="adam, adamw: decay of the first moment")
    beta2: BelowOne = Field(default=0.999, description="adam, adamw: decay of the second moment")
    momentum: BelowOne = Field(default=0.9, description="sgd")
    nesterov: Flag = Field(default=False, description="sgd: Nesterov momentum")
    weight_decay: NotNegative = Field(
        default=1e-5, description="L2 in the gradient for adam and sgd, decoupled for adamw"
    )
    grad_clip_norm: Positive | None = Field(
        default=None, description="largest gradient norm; null: gradients are not clipped"
    )
    ema_decay: BelowOne | None = Field(
        default=None,
        description="decay of the exponentially averaged weights, which are scored; "
        "null: the weights themselves are scored",
    )

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.name == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError("optimizer.nesterov needs optimizer.momentum above 0")
        return self


class ScheduleConfig(Settings):
    name: Literal["constant", "linear", "warmup-cosine", "plateau"] = Field(
        default="constant", description="how the learning rate changes"
    )
    end_factor: Annotated[Real, Field(gt=0, le=1)] = Field(
        default=0.01, description="linear, warmup-cosine: last learning rate / optimizer.lr"
    )
    warmup: Fraction = Field(
        default=0.1,
        description="warmup-cosine: fraction of the steps in which the learning rate rises from 0",
    )
    patience: Whole = Field(
        default=8, ge=0, description="plateau: evaluations without a better PER"
    )
    factor: Annotated[Real, Field(gt=0, lt=1)] = Field(
        default=0.5, description="plateau: the learning rate is multiplied by this"
    )
    min_lr: NotNegative = Field(default=1e-5, description="plateau: lowest learning rate")


class AugmentConfig(Settings):
    white_noise_sd: NotNegative = Field(
        default=0.8, description="standard deviation per value; features have unit variance"
    )
    constant_offset_sd: NotNegative = Field(
        default=0.2, description="standard deviation per sentence and feature"
    )
    time_masks: Whole = Field(default=0, ge=0, description="time masks per sentence, at most")
    time_mask_p: Fraction = Field(default=0.1, description="probability of each time mask")
    time_mask_width: Count = Field(default=40, description="bins per time mask, at most")
    feature_masks: Whole = Field(default=0, ge=0, description="feature masks per sentence, at most")
    feature_mask_p: Fraction = Field(default=0.1, description="probability of each feature mask")
    feature_mask_width: Count = Field(default=12, description="features per mask, at most")


class DecoderConfig(Config):
    """The configuration of one training of the built-in decoder."""

    steps: Whole = Field(default=10_000, ge=0, description="optimizer updates of a whole training")
    evaluate_every: Count = Field(default=100, description="updates between two evaluations")
    seed: Whole = Field(default=0, ge=0, description="seed of everything that is drawn at random")
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    augment: AugmentConfig = AugmentConfig()
    batch_size: Count = Field(default=64, description="sentences per batch")
    accumulation: Count = Field(
        default=1, description="batches per update; their gradients are averaged"
    )
    batches: Literal["similar", "random"] = Field(
        default="similar",
        description=(
            "random: each batch is drawn on its own, as in neural_seq_decoder. "
            "similar: several such batches are pooled and regrouped by length"
        ),
    )
    precision: Literal["tf32", "fp32", "bf16"] = Field(
        default="tf32",
        description=(
            "of matrix products on CUDA. tf32 is what the GRU of neural_seq_decoder uses; "
            "bf16 is autocast over tf32, except for the GRU, which stays in tf32"
        ),
    )
