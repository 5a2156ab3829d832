"""The `script:` section of a study file: how a training script is started, configured and read."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from hpo.settings import NotNegative, Positive, Settings, Whole
from hpo.trainer import Metric

# In the folder of an attempt, beside what the keeper writes there (process.py).
METRICS_FILE = "metrics.jsonl"
CONFIG = "hpo-config.json"
CHECKPOINTS = "checkpoints"
COMMAND = "command.sh"
# Of `curve.file`: what the script prints.
OUTPUT = "log"
OMIT = "omit"


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Words = Annotated[list[str], BeforeValidator(_as_list)]


class FlagSettings(Settings):
    """How a value becomes words of the command line. `{name}` and `{value}` are filled in."""

    value: Words = Field(description="for every value that has no template of its own")
    true: Words | None = Field(default=None, description="of true; `omit`: no word")
    false: Words | None = Field(default=None, description="of false; `omit`: no word")
    null: Words | None = Field(default=None, description="of null; `omit`: no word")

    @model_validator(mode="before")
    @classmethod
    def _from_a_template(cls, given: Any) -> Any:
        """One template, in one word or several, is that of every value. YAML reads `true:` as a flag, not as a name."""
        if isinstance(given, (str, list)):
            return {"value": given}
        if isinstance(given, dict):
            names = {True: "true", False: "false", None: "null"}
            return {
                names.get(key, key) if not isinstance(key, str) else key: item
                for key, item in given.items()
            }
        return given


class ConfigFile(Settings):
    """The configuration file that the script reads."""

    origin: str | None = Field(
        default=None, alias="from", description="the file with the base values"
    )
    file: str | None = Field(
        default=None,
        description="its name in the folder of an attempt; default: the name of `from`",
    )

    @model_validator(mode="after")
    def _has_a_name(self) -> Self:
        if self.origin is None and self.file is None:
            raise ValueError("needs from, file or both")
        return self


class CurveSettings(Settings):
    """Where a script writes its progress, and how that is read."""

    file: str = Field(
        default=METRICS_FILE,
        description="seen from the attempt's folder; `log`: what the script prints",
    )
    pattern: Words = Field(
        default=[],
        description="regular expressions with named groups, tried on each line in this order",
    )
    names: dict[str, str] = Field(
        default={}, description="step, value, loss, ... -> what JSON or a column calls it"
    )
    expression: str = Field(
        default="", description="the value, computed of what a row has: mean(per_0, per_1)"
    )
    rows: str = Field(
        default="", description="of a JSON file that is written whole: the name of its list of rows"
    )
    take: Literal["last", "best"] = Field(
        default="last", description="the trial's value is the curve's last or best"
    )


class ScriptMetric(Metric):
    """As a study file says it: a percentage is bounded unless it says otherwise."""

    @model_validator(mode="before")
    @classmethod
    def _percentages_are_bounded(cls, given: Any) -> Any:
        if isinstance(given, dict) and str(given.get("unit", "")).lower() in (
            "%",
            "pct",
            "percentage",
        ):
            raise ValueError("unit: percent is meant: a fraction of 1 that is shown as percent")
        if isinstance(given, dict) and given.get("unit") == "percent":
            return {"bounded": True, **given}
        return given


class ScriptSettings(Settings):
    """The section as a person writes it."""

    code: str = Field(description="folder or file of the training code")
    command: list[str] = Field(
        min_length=1, description="the program and its words; no shell reads them"
    )
    resume_words: list[str] = Field(
        default=[], description="further words when the trial goes on from checkpoints"
    )
    config: ConfigFile | None = None
    flag: FlagSettings | None = Field(
        default=None, description="how values become words of the command line"
    )
    environment: dict[str, str] = Field(
        default={}, description="variables of the script's environment"
    )
    fixed: dict[str, Any] = Field(
        default={}, description="fields that every trial has, and no search changes"
    )
    curve: CurveSettings = CurveSettings()
    metric: ScriptMetric
    steps: str | Whole = Field(
        description="the field that says how many steps a training has, or their number"
    )
    seed: Words = Field(
        default=[], description="the field of the seed, or several; without one it is not varied"
    )
    partition: Literal["validation", "test"] = Field(
        default="validation", description="what the figures are of"
    )
    diverged: str = Field(
        default="", description="a pattern in the end of the output that means divergence"
    )
    memory: str = Field(
        default="", description="a pattern in the end of the output that means too little memory"
    )
    resume: Literal["exact", "none"] | Annotated[str, Field(pattern=r"^within ")] | None = Field(
        default=None, description="what hpo try has measured; default: not known"
    )
    gpus: Annotated[Whole, Field(ge=0)] = Field(default=1, description="that a training takes")
    grace_seconds: NotNegative = Field(default=30.0, description="from SIGTERM to SIGKILL")
    silence_seconds: Positive = Field(
        default=3600.0, description="without a byte written: the script hangs"
    )
    log_megabytes: Positive = Field(
        default=64.0, description="of output that an attempt may add to the trial's log"
    )

    @field_validator("environment", mode="before")
    @classmethod
    def _variables_are_text(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {
            name: value if isinstance(value, str) else str(value) for name, value in given.items()
        }
