"""What a study found: as a dict (the JSON), as text, and one trial's configuration for export.

The metric is of the validation items, at the end of each training. Everything here is read; only intervals are computed.
The same as a page is in report_page.py.
"""

import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hpo.analysis.stats import score_interval
from hpo.study.pick import best_of, pick_trial
from hpo.study.reader import StudyReader
from hpo.study.trial import Record
from hpo.text import duration, plural, value_text
from hpo.trainer import DEFAULT_TRAINER, SCRIPT_TRAINER, Metric, Trainer

NAME_WIDTH = 28


def build_report(study: StudyReader) -> dict[str, Any]:
    """The report as JSON-ready values. The metric in its unit (a fraction of 1 where it is percent), times in seconds of a
    worker's device.
    """
    records = study.records()
    best = best_of(records, study.spec.metric)
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
            "value": best.value,
            "interval": _interval(study, best),
            "partition": study.spec.load_trainer().partition,
            "sentences": len(study.scores([best.id])[best.id].errors),
            "params": best.params,
            "config": best.config,
        },
        "starts": {name: _start(study, records, name, best) for name in study.spec.starts},
        "trials": {state: states[state] for state in ("complete", "stopped", "failed", "running", "waiting")},
        "imported": [{"trial": past.number, "run": past.imported, "state": past.state, "value": past.value} for past in study.imported()],
        "budget": study.budget.model_dump(mode="json"),
        "stopped_by": dict(Counter(record.rule for record in stopped)),
        "stopped_because": dict(Counter(record.cause for record in stopped)),
        "failed_because": dict(Counter(record.reason for record in records if record.state == "failed")),
        "gpu_seconds": {
            "spent": sum(record.gpu_seconds for record in records),
            "saved": sum(_saved(record) for record in records if record.state == "stopped"),
            "lost": sum(record.lost_seconds for record in records),
        },
        "cautions": cautions(study.spec.load_trainer()),
        "findings": study.results(),
    }  # fmt: skip


def cautions(trainer: Trainer) -> list[str]:
    """What a reader of the figures must know of where they come from."""
    lines = []
    if trainer.partition == "test":
        lines.append(
            "These figures are of test: the search selected on it, so none of them is of unseen items."
        )
    if trainer.take == "best":
        lines.append("Each trial's value is the best of its curve, not its end: that flatters.")
    return lines


def _interval(study: StudyReader, record: Record) -> tuple[float, float] | None:
    """95 %, for new sentences; of a complete trial."""
    return (
        None
        if record.value is None
        else score_interval([study.scores([record.id])[record.id]], study.spec.metric)
    )


def _start(
    study: StudyReader, records: list[Record], name: str, best: Record | None
) -> dict[str, Any]:
    found = next((record for record in records if record.start == name), None)
    if found is None:
        return {
            "trial": None,
            "value": None,
            "interval": None,
            "state": None,
            "reason": "",
            "points_above_best": None,
        }
    metric, behind = study.spec.metric, None
    if found.value is not None and best is not None and best.value is not None:
        behind = metric.scale * (found.value - best.value)
    return {
        "trial": found.number,
        "value": found.value,
        "interval": _interval(study, found),
        "state": found.state,
        "reason": found.reason,
        "points_above_best": behind,
    }


def _saved(record: Record) -> float:
    """Seconds that the rest of a stopped trial would have taken at its own pace."""
    return record.seconds / record.step * (record.steps - record.step) if record.step else 0.0


