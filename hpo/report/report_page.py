"""The report as a page: what it says of a study, section by section. page.py makes HTML and Markdown of it.

What was never measured is one line with the command that measures it, never an empty picture.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from hpo.analysis.effects import stands_out
from hpo.curve import Point
from hpo.report import report_pictures as pictures
from hpo.report.methods import methods
from hpo.report.page import Block, Code, Number, Picture, Section, Table, Text
from hpo.report.report import (
    build_report,
    confirmed,
    export_text,
    fresh_seeds,
    interval_text,
    items_text,
    sources,
)
from hpo.space.spec import StudySpec
from hpo.study.reader import StudyReader
from hpo.study.trial import Record
from hpo.text import duration, plural, value_text
from hpo.trainer import Metric

ROWS = 200  # trials in the table
MAPS = 6  # heat maps
COMMANDS = {  # what makes a finding
    "confirm": "hpo confirm",
    "effects": "hpo effects",
    "ablation": "hpo ablate --from START --to best",
    "questions": "hpo ablate --questions",
    "ensemble": "hpo ensemble",
}


@dataclass(frozen=True)
class Facts:
    """All that a page is made of."""

    report: dict[str, Any]
    spec: StudySpec
    records: list[Record]
    curves: Mapping[int, list[Point]]
    best: str  # the configuration of the best trial, as YAML; empty: there is none

    @property
    def metric(self) -> Metric:
        return self.spec.metric

    @property
    def findings(self) -> dict[str, dict[str, Any]]:
        return dict(self.report["findings"])

    def command(self, kind: str) -> str:
        return f"`{COMMANDS[kind]} --study {self.report['study']}`"


def facts_of(study: StudyReader) -> Facts:
    report, records = build_report(study), study.records()
    return Facts(
        report,
        study.spec,
        records,
        study.curves(records),
        export_text(study, "best") if report["best"] else "",
    )


def page_of(facts: Facts) -> tuple[str, list[Section]]:
    """Title and sections."""
    sections = [
        Section("", [*_headline(facts), *_starts(facts)]),
        Section("Confirmation", _confirmation(facts)),
        Section("Trials over time", _curves(facts)),
        Section("What matters", _effects(facts)),
        Section("From one configuration to another", _ablation(facts)),
        Section("Questions", _questions(facts)),
        Section("Ensemble", _ensemble(facts)),
        Section("Past runs", _past_runs(facts)),
        Section(
            "The best configuration",
            [Code(facts.best, "yaml")] if facts.best else [_nothing(facts)],
        ),
        Section("For a methods section", methods(facts.report, facts.spec, facts.records)),
        Section("Trials", _trials(facts)),
        Section("Provenance", _provenance(facts)),
    ]
    return f"Study {facts.report['study']}", [section for section in sections if section.blocks]


def _missing(facts: Facts, kind: str, what: str) -> Text:
    return Text(f"{what} Measure: {facts.command(kind)}", "missing")


def _nothing(facts: Facts) -> Text:
    return Text(
        f"No trial is complete yet. See `hpo status --study {facts.report['study']}`", "missing"
    )


def _differences(interval: Sequence[float] | None, metric: Metric) -> str:
    return (
        "-"
        if interval is None
        else f"{metric.difference(interval[0])} to {metric.difference(interval[1])}"
    )


def _value(value: float | None, metric: Metric) -> str:
    return "-" if value is None else metric.text(value)


def _p(p: float | None) -> str:
    return "-" if p is None else f"{p:.2g}"


def _notes(finding: Mapping[str, Any]) -> list[Block]:
    return [
        *(Text(note, "note") for note in finding.get("notes", [])),
        Text(f"Found {finding['made'][:16].replace('T', ' ')} UTC.", "note"),
    ]


# ---- the headline


def _headline(facts: Facts) -> list[Block]:
    report, metric, blocks = facts.report, facts.metric, list[Block]()
    if facts.spec.question:
        blocks.append(Text(facts.spec.question, "quote"))
    if still := [
        f"{report['trials'][state]} {state}"
        for state in ("running", "waiting")
        if report["trials"][state]
    ]:
        blocks.append(Text(f"The study is not over: {', '.join(still)}.", "note"))
    best = report["best"]
    if best is None:
        return [*blocks, _nothing(facts)]
    found = confirmed(report)
    if found is not None:
        confirm = report["findings"]["confirm"]
        items = f"{confirm['sentences']} {metric.items} that the search never saw"
        if not facts.spec.load_trainer().cuts_validation:
            items = "which the search saw"
        text = (
            f"{interval_text(found, metric)}, {confirm['partition']}, {items}: "
            f"{found['name']}, trained anew with {fresh_seeds(found)}"
        )
        blocks.append(Number(f"Confirmed {metric.name}", metric.text(found["value"]), text))
    text = (
        f"trial {best['trial']}, {interval_text(best, metric)}, {best['partition']}"
        f"{items_text(best, metric)}. Selected as the {metric.lowest} of {report['trials']['complete']} on these, "
        f"so optimistic{'; that is not in the interval' if best['interval'] else ''}"
    )
    title = f"Search {metric.name}" if found else f"Best {metric.name} (search)"
    blocks.append(Number(title, metric.text(best["value"]), text))
    blocks += [Text(caution, "note") for caution in report["cautions"]]
    if found is None:
        asked = "confirm" in facts.findings
        why = f"This {metric.name} is unconfirmed."
        if asked:
            why = f"`hpo confirm` has no {metric.name} of trial {best['trial']}, which is best now."
        more = (
            f" and {metric.items} that the search never saw"
            * facts.spec.load_trainer().cuts_validation
        )
        what = f"{why} Fresh seeds{more} tell what to expect."
        blocks.append(_missing(facts, "confirm", what))
    return blocks


def _starts(facts: Facts) -> list[Block]:
    rows = []
    for name, start in facts.report["starts"].items():
        metric, above = facts.metric, start["points_above_best"]
        ended = (start["state"] or "not tried yet") + (
            f": {start['reason']}" if start["reason"] else ""
        )
        cells = (_value(start["value"], metric), metric.between(start["interval"]))
        behind = metric.difference(None if above is None else above / metric.scale)
        rows.append(
            (name, "-" if start["trial"] is None else str(start["trial"]), *cells, behind, ended)
        )
    above_best = f"{facts.metric.difference_unit} above best"
    head = ("start", "trial", f"search {facts.metric.name}", "95 % interval", above_best, "state")
    return [Table(head, rows, long=("state",))] if rows else []


def _confirmation(facts: Facts) -> list[Block]:
    confirm = facts.findings.get("confirm")
    if confirm is None:
        return []  # the headline says so
    metric, rows = facts.metric, []
    for found in confirm["configs"]:
        seeds = [
            seed["state"] if seed["value"] is None else metric.text(seed["value"])
            for seed in found["seeds"]
        ]
        rows.append(
            (
                found["name"],
                _value(found["value"], metric),
                metric.between(found["interval"]),
                _value(found["search_value"], metric),
                metric.difference(found["optimism"]),
                ", ".join(seeds),
            )
        )
    partition = confirm["partition"]
    items = f" ({confirm['sentences']} {metric.items})" if confirm["sentences"] > 1 else ""
    blocks: list[Block] = [
        Text(
            f"{metric.name} on {partition}{items}, the mean over seeds, with "
            f"{100 * confirm['level']:g} % intervals over {sources(confirm, metric)}. Nothing was selected by it."
        ),
        Table(
            (
                "configuration",
                f"{metric.name} on {partition}",
                "interval",
                f"search {metric.name}",
                f"optimism ({metric.difference_unit})",
                "seeds",
            ),
            rows,
            long=("seeds",),
        ),
    ]
    if confirm["comparisons"]:
        blocks.append(
            _comparisons(
                [(f"{pair['a']} minus {pair['b']}", pair) for pair in confirm["comparisons"]],
                metric,
            )
        )
        if sum(found.get("top", found["start"] is None) for found in confirm["configs"]) > 1:
            separated = "The best one is separated from the other best ones."
            not_separated = "These data do not separate the best one from all other best ones."
            blocks.append(Text(separated if confirm["separated"] else not_separated))
    blocks.append(
        Text(
            f"Trials: study {confirm['child']}; {duration(confirm['gpu_seconds'])} of worker time.",
            "note",
        )
    )
    return blocks + _notes(confirm)


def _comparisons(pairs: Iterable[tuple[str, Mapping[str, Any]]], metric: Metric) -> Table:
    rows = [
        (name, metric.difference(pair["difference"]), _differences(pair["interval"], metric), _p(pair["p"]), _p(pair.get("p_holm")),
         "not decided" * (pair.get("decided") is False))
        for name, pair in pairs
    ]  # fmt: skip
    return Table(("difference", metric.difference_unit, "95 % interval", "p", "p (Holm)", ""), rows)


# ---- what the trials show


def _curves(facts: Facts) -> list[Block]:
    best = facts.report["best"]
    labels = {
        record.number: f"{record.start} (trial {record.number})"
        for record in facts.records
        if record.start
    }
    if best:
        start = next(
            (
                f" ({name})"
                for name, start in facts.report["starts"].items()
                if start["trial"] == best["trial"]
            ),
            "",
        )
        labels[best["trial"]] = f"trial {best['trial']}, best{start}"
    trials = [
        pictures.Curve([point.step for point in curve], [point.value for point in curve],
                       (record.cause or record.rule) if record.state == "stopped" else "", labels.get(record.number, ""))
        for record in sorted(facts.records, key=lambda record: best is None or record.number != best["trial"])
        if (curve := [point for point in facts.curves[record.number] if np.isfinite(point.value)])
    ]  # fmt: skip
    if not trials:
        return [
            Text(
                f"No trial was evaluated yet. See `hpo status --study {facts.report['study']}`",
                "missing",
            )
        ]
    blocks: list[Block] = [
        Picture(
            pictures.curves(trials, facts.metric),
            f"Validation {facts.metric.name} of all {len(trials)} trials; marks are where the rule stopped one.",
        )
    ]
    complete = [record for record in facts.records if record.value is not None]
    if complete:
        spent = dict(
            zip(
                (record.number for record in facts.records),
                np.cumsum([record.gpu_seconds for record in facts.records]) / 3600,
                strict=True,
            )
        )
        starts = {record.start: place for place, record in enumerate(complete) if record.start}
        values = [record.value for record in complete if record.value is not None]
        caption = f"The {facts.metric.name} at the end of each complete trial, in the order of their numbers, and the best so far."
        blocks.append(
            Picture(
                pictures.history(
                    [record.number for record in complete], values, starts, "trial", facts.metric
                ),
                caption,
            )
        )
        hours = [float(spent[record.number]) for record in complete]
        over_time = pictures.history(
            hours, values, starts, "GPU-hours of all workers", facts.metric
        )
        blocks.append(Picture(over_time, f"{caption} On CPUs: worker-hours."))
    return blocks + [Text(line, "note") for line in _stopped(facts)]


def _stopped(facts: Facts) -> list[str]:
    report = facts.report
    saved = report["gpu_seconds"]["saved"]
    causes = ", ".join(
        f"{count} {pictures.cause_text(cause, facts.metric)}"
        for cause, count in report["stopped_because"].items()
    )
    lines = (
        [
            f"Stopped by a rule: {report['trials']['stopped']} ({causes}), which saved {duration(saved)} of worker time."
        ]
        if causes
        else []
    )
    return lines + [
        f"Failed: {count} x {reason}" for reason, count in report["failed_because"].items()
    ]


def _effects(facts: Facts) -> list[Block]:
    effects = facts.findings.get("effects")
    if effects is None:
        return [
            _missing(
                facts,
                "effects",
                "How much each parameter matters, and which act together, was not computed.",
            )
        ]
    rows = effects["importance"]
    blocks: list[Block] = [
        Text(
            f"{effects['trials']} trials, {effects['diverged']} of them stopped. Outcome: {effects['outcome']}"
        )
    ]
    if rows:
        picture = pictures.importance(
            [(row["name"], row["ped_anova"], row["fanova"]) for row in rows]
        )
        blocks.append(
            Picture(
                picture,
                "Importance by two methods."
                + f" The {pictures.BARS} largest." * (len(rows) > pictures.BARS),
            )
        )
    for found in effects["interactions"][:MAPS]:
        verdict = (
            "stands out of the noise"
            if stands_out(len(found["trials"]), found["p_holm"])
            else "no more than a hint"
        )
        told = f"interaction strength {found['strength']:.2g}, p {_p(found['p_holm'])} (Holm): {verdict}."
        blocks.append(
            Picture(
                pictures.heat_map(found, facts.metric), f"{found['x']} and {found['y']}: {told}"
            )
        )
    shares = [(row["name"], _share(row["ped_anova"]), _share(row["fanova"]), str(row["trials"]), _p(row["p_holm"]),
               "stands out" if stands_out(row["trials"], row["p_holm"]) else "") for row in rows]  # fmt: skip
    table = Table(
        ("parameter", "PED-ANOVA", "fANOVA", "trials", "p (Holm)", ""), shares, long=("parameter",)
    )
    return [*blocks, *([table] if shares else []), *_notes(effects)]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _ablation(facts: Facts) -> list[Block]:
    found = facts.findings.get("ablation")
    if found is None:
        return [
            _missing(
                facts,
                "ablation",
                "Which of the changes from a start to the best make the difference was not measured.",
            )
        ]
    metric, rows = facts.metric, []
    for step in found["steps"]:
        rows.append(
            (
                step["label"],
                _value(step["value"], metric),
                metric.between(step["interval"]),
                metric.difference(step["difference"]),
                _differences(step["difference_interval"], metric),
                _p(step["p"]),
                "not decided" if step["decided"] is False else "",
                str(step["diverged"] or ""),
            )
        )
    head = (
        "change",
        metric.name,
        "95 % interval",
        metric.difference_unit,
        "interval of the difference",
        "p",
        "",
        "diverged seeds",
    )
    seeds = plural(found["seeds"], "seed")
    how = (f"From {found['from']} to {found['to']}, one change after the other, each on top of those before: {seeds} a step, "
           f"{found['partition']}, {found['sentences']} {metric.items} (study {found['child']}).")  # fmt: skip
    caption = f"Dots: {metric.name} with its interval. Bars: what a change adds or takes away."
    picture = Picture(pictures.waterfall(found["steps"], metric), caption)
    return [Text(how), picture, Table(head, rows, long=("change",)), *_notes(found)]


def _questions(facts: Facts) -> list[Block]:
    found = facts.findings.get("questions")
    if found is None and not facts.spec.questions:
        return []
    if found is None:
        return [_missing(facts, "questions", "Its questions were not measured.")]
    blocks: list[Block] = []
    for answer in found["answers"]:
        verdict = "Decided" if answer["verdict"] == "decided" else "Not decided"
        blocks += [Text(answer["ask"], "quote"), Text(f"{verdict}. {answer['answer']}")]
        if not all(evidence["in_words"] in answer["answer"] for evidence in answer["evidence"]):
            blocks += [Text(evidence["in_words"], "note") for evidence in answer["evidence"]]
    return [
        *blocks,
        Text(
            f"Measured on {found['partition']} with {plural(found['seeds'], 'seed')} a side (study {found['child']}).",
            "note",
        ),
        *_notes(found),
    ]


def _ensemble(facts: Facts) -> list[Block]:
    found = facts.findings.get("ensemble")
    if found is None and "ensemble" not in facts.spec.load_trainer().offers:
        return []
    if found is None:
        return [
            _missing(
                facts,
                "ensemble",
                "Whether several finished trials together do better was not measured.",
            )
        ]
    single, several, cost = found["single"], found["ensemble"], found["cost"]
    metric = facts.metric
    members = [
        f"trial {member['trial']}" + f" x {member['weight']}" * (member["weight"] != 1)
        for member in several["members"]
    ]
    how = f"{several['mean'].capitalize()} mean of {', '.join(members)}"
    takes = f"{cost['seconds_ensemble']:.3g} s instead of {cost['seconds_single']:.3g} s ({cost['ratio']:.3g} times)"
    rows = [
        (
            name,
            _value(part["validation_value"], metric),
            metric.between(part["validation_interval"]),
            _value(part["test_value"], metric),
            metric.between(part["test_interval"]),
        )
        for name, part in ((f"trial {single['trial']}", single), ("ensemble", several))
    ]
    blocks: list[Block] = [
        Text(
            f"{how}, selected on {found['partition_selected']} among {found['candidates']} trials."
        ),
        Table(
            (
                "",
                f"validation {metric.name}",
                "validation interval",
                f"test {metric.name}",
                "test interval",
            ),
            rows,
        ),
        _comparisons(
            [(f"ensemble minus single, {found['partition']}", found["comparison"])], metric
        ),
    ]
    if found["curve"]:
        picture = pictures.ensemble(
            found["curve"],
            sum(member["weight"] for member in several["members"]),
            several["mean"],
            metric,
        )
        blocks.append(
            Picture(picture, f"{metric.name} by size; size and mean are chosen on validation.")
        )
    return [
        *blocks,
        Text(f"Decoding {cost['sentences']} {metric.items} takes {takes}.", "note"),
        *_notes(found),
    ]


def _past_runs(facts: Facts) -> list[Block]:
    found = facts.findings.get("past_runs")
    if found is None:
        return []
    rows = []
    for run in found["runs"]:
        why_not = [run["why_not"]] if run["why_not"] else []
        rows.append(
            (
                run["name"],
                "-" if run["trial"] is None else str(run["trial"]),
                _value(run["best_value"], facts.metric),
                _value(run["last_value"], facts.metric),
                run["split"],
                "; ".join([*why_not, *run["doubts"]]),
            )
        )
    return [Table(_past_head(facts.metric), rows, long=("doubts",)), *_notes(found)]


def _past_head(metric: Metric) -> tuple[str, ...]:
    return (
        "run",
        "trial",
        f"{metric.lowest} {metric.name}",
        f"last {metric.name}",
        "scored on",
        "doubts",
    )


# ---- tables at the end


def _trials(facts: Facts) -> list[Block]:
    best = facts.report["best"]
    metric = facts.metric
    ranked = sorted(facts.records, key=lambda record: _rank(record, metric))
    kept = sorted(ranked[:ROWS], key=lambda record: record.number)
    rows = [
        (
            str(record.number) + ", best" * (best is not None and best["trial"] == record.number),
            record.start or "",
            record.state
            + (
                f", {record.step} of {record.steps}"
                if record.state != "complete" and record.steps
                else ""
            ),
            "" if record.value is None else metric.text(record.value),
            record.reason,
            ", ".join(f"{name} {value_text(value)}" for name, value in record.params.items()),
            " ".join(part for part in (record.host, record.device) if part),
            duration(record.seconds),
        )
        for record in kept
    ]
    head = ("trial", "start", "state", metric.name, "reason", "parameters", "ran on", "time")
    cut = f"The starts and the best of {len(facts.records)} trials. All: `hpo status --study {facts.report['study']} --json`"
    return (
        [
            *([Text(cut, "note")] if len(facts.records) > ROWS else []),
            Table(head, rows, long=("reason", "parameters", "ran on")),
        ]
        if rows
        else []
    )


def _rank(record: Record, metric: Metric) -> tuple[bool, bool, float, int]:
    """The starts first, then the best."""
    value = record.value
    return record.start is None, value is None, metric.sign * (value or 0.0), record.number


def _provenance(facts: Facts) -> list[Block]:
    report, spec = facts.report, facts.spec
    data, seconds = report["data"], report["gpu_seconds"]
    ran = [record for record in facts.records if record.device]
    budget = [
        f"{name.replace('_', ' ')} {value}"
        for name, value in report["budget"].items()
        if value is not None
    ]
    rows = [
        ("data", f"{_source(facts)}, fingerprint {data['fingerprint']}"),
        _figures_of(spec),
        ("space", spec.space + (f", profile {spec.profile}" if spec.profile else "") + f", digest {report['digest']}"),
        ("seeds", f"training {spec.base['seed']} + number of the trial, sampler {spec.sampler.seed}, validation {spec.validation.seed}"),
        ("code", ", ".join(sorted({record.code_version for record in ran})) or "-"),
        *_script(facts),
        ("policy", str(spec.policy)),
        ("budget", ", ".join(budget)),
        ("worker time", f"{duration(seconds['spent'])} ({seconds['spent'] / 3600:.3g} GPU-hours; on CPUs worker-hours), about "
                        f"{duration(seconds['saved'])} saved by stopping"),
        ("this page", ", ".join(f"{name} {version(name)}" for name in ("bci-hpo", "optuna", "torch", "matplotlib"))),
    ]  # fmt: skip
    places = sorted({(record.host, record.device) for record in ran})
    machines = []
    for host, device in places:
        here = [record for record in ran if (record.host, record.device) == (host, device)]
        machines.append(
            (host, device, str(len(here)), duration(sum(record.gpu_seconds for record in here)))
        )
    space = [
        (name, _values(parameter.choices) if parameter.choices else str(parameter),
         "; ".join(f"{parent} is {_values(allowed, ' or ')}" for parent, allowed in parameter.when.items()))
        for name, parameter in spec.parameters.items()
    ]  # fmt: skip
    blocks: list[Block] = [Table(("what", "value"), rows, long=("value",))]
    if machines:
        blocks.append(Table(("host", "device", "trials", "worker time"), machines))
    return [
        *blocks,
        Table(("searched parameter", "values", "only if"), space, long=("values", "only if")),
    ]


def _figures_of(spec: StudySpec) -> tuple[str, str]:
    """What the figures are of."""
    trainer = spec.load_trainer()
    if trainer.cuts_validation:
        return "validation", f"{100 * spec.validation.fraction:g} % of {trainer.cut}"
    return "figures", f"of {trainer.partition}, as the script reports them"


def _script(facts: Facts) -> list[tuple[str, str]]:
    """Of a study of a script: its code, and what going on with an interrupted training gives."""
    script = facts.report["data"].get("script")
    if script is None:
        return []
    commit = script["commit"] or f"state {script['digest']}, no git"
    changed = ", with changes that are not committed" if script["changed"] else ""
    resume = facts.spec.load_trainer().resume
    return [("script", f"{script['folder']}, {commit}{changed}"), ("resumes", resume)]


def _source(facts: Facts) -> str:
    path = facts.report["data"]["path"]
    return Path(path).name if path else facts.spec.load_trainer().bundled


def _values(values: Iterable[Any], between: str = ", ") -> str:
    return between.join(map(value_text, values))
