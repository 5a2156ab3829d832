"""StudySpec: the search space, the starts and the budget, read from a YAML file and checked whole before anything runs.

load_spec finds the file, overlays a profile and the --set values on its base, and gives a frozen value that is stored with
the study. The README section "Search spaces" documents the format.
"""

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from hpo.errors import SpecError
from hpo.settings import Config, Count, Flag, Real, Settings, Whole, explain, unknown
from hpo.space.budget import Budget
from hpo.space.stopping import OwnPast
from hpo.space.upgrade import REMOVED_POLICIES
from hpo.trainer import (
    DEFAULT_TRAINER,
    SCRIPT_TRAINER,
    Metric,
    SectionOfFile,
    Trainer,
    load_maker,
    load_trainer,
    make_trainer,
    offered,
)

# Places of a spec that no default of ours can fill.
ALWAYS_WRITTEN = (
    "space",
    "profile",
    "parameters.",
    "starts.",
    "child",
    "metric.direction",
    "metric.bounded",
    "script.",
)
# What may change in the section of a script while its study goes on: none of it changes what a training gives. The
# state of the code has a version of its own.
FREE_OF_SCRIPTS = ("code", "resume", "grace_seconds", "silence_seconds", "log_megabytes")
DEMO_PROFILE = "demo"  # taken when no data are given
_package = Path(__file__).parents[1]
BUNDLED = next(
    (d for d in (_package / "search_spaces", _package.parent / "search_spaces") if d.is_dir()),
    _package / "search_spaces",
)


class Parameter(Settings):
    """What may vary in one field: a range (`low`, `high`, `log`) or a list (`choices`).

    `when` maps another parameter, declared before, to those of its choices for which this one exists.
    """

    low: Real | None = None
    high: Real | None = None
    log: Flag = False
    choices: list[Any] | None = None
    when: dict[str, list[Any]] = {}
    writes: list[str] | None = Field(
        default=None,
        description="the fields of a script that take the value, if not the one of this name",
    )

    @model_validator(mode="after")
    def _range_or_choices(self) -> Self:
        if self.choices is not None:
            if (self.low, self.high, self.log) != (None, None, False):
                raise ValueError(
                    "has choices and a range. Valid: {choices: [...]} or {low: .., high: .., log: true}"
                )
            if len(self.choices) < 2:
                raise ValueError(
                    f"needs 2 choices or more, has {self.choices}. To fix a value put it into base"
                )
            return self
        if self.low is None or self.high is None:
            raise ValueError("needs low and high, or choices")
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low:g} with log: true. Valid: above 0")
        return self

    def contains(self, value: Any) -> bool:
        if self.choices is not None:
            return any(value == choice and type(value) is type(choice) for choice in self.choices)
        assert self.low is not None and self.high is not None
        return (
            isinstance(value, (int, float))
            and not isinstance(value, bool)
            and self.low <= value <= self.high
        )

    def halfway(self, value: float) -> float:
        """From a value to the end of the range that is farther from it, on the range's scale; whole for a whole number."""
        assert self.low is not None and self.high is not None
        if self.log:
            far = self.low if value * value > self.low * self.high else self.high
            middle = math.sqrt(max(value, self.low) * far)
        else:
            far = self.low if 2 * value > self.low + self.high else self.high
            middle = (value + far) / 2
        return round(middle) if isinstance(value, int) else middle

    def covers(self, other: "Parameter") -> bool:
        """Whether every value of `other` is one of this, so that a study may be extended from it to this."""
        if self.choices is not None or other.choices is not None:
            return self == other  # Optuna cannot change a study's choices
        assert (
            self.low is not None
            and self.high is not None
            and other.low is not None
            and other.high is not None
        )
        return (
            self.low <= other.low
            and other.high <= self.high
            and (self.log, self.when) == (other.log, other.when)
        )

    def __str__(self) -> str:
        if self.choices is not None:
            return str(self.choices)
        return f"{self.low:g}..{self.high:g}{' (log)' if self.log else ''}"


class Attempts(Settings):
    max_attempts: Count = (
        3  # ended by a lost worker, missing memory or an error; after that many the trial fails
    )
    lease_seconds: Annotated[Real, Field(gt=0)] = (
        600.0  # a worker that shows no step for so long has lost its trial
    )
    checkpoint_seconds: Annotated[Real, Field(ge=0)] = (
        30.0  # the most work that a killed worker loses, rounded up to an evaluation
    )


