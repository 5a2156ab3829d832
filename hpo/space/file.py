"""A study file: YAML, read with care and checked as far as that needs no trainer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from hpo.errors import SpecError, shortened, shown
from hpo.settings import (
    MAX_BYTES,
    Settings,
    check_size,
    children,
    explain,
    unknown,
)
from hpo.space.parameter import Parameter
from hpo.space.sections import DEFAULT_POLICY, Contrast, Policy, Question
from hpo.space.stopping import OwnPast
from hpo.space.upgrade import REMOVED_POLICIES
from hpo.space.yaml_text import YamlFault, is_null, parse_yaml
from hpo.trainer import DEFAULT_TRAINER

# With these begins a text in YAML that stands for another one.
NOT_PLAIN = ('"', "'", "|", ">", "!", "&")


class Profile(Settings):
    """Overlays the file, field by field; its starts come after those of the file."""

    base: dict[str, Any] = {}
    starts: dict[str, dict[str, Any]] = {}
    budget: dict[str, Any] = {}
    sampler: dict[str, Any] = {}
    validation: dict[str, Any] = {}


class SpaceFile(Settings):
    """A study file. The trainer and the configurations that it names are not checked yet."""

    trainer: str = DEFAULT_TRAINER
    script: dict[str, Any] | None = None
    question: str = ""
    questions: list[Question] = []
    base: dict[str, Any] = {}
    parameters: dict[str, Parameter] = Field(min_length=1)
    starts: dict[str, dict[str, Any]] = {}
    budget: dict[str, Any] = {}
    attempts: dict[str, Any] = {}
    weights: dict[str, Any] = {}
    policy: Policy = DEFAULT_POLICY
    sampler: dict[str, Any] = {}
    validation: dict[str, Any] = {}
    stopping: OwnPast | None = Field(
        default=OwnPast(), description="null: only values that are not finite stop a trial"
    )
    profiles: dict[str, Profile] = {}

    @model_validator(mode="after")
    def _has_one_trainer(self) -> Self:
        if self.script is None:
            return self
        if "trainer" in self.model_fields_set:
            raise ValueError(
                "has both script: and trainer:. Valid: one of them; a script needs no trainer"
            )
        if "validation" in self.model_fields_set:
            raise ValueError(
                "has both script: and validation:. A script holds out its own validation data: "
                "remove validation:"
            )
        return self

    @field_validator("policy", mode="before")
    @classmethod
    def _is_offered(cls, policy: Any) -> Any:
        if isinstance(policy, str) and policy in REMOVED_POLICIES:
            raise ValueError(f"{policy} was removed. Use {REMOVED_POLICIES[policy]}")
        return policy

    def sections(self, overlay: Profile) -> dict[str, dict[str, Any]]:
        """The sections whose fields a profile may overlay or the file may leave out, by name."""
        return {
            "budget": self.budget | overlay.budget,
            "attempts": self.attempts,
            "weights": self.weights,
            "sampler": self.sampler | overlay.sampler,
            "validation": self.validation | overlay.validation,
        }


def read_file(path: Path) -> SpaceFile:
    """Read a study file.

    Raises SpecError, one line with the place and what is valid.
    """
    tree = _tree(path)
    try:
        return SpaceFile.model_validate(tree)
    except ValidationError as error:
        for fault in error.errors():
            if fault["type"] == "extra_forbidden":
                raise SpecError(_unknown_field(path, fault["loc"])) from None
        raise SpecError(explain(error, f"{path}: ")) from None


def value_in_text(text: str, place: str) -> Any:
    """A value as a study file would have it. Raises SpecError."""
    try:
        value = parse_yaml(text)
    except YamlFault:
        raise SpecError(
            f"{shortened(place)}: {shown(text)} is not a value. "
            "Valid: a number, true, false, null or a name"
        ) from None
    check_size(value, children, place)
    is_plain_text = isinstance(value, str) and not text.lstrip().startswith(NOT_PLAIN)
    is_comment = value is None and not is_null(text)
    # A person who types `#fff` means no comment.
    return text.strip() if is_plain_text or is_comment else value


def _tree(path: Path) -> Any:
    try:
        text = _text(path)
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise SpecError(f"{path}: not a text file in UTF-8") from None
    try:
        tree = parse_yaml(text)
    except YamlFault as fault:
        line = f" in line {fault.line}" if fault.line else ""
        raise SpecError(f"{path}: not valid YAML{line}: {fault}") from None
    check_size(tree, children, str(path))
    return tree


def _text(path: Path) -> str:
    """Raises SpecError for a file that is too large to be a study file."""
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise SpecError(
            f"{path}: is larger than {MAX_BYTES // 1_000_000} MB. Give a study file, not data"
        )
    return content.decode("utf-8-sig")


def _unknown_field(path: Path, location: Sequence[int | str]) -> str:
    """The message for a field that does not exist. location: as pydantic gives it."""
    parts = [str(part) for part in location]
    above = parts[:-1]
    fields = _settings_at(above).model_fields
    valid = tuple(field.alias or name for name, field in fields.items())
    place = f"{path}: {'.'.join(above)}" if above else str(path)
    return unknown(parts[-1], valid, place)


def _settings_at(above: Sequence[str]) -> type[Settings]:
    """The settings at a place of the file, such as those of a parameter at parameters.NAME."""
    if not above:
        return SpaceFile
    # questions.INDEX.compare.INDEX
    if len(above) == 4:
        return Contrast
    if len(above) != 2:
        return OwnPast
    if above[0] == "profiles":
        return Profile
    if above[0] == "questions":
        return Question
    return Parameter
