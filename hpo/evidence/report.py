"""What a study found: as a dict (the JSON), as text, and one trial's configuration for export.

PER is of the validation sentences, at the end of each training. Everything here is read; nothing is recomputed.
"""

from collections import Counter
from datetime import timedelta
from typing import Any

import yaml

from hpo.decoder.config import DecoderConfig
from hpo.decoder.lab import lab_arguments
from hpo.errors import StudyError
from hpo.search.study import Study
from hpo.search.trial import Record

PARTITION = "validation"


def best_of(records: list[Record]) -> Record | None:
    """The complete trial with the lowest final PER; the first of equals. Retrainings have none: their seeds are to be averaged."""
    complete = [record for record in records if record.per is not None and not record.label]
    return min(complete, key=lambda record: (record.per, record.number), default=None)


def build_report(study: Study) -> dict[str, Any]:
    """The report as JSON-ready values. PER as a fraction of 1, times in seconds of a worker's device."""
    records = study.records()
    best = best_of(records)
    states = Counter(record.state for record in records)
    stopped = [record for record in records if record.state == "stopped"]
    return {
        "study": study.name,
        "child_of": study.spec.child.parent if study.spec.child else None,
        "space": study.spec.space,
        "profile": study.spec.profile,
        "digest": study.spec.digest(),
        "data": study.data,
        "best": None if best is None else {
            "trial": best.number,
            "per": best.per,
            "partition": PARTITION,
            "sentences": len(study.final_score(best.id).errors),
            "params": best.params,
            "config": best.config,
        },
        "starts": {name: _start(study, records, name, best) for name in study.spec.starts},
        "trials": {state: states[state] for state in ("complete", "stopped", "failed", "running", "waiting")},
        "imported": [{"trial": past.number, "run": past.imported, "state": past.state, "per": past.per} for past in study.imported()],
        "budget": study.budget.model_dump(mode="json"),
        "stopped_by": dict(Counter(record.rule for record in stopped)),
        "stopped_because": dict(Counter(record.cause for record in stopped)),
        "failed_because": dict(Counter(record.reason for record in records if record.state == "failed")),
        "gpu_seconds": {
            "spent": sum(record.gpu_seconds for record in records),
            "saved": sum(_saved(record) for record in stopped),
        },
    }  # fmt: skip


def _start(study: Study, records: list[Record], name: str, best: Record | None) -> dict[str, Any]:
    found = next((record for record in records if record.start == name), None)
    if found is None:
        return {"trial": None, "per": None, "state": None, "reason": "", "points_above_best": None}
    known = found.per is not None and best is not None and best.per is not None
    return {
        "trial": found.number,
        "per": found.per,
        "state": found.state,
        "reason": found.reason,
        "points_above_best": 100 * (found.per - best.per) if known else None,  # type: ignore[operator, union-attr]
    }


def _saved(record: Record) -> float:
    """Seconds that the rest of a stopped trial would have taken at its own pace."""
    return record.seconds / record.step * (record.steps - record.step) if record.step else 0.0


def as_text(report: dict[str, Any]) -> str:
    """The report for a terminal, 100 columns."""
    lines = [f"Study {report['study']}" + (f", profile {report['profile']}" if report["profile"] else "")]
    best = report["best"]
    if report["child_of"]:
        lines.append(f"It retrains configurations of study {report['child_of']}, so none of its trials is best.")
    elif best is None:
        lines.append("No trial is complete yet, so there is no best PER.")
    else:
        complete = report["trials"]["complete"]
        lines += [
            f"Best PER {percent(best['per'])} ({best['partition']}, {best['sentences']} sentences): trial {best['trial']}",
            f"  It is the lowest of {complete} noisy numbers, on sentences that the search saw: expect a little more on new ones.",
            *(f"    {name:28} {value_text(value)}" for name, value in best["params"].items()),
        ]
    if not report["child_of"]:
        lines.append("Starts" if report["starts"] else "No starts")
    lines += [_start_line(name, start) for name, start in report["starts"].items()]
    lines += [_trials_line(report), _compute_line(report)]
    if report["imported"]:
        shown = ", ".join(f"trial {past['trial']} is {past['run']}" for past in report["imported"])
        lines.append(f"Imported, for the sampler alone and counted nowhere above: {shown}")
    lines += [f"  failed: {count} x {reason}" for reason, count in report["failed_because"].items()]
    return "\n".join(lines)