class Policy(StrEnum):
    """Which trial a free worker trains on; policy.py."""

    GP = "gp"  # configurations by a Gaussian process, all trained to their ends
    TPE = "tpe"  # Optuna's multivariate TPE
    RANDOM = "random"


DEFAULT_POLICY = Policy.GP


class SamplerSettings(Settings):
    startup_trials: Count = (
        10  # spread over the space, starts included, before gp or tpe learn from them
    )
    seed: Whole = Field(default=0, ge=0)


class Validation(Settings):
    fraction: Annotated[Real, Field(gt=0, le=0.5)] = 0.1  # of each day's training sentences
    seed: Whole = Field(default=0, ge=0)


Section = TypeVar("Section", Attempts, Budget, SamplerSettings, Validation)


class Profile(Settings):
    """Overlays the file, field by field; its starts come after the file's."""

    base: dict[str, Any] = {}
    starts: dict[str, dict[str, Any]] = {}
    budget: dict[str, Any] = {}
    sampler: dict[str, Any] = {}
    validation: dict[str, Any] = {}


class Contrast(Settings):
    """Two configurations: `origin` (a start, or best) and the same with other values. A pair of values sets both sides."""

    model_config = ConfigDict(validate_by_name=True)

    origin: str = Field(alias="from")
    change: dict[str, Any] = Field(min_length=1)

    def sides(self, origin: Config, place: str = "") -> tuple[Config, Config]:
        """(before, after). Raises SpecError."""
        pairs = {
            name: value if isinstance(value, list) and len(value) == 2 else [None, value]
            for name, value in self.change.items()
        }
        given = {name for name, value in self.change.items() if isinstance(value, list)}
        before = origin.with_values(
            {name: pair[0] for name, pair in pairs.items() if name in given}, place
        )
        return before, before.with_values({name: pair[1] for name, pair in pairs.items()}, place)


class Question(Settings):
    """What a lab wants to know, as contrasts that `hpo ablate --questions` measures."""

    ask: str
    compare: list[Contrast] = Field(min_length=1)


class SpaceFile(Settings):
    trainer: str = DEFAULT_TRAINER
    script: dict[str, Any] | None = None
    question: str = ""
    questions: list[Question] = []
    base: dict[str, Any] = {}
    parameters: dict[str, Parameter] = Field(min_length=1)
    starts: dict[str, dict[str, Any]] = {}
    budget: dict[str, Any] = {}
    attempts: dict[str, Any] = {}
    policy: Policy = DEFAULT_POLICY
    sampler: dict[str, Any] = {}
    validation: dict[str, Any] = {}
    stopping: OwnPast | None = OwnPast()  # null: only what is not finite stops
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
                "has both script: and validation:. A script cuts its own validation part: take validation: out"
            )
        return self

    @field_validator("policy", mode="before")
    @classmethod
    def _is_offered(cls, policy: Any) -> Any:
        if isinstance(policy, str) and policy in REMOVED_POLICIES:
            raise ValueError(f"{policy} was removed. Take {REMOVED_POLICIES[policy]}")
        return policy


class Child(Settings):
    """Marks a study that retrains given configurations of another: it draws none of its own. No file can say this."""

    parent: str
    unique: str  # the parent's
    score: tuple[
        Literal["test"], ...
    ] = ()  # what its complete trials are scored on beside validation


