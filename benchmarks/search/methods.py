"""The searches that are compared.

For speed they use Optuna's in-memory storage in place of Postgres; a test shows that the real Study
gives the same trials. Each begins with the space's starts and draws parameters as `Study` does.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import optuna
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    SuccessiveHalvingPruner,
    WilcoxonPruner,
)
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import TrialState
from simulate import Curves, Rules, Search

from hpo.curve import Point
from hpo.decoder.trainer import PER
from hpo.space.policy import Observation, propose
from hpo.space.sections import SamplerSettings
from hpo.space.spec import Policy, StudySpec
from hpo.space.stopping import OwnPast, Stop
from hpo.study.optuna_internals import suggest
from hpo.study.sampling import distribution, sampler_of

# The demo profile, with which tables are made, may have fewer.
STARTUP_TRIALS = SamplerSettings().startup_trials

optuna.logging.set_verbosity(optuna.logging.WARNING)


def drawn(spec: StudySpec, trial: optuna.Trial) -> dict[str, Any]:
    """The trial's parameters, as Study draws them."""
    values: dict[str, Any] = {}
    for name in spec.parameters:
        if spec.active(name, values):
            values[name] = suggest(trial, name, distribution(spec, name))
    return values


class Memory:
    """An Optuna study in memory."""

    def __init__(self, spec: StudySpec, sampler: Callable[[int], BaseSampler], pruner: BasePruner):
        """sampler: returns the one that draws a trial, given its number."""
        self.spec = spec
        self._sampler = sampler
        self._study = optuna.create_study(pruner=pruner, sampler=RandomSampler(seed=0))
        self._prunes = not isinstance(pruner, NopPruner)
        self._trials: dict[int, optuna.Trial] = {}
        for start in spec.starts:
            self._study.enqueue_trial(spec.start_values(start))

    def ask(self, curves: Curves) -> tuple[int, dict[str, Any]]:
        self._study.sampler = self._sampler(len(self._trials))
        trial = self._study.ask()
        self._trials[trial.number] = trial
        return trial.number, drawn(self.spec, trial)

    def report(self, number: int, evaluation: Point) -> bool:
        trial = self._trials[number]
        trial.report(evaluation.value, evaluation.step)
        return self._prunes and evaluation.step < self.spec.base["steps"] and trial.should_prune()

    def end(self, number: int, per: float | None, stop: Stop | None) -> None:
        trial = self._trials[number]
        if stop is not None:
            trial.set_constraint("diverged", 1.0)
        self._study.tell(trial, per, state=None if per is not None else TrialState.PRUNED)


class Nothing(Rules):
    """Stops nothing and pauses nothing."""

    def judge(self, number: int, curves: Curves) -> Stop | str | None:
        return None

    def resume(self, paused: Curves, curves: Curves) -> int | None:
        return None


class Ours(Nothing):
    """A policy of hpo with its stopping rule: search and rules in one.

    hpo/space/policy.py decides, here as in a real study.
    """

    def __init__(
        self, policy: Policy, spec: StudySpec, seed: int, startup_trials: int = STARTUP_TRIALS
    ):
        self.spec = with_seed(spec, seed, startup_trials).model_copy(update={"policy": policy})
        self._rule = OwnPast()
        self._values: list[dict[str, Any]] = []
        # PER by number; None for a trial that diverged.
        self._ends: dict[int, float | None] = {}

    def _seen(self) -> list[Observation]:
        seen = []
        for number, values in enumerate(self._values):
            per = self._ends.get(number)
            diverged = number in self._ends and per is None
            seen.append(Observation(number, values, per, diverged))
        return seen

    def ask(self, curves: Curves) -> tuple[int, dict[str, Any]]:
        number = len(self._values)
        if number < len(self.spec.starts):
            values = self.spec.start_values(list(self.spec.starts)[number])
        else:
            values = propose(self.spec, self._seen(), self.spec.sampler.seed, number)
        self._values.append(values)
        return number, values

    def report(self, number: int, evaluation: Point) -> bool:
        return False

    def end(self, number: int, per: float | None, stop: Stop | None) -> None:
        self._ends[number] = per

    def judge(self, number: int, curves: Curves) -> Stop | str | None:
        return self._rule.judge(curves[number], PER)


@dataclass(frozen=True)
class Own(Nothing):
    """hpo's stopping rule alone."""

    rule: OwnPast = field(default_factory=OwnPast)

    def judge(self, number: int, curves: Curves) -> Stop | str | None:
        return self.rule.judge(curves[number], PER)


