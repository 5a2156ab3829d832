"""From a study file to a StudySpec.

load_spec reads the file, overlays a profile and the --set values on its base, checks everything
before anything runs, and returns a frozen value that is stored with the study. The README section
"Search spaces" documents the format.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from hpo.errors import SpecError, UnknownFieldError, shown
from hpo.settings import Config, explain, unknown
from hpo.space.budget import Budget
from hpo.space.file import Profile, SpaceFile, read_file, value_in_text
from hpo.space.parameter import Parameter

# Other rooms import DEFAULT_POLICY and Policy from here.
from hpo.space.sections import DEFAULT_POLICY as DEFAULT_POLICY
from hpo.space.sections import Attempts, Contrast, KeptWeights, SamplerSettings, Validation
from hpo.space.sections import Policy as Policy
from hpo.space.spec import StudySpec, trainer_of
from hpo.space.upgrade import REMOVED_POLICIES
from hpo.trainer import (
    SCRIPT_TRAINER,
    SectionOfFile,
    Trainer,
    load_maker,
)

# The profile that is used when no data are given.
DEMO_PROFILE = "demo"


def _bundled_spaces() -> Path:
    """The folder of the bundled spaces: in the installed package, or next to it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "search_spaces"
    in_checkout = package.parent / "search_spaces"
    if not installed.is_dir() and in_checkout.is_dir():
        return in_checkout
    return installed


BUNDLED = _bundled_spaces()

Section = TypeVar("Section", Attempts, Budget, KeptWeights, SamplerSettings, Validation)


def find_space(space: str) -> Path:
    """The file of a space.

    space: a path, or a name that is looked up in ./search_spaces and among the bundled spaces.
    Raises SpecError.
    """
    path = Path(space)
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml"):
        raise SpecError(f"--study {space}: no such file")
    folders = (Path("search_spaces"), BUNDLED)
    if "/" not in space:
        for folder in folders:
            candidate = folder / f"{space}.yaml"
            if candidate.is_file():
                return candidate
    names = {file.stem for folder in folders for file in folder.glob("*.yaml")}
    raise SpecError(
        f"{unknown(space, tuple(sorted(names)), '--study')}; or the path of a YAML file"
    )


def has_profile(path: Path, profile: str) -> bool:
    """Raises SpecError if the file cannot be read."""
    return profile in read_file(path).profiles


def load_spec(
    path: Path,
    profile: str | None = None,
    settings: Mapping[str, Any] | None = None,
    trials: int | None = None,
    policy: str | None = None,
) -> StudySpec:
    """Read and check a space.

    profile, settings (dotted name -> value): overlay its base, in this order.
    trials, policy: override the budget's and the file's.
    Raises SpecError, one line with the place and what is valid.
    """
    file = read_file(path)
    try:
        return _spec_of(path, file, _Overrides(profile, settings or {}, trials, policy))
    except UnknownFieldError as error:
        if file.script is not None or "trainer" in file.model_fields_set:
            raise
        raise SpecError(
            f"{error}. (The space names no trainer, so it uses the built-in decoder)"
        ) from None


@dataclass(frozen=True)
class _Overrides:
    """What the command line sets on top of the file."""

    profile: str | None
    # Dotted name -> value.
    settings: Mapping[str, Any]
    trials: int | None
    policy: str | None


def _spec_of(path: Path, file: SpaceFile, overrides: _Overrides) -> StudySpec:
    overlay = _overlay(path, file, overrides.profile)
    reference, script = _trainer_in(path, file)
    trainer = trainer_of(reference, script)
    base = _base(path, file, overlay, trainer, overrides)
    parameters = {name: _checked(path, file, base, name) for name in file.parameters}
    sections = file.sections(overlay)
    if overrides.trials is not None:
        sections["budget"]["trials"] = overrides.trials
    spec = StudySpec(
        space=path.stem,
        trainer=reference,
        script=script,
        metric=trainer.metric,
        profile=overrides.profile,
        question=file.question.strip(),
        questions=file.questions,
        base=base.flat(),
        parameters=parameters,
        starts=file.starts | overlay.starts,
        budget=_section(path, Budget, "budget", sections),
        attempts=_section(path, Attempts, "attempts", sections),
        weights=_section(path, KeptWeights, "weights", sections),
        policy=file.policy if overrides.policy is None else _policy(overrides.policy),
        sampler=_section(path, SamplerSettings, "sampler", sections),
        validation=_section(path, Validation, "validation", sections),
        stopping=None if file.stopping is None else file.stopping.of(trainer.metric),
        written=_written(file, overlay, overrides),
    )
    starts = {name: _checked_start(path, spec, name) for name in spec.starts}
    spec = spec.model_copy(update={"starts": starts})
    for index, question in enumerate(spec.questions):
        for contrast in question.compare:
            _check_contrast(f"{path}: questions.{index}.compare", spec, contrast)
    return spec


