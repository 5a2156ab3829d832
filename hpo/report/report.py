"""What a study found, as a dict (the JSON of `hpo report --json`) and as text for a terminal.

Values of the metric are those of complete trainings on the items that the search validates on.
Nothing is measured here; only intervals are computed from stored scores. `report_page.py` shows
the same as a page.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from hpo.analysis.stats import score_interval
from hpo.study.pick import best_of
from hpo.study.reader import StudyReader
from hpo.study.trial import BY_HAND, LEARNED_NOTHING, Record, State
from hpo.text import duration, plural, value_text
from hpo.trainer import Metric, Trainer

NAME_WIDTH = 28
STATES: tuple[State, ...] = ("complete", "stopped", "failed", "running", "waiting")
UNFINISHED: tuple[State, ...] = ("running", "waiting")


def build_report(study: StudyReader) -> dict[str, Any]:
    """The report as JSON-ready values.

    The metric is in its unit (a fraction of 1 where that is percent); times are in seconds of a
    worker's device. Raises DatabaseError.
    """
    records = study.records()
    trainer = study.spec.load_trainer()
    best = best_of(records, study.spec.metric)
    states = Counter(record.state for record in records)
    stopped = [record for record in records if record.state == "stopped"]
    failed = [record for record in records if record.state == "failed"]
    return {
        "study": study.name,
        "child_of": study.spec.child.parent if study.spec.child else None,
        "space": study.spec.space,
        "profile": study.spec.profile,
        "digest": study.spec.digest(),
        "data": study.data,
        "best": None if best is None else _best(study, trainer, best),
        "starts": {name: _start(study, records, name, best) for name in study.spec.starts},
        "trials": {state: states[state] for state in STATES},
        "learned_nothing": sum(record.learned_nothing for record in records),
        "imported": [_imported(record) for record in study.imported()],
        "budget": study.budget.model_dump(mode="json"),
        "stopped_by_hand": sum(not record.stopped_by_rule for record in stopped),
        "stopped_by": dict(Counter(record.rule for record in stopped)),
        "stopped_because": dict(Counter(record.cause for record in stopped)),
        "failed_because": dict(Counter(record.reason for record in failed)),
        "gpu_seconds": {
            "spent": sum(record.gpu_seconds for record in records),
            "saved": sum(_seconds_saved(record) for record in stopped if record.stopped_by_rule),
            "lost": sum(record.lost_seconds * record.gpu_share for record in records),
        },
        "cautions": cautions(trainer),
        "findings": study.results(),
    }


def cautions(trainer: Trainer) -> list[str]:
    """What a reader must know about where the figures come from."""
    lines = []
    if trainer.partition == "test":
        lines.append(
            "These figures are on test, and the search selected on test: none is on unseen items."
        )
    if trainer.take == "best":
        lines.append(
            "Each trial's value is the best of its curve, not the last one, so it is optimistic."
        )
    return lines


def _best(study: StudyReader, trainer: Trainer, best: Record) -> dict[str, Any]:
    score = study.scores([best.id])[best.id]
    return {
        "trial": best.number,
        "value": best.value,
        "interval": _interval(study, best),
        "partition": trainer.partition,
        "sentences": len(score.errors),
        "params": best.params,
        "config": best.config,
    }


def _start(
    study: StudyReader, records: list[Record], name: str, best: Record | None
) -> dict[str, Any]:
    trial = next((record for record in records if record.start == name), None)
    if trial is None:
        return {
            "trial": None,
            "value": None,
            "interval": None,
            "state": None,
            "reason": "",
            "points_above_best": None,
        }
    above_best = None
    if trial.value is not None and best is not None and best.value is not None:
        above_best = study.spec.metric.scale * (trial.value - best.value)
    return {
        "trial": trial.number,
        "value": trial.value,
        "interval": _interval(study, trial),
        "state": trial.state,
        "reason": trial.reason,
        "points_above_best": above_best,
    }


def _imported(record: Record) -> dict[str, Any]:
    return {
        "trial": record.number,
        "run": record.imported,
        "state": record.state,
        "value": record.value,
    }


def _interval(study: StudyReader, record: Record) -> tuple[float, float] | None:
    """The 95 % interval of a complete trial's value, for new sentences."""
    if record.value is None:
        return None
    score = study.scores([record.id])[record.id]
    return score_interval([score], study.spec.metric)


