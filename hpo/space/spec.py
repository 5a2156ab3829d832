"""One study as values, which are stored with the study. `hpo.space.load` makes them from a file."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal

from pydantic import Field

from hpo.errors import SpecError
from hpo.settings import Config, Settings
from hpo.space.budget import Budget
from hpo.space.parameter import Parameter

# Other rooms import DEFAULT_POLICY and Policy from here.
from hpo.space.sections import DEFAULT_POLICY as DEFAULT_POLICY
from hpo.space.sections import Attempts, KeptWeights, Question, SamplerSettings, Validation
from hpo.space.sections import Policy as Policy
from hpo.space.stopping import OwnPast
from hpo.trainer import (
    DEFAULT_TRAINER,
    Metric,
    Trainer,
    load_trainer,
    make_trainer,
    offered,
)

# Places of a spec that have no default, so that every value is the user's.
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
# Fields of a script's section that may change while its study runs, because they change no result.
# The state of the code has a version of its own.
FREE_OF_SCRIPTS = ("code", "resume", "grace_seconds", "silence_seconds", "log_megabytes")


class Child(Settings):
    """Marks a study that retrains configurations of another study and draws none of its own.

    No study file can set this.
    """

    parent: str
    unique: str = Field(description="the parent's unique name")
    score: tuple[Literal["test"], ...] = Field(
        default=(),
        description="partitions that complete trials are scored on in addition to validation",
    )


class StudySpec(Settings):
    """One study, complete: base configuration, parameters, starts, budget and the rest."""

    space: str
    trainer: str = Field(
        default=DEFAULT_TRAINER,
        description="a reference as `load_trainer` takes it; a file with its whole path",
    )
    script: dict[str, Any] | None = Field(
        default=None,
        description="the complete section that the trainer is made from, if the file has one",
    )
    metric: Metric = Field(
        description="the trainer's, so that reading a study does not need to load the trainer"
    )
    profile: str | None = None
    question: str = ""
    questions: list[Question] = []
    base: dict[str, Any] = Field(description="dotted name -> value, every field")
    parameters: dict[str, Parameter]
    starts: dict[str, dict[str, Any]]
    budget: Budget
    attempts: Attempts = Attempts()
    weights: KeptWeights | None = Field(
        default=None,
        description="null in studies of earlier versions, which kept the weights of all trials",
    )
    policy: Policy = DEFAULT_POLICY
    sampler: SamplerSettings
    validation: Validation
    stopping: OwnPast | None
    child: Child | None = None
    written: tuple[str, ...] | None = Field(
        default=None,
        description="the places that the user wrote, in addition to ALWAYS_WRITTEN; "
        "null in studies of earlier versions, which did not store them",
    )

    def load_trainer(self) -> Trainer:
        """Raises SpecError."""
        return trainer_of(self.trainer, self.script)

    def offered(self, name: str, what: str) -> Any:
        """Something that the trainer offers beyond training; see `hpo.trainer.offered`.

        Raises SpecError if it does not.
        """
        return offered(self.load_trainer(), self.trainer, name, what)

    def config(self, values: Mapping[str, Any] | None = None, place: str = "") -> Config:
        """The base with some fields replaced, as a configuration of the trainer.

        values: dotted name -> value. place: where they come from, for the message.
        Loads the trainer. Raises SpecError.
        """
        base = self.load_trainer().config().with_values(self.base)
        return base.with_values(values or {}, place)

    def digest(self) -> str:
        """Changes with anything that changes results or the budget, but not with the questions."""
        text = json.dumps(_leaves(self.comparable()), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def comparable(self) -> dict[str, Any]:
        """The values in which two specs of one study must agree, JSON-ready.

        Of a trainer's path only the file's name counts: the file may have moved, and its code has
        a version of its own.
        """
        no_results = {"question", "questions", "weights", "written"}
        values = self.model_dump(mode="json", exclude=no_results)
        values["trainer"] = self.trainer.rpartition("/")[2]
        if self.script is not None:
            values["script"] = {
                key: value for key, value in self.script.items() if key not in FREE_OF_SCRIPTS
            }
        return values

    def extremes(self) -> list[Config]:
        """The base, and the base with each end or choice of each parameter.

        Data that fit all of these fit every trial. Values that exclude each other are left out.
        """
        configs = [self.config()]
        for name, parameter in self.parameters.items():
            parents = {parent: allowed[0] for parent, allowed in parameter.when.items()}
            for value in parameter.extremes:
                with suppress(SpecError):
                    configs.append(self.config(parents | {name: value}))
        return configs

    def alternatives(self) -> dict[str, Any]:
        """For each parameter that exists in the base, a value that differs from the base's.

        Of a range it lies halfway to the farther end; of a list it is the first other choice.
        """
        values: dict[str, Any] = {}
        for name, value in self.existing(self.base).items():
            parameter = self.parameters[name]
            if parameter.choices is None:
                values[name] = parameter.halfway(value)
            else:
                values[name] = next(choice for choice in parameter.choices if choice != value)
        return values

    def active(self, name: str, values: Mapping[str, Any]) -> bool:
        """Whether parameter `name` exists, given the values of the parameters before it."""
        conditions = self.parameters[name].when
        return all(
            parent in values and values[parent] in allowed for parent, allowed in conditions.items()
        )

    def start_values(self, start: str) -> dict[str, Any]:
        """A start as a value for every parameter that exists in it."""
        return self.existing(self.base | self.starts[start])

    def existing(self, flat: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters that exist in a configuration, with their values.

        flat: dotted name -> value, every field.
        """
        values: dict[str, Any] = {}
        for name in self.parameters:
            if self.active(name, values):
                values[name] = flat[name]
        return values

    def differences(self, other: "StudySpec") -> list[str]:
        """The dotted places where two specs differ.

        A place that neither user wrote is left out, so that our defaults may change. If one of the
        specs does not know what its user wrote, all places are compared.
        """
        leaves = _leaves(self.comparable())
        other_leaves = _leaves(other.comparable())
        places = list(dict.fromkeys([*leaves, *other_leaves]))
        if self.written is not None and other.written is not None:
            written = {*self.written, *other.written}
            places = [
                place for place in places if place in written or place.startswith(ALWAYS_WRITTEN)
            ]
        return [place for place in places if _differ(place, leaves, other_leaves)]

    def reopened(self, stored: "StudySpec") -> "StudySpec":
        """The stored spec of a study that is launched again with this one.

        It takes over only what may change without changing the study.
        """
        may_change = ["question", "questions", "trainer", "script", "written"]
        # What an earlier version has kept goes only if the user asks for it.
        if stored.weights is not None or "weights.keep" in (self.written or ()):
            may_change.append("weights")
        return stored.model_copy(update={name: getattr(self, name) for name in may_change})

    def extended(self, stored: "StudySpec") -> "StudySpec":
        """The stored spec of a study that is extended to this one."""
        grown = {"budget": self.budget, "parameters": self.parameters}
        return self.reopened(stored).model_copy(update=grown)

    def extends(self, other: "StudySpec") -> bool:
        """Whether only the budget or the ranges grew since `other`."""
        may_grow = ("budget.", "parameters.")
        if not all(place.startswith(may_grow) for place in self.differences(other)):
            return False
        if list(self.parameters) != list(other.parameters):
            return False
        if not self.budget.covers(other.budget):
            return False
        return all(
            self.parameters[name].covers(narrower) for name, narrower in other.parameters.items()
        )


def _leaves(tree: Any, place: str = "") -> dict[str, Any]:
    """Dotted place -> value; an empty group is a value."""
    if not isinstance(tree, dict) or not tree:
        return {place: tree}
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= _leaves(value, f"{place}.{key}" if place else key)
    return leaves


def _differ(place: str, leaves: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    if place not in leaves or place not in others:
        return True
    return bool(leaves[place] != others[place])


def trainer_of(reference: str, script: Mapping[str, Any] | None) -> Trainer:
    if script is None:
        return load_trainer(reference)
    return make_trainer(reference, json.dumps(script))
