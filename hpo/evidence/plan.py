"""What some GPUs and hours would bring: how many trials fit, and the PER to expect of the best of them.

By a study's own trials: their mean cost, and the policy's Gaussian process, of which possible worlds are drawn.
"""

from typing import Any

import numpy as np

from hpo.errors import StudyError
from hpo.evidence.report import best_of, duration, percent
from hpo.search.budget import HOUR, prospect
from hpo.search.choice import seen_by
from hpo.search.policy import Model, with_expected
from hpo.search.space import Cube
from hpo.search.study import Study
from hpo.search.trial import DONE

FEWEST = 8  # trials that say something, before anything is expected of more
POINTS = 800  # half anywhere, half near the best trials
WORLDS = 400
LEVEL = 0.95


def build_plan(study: Study, gpus: int, hours: float) -> dict[str, Any]:
    """JSON-ready; PER as a fraction of 1. Raises StudyError before there are FEWEST trials with an end, one of them complete."""
    records = [record for record in study.records() if record.state in DONE and record.step]
    seen = with_expected(study.spec, seen_by(study, -1))
    known = sum(trial.per is not None for trial in seen)
    best = best_of(records)
    if best is None or known < FEWEST:
        raise StudyError(f"study {study.name}: {known} trials say what to expect. A plan needs {FEWEST}, one of them complete: run hpo "
                         f"launch first, or hpo import past runs")  # fmt: skip
    cost = {state: [record.gpu_seconds for record in records if record.state == state] for state in DONE}
    mean = sum(record.gpu_seconds for record in records) / len(records)
    trials = int(gpus * hours * HOUR / mean) if mean else 0
    at_random, at_best = _ahead(Model(Cube(study.spec), seen), trials, study.spec.sampler.seed)
    standing = study.standing()
    return {
        "study": study.name,
        "gpus": gpus,
        "hours": hours,
        "gpu_hours": gpus * hours,
        "trial_seconds": mean,
        "states": {state: {"trials": len(found), "gpu_seconds": float(np.mean(found))} for state, found in cost.items() if found},
        "training_seconds": float(np.mean([record.seconds for record in records if record.state == "complete"])),
        "trials": trials,
        "best": {"trial": best.number, "per": best.per},
        "known": known,
        "level": LEVEL,
        "per_at_random": at_random,
        "per_at_best": at_best,
        "hourly_gain": standing.hourly_gain,
        "gain": standing.gain,
    }


def _ahead(model: Model, trials: int, seed: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Intervals of the lowest expected PER: of `trials` more points drawn at random, and of the whole space; no higher than the
    lowest of the trials there are.
    """
    generator = np.random.default_rng(seed)
    points_NP = model.candidates(POINTS, generator)
    pers_DN = np.minimum(model.draws(points_NP, WORLDS, seed), model.best_per)
    anywhere = POINTS // 2
    drawn = [pers_DN[world, generator.permutation(anywhere)[:trials]].min(initial=model.best_per) for world in range(WORLDS)]
    return _interval(np.array(drawn)), _interval(pers_DN.min(axis=1))


def _interval(pers_D: "np.ndarray[Any, np.dtype[np.float64]]") -> tuple[float, float]:
    low, high = np.quantile(pers_D, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def plan_text(plan: dict[str, Any]) -> str:
    states = ", ".join(f"{found['trials']} {state} {duration(found['gpu_seconds'])}" for state, found in plan["states"].items())
    best, level = plan["best"], f"{100 * plan['level']:g} %"
    at_random, at_best = ("..".join(f"{100 * per:.1f}" for per in plan[name]) for name in ("per_at_random", "per_at_best"))
    lines = [
        f"{plan['gpus']} GPUs for {plan['hours']:g} hours are {plan['gpu_hours']:g} GPU-hours",
        f"a trial   {duration(plan['trial_seconds'])} of a GPU on average ({states})",
        f"they fit  about {plan['trials']} more: hpo budget --study {plan['study']} --trials +{plan['trials']} --gpu-hours "
        f"+{plan['gpu_hours']:g}",
        f"so far    best PER {percent(best['per'])} (trial {best['trial']}), on validation, a lucky seed in it",
        f"ahead     PER of a training of the best configuration then, {level} interval: {at_random} % if they were drawn at random, "
        f"{at_best} % at the best that the space may have; a policy comes out between",
    ]
    if plan["training_seconds"] > plan["hours"] * HOUR:
        lines.append(f"note      a whole training takes {duration(plan['training_seconds'])}, longer than the hours given: none would end")
    if plan["hourly_gain"] is not None:
        lines.append(f"          {prospect(plan['gain'], plan['hourly_gain'])}, by the last draws")
    return "\n".join([*lines, f"          all of it by a Gaussian process of {plan['known']} trials; it knows no other data"])