def _seconds_saved(record: Record) -> float:
    """The GPU-seconds that the rest of a stopped trial would have taken at its own pace.

    Attempts after which the training began again do not count: their steps were done twice.
    """
    if not record.step:
        return 0.0
    pace = (record.seconds - record.lost_seconds) * record.gpu_share / record.step
    return pace * max(0, record.steps - record.step)


def stopped_by_rule(report: Mapping[str, Any]) -> dict[str, int]:
    """How many trials a rule stopped, by cause."""
    causes: dict[str, int] = report["stopped_because"]
    return {cause: count for cause, count in causes.items() if cause != BY_HAND}


def as_text(report: dict[str, Any], metric: Metric) -> str:
    """The report for a terminal."""
    profile = f", profile {report['profile']}" if report["profile"] else ""
    lines = [f"Study {report['study']}{profile}"]
    lines += _best_lines(report, metric)
    lines += report["cautions"]
    if not report["child_of"]:
        lines.append("Starts" if report["starts"] else "No starts")
    lines += [_start_line(name, start, metric) for name, start in report["starts"].items()]
    lines.append(_trials_line(report))
    lines.append(_compute_line(report))
    if report["imported"]:
        shown = ", ".join(f"trial {past['trial']} is {past['run']}" for past in report["imported"])
        lines.append(f"Imported for the sampler alone and not counted above: {shown}")
    lines += [f"  failed: {count} x {reason}" for reason, count in report["failed_because"].items()]
    return "\n".join(lines)


def _best_lines(report: dict[str, Any], metric: Metric) -> list[str]:
    if report["child_of"]:
        parent = report["child_of"]
        return [f"It retrains configurations of study {parent}, so none of its trials is best."]
    best = report["best"]
    if best is None:
        return [f"No trial is complete yet, so there is no best {metric.name}."]
    origin = f"{interval_text(best, metric)}, {best['partition']}{items_text(best, metric)}"
    rank = f"the {metric.lowest} of {report['trials']['complete']} noisy values"
    caveat = "; the interval ignores that" if best["interval"] else ""
    higher = "higher" if metric.direction == "minimize" else "lower"
    return [
        *_confirmed_lines(report, metric),
        f"Best {metric.name} {metric.text(best['value'])} ({origin}): trial {best['trial']}",
        f"  It is {rank} on {metric.items} that the search saw{caveat}.",
        f"  Expect a slightly {higher} {metric.name} on new {metric.items}.",
        *_parameter_lines(best["params"]),
    ]


def _parameter_lines(params: Mapping[str, Any]) -> list[str]:
    width = max([NAME_WIDTH, *map(len, params)])
    return [f"    {name:{width}} {value_text(value)}" for name, value in params.items()]


def interval_text(result: Mapping[str, Any], metric: Metric) -> str:
    """The interval of a result over its items, in words."""
    if result["interval"] is None:
        return f"one number, so no interval over {metric.items}"
    return f"95 % interval {metric.between(result['interval'])}"


def items_text(best: Mapping[str, Any], metric: Metric) -> str:
    """How many items a value is of; empty where only one number is known."""
    if best["sentences"] <= 1:
        return ""
    return f", {best['sentences']} {metric.items}"