def as_text(report: dict[str, Any], metric: Metric) -> str:
    """The report for a terminal, 100 columns."""
    lines = [
        f"Study {report['study']}" + (f", profile {report['profile']}" if report["profile"] else "")
    ]
    best = report["best"]
    if report["child_of"]:
        lines.append(
            f"It retrains configurations of study {report['child_of']}, so none of its trials is best."
        )
    elif best is None:
        lines.append(f"No trial is complete yet, so there is no best {metric.name}.")
    else:
        complete = report["trials"]["complete"]
        where = f"{interval_text(best, metric)}, {best['partition']}{items_text(best, metric)}"
        lines += [
            *_confirmed_lines(report, metric),
            f"Best {metric.name} {metric.text(best['value'])} ({where}): trial {best['trial']}",
            f"  It is the {metric.lowest} of {complete} noisy numbers, on {metric.items} that the search saw."
            f"{' That selection is not in the interval:' if best['interval'] else ' So'}",
            f"  expect a little {'more' if metric.direction == 'minimize' else 'less'} on new {metric.items}.",
            *_values(best["params"]),
        ]
    lines += report["cautions"]
    if not report["child_of"]:
        lines.append("Starts" if report["starts"] else "No starts")
    lines += [_start_line(name, start, metric) for name, start in report["starts"].items()]
    lines += [_trials_line(report), _compute_line(report)]
    if report["imported"]:
        shown = ", ".join(f"trial {past['trial']} is {past['run']}" for past in report["imported"])
        lines.append(f"Imported, for the sampler alone and counted nowhere above: {shown}")
    lines += [f"  failed: {count} x {reason}" for reason, count in report["failed_because"].items()]
    return "\n".join(lines)


def _values(params: Mapping[str, Any]) -> list[str]:
    """A line each, in two columns."""
    wide = max([NAME_WIDTH, *map(len, params)])
    return [f"    {name:{wide}} {value_text(value)}" for name, value in params.items()]


def interval_text(best: dict[str, Any], metric: Metric) -> str:
    """Of a value, over the items that it is of."""
    if best["interval"] is None:
        return f"one number, so no interval over {metric.items}"
    return f"95 % interval {metric.between(best['interval'])}"


def items_text(best: dict[str, Any], metric: Metric) -> str:
    """How many items a value is of; nothing where only one number is known."""
    return f", {best['sentences']} {metric.items}" if best["sentences"] > 1 else ""


def confirmed(report: dict[str, Any]) -> dict[str, Any] | None:
    """What `hpo confirm` found for the trial that is best now; None if it has not looked at it, or no seed came to its end."""
    configs = report["findings"].get("confirm", {}).get("configs", [])
    return next(
        (
            found
            for found in configs
            if report["best"]
            and found["trial"] == report["best"]["trial"]
            and found["value"] is not None
        ),
        None,
    )


def _confirmed_lines(report: dict[str, Any], metric: Metric) -> list[str]:
    if (found := confirmed(report)) is None:
        return []
    confirm = report["findings"]["confirm"]
    where = f"95 % interval {metric.between(found['interval'])}, {confirm['partition']}, {confirm['sentences']} {metric.items}"
    return [
        f"Confirmed {metric.name} {metric.text(found['value'])} ({where}, {fresh_seeds(found)}): {found['name']}"
    ]


def fresh_seeds(found: dict[str, Any]) -> str:
    """Of a configuration of the finding `confirm`: how many its value is the mean of, and of how many."""
    complete, asked = sum(seed["value"] is not None for seed in found["seeds"]), len(found["seeds"])
    return (
        f"{complete} of {asked} fresh seeds, the others did not come to their end"
        if complete < asked
        else plural(asked, "fresh seed")
    )


def sources(confirm: dict[str, Any], metric: Metric) -> str:
    """What the intervals of the finding `confirm` are over: of one seed nothing is known."""
    if confirm["sentences"] <= 1:
        return "seeds"
    complete = [
        sum(seed["value"] is not None for seed in found["seeds"])
        for found in confirm["configs"]
        if found["value"] is not None
    ]
    if max(complete, default=0) < 2:
        return metric.items
    if min(complete) > 1:
        return f"seeds and {metric.items}"
    return f"{metric.items}, and over seeds where two or more came to their end"