class StudySpec(Settings):
    """One study, complete: base configuration, parameters, starts, budget and the rest.

    trainer: as `load_trainer` takes it; a file with its whole path.
    script: the complete section that the trainer is made of, where the study's file has one.
    metric: the trainer's, so that whoever only reads the study need not load the trainer.
    base: dotted name -> value, every field.
    written: the places of what a person wrote, beside ALWAYS_WRITTEN; None: not known.
    """

    space: str
    trainer: str = DEFAULT_TRAINER
    script: dict[str, Any] | None = None
    metric: Metric
    profile: str | None = None
    question: str = ""
    questions: list[Question] = []
    base: dict[str, Any]
    parameters: dict[str, Parameter]
    starts: dict[str, dict[str, Any]]
    budget: Budget
    attempts: Attempts = Attempts()
    policy: Policy = DEFAULT_POLICY
    sampler: SamplerSettings
    validation: Validation
    stopping: OwnPast | None
    child: Child | None = None
    written: tuple[str, ...] | None = None

    def load_trainer(self) -> Trainer:
        """Raises SpecError."""
        return _trainer_of(self.trainer, self.script)

    def offered(self, name: str, what: str) -> Any:
        """What its trainer offers beyond training; see `hpo.trainer.offered`. Raises SpecError."""
        return offered(self.load_trainer(), self.trainer, name, what)

    def config(self, values: Mapping[str, Any] | None = None, place: str = "") -> Config:
        """The base with some fields replaced, as a configuration of its trainer, which it loads.

        values: dotted name -> value. place: where they come from, for the message. Raises SpecError.
        """
        base = self.load_trainer().config().with_values(self.base)
        return base.with_values(values or {}, place)

    def digest(self) -> str:
        """Changes with anything that changes results or budget; not with what is asked about them."""
        text = json.dumps(_leaves(self._compared()), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _compared(self) -> dict[str, Any]:
        """What two specs of one study have in common. A trainer's file may have moved: its code has a version of its own."""
        values = self.model_dump(mode="json", exclude={"question", "questions", "written"})
        values["trainer"] = self.trainer.rpartition("/")[2]
        if self.script is not None:
            values["script"] = {
                key: value for key, value in self.script.items() if key not in FREE_OF_SCRIPTS
            }
        return values

    def extremes(self) -> list[Config]:
        """The base, and the base with each end or choice of each parameter: data that fit them all fit every trial.

        Values that exclude each other are left out.
        """
        found = [self.config()]
        for name, parameter in self.parameters.items():
            parents = {parent: allowed[0] for parent, allowed in parameter.when.items()}
            for value in parameter.choices or (parameter.low, parameter.high):
                with suppress(SpecError):
                    found.append(self.config(parents | {name: value}))
        return found

    def others(self) -> dict[str, Any]:
        """Another value than the base's for each parameter that exists in the base: halfway to the farther end, or another
        choice.
        """
        found: dict[str, Any] = {}
        for name in self.existing(self.base):
            parameter, value = self.parameters[name], self.base[name]
            if parameter.choices is not None:
                found[name] = next(choice for choice in parameter.choices if choice != value)
            else:
                found[name] = parameter.halfway(value)
        return found

    def active(self, name: str, values: Mapping[str, Any]) -> bool:
        """Whether parameter `name` exists, given the values of those before it."""
        return all(
            parent in values and values[parent] in allowed
            for parent, allowed in self.parameters[name].when.items()
        )

    def start_values(self, start: str) -> dict[str, Any]:
        """A start as a value for every parameter that exists in it."""
        return self.existing(self.base | self.starts[start])

    def existing(self, flat: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters that exist in a configuration, with their values."""
        values: dict[str, Any] = {}
        for name in self.parameters:
            if self.active(name, values):
                values[name] = flat[name]
        return values

    def differences(self, other: "StudySpec") -> list[str]:
        """Where two specs differ, as dotted places.

        Of what neither says nothing is compared, so that a default of ours may change. A spec that an earlier version stored does
        not know what a person wrote: then all of it is compared.
        """
        here, there = _leaves(self._compared()), _leaves(other._compared())
        places = dict.fromkeys([*here, *there])
        if self.written is not None and other.written is not None:
            said = {*self.written, *other.written}
            places = {
                place: None for place in places if place in said or place.startswith(ALWAYS_WRITTEN)
            }
        return [place for place in places if here.get(place, _leaves) != there.get(place, _leaves)]

    def reopened(self, stored: "StudySpec") -> "StudySpec":
        """A study's spec when it is launched again with this one: what it has, with what may change."""
        changed = {
            name: getattr(self, name)
            for name in ("question", "questions", "trainer", "script", "written")
        }
        return stored.model_copy(update=changed)

    def extended(self, stored: "StudySpec") -> "StudySpec":
        """A study's spec when it is extended to this one."""
        return self.reopened(stored).model_copy(
            update={"budget": self.budget, "parameters": self.parameters}
        )

    def extends(self, other: "StudySpec") -> bool:
        """Whether only the budget or the ranges grew since `other`."""
        may_grow = ("budget.", "parameters.")
        return (
            all(place.startswith(may_grow) for place in self.differences(other))
            and self.budget.covers(other.budget)
            and list(self.parameters) == list(other.parameters)
            and all(self.parameters[name].covers(old) for name, old in other.parameters.items())
        )


def _leaves(tree: Any, place: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {place: tree}
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= _leaves(value, f"{place}.{key}" if place else key)
    return leaves


def find_space(space: str) -> Path:
    """A path, or a name looked up in ./search_spaces and among the bundled spaces. Raises SpecError."""
    path = Path(space)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise SpecError(f"--study {space}: no such file")
        return path
    folders = (Path("search_spaces"), BUNDLED)
    found = [folder / f"{space}.yaml" for folder in folders if (folder / f"{space}.yaml").is_file()]
    if not found or "/" in space:
        names = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
        raise SpecError(f"{unknown(space, tuple(names), '--study')}; or the path of a YAML file")
    return found[0]


def has_profile(path: Path, profile: str) -> bool:
    return profile in _read(path).profiles


def load_spec(path: Path, profile: str | None = None, settings: Mapping[str, Any] | None = None, trials: int | None = None,
              policy: str | None = None) -> StudySpec:  # fmt: skip
    """Read and check a space; `profile` and `settings` (dotted name -> value) overlay its base, in this order.

    trials, policy: override the budget's and the file's.

    Raises SpecError, one line with the place and what is valid.
    """
    file = _read(path)
    try:
        return _spec_of(path, file, profile, settings or {}, trials, policy)
    except SpecError as error:
        names_no_trainer = file.script is None and "trainer" not in file.model_fields_set
        if names_no_trainer and "there is no" in str(error):
            raise SpecError(
                f"{error}. (The space names no trainer, so it is of the built-in decoder)"
            ) from None
        raise


def _spec_of(
    path: Path,
    file: SpaceFile,
    profile: str | None,
    settings: Mapping[str, Any],
    trials: int | None,
    policy: str | None,
) -> StudySpec:
    overlay = Profile()
    if profile is not None:
        if profile not in file.profiles:
            raise SpecError(
                unknown(
                    profile,
                    tuple(file.profiles) or ("(this space has none)",),
                    f"{path}: --profile",
                )
            )
        overlay = file.profiles[profile]
    reference, script = _trainer_in(path, file)
    trainer = _trainer_of(reference, script)
    base = trainer.config().with_values(file.base, f"{path}: base.")
    base = base.with_values(overlay.base, f"{path}: profiles.{profile}.base.")
    for name in settings:
        if name in file.parameters:
            raise SpecError(f"--set {name}: this space searches {name} ({file.parameters[name]}). "
                            f"To fix it, take it out of `parameters` in a copy of {path}")  # fmt: skip
    base = base.with_values(settings, "--set ")
    spec = StudySpec(
        space=path.stem,
        trainer=reference,
        script=script,
        metric=trainer.metric,
        profile=profile,
        question=file.question.strip(),
        questions=file.questions,
        base=base.flat(),
        parameters={name: _checked(path, file, base, name) for name in file.parameters},
        starts=file.starts | overlay.starts,
        budget=_section(
            path,
            Budget,
            "budget",
            file.budget | overlay.budget | ({} if trials is None else {"trials": trials}),
        ),
        attempts=_section(path, Attempts, "attempts", file.attempts),
        policy=file.policy if policy is None else _policy(policy),
        sampler=_section(path, SamplerSettings, "sampler", file.sampler | overlay.sampler),
        validation=_section(path, Validation, "validation", file.validation | overlay.validation),
        stopping=file.stopping and file.stopping.of(trainer.metric),
        written=_written(file, overlay, settings, trials, policy),
    )
    starts = {name: _checked_start(path, spec, name) for name in spec.starts}
    spec = spec.model_copy(update={"starts": starts})
    for index, question in enumerate(spec.questions):
        for contrast in question.compare:
            _check_contrast(f"{path}: questions.{index}.compare", spec, contrast)
    return spec


def _written(
    file: SpaceFile,
    overlay: Profile,
    settings: Mapping[str, Any],
    trials: int | None,
    policy: str | None,
) -> tuple[str, ...]:
    """The places of a spec that a person wrote: in the file, in its profile and on the command line."""
    places = {f"base.{name}" for name in (*file.base, *overlay.base, *settings)}
    for section in ("budget", "attempts", "sampler", "validation"):
        names = {*getattr(file, section), *getattr(overlay, section, {})}
        places |= {f"{section}.{name}" for name in names}
    if trials is not None:
        places.add("budget.trials")
    if policy is not None or "policy" in file.model_fields_set:
        places.add("policy")
    if "trainer" in file.model_fields_set:
        places.add("trainer")
    if "stopping" in file.model_fields_set:
        rule = file.stopping
        places |= (
            {"stopping"} if rule is None else {f"stopping.{name}" for name in rule.model_fields_set}
        )
    return tuple(sorted(places))


def _trainer_in(path: Path, file: SpaceFile) -> tuple[str, dict[str, Any] | None]:
    """The reference of the trainer that a study file names, and the complete section that it is made of, if there is one."""
    if file.script is None:
        for name, parameter in file.parameters.items():
            if parameter.writes is not None:
                raise SpecError(
                    f"{path}: parameters.{name}.writes: it is for studies of a script, and this file has no script:"
                )
        return _located(file.trainer, path), None
    maker = load_maker(SCRIPT_TRAINER)
    section = SectionOfFile(path.absolute(), file.script, file.parameters, file.base, file.starts)
    return SCRIPT_TRAINER, maker.resolve(section)


def _trainer_of(reference: str, script: Mapping[str, Any] | None) -> Trainer:
    if script is None:
        return load_trainer(reference)
    return make_trainer(reference, json.dumps(script))


def _located(reference: str, space: Path) -> str:
    """A trainer's file is named as seen from the space's folder; workers elsewhere need its whole path."""
    file, colon, name = reference.rpartition(":")
    if not file.endswith(".py"):
        return reference
    return f"{(space.parent / file).resolve()}{colon}{name}"


def _check_contrast(place: str, spec: StudySpec, contrast: Contrast) -> None:
    """Raises SpecError for an origin or a field that does not exist, and for sides that are the same."""
    if contrast.origin not in (*spec.starts, "best"):
        raise SpecError(unknown(contrast.origin, (*spec.starts, "best"), f"{place}.from"))
    before, after = contrast.sides(
        spec.config(spec.starts.get(contrast.origin, {})), f"{place}.change: "
    )
    if before == after and contrast.origin != "best":
        raise SpecError(
            f"{place}.change: {contrast.change} changes nothing, {contrast.origin} has these values. Valid: other ones"
        )


def _section(path: Path, model: type[Section], name: str, values: Mapping[str, Any]) -> Section:
    for key in values:
        if key not in model.model_fields:
            raise SpecError(unknown(key, tuple(model.model_fields), f"{path}: {name}"))
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise SpecError(explain(error, f"{path}: {name}.")) from None


def _policy(name: str) -> Policy:
    if name in REMOVED_POLICIES:
        raise SpecError(f"--policy {name}: it was removed. Take {REMOVED_POLICIES[name]}")
    if name not in set(Policy):
        raise SpecError(unknown(name, tuple(Policy), "--policy"))
    return Policy(name)


def parse_settings(
    settings: tuple[str, ...],
    place: str = "--set ",
    names: Collection[str] | None = None,
    valid: Collection[str] = (),
) -> dict[str, Any]:
    """`("model.units=128",)` -> {"model.units": 128}; values are read as in a study file.

    names: that there are; None: whoever takes the values checks their names. valid: those of them that make sense here, for
    the message. Raises SpecError.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if names is not None and name not in names:
            raise SpecError(unknown(name, tuple(valid or names), f"{place}{setting}"))
        if not equals:
            raise SpecError(f"{place}{setting}: no value. Valid: {place}{name}=VALUE")
        try:
            values[name] = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError):  # PyYAML raises ValueError for a date that is none
            raise SpecError(
                f"{place}{setting}: {text!r} is no value. Valid: a number, true, false, null or a name"
            ) from None
    return values


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML lets the last of two equal keys win silently; in a search space that is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"{twice!r} is there twice", node.start_mark
            )
        return super().construct_mapping(node, deep)  # type: ignore[no-any-return, unused-ignore]


def _read(path: Path) -> SpaceFile:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)  # noqa: S506  (a SafeLoader)
        return SpaceFile.model_validate(tree)
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise SpecError(f"{path}: not a text file in UTF-8") from None
    except ValidationError as error:
        strange = next(
            (found["loc"] for found in error.errors() if found["type"] == "extra_forbidden"), None
        )
        if strange:
            *above, key = (str(part) for part in strange)
            sections: dict[str, type[Settings]] = {"profiles": Profile, "questions": Question}
            depths: dict[int, type[Settings]] = {
                0: SpaceFile,
                2: sections.get(above[0] if above else "", Parameter),
                4: Contrast,
            }
            level = depths.get(len(above), OwnPast)
            valid = tuple(field.alias or name for name, field in level.model_fields.items())
            raise SpecError(
                unknown(key, valid, f"{path}: {'.'.join(above)}".rstrip(": "))
            ) from None
        raise SpecError(explain(error, f"{path}: ")) from None
    except (
        yaml.YAMLError,
        ValueError,
    ) as error:  # PyYAML raises ValueError for a date that is none
        mark, problem = (
            getattr(error, "problem_mark", None),
            getattr(error, "problem", None) or error,
        )
        raise SpecError(
            f"{path}: not valid YAML{f' in line {mark.line + 1}' if mark else ''}: {problem}"
        ) from None


def _checked(path: Path, file: SpaceFile, base: Config, name: str) -> Parameter:
    """The parameter with its choices as the field's type. Raises SpecError for bounds or conditions that cannot be."""
    place = f"{path}: parameters.{name}"
    base.check_name(name, place)
    parameter = file.parameters[name]
    declared = list(file.parameters)
    when: dict[str, list[Any]] = {}
    for parent, allowed in parameter.when.items():
        earlier = {
            other: file.parameters[other].choices for other in declared[: declared.index(name)]
        }
        if earlier.get(parent) is None:
            with_choices = tuple(other for other, found in earlier.items() if found is not None)
            raise SpecError(
                unknown(
                    parent,
                    with_choices,
                    f"{place}.when (a parameter with choices, declared before)",
                )
            )
        choices, when[parent] = (
            [
                base.with_values({parent: value}, f"{place}.when: ").flat()[parent]
                for value in values
            ]
            for values in (earlier[parent] or [], allowed)
        )
        strange = [value for value in when[parent] if value not in choices]
        if strange or not allowed:
            raise SpecError(
                f"{place}.when.{parent}: {strange or allowed} among its choices? Valid: {choices}"
            )
    parents = {parent: allowed[0] for parent, allowed in when.items()}

    def as_field(value: Any, what: str) -> Any:
        return base.with_values(parents | {name: value}, f"{place} {what}: ").flat()[name]

    if parameter.choices is not None:
        choices = [as_field(value, f"choice {value}") for value in parameter.choices]
        return parameter.model_copy(update={"choices": choices, "when": when})
    for what in ("low", "high"):
        if isinstance(as_field(getattr(parameter, what), what), bool | str | None):
            raise SpecError(f"{place}: a range for a field that is no number. Valid: choices")
    return parameter.model_copy(update={"when": when})


def _checked_start(path: Path, spec: StudySpec, start: str) -> dict[str, Any]:
    """The start with its values as the fields' types. Raises SpecError if the space does not contain it."""
    place = f"{path}: starts.{start}"
    config = spec.config(spec.starts[start], f"{place}.").flat()
    values = spec.existing(config)
    for name in spec.starts[start]:
        if name not in values and config[name] != spec.base[name]:
            why = (
                "does not exist with the start's other values"
                if name in spec.parameters
                else "is not searched"
            )
            raise SpecError(
                f"{place}.{name}: {config[name]!r}, but {name} {why}. Valid: the base's {spec.base[name]!r}, or put it under `parameters`"
            )
    for name, value in values.items():
        if not spec.parameters[name].contains(value):
            raise SpecError(
                f"{place}: {name} = {value!r} is outside the space. Valid: {spec.parameters[name]}"
            )
    return {name: config[name] for name in spec.starts[start]}