def _overlay(path: Path, file: SpaceFile, profile: str | None) -> Profile:
    if profile is None:
        return Profile()
    if profile not in file.profiles:
        valid = tuple(file.profiles) or ("(this space has none)",)
        raise SpecError(unknown(profile, valid, f"{path}: --profile"))
    return file.profiles[profile]


def _base(
    path: Path, file: SpaceFile, overlay: Profile, trainer: Trainer, overrides: _Overrides
) -> Config:
    """The base configuration, with the profile and the --set values laid over it."""
    base = trainer.config().with_values(file.base, f"{path}: base.")
    base = base.with_values(overlay.base, f"{path}: profiles.{overrides.profile}.base.")
    for name in overrides.settings:
        if name in file.parameters:
            raise SpecError(
                f"--set {name}: this space searches {name} ({file.parameters[name]}). "
                f"To fix it, take it out of `parameters` in a copy of {path}"
            )
    return base.with_values(overrides.settings, "--set ")


def _written(file: SpaceFile, overlay: Profile, overrides: _Overrides) -> tuple[str, ...]:
    """The places that the user wrote: in the file, in its profile and on the command line."""
    places = {f"base.{name}" for name in (*file.base, *overlay.base, *overrides.settings)}
    for section, values in file.sections(overlay).items():
        places |= {f"{section}.{name}" for name in values}
    if overrides.trials is not None:
        places.add("budget.trials")
    if overrides.policy is not None or "policy" in file.model_fields_set:
        places.add("policy")
    if "trainer" in file.model_fields_set:
        places.add("trainer")
    if "stopping" in file.model_fields_set:
        if file.stopping is None:
            places.add("stopping")
        else:
            places |= {f"stopping.{name}" for name in file.stopping.model_fields_set}
    return tuple(sorted(places))


def _trainer_in(path: Path, file: SpaceFile) -> tuple[str, dict[str, Any] | None]:
    """The reference of the trainer that a study file names, and the script's complete section.

    The section is None in a file that has no `script:`.
    """
    if file.script is not None:
        section = SectionOfFile(
            path.absolute(), file.script, file.parameters, file.base, file.starts
        )
        return SCRIPT_TRAINER, load_maker(SCRIPT_TRAINER).resolve(section)
    for name, parameter in file.parameters.items():
        if parameter.writes is not None:
            raise SpecError(
                f"{path}: parameters.{name}.writes: only a study of a script can have it, "
                f"and this file has no script:"
            )
    return _located(file.trainer, path), None


def _located(reference: str, space: Path) -> str:
    """A reference that also holds elsewhere.

    A trainer's file is named relative to the folder of the space; workers need its whole path.
    """
    file, colon, name = reference.rpartition(":")
    if not file.endswith(".py"):
        return reference
    return f"{(space.parent / file).resolve()}{colon}{name}"


def _check_contrast(place: str, spec: StudySpec, contrast: Contrast) -> None:
    """Raises SpecError for an origin or a field that does not exist, and for equal sides."""
    origins = (*spec.starts, "best")
    if contrast.origin not in origins:
        raise SpecError(unknown(contrast.origin, origins, f"{place}.from"))
    origin = spec.config(spec.starts.get(contrast.origin, {}))
    before, after = contrast.sides(origin, f"{place}.change: ")
    if before == after and contrast.origin != "best":
        raise SpecError(
            f"{place}.change: {contrast.change} changes nothing, "
            f"{contrast.origin} has these values. Valid: other values"
        )


def _section(
    path: Path, model: type[Section], name: str, sections: Mapping[str, Mapping[str, Any]]
) -> Section:
    values = sections[name]
    for key in values:
        if key not in model.model_fields:
            raise SpecError(unknown(key, tuple(model.model_fields), f"{path}: {name}"))
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise SpecError(explain(error, f"{path}: {name}.")) from None