def _start_line(name: str, start: dict[str, Any], metric: Metric) -> str:
    head = f"    {name:20} "
    if start["state"] is None:
        return head + "not tried yet"
    if start["value"] is None:
        return (
            head
            + f"trial {start['trial']}, {start['state']}"
            + (f": {start['reason']}" if start["reason"] else "")
        )
    behind = metric.difference(start["points_above_best"] / metric.scale)
    value = f"{metric.name} {metric.text(start['value'])}"
    return (
        head + f"trial {start['trial']}, {value}, {behind} {metric.difference_unit} from the best"
    )


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
    share = (
        f" ({100 * saved / (spent + saved):.0f} % of what all would have taken)" if saved else ""
    )
    lost = report["gpu_seconds"]["lost"]
    again = f", {duration(lost)} lost by trials that began again" if lost else ""
    return f"Compute: {duration(spent)} of worker time spent, {duration(saved)} saved by stopping{share}{again}"


def next_command(report: dict[str, Any], database: str | None) -> str:
    """What to type after reading the report. database: as given on the command line, if it was."""
    where = f"--study {report['study']}" + (" --database URL" if database else "")
    if report["child_of"]:
        return f"hpo confirm or hpo ablate, with --study {report['child_of']}"
    if report["best"] is None:
        return f"hpo status {where}"
    return f"hpo export {where} --trial best --out {report['study']}-best.yaml"


def export_script(study: StudyReader, trial: str, out: Path) -> list[str]:
    """Write what the script of a trial gets into a folder: its configuration, and the command as `command.sh`.

    Returns lines for people. Raises StudyError, SpecError, OSError.
    """
    record = pick_trial(study, trial)
    launched = study.spec.offered("launched", "export of a script's files")
    config = study.spec.config(record.config)
    started = launched(config, out.resolve(), study.name, record.number, study.data["path"])
    out.mkdir(parents=True, exist_ok=True)
    value = study.spec.metric.text(record.value) if record.value is not None else record.state
    lines = [
        "#!/bin/sh",
        f"# Study {study.name}, trial {record.number}: {study.spec.metric.name} {value}, code {record.code_version}.",
        f"cd {shlex.quote(str(out.resolve()))} || exit 1",
        'if [ -e started ]; then echo "this folder was used: export into another one" >&2; exit 1; fi',
        "touch started",
        started.shell_line(),
    ]
    files = {**started.files, "command.sh": "\n".join(lines) + "\n"}
    for name, text in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text, encoding="utf-8")
    return [
        f"wrote {', '.join(str(out / name) for name in files)}",
        f"sh {out / 'command.sh'} trains it again",
    ]


def export_text(study: StudyReader, trial: str) -> str:
    """One trial's configuration as YAML: `base`, to be put into a study file, and `args` in the lab's names if the trainer
    has such.
    """
    record = pick_trial(study, trial)
    metric, trainer = study.spec.metric, study.spec.load_trainer()
    config = study.spec.config(record.config)
    ended = (
        f"{metric.name} {metric.text(record.value)} ({trainer.partition})"
        if record.value is not None
        else record.state
    )
    head = [
        f"# Study {study.name}, trial {record.number}: {ended}",
        f"# data fingerprint {record.data}, code {record.code_version}, {record.host}, {record.device}",
    ]
    content: dict[str, Any] = {"base": config.flat()}
    if study.spec.trainer not in (DEFAULT_TRAINER, SCRIPT_TRAINER):
        content = {"trainer": study.spec.trainer, **content}
    if launched := trainer.offers.get("launched"):
        started = launched(config, Path("ATTEMPT"), study.name, record.number, study.data["path"])
        content |= {"command": started.shell_line(), "files": _for_people(started.files)}
    if arguments := trainer.offers.get("arguments"):
        head += [f"# {line}" for line in arguments.about]
        content["args"] = arguments.of(config, study.data)
    else:
        head.append("# base: goes into a study file.")
        if launched:
            head.append("# command, files: what the script of the trial got.")
    return "\n".join(head) + "\n" + yaml.dump(content, Dumper=_Dumper, sort_keys=False)


def _for_people(files: Mapping[str, str]) -> dict[str, str]:
    """The file that the script reads; the one of hpo_report only where there is no other."""
    own = {name: text for name, text in files.items() if name != "hpo-config.json"}
    return own or dict(files)


class _Dumper(yaml.SafeDumper):
    """Text of several lines as it is."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
