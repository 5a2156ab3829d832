"""The smaller sections of a study: attempts, weights, policy, sampler, validation and questions."""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from hpo.settings import Config, Count, NotNegative, Positive, Real, Settings, Whole


class Attempts(Settings):
    max_attempts: Count = Field(
        default=3,
        description="a trial fails after this many attempts that ended with a lost worker, "
        "too little memory or an error",
    )
    lease_seconds: Positive = Field(
        default=600.0, description="a worker that shows no step for this long loses its trial"
    )
    checkpoint_seconds: NotNegative = Field(
        default=30.0,
        description="the most work that a killed worker loses, rounded up to an evaluation",
    )


class KeptWeights(Settings):
    keep: Count | None = Field(
        default=10,
        description="the weights of so many best trials are kept, beside those of starts and of "
        "trials that confirm, ablate and ensemble have used; null: those of all trials",
    )


class Policy(StrEnum):
    """How the configuration of a new trial is chosen; see policy.py."""

    # A Gaussian process proposes configurations, and all are trained to their ends.
    GP = "gp"
    # Optuna's multivariate TPE.
    TPE = "tpe"
    RANDOM = "random"


DEFAULT_POLICY = Policy.GP


class SamplerSettings(Settings):
    startup_trials: Count = Field(
        default=10,
        description="trials spread over the space, starts included, before gp or tpe learn "
        "from them",
    )
    seed: Whole = Field(default=0, ge=0)


class Validation(Settings):
    fraction: Annotated[Real, Field(gt=0, le=0.5)] = Field(
        default=0.1, description="of each day's training sentences"
    )
    seed: Whole = Field(default=0, ge=0)


class Contrast(Settings):
    """Two configurations: `origin` (a start, or best), and the same with other values.

    A pair of values in `change` sets both sides.
    """

    model_config = ConfigDict(validate_by_name=True)

    origin: str = Field(alias="from")
    change: dict[str, Any] = Field(min_length=1)

    def sides(self, origin: Config, place: str = "") -> tuple[Config, Config]:
        """The configurations (before, after) the change.

        place: where the change comes from, for the message. Raises SpecError.
        """
        values_before: dict[str, Any] = {}
        values_after: dict[str, Any] = {}
        for name, value in self.change.items():
            if not isinstance(value, list):
                values_after[name] = value
                continue
            pair = value if len(value) == 2 else [None, value]
            values_before[name], values_after[name] = pair
        before = origin.with_values(values_before, place)
        return before, before.with_values(values_after, place)


class Question(Settings):
    """What a lab wants to know, as contrasts that `hpo ablate --questions` measures."""

    ask: str
    compare: list[Contrast] = Field(min_length=1)
