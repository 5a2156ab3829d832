"""A candidate for a policy: which trial a free worker trains on. Pure functions of the curves of a study.

A trial is paused at a rung (a share of its steps) unless it is among the best there, and goes on from its checkpoint when it
has become one of them: nothing that may still win is lost, and few steps go into what does not lead. Trials are compared at
equal shares of their schedule only, and by validation loss before PER says much: a CTC decoder is silent at first.
No study can use it yet; README.md beside this says what it would bring.
"""

from collections.abc import Mapping, Sequence

from hpo.decoder.config import Fraction, Settings
from hpo.search.stopping import Evaluation

Curves = Mapping[int, Sequence[Evaluation]]  # by the trial's number


class Pausing(Settings):
    """At each rung (a share of the steps) the best `keep` of the trials go on; by validation loss up to `loss_until` of the
    steps, by PER after it.
    """

    rungs: tuple[Fraction, ...] = (0.5,)
    keep: tuple[Fraction, ...] = (0.5,)  # for each rung
    loss_until: Fraction = 0.4

    def pauses(self, number: int, curves: Curves, steps: int) -> bool:
        """Whether the trial, which has just been evaluated, should make room for another."""
        curve = curves[number]
        rung = self._rung(curve[-1].step, steps)
        before = self._rung(curve[-2].step, steps) if len(curve) > 1 else -1
        return rung > before and number not in self._leading(rung, curves, steps)

    def resumes(self, paused: Curves, curves: Curves, steps: int) -> int | None:
        """The paused trial that goes on now, of the highest rung where one is due; None: begin a new trial."""
        for rung in reversed(range(len(self.rungs))):
            due = [number for number in self._leading(rung, curves, steps) if number in paused
                   and self._rung(paused[number][-1].step, steps) == rung]  # fmt: skip
            if due:
                return due[0]
        return None

    def _rung(self, step: int, steps: int) -> int:
        """The last rung that is behind `step`; -1: none."""
        return sum(step >= share * steps for share in self.rungs) - 1

    def _leading(self, rung: int, curves: Curves, steps: int) -> list[int]:
        """The best of all that reached the rung, the best first."""
        scores = sorted((self._score(at), number) for number, curve in curves.items() if (at := self._at(rung, curve, steps)))
        return [number for _, number in scores[: int(len(scores) * self.keep[rung])]]

    def _at(self, rung: int, curve: Sequence[Evaluation], steps: int) -> tuple[Evaluation, float] | None:
        """The first evaluation at the rung, and its share of the steps."""
        return next(((point, point.step / steps) for point in curve if point.step >= self.rungs[rung] * steps), None)

    def _score(self, at: tuple[Evaluation, float]) -> float:
        point, share = at
        return point.loss if share <= self.loss_until else point.per

    def order(self, curves: Curves, steps: int) -> list[int]:
        """All trials that were evaluated at a rung, the best first: those of a higher rung lead those of a lower one."""

        def key(number: int) -> tuple[float, ...]:
            curve = curves[number]
            if curve[-1].step >= steps:
                return (-float(len(self.rungs)), curve[-1].per)
            rung = self._rung(curve[-1].step, steps)
            at = self._at(rung, curve, steps)
            assert at is not None
            return (-float(rung), self._score(at))

        return sorted((number for number, curve in curves.items() if curve and self._rung(curve[-1].step, steps) >= 0), key=key)
