"""The searches that are compared: Optuna's in-memory storage in place of Postgres, for speed; a test shows that the real
Study gives the same trials. Each begins with the space's starts and draws parameters as `Study` does.
"""

from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner, WilcoxonPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from policy import Pausing
from simulate import Curves, Rules, Search

from hpo.search.sampling import distribution, sampler_of
from hpo.search.spec import StudySpec
from hpo.search.stopping import Evaluation, OwnPast, Stop

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

    def report(self, number: int, evaluation: Evaluation) -> bool:
        trial = self._trials[number]
        trial.report(evaluation.per, evaluation.step)
        return self._prunes and evaluation.step < self.spec.base.steps and trial.should_prune()

    def end(self, number: int, per: float | None, stop: Stop | None) -> None:
        trial = self._trials[number]
        if stop is not None:
            trial.set_constraint("diverged", 1.0)
        self._study.tell(trial, per, state=None if per is not None else TrialState.PRUNED)


class _Shown(InMemoryStorage):
    """What a sampler is to believe; trials are asked of it, but only `shown` is there."""

    def __init__(self, shown: list[FrozenTrial]):
        super().__init__()
        self._shown = shown

    def get_all_trials(self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        return [trial for trial in self._shown if states is None or trial.state in states]


class Ranked:
    """Our sampler; it sees each trial that came to a rung as complete, with its place in the policy's order."""

    def __init__(self, spec: StudySpec, policy: Pausing):
        self.spec, self.policy = spec, policy
        self._drawn: list[FrozenTrial] = []
        self._stopped: set[int] = set()

    def ask(self, curves: Curves) -> tuple[int, dict[str, Any]]:
        number = len(self._drawn)
        if number < len(self.spec.starts):
            values = self.spec.start_values(list(self.spec.starts)[number])
        else:
            self._place(curves)
            study = optuna.create_study(storage=_Shown(self._drawn), sampler=sampler_of(self.spec, number))
            values = drawn(self.spec, study.ask())
        distributions = {name: distribution(self.spec, name) for name in values}
        self._drawn.append(create_trial(state=TrialState.RUNNING, params=values, distributions=distributions))
        self._drawn[-1].number = number
        return number, values

    def _place(self, curves: Curves) -> None:
        order = self.policy.order({n: curve for n, curve in curves.items() if n not in self._stopped}, self.spec.base.steps)
        for place, number in enumerate([*order, *self._stopped]):
            self._drawn[number].state, self._drawn[number].value = TrialState.COMPLETE, float(place)

    def report(self, number: int, evaluation: Evaluation) -> bool:
        return False

    def end(self, number: int, per: float | None, stop: Stop | None) -> None:
        if stop is not None:
            self._stopped.add(number)


class Nothing(Rules):
    def judge(self, number: int, curves: Curves) -> Stop | str | None:
        return None

    def resume(self, paused: Curves, curves: Curves) -> int | None:
        return None


@dataclass(frozen=True)
class Own(Nothing):
    rule: OwnPast = field(default_factory=OwnPast)

    def judge(self, number: int, curves: Curves) -> Stop | str | None:
        return self.rule.judge(curves[number])


@dataclass(frozen=True)
class Paused(Own):
    steps: int = 0
    policy: Pausing = field(default_factory=Pausing)

    def judge(self, number: int, curves: Curves) -> Stop | str | None:
        return self.rule.judge(curves[number]) or ("pause" if self.policy.pauses(number, curves, self.steps) else None)

    def resume(self, paused: Curves, curves: Curves) -> int | None:
        return self.policy.resumes(paused, curves, self.steps)


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
        advanced = sum(bool(curves[number]) and (number not in paused and curves[number][-1].step > self.first) for number in drawn)
        left = sorted((paused[number][-1].per, number) for number in drawn if number in paused)
        return left[0][1] if left and advanced < self.keep else None


@dataclass(frozen=True)
class Method:
    label: str
    search: Callable[[StudySpec, int], Search]
    rules: Callable[[StudySpec], Rules] = lambda spec: Nothing()
    share: float = 1.0  # of the repetitions: slow ones have fewer


def with_seed(spec: StudySpec, seed: int, startup_trials: int = 20) -> StudySpec:
    """startup_trials: 20 is the space's own number; the demo profile has fewer."""
    return spec.model_copy(update={"sampler": spec.sampler.model_copy(update={"seed": seed, "startup_trials": startup_trials})})


def ours(spec: StudySpec, seed: int, startup_trials: int = 20) -> Search:
    seeded = with_seed(spec, seed, startup_trials)
    return Memory(seeded, lambda number: sampler_of(seeded, number), NopPruner())


def of_optuna(sampler: Callable[[int], BaseSampler], pruner: Callable[[StudySpec], BasePruner]) -> Callable[[StudySpec, int], Search]:
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
    return SuccessiveHalvingPruner(min_resource=spec.base.evaluate_every, reduction_factor=3)


def _hyperband(spec: StudySpec) -> BasePruner:
    return HyperbandPruner(min_resource=spec.base.evaluate_every, max_resource=spec.base.steps, reduction_factor=3)


def pausing(policy: Pausing, draw_at_random: bool = False) -> Method:
    def search(spec: StudySpec, seed: int) -> Search:
        return of_optuna(_random, lambda spec: NopPruner())(spec, seed) if draw_at_random else Ranked(with_seed(spec, seed), policy)

    rungs = ", ".join(f"best {kept:.0%} at {share:.0%}" for share, kept in zip(policy.rungs, policy.keep, strict=True))
    label = f"pausing ({rungs})"
    return Method(f"{'random' if draw_at_random else 'TPE'} + {label}", search, lambda spec: Paused(steps=spec.base.steps, policy=policy))


METHODS = {
    "random": Method("random", of_optuna(_random, lambda spec: NopPruner())),
    "tpe": Method("TPE, nothing stopped", ours),
    "own-past": Method("TPE + own-past (hpo's default)", ours, lambda spec: Own()),
    "optuna": Method("Optuna's default (TPE + MedianPruner)", of_optuna(_tpe, lambda spec: MedianPruner()), share=0.4),
    "asha": Method("ASHA (random + SuccessiveHalvingPruner)", of_optuna(_random, _halving)),
    "tpe-asha": Method("TPE + SuccessiveHalvingPruner", of_optuna(_tpe, _halving), share=0.4),
    "hyperband": Method("TPE + HyperbandPruner", of_optuna(_tpe, _hyperband), share=0.4),
    "wilcoxon": Method("TPE + WilcoxonPruner", of_optuna(_tpe, lambda spec: WilcoxonPruner()), share=0.2),
    "gp": Method("GPSampler", of_optuna(_gp, lambda spec: NopPruner()), share=0.1),
    "pausing": pausing(Pausing()),
    "pausing-2": pausing(Pausing(rungs=(0.1, 0.6), keep=(0.6, 0.5))),
    "epoch": Method("one epoch of 40, then the best 4 to the end", of_optuna(_random, lambda spec: NopPruner()),
                    lambda spec: EpochThenBest(6 * spec.base.evaluate_every)),
}  # fmt: skip
