"""The searches that are compared: Optuna's in-memory storage in place of Postgres, for speed; a test shows that the real
Study gives the same trials. Each begins with the space's starts and draws parameters as `Study` does.
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
from hpo.space.policy import Seen, propose
from hpo.space.sections import SamplerSettings
from hpo.space.spec import Policy, StudySpec
from hpo.space.stopping import OwnPast, Stop
from hpo.study.sampling import distribution, sampler_of

STARTUP_TRIALS = (
    SamplerSettings().startup_trials
)  # the demo profile, with which tables are made, may have fewer

optuna.logging.set_verbosity(optuna.logging.WARNING)


def drawn(spec: StudySpec, trial: optuna.Trial) -> dict[str, Any]:
    """The trial's parameters, as Study draws them."""
    values: dict[str, Any] = {}
    for name in spec.parameters:
        if spec.active(name, values):
            values[name] = trial._suggest(name, distribution(spec, name))
    return values


class Memory:
    """A study of Optuna in memory. `sampler` gives the one that draws a trial."""

    def __init__(self, spec: StudySpec, sampler: Callable[[int], BaseSampler], pruner: BasePruner):
        self.spec, self._sampler = spec, sampler
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
    def judge(self, number: int, curves: Curves) -> Stop | str | None:
        return None

    def resume(self, paused: Curves, curves: Curves) -> int | None:
        return None


class Ours(Nothing):
    """A policy of ours and its stopping rule: search and rules in one. hpo/search/policy.py decides, here as in a real study."""

    def __init__(
        self, policy: Policy, spec: StudySpec, seed: int, startup_trials: int = STARTUP_TRIALS
    ):
        self.spec = with_seed(spec, seed, startup_trials).model_copy(update={"policy": policy})
        self._rule = OwnPast()
        self._values: list[dict[str, Any]] = []
        # None: it diverged.
        self._ends: dict[int, float | None] = {}

    def _seen(self) -> list[Seen]:
        seen = []
        for number, values in enumerate(self._values):
            per = self._ends.get(number)
            diverged = number in self._ends and per is None
            seen.append(Seen(number, values, per, diverged))
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
    rule: OwnPast = field(default_factory=OwnPast)

    def judge(self, number: int, curves: Curves) -> Stop | str | None:
        return self.rule.judge(curves[number], PER)


@dataclass(frozen=True)
class EpochThenBest(Nothing):
    """Draw `count` at random, train each to `first` steps, then the best `keep` of them to the end; and again."""

    first: int
    count: int = 40
    keep: int = 4

    def judge(self, number: int, curves: Curves) -> Stop | str | None:
        return "pause" if curves[number][-1].step == self.first else None

    def resume(self, paused: Curves, curves: Curves) -> int | None:
        rounds, into = divmod(len(curves), self.count)
        if into or not rounds:
            return None
        drawn = range((rounds - 1) * self.count, rounds * self.count)
        advanced = sum(
            bool(curves[number]) and (number not in paused and curves[number][-1].step > self.first)
            for number in drawn
        )
        left = sorted((paused[number][-1].value, number) for number in drawn if number in paused)
        return left[0][1] if left and advanced < self.keep else None


@dataclass(frozen=True)
class Method:
    label: str
    search: Callable[[StudySpec, int], Search]
    rules: Callable[[Search], Rules] = lambda search: Nothing()
    share: float = 0.12  # of the repetitions: what the claims are about has all
    longest: float = 0.0  # trainings: so far past the horizon it goes on until it is within 5 %, so that its median can be told


def with_seed(spec: StudySpec, seed: int, startup_trials: int) -> StudySpec:
    return spec.model_copy(
        update={
            "sampler": spec.sampler.model_copy(
                update={"seed": seed, "startup_trials": startup_trials}
            )
        }
    )


def tpe(spec: StudySpec, seed: int, startup_trials: int = STARTUP_TRIALS) -> Search:
    """Our policy of that name, drawn as a study draws."""
    seeded = with_seed(spec, seed, startup_trials).model_copy(update={"policy": Policy.TPE})
    return Memory(seeded, lambda number: sampler_of(seeded, number), NopPruner())


def of_optuna(
    sampler: Callable[[int], BaseSampler], pruner: Callable[[StudySpec], BasePruner]
) -> Callable[[StudySpec, int], Search]:
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


def _halving(spec: StudySpec) -> BasePruner:
    return SuccessiveHalvingPruner(min_resource=spec.base["evaluate_every"], reduction_factor=3)


def _hyperband(spec: StudySpec) -> BasePruner:
    return HyperbandPruner(
        min_resource=spec.base["evaluate_every"],
        max_resource=spec.base["steps"],
        reduction_factor=3,
    )


def _one_epoch_first(spec: StudySpec) -> Rules:
    return EpochThenBest(6 * spec.base["evaluate_every"])


def policy(which: Policy, label: str, share: float) -> Method:
    return Method(label, partial(Ours, which), lambda search: cast(Ours, search), share)


METHODS = {
    "gp": policy(Policy.GP, "hpo: gp (the default)", share=1.0),
    "tpe": Method("hpo: tpe", tpe, lambda search: Own()),
    "random": Method("random", of_optuna(_random, lambda spec: NopPruner()), share=1.0, longest=200),
    "tpe-all": Method("TPE, nothing stopped", of_optuna(_tpe, lambda spec: NopPruner())),
    "optuna": Method("Optuna's default (TPE + MedianPruner)", of_optuna(_tpe, lambda spec: MedianPruner()), share=1.0, longest=100),
    "asha": Method("ASHA (random + SuccessiveHalvingPruner)", of_optuna(_random, _halving)),
    "tpe-asha": Method("TPE + SuccessiveHalvingPruner", of_optuna(_tpe, _halving)),
    "hyperband": Method("TPE + HyperbandPruner", of_optuna(_tpe, _hyperband)),
    "wilcoxon": Method("TPE + WilcoxonPruner", of_optuna(_tpe, lambda spec: WilcoxonPruner())),
    "gpsampler": Method("Optuna's GPSampler", of_optuna(_gp, lambda spec: NopPruner()), share=0.02),
    "epoch": Method("one epoch of 40, then the best 4 to the end", of_optuna(_random, lambda spec: NopPruner()),
                    lambda search: _one_epoch_first(cast(Memory, search).spec)),
}  # fmt: skip