def confirmed(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `hpo confirm` measured of the trial that is best now.

    None if it has not retrained that trial, or if none of its seeds finished.
    """
    best = report["best"]
    if not best:
        return None
    configs: list[dict[str, Any]] = report["findings"].get("confirm", {}).get("configs", [])
    for config in configs:
        if config["trial"] == best["trial"] and config["value"] is not None:
            return config
    return None


def _confirmed_lines(report: dict[str, Any], metric: Metric) -> list[str]:
    config = confirmed(report)
    if config is None:
        return []
    confirm = report["findings"]["confirm"]
    origin = (
        f"95 % interval {metric.between(config['interval'])}, {confirm['partition']}, "
        f"{confirm['sentences']} {metric.items}, {fresh_seeds(config)}"
    )
    value = metric.text(config["value"])
    return [f"Confirmed {metric.name} {value} ({origin}): {config['name']}"]


def fresh_seeds(config: Mapping[str, Any]) -> str:
    """How many seeds the value of a configuration of the finding `confirm` is the mean of."""
    seeds = len(config["seeds"])
    complete = _complete_seeds(config)
    if complete < seeds:
        return f"{complete} of {seeds} fresh seeds, the others did not finish"
    return plural(seeds, "fresh seed")


def _complete_seeds(config: Mapping[str, Any]) -> int:
    return sum(seed["value"] is not None for seed in config["seeds"])


def interval_sources(confirm: Mapping[str, Any], metric: Metric) -> str:
    """What the intervals of the finding `confirm` are over.

    A configuration of which only one seed finished has no interval over seeds.
    """
    if confirm["sentences"] <= 1:
        return "seeds"
    complete = [
        _complete_seeds(config) for config in confirm["configs"] if config["value"] is not None
    ]
    if max(complete, default=0) < 2:
        return metric.items
    if min(complete) > 1:
        return f"seeds and {metric.items}"
    return f"{metric.items}, and over seeds where two or more finished"


def _start_line(name: str, start: dict[str, Any], metric: Metric) -> str:
    head = f"    {name:20} "
    if start["state"] is None:
        return f"{head}not tried yet"
    if start["value"] is None:
        reason = f": {start['reason']}" if start["reason"] else ""
        return f"{head}trial {start['trial']}, {start['state']}{reason}"
    value = f"{metric.name} {metric.text(start['value'])}"
    difference = metric.difference(start["points_above_best"] / metric.scale)
    from_best = f"{difference} {metric.difference_unit} from the best"
    return f"{head}trial {start['trial']}, {value}, {from_best}"


def unfinished(report: Mapping[str, Any]) -> list[str]:
    """Counts of the trials that are not over, such as `2 running`."""
    trials = report["trials"]
    return [f"{trials[state]} {state}" for state in UNFINISHED if trials[state]]


def _trials_line(report: dict[str, Any]) -> str:
    trials = report["trials"]
    by_hand = report["stopped_by_hand"]
    stopped = f"{trials['stopped'] - by_hand} stopped"
    causes = ", ".join(f"{count} {cause}" for cause, count in stopped_by_rule(report).items())
    if causes:
        rules = " and ".join(rule for rule in report["stopped_by"] if rule != BY_HAND)
        stopped += f" (rule {rules}: {causes})"
    complete = f"{trials['complete']} complete"
    if report["learned_nothing"]:
        complete += f" ({report['learned_nothing']} {LEARNED_NOTHING})"
    counts = [
        complete,
        stopped,
        *([f"{by_hand} stopped by hand"] if by_hand else []),
        f"{trials['failed']} failed",
        *unfinished(report),
    ]
    return f"Trials: {', '.join(counts)}; budget {report['budget']['trials']}"


def _compute_line(report: dict[str, Any]) -> str:
    spent = report["gpu_seconds"]["spent"]
    saved = report["gpu_seconds"]["saved"]
    lost = report["gpu_seconds"]["lost"]
    line = f"Compute: {duration(spent)} of worker time spent, {duration(saved)} saved by stopping"
    if saved:
        share = 100 * saved / (spent + saved)
        line += f" ({share:.0f} % of what all trials would have taken)"
    if lost:
        line += f", {duration(lost)} lost to trials that started over"
    return line


def next_command(report: dict[str, Any], database: str | None) -> str:
    """What to type after reading the report.

    database: the URL, if the command line gave one. It is not shown, since it may hold a password.
    """
    options = f"--study {report['study']}"
    if database:
        options += " --database URL"
    if report["child_of"]:
        return f"hpo confirm or hpo ablate, with --study {report['child_of']}"
    if report["best"] is None:
        return f"hpo status {options}"
    return f"hpo export {options} --trial best --out {report['study']}-best.yaml"
