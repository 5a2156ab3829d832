"""DecoderConfig: every number that shapes a training, with one default each.

The defaults are the public `neural_seq_decoder` baseline (PER 20.46 % on the Brain-to-Text '24 data). A field is
addressed by its dotted name (`optimizer.lr`) in study files, on the command line and in reports.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hpo.settings import Config, Count, Flag, Fraction, NotNegative, Positive, Real, Settings, Whole


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
    eps: Positive = (
        0.1  # adam, adamw. The baseline's 0.1, not PyTorch's 1e-8: at lr 0.02 it decides
    )
    beta1: Annotated[Real, Field(ge=0, lt=1)] = 0.9  # adam, adamw
    beta2: Annotated[Real, Field(ge=0, lt=1)] = 0.999  # adam, adamw
    momentum: Annotated[Real, Field(ge=0, lt=1)] = 0.9  # sgd
    nesterov: Flag = False  # sgd
    weight_decay: NotNegative = 1e-5  # L2 in the gradient for adam and sgd, decoupled for adamw
    grad_clip_norm: Positive | None = None
    ema_decay: Annotated[Real, Field(ge=0, lt=1)] | None = (
        None  # score exponentially averaged weights; null: the weights
    )

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.name == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError("optimizer.nesterov needs optimizer.momentum above 0")
        return self


class ScheduleConfig(Settings):
    name: Literal["constant", "linear", "warmup-cosine", "plateau"] = "constant"
    end_factor: Annotated[Real, Field(gt=0, le=1)] = (
        0.01  # linear, warmup-cosine: last lr / optimizer.lr
    )
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


class DecoderConfig(Config):
    """What one training of the built-in decoder is."""

    steps: Whole = Field(default=10_000, ge=0)  # optimizer updates
    evaluate_every: Count = 100  # steps
    seed: Whole = Field(default=0, ge=0)
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    augment: AugmentConfig = AugmentConfig()
    batch_size: Count = 64  # sentences
    accumulation: Count = 1  # batches per update; their gradients are averaged
    # random: neural_seq_decoder's order. similar: the sentences of POOL such batches, regrouped by length (train.py)
    batches: Literal["similar", "random"] = "similar"
    # of matrix products on CUDA: fp32; tf32; bf16 is autocast over tf32. neural_seq_decoder has tf32 in its GRU
    precision: Literal["tf32", "fp32", "bf16"] = (
        "tf32"  # of CUDA; bf16: all but the GRU, which stays in tf32
    )