@dataclass(frozen=True)
class EpochThenBest(Nothing):
    """Train `count` trials to step `first`, then the best `keep` of them to the end; and repeat."""

    first: int
    count: int = 40
    keep: int = 4

    def judge(self, number: int, curves: Curves) -> Stop | str | None:
        return "pause" if curves[number][-1].step == self.first else None

    def resume(self, paused: Curves, curves: Curves) -> int | None:
        rounds, begun = divmod(len(curves), self.count)
        if begun or not rounds:
            return None
        last_round = range((rounds - 1) * self.count, rounds * self.count)
        still_paused = [number for number in last_round if number in paused]
        advanced = 0
        for number in last_round:
            curve = curves[number]
            if curve and number not in paused and curve[-1].step > self.first:
                advanced += 1
        if not still_paused or advanced >= self.keep:
            return None
        return min(still_paused, key=lambda number: (paused[number][-1].value, number))


def nothing(search: Search) -> Rules:
    return Nothing()


@dataclass(frozen=True)
class Method:
    """A search to compare, and the rules that go with it."""

    label: str
    search: Callable[[StudySpec, int], Search]
    rules: Callable[[Search], Rules] = nothing
    # Of the repetitions. The methods that the claims are about run all of them.
    share: float = 0.12
    # In trainings. Until then the search continues past the horizon if it is not within 5 % of the
    # best, so that its median can be given.
    longest: float = 0.0


def with_seed(spec: StudySpec, seed: int, startup_trials: int) -> StudySpec:
    changes = {"seed": seed, "startup_trials": startup_trials}
    return spec.model_copy(update={"sampler": spec.sampler.model_copy(update=changes)})


def tpe(spec: StudySpec, seed: int, startup_trials: int = STARTUP_TRIALS) -> Search:
    """hpo's policy of that name, drawn as a study draws."""
    seeded = with_seed(spec, seed, startup_trials).model_copy(update={"policy": Policy.TPE})
    return Memory(seeded, lambda number: sampler_of(seeded, number), NopPruner())


def of_optuna(
    sampler: Callable[[int], BaseSampler], pruner: Callable[[StudySpec], BasePruner]
) -> Callable[[StudySpec, int], Search]:
    """A search with one of Optuna's samplers, given a seed, and one of its pruners."""

    def make(spec: StudySpec, seed: int) -> Search:
        one = sampler(seed)
        return Memory(spec, lambda number: one, pruner(spec))

    return make


def _random(seed: int) -> BaseSampler:
    return RandomSampler(seed=seed)


def _tpe(seed: int) -> BaseSampler:
    return TPESampler(seed=seed)


def _gp(seed: int) -> BaseSampler:
    return GPSampler(seed=seed, warn_independent_sampling=False)


def _no_pruner(spec: StudySpec) -> BasePruner:
    return NopPruner()


def _median(spec: StudySpec) -> BasePruner:
    return MedianPruner()


def _wilcoxon(spec: StudySpec) -> BasePruner:
    return WilcoxonPruner()


def _halving(spec: StudySpec) -> BasePruner:
    return SuccessiveHalvingPruner(min_resource=spec.base["evaluate_every"], reduction_factor=3)


def _hyperband(spec: StudySpec) -> BasePruner:
    return HyperbandPruner(
        min_resource=spec.base["evaluate_every"],
        max_resource=spec.base["steps"],
        reduction_factor=3,
    )


def _one_epoch_first(search: Search) -> Rules:
    return EpochThenBest(6 * cast(Memory, search).spec.base["evaluate_every"])


def _itself(search: Search) -> Rules:
    """For searches that have their rules in them."""
    return cast(Ours, search)


def _own_past(search: Search) -> Rules:
    return Own()


METHODS = {
    "gp": Method("hpo: gp (the default)", partial(Ours, Policy.GP), _itself, share=1.0),
    "tpe": Method("hpo: tpe", tpe, _own_past),
    "random": Method("random", of_optuna(_random, _no_pruner), share=1.0, longest=200),
    "tpe-all": Method("TPE, nothing stopped", of_optuna(_tpe, _no_pruner)),
    "optuna": Method(
        "Optuna's default (TPE + MedianPruner)", of_optuna(_tpe, _median), share=1.0, longest=100
    ),
    "asha": Method("ASHA (random + SuccessiveHalvingPruner)", of_optuna(_random, _halving)),
    "tpe-asha": Method("TPE + SuccessiveHalvingPruner", of_optuna(_tpe, _halving)),
    "hyperband": Method("TPE + HyperbandPruner", of_optuna(_tpe, _hyperband)),
    "wilcoxon": Method("TPE + WilcoxonPruner", of_optuna(_tpe, _wilcoxon)),
    "gpsampler": Method("Optuna's GPSampler", of_optuna(_gp, _no_pruner), share=0.02),
    "epoch": Method(
        "one epoch of 40, then the best 4 to the end",
        of_optuna(_random, _no_pruner),
        _one_epoch_first,
    ),
}
