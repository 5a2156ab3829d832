"""The `script:` section of a study file: how to start, configure and read a training script."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from hpo.settings import NotNegative, Positive, Settings, Whole
from hpo.trainer import Metric

# Files in the folder of an attempt, in addition to those of the keeper (keeper.py).
METRICS_FILE = "metrics.jsonl"
CONFIG = "hpo-config.json"
CHECKPOINTS = "checkpoints"
COMMAND = "command.sh"
# As `curve.file`: the output of the script.
OUTPUT = "log"
# As a template of a flag: the value adds no word.
OMIT = "omit"
_TEMPLATE_NAMES = {True: "true", False: "false", None: "null"}


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Words = Annotated[list[str], BeforeValidator(_as_list)]


class FlagSettings(Settings):
    """How a value becomes words of the command line: templates with `{name}` and `{value}`."""

    value: Words = Field(description="for all values without a template of their own")
    true: Words | None = Field(default=None, description="for true; `omit` adds no word")
    false: Words | None = Field(default=None, description="for false; `omit` adds no word")
    null: Words | None = Field(default=None, description="for null; `omit` adds no word")

    @model_validator(mode="before")
    @classmethod
    def _read_templates(cls, templates: Any) -> Any:
        """Take a single template, of one or several words, for all values.

        The keys `true:`, `false:` and `null:` become names, because YAML reads them as values.
        """
        if isinstance(templates, (str, list)):
            return {"value": templates}
        if isinstance(templates, dict):
            return {_template_name(key): template for key, template in templates.items()}
        return templates


def _template_name(key: Any) -> Any:
    return key if isinstance(key, str) else _TEMPLATE_NAMES.get(key, key)


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
    """Where a script writes its progress, and how to read it."""

    file: str = Field(
        default=METRICS_FILE,
        description="relative to the attempt's folder; `log`: the output of the script",
    )
    pattern: Words = Field(
        default=[],
        description="regular expressions with named groups, tried on each line in this order",
    )
    names: dict[str, str] = Field(
        default={}, description="step, value, loss, ... -> its key in JSON or its column"
    )
    expression: str = Field(
        default="", description="the value, computed from the row: mean(per_0, per_1)"
    )
    rows: str = Field(
        default="",
        description="the list of rows in a JSON file that is written as a whole",
    )
    take: Literal["last", "best"] = Field(
        default="last", description="the trial's value is the curve's last or best"
    )


class ScriptMetric(Metric):
    """The metric in a study file. A percentage is bounded unless the file says otherwise."""

    @model_validator(mode="before")
    @classmethod
    def _percentages_are_bounded(cls, metric: Any) -> Any:
        if not isinstance(metric, dict):
            return metric
        if str(metric.get("unit", "")).lower() in ("%", "pct", "percentage"):
            raise ValueError("unit: percent is meant: a fraction of 1 that is shown as percent")
        if metric.get("unit") == "percent":
            return {"bounded": True, **metric}
        return metric


class ScriptSettings(Settings):
    """The section as the user writes it."""

    code: str = Field(description="folder or file of the training code")
    command: list[str] = Field(
        min_length=1, description="the program and its words; no shell interprets them"
    )
    resume_words: list[str] = Field(
        default=[], description="further words when the trial resumes from checkpoints"
    )
    config: ConfigFile | None = None
    flag: FlagSettings | None = Field(
        default=None, description="how values become words of the command line"
    )
    environment: dict[str, str] = Field(
        default={}, description="variables of the script's environment"
    )
    fixed: dict[str, Any] = Field(
        default={}, description="fields with the same value in every trial"
    )
    curve: CurveSettings = CurveSettings()
    metric: ScriptMetric
    steps: str | Whole = Field(
        description="the field for the number of steps of a training, or that number"
    )
    seed: Words = Field(
        default=[], description="the field or fields of the seed; without one it does not vary"
    )
    partition: Literal["validation", "test"] = Field(
        default="validation", description="the part of the data that is scored"
    )
    diverged: str = Field(
        default="", description="a pattern in the end of the output that means divergence"
    )
    memory: str = Field(
        default="", description="a pattern in the end of the output that means too little memory"
    )
    resume: Literal["exact", "none"] | Annotated[str, Field(pattern=r"^within ")] | None = Field(
        default=None, description="how well it resumes, as hpo try measures; default: not known"
    )
    gpus: Annotated[Whole, Field(ge=0)] = Field(default=1, description="GPUs for one training")
    grace_seconds: NotNegative = Field(default=30.0, description="time from SIGTERM to SIGKILL")
    silence_seconds: Positive = Field(
        default=3600.0, description="a script that writes nothing for this long hangs"
    )
    log_megabytes: Positive = Field(
        default=64.0, description="output that an attempt may add to the trial's log"
    )

    @field_validator("environment", mode="before")
    @classmethod
    def _variables_are_text(cls, variables: Any) -> Any:
        if not isinstance(variables, dict):
            return variables
        return {name: str(value) for name, value in variables.items()}
