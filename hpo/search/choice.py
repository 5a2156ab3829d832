"""A study's side of its policy: shows it the trials as values, and asks which trial goes on, is parked, or has which configuration."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import isfinite
from typing import TYPE_CHECKING, Any

from hpo.decoder.config import DecoderConfig
from hpo.search import ledger, policy
from hpo.search.budget import Spent
from hpo.search.policy import Seen, rung_steps
from hpo.search.sampling import Proposed, distribution, sampler_of
from hpo.search.spec import Policy, StudySpec
from hpo.search.stopping import Evaluation
from hpo.search.trial import BY_HAND, Cause, Record, Trial

if TYPE_CHECKING:
    from hpo.search.study import Study

GAINS = 5  # of the last trials: one draw says little


def seen_by(study: "Study", without: int) -> list[Seen]:
    """All trials that say something of the space, imported ones too, but the one of this id."""
    steps = rung_steps(study.spec)
    with study._engine.begin() as connection:
        points = ledger.points_at(connection, study.id, steps) if steps else {}
    return [_seen(record, steps, points.get(record.id, ())) for record in study._records() if record.id != without and _says(record)]


def _says(record: Record) -> bool:
    """What a person ended, or trouble, says nothing of the configuration; a trial without parameters is about to get them."""
    trouble = record.state == "failed" and record.cause != Cause.BAD_CONFIGURATION
    return not trouble and record.rule != BY_HAND and bool(record.params)


def _seen(record: Record, steps: Sequence[int], points: Sequence[Any]) -> Seen:
    known = [point for point in points if isfinite(point.per) and isfinite(point.validation_loss)]  # past runs may record no loss
    at = {point.step: Evaluation(point.step, point.per, point.validation_loss) for point in known}
    missed = next((index for index, step in enumerate(steps) if step not in at), len(steps))
    per = 1.0 if record.state in ("stopped", "failed") else record.per
    return Seen(record.number, record.params, per, tuple(at[step] for step in steps[:missed]), record.state == "parked")


def why_park(study: "Study", trial: Trial, evaluations: Sequence[Evaluation]) -> str | None:
    """Why the trial should make room for another after its last evaluation; None: it should not. Starts and what a person put
    in go to their ends: they are there to be compared.
    """
    steps = rung_steps(study.spec)
    if study.spec.child or trial.start or evaluations[-1].step not in steps:
        return None
    if ledger.ENQUEUED in study._storage.get_trial(trial.id).user_attrs:
        return None
    rungs = tuple(evaluation for evaluation in evaluations if evaluation.step in steps)
    mine = Seen(trial.number, {}, None, rungs)
    return policy.why_park(study.spec, mine, seen_by(study, trial.id))


def due(study: "Study", waiting: Sequence[Any]) -> list[Any]:
    """Those of the ledger's waiting rows that are parked and should go on, the most promising first."""
    parked = {row.number: row for row in waiting if row.outcome == Cause.PARKED}
    return [parked[number] for number in policy.due(study.spec, seen_by(study, -1)) if number in parked] if parked else []


def in_turn(study: "Study", waiting: Sequence[Any], can_go_on: Callable[[int], bool]) -> list[tuple[Any, float]]:
    """What a worker may take, the first first, each with the GPU-seconds that are behind it: rows that wait, those that are parked
    and due, None for a new trial, and last what is due and has no checkpoint there: it would begin again.
    """
    going = [row for row in waiting if row.outcome != Cause.PARKED]
    ready = due(study, waiting)
    far = [row for row in ready if not can_go_on(row.number)]
    near = [row for row in ready if row not in far]
    return [*((row, row.gpu_seconds) for row in [*going, *near]), (None, 0.0), *((row, 0.0) for row in far)]


def without(spent: Spent, row: Any) -> Spent:
    """What is spent if this waiting trial goes on."""
    return replace(spent, parked=spent.parked - 1) if row.outcome == Cause.PARKED else spent


def configure(study: "Study", trial_id: int, number: int) -> tuple[DecoderConfig, str | None]:
    """The trial's configuration, drawn or as it was, and the name of the start that it is."""
    trial, spec = study._storage.get_trial(trial_id), study.spec
    if fixed := trial.user_attrs.get("fixed"):
        return DecoderConfig().with_values(fixed), None
    held = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
    sampler = sampler_of(spec, number)
    if spec.policy in (Policy.GP, Policy.GP_HALVING) and _is_open(spec, held):
        proposal = policy.propose(spec, seen_by(study, trial_id), spec.sampler.seed, number, held)
        sampler = Proposed(proposal.values)
        if proposal.gain is not None:
            _remember(study, proposal.gain)
    study._storage.get_all_trials(study.id, deepcopy=False)  # Optuna's cache takes parameters of trials that it has seen only
    asked = study._asked(trial_id, sampler)
    values: dict[str, Any] = {}
    for name in spec.parameters:
        if spec.active(name, values):
            values[name] = asked._suggest(name, distribution(spec, name))
    return spec.base.with_values(values | {"seed": spec.base.seed + number}), asked.user_attrs.get("start")


def _is_open(spec: StudySpec, held: Mapping[str, Any]) -> bool:
    """Whether anything is left to draw."""
    return any(name not in held and spec.active(name, held) for name in spec.parameters)


def _remember(study: "Study", gain: float) -> None:
    """Workers that write at once lose one of the gains."""
    study._study.set_user_attr("gains", [*study._attributes.get("gains", []), gain][-GAINS:])


def expected_gain(study: "Study") -> float | None:
    """By how much PER is expected to fall by one more trial: the largest of the last draws. None: too few were drawn."""
    gains = study._attributes.get("gains", [])
    return max(gains) if len(gains) == GAINS else None