def _policy(name: str) -> Policy:
    if name in REMOVED_POLICIES:
        raise SpecError(f"--policy {name}: it was removed. Use {REMOVED_POLICIES[name]}")
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

    names: the names that exist; None if the caller checks them. valid: those of them that make
    sense here, for the message. Raises SpecError.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if names is not None and name not in names:
            raise SpecError(unknown(name, tuple(valid or names), f"{place}{setting}"))
        if not equals:
            raise SpecError(f"{place}{setting}: no value. Valid: {place}{name}=VALUE")
        values[name] = value_in_text(text, f"{place}{setting}")
    return values


def _checked(path: Path, file: SpaceFile, base: Config, name: str) -> Parameter:
    """The parameter, with its choices in the type of the field.

    Raises SpecError for bounds or conditions that cannot hold.
    """
    place = f"{path}: parameters.{name}"
    base.check_name(name, place)
    parameter = file.parameters[name]
    conditions = _checked_conditions(place, file, base, name)
    parents = {parent: allowed[0] for parent, allowed in conditions.items()}

    def as_field(value: Any, what: str) -> Any:
        return base.with_values(parents | {name: value}, f"{place} {what}: ").flat()[name]

    if parameter.choices is not None:
        choices = [as_field(choice, f"choice {shown(choice)}") for choice in parameter.choices]
        _check_distinct(place, choices)
        return parameter.model_copy(update={"choices": choices, "when": conditions})
    low, high = parameter.ends
    for end, what in ((low, "low"), (high, "high")):
        value = as_field(end, what)
        if value is None or isinstance(value, (bool, str)):
            raise SpecError(f"{place}: a range for a field that is not a number. Valid: choices")
    return parameter.model_copy(update={"when": conditions})


def _check_distinct(place: str, choices: list[Any]) -> None:
    """Raises SpecError for choices that the search cannot tell apart, such as 1 and true."""
    for index, choice in enumerate(choices):
        earlier = choices[:index]
        if choice in earlier:
            same = earlier[earlier.index(choice)]
            raise SpecError(
                f"{place}: choice {choice!r} is the same as {same!r}. Valid: each choice once"
            )


def _checked_conditions(
    place: str, file: SpaceFile, base: Config, name: str
) -> dict[str, list[Any]]:
    """The `when` of a parameter, with its values in the types of their fields. Raises SpecError."""
    choices_of: dict[str, list[Any]] = {}
    for other, earlier in file.parameters.items():
        if other == name:
            break
        if earlier.choices is not None:
            choices_of[other] = earlier.choices
    conditions: dict[str, list[Any]] = {}
    for parent, allowed in file.parameters[name].when.items():
        if parent not in choices_of:
            described = f"{place}.when (a parameter with choices, declared before)"
            raise SpecError(unknown(parent, tuple(choices_of), described))
        choices = _as_field(base, parent, choices_of[parent], f"{place}.when: ")
        conditions[parent] = _as_field(base, parent, allowed, f"{place}.when: ")
        if not allowed:
            raise SpecError(f"{place}.when.{parent}: no choice is listed. Valid: {choices}")
        foreign = [value for value in conditions[parent] if value not in choices]
        if foreign:
            given = shown(foreign)
            raise SpecError(
                f"{place}.when.{parent}: {given} is not among its choices. Valid: {choices}"
            )
    return conditions


def _as_field(base: Config, name: str, values: Iterable[Any], place: str) -> list[Any]:
    """The values in the type of the field. Raises SpecError if the field does not take them."""
    return [base.with_values({name: value}, place).flat()[name] for value in values]


def _checked_start(path: Path, spec: StudySpec, start: str) -> dict[str, Any]:
    """The start, with its values in the types of their fields.

    Raises SpecError if the space does not contain it.
    """
    place = f"{path}: starts.{start}"
    written = spec.starts[start]
    config = spec.config(written, f"{place}.").flat()
    values = spec.existing(config)
    for name in written:
        if name in values or config[name] == spec.base[name]:
            continue
        if name in spec.parameters:
            why = "does not exist with the start's other values"
        else:
            why = "is not searched"
        raise SpecError(
            f"{place}.{name}: {shown(config[name])}, but {name} {why}. "
            f"Valid: the base's {shown(spec.base[name])}, or put it under `parameters`"
        )
    for name, value in values.items():
        parameter = spec.parameters[name]
        if not parameter.contains(value):
            raise SpecError(
                f"{place}: {name} = {shown(value)} is outside the space. Valid: {parameter}"
            )
    return {name: config[name] for name in written}