def _start_line(name: str, start: dict[str, Any]) -> str:
    head = f"    {name:20} "
    if start["state"] is None:
        return head + "not tried yet"
    if start["per"] is None:
        return head + f"trial {start['trial']}, {start['state']}" + (f": {start['reason']}" if start["reason"] else "")
    return head + f"trial {start['trial']}, PER {percent(start['per'])}, {start['points_above_best']:+.2f} points from the best"


def _trials_line(report: dict[str, Any]) -> str:
    trials = report["trials"]
    causes = ", ".join(f"{count} {cause}" for cause, count in report["stopped_because"].items())
    rules = " and ".join(report["stopped_by"])
    stopped = f"{trials['stopped']} stopped" + (f" (rule {rules}: {causes})" if causes else "")
    line = f"Trials: {trials['complete']} complete, {stopped}, {trials['failed']} failed"
    open_ones = [f"{trials[state]} {state}" for state in ("running", "waiting") if trials[state]]
    return ", ".join([line, *open_ones]) + f"; budget {report['budget']['trials']}"


def _compute_line(report: dict[str, Any]) -> str:
    spent, saved = report["gpu_seconds"]["spent"], report["gpu_seconds"]["saved"]
    share = f" ({100 * saved / (spent + saved):.0f} % of what all would have taken)" if saved else ""
    return f"Compute: {duration(spent)} of worker time spent, {duration(saved)} saved by stopping{share}"


def next_command(report: dict[str, Any], database: str | None) -> str:
    """What to type after reading the report. database: as given on the command line, if it was."""
    where = f"--study {report['study']}" + (" --database URL" if database else "")
    if report["child_of"]:
        return f"hpo confirm or hpo ablate, with --study {report['child_of']}"
    if report["best"] is None:
        return f"hpo status {where}"
    return f"hpo export {where} --trial best --out {report['study']}-best.yaml"


def percent(per: float) -> str:
    return f"{100 * per:.2f} %"


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else str(timedelta(seconds=round(seconds)))


def value_text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "off" if value is None else str(value)


def pick_trial(study: Study, trial: str) -> Record:
    """`best` or a trial's number. Raises StudyError."""
    records = study.records()
    if trial == "best":
        best = best_of(records)
        if best is None:
            if study.spec.child:
                raise StudyError(f"study {study.name} retrains configurations of {study.spec.child.parent}: none is best. Give a number")
            raise StudyError(f"study {study.name}: no trial is complete yet, so there is no best one. See hpo status --study {study.name}")
        return best
    numbers = {str(record.number): record for record in records if record.config}
    if trial not in numbers:
        raise StudyError(f"study {study.name}: no trial {trial!r} that began. Valid: best, {', '.join(numbers) or 'none yet'}")
    return numbers[trial]


def export_text(study: Study, trial: str) -> str:
    """One trial's configuration as YAML: `base`, to be put into a study file, and `args` in the lab's names."""
    record = pick_trial(study, trial)
    config = DecoderConfig().with_values(record.config)
    ended = f"PER {percent(record.per)} ({PARTITION})" if record.per is not None else record.state
    head = [
        f"# Study {study.name}, trial {record.number}: {ended}",
        f"# data fingerprint {record.data}, code {record.code_version}, {record.host}, {record.device}",
        "# base: goes into a study file. args: the names of neural_seq_decoder and its descendants; eps has none there, its",
        "# code has 0.1 and some descendants' 1e-8: set it in the code. An empty value does not apply.",
    ]
    arguments = lab_arguments(config, study.data["n_features"], study.data["n_days"])
    return "\n".join(head) + "\n" + yaml.safe_dump({"base": config.flat(), "args": arguments}, sort_keys=False)
