"""The report as a page: its sections in order, and the headline.

`page.py` makes HTML and Markdown of it. Where something was never measured, the page has one line
with the command that measures it, never an empty picture.
"""

from typing import Any

from hpo.report.blocks import missing, no_complete_trial, trial_cell, value_cell
from hpo.report.finding_sections import (
    ablation,
    confirmation,
    effects,
    ensemble,
    past_runs,
    questions,
)
from hpo.report.methods import methods
from hpo.report.page import Block, Code, Number, Section, Table, Text
from hpo.report.provenance import provenance
from hpo.report.report import confirmed, fresh_seeds, interval_text, items_text, unfinished
from hpo.report.report_data import ReportData
from hpo.report.trial_sections import trial_list, trials_over_time


def page_of(data: ReportData) -> tuple[str, list[Section]]:
    """The title and the sections that have something to show."""
    sections = [
        Section("", [*_headline(data), *_starts(data)]),
        Section("Confirmation", confirmation(data)),
        Section("Trials over time", trials_over_time(data)),
        Section("What matters", effects(data)),
        Section("From one configuration to another", ablation(data)),
        Section("Questions", questions(data)),
        Section("Ensemble", ensemble(data)),
        Section("Past runs", past_runs(data)),
        Section("The best configuration", _best_configuration(data)),
        Section("For a methods section", methods(data)),
        Section("Trials", trial_list(data)),
        Section("Provenance", provenance(data)),
    ]
    return f"Study {data.study}", [section for section in sections if section.blocks]


def _headline(data: ReportData) -> list[Block]:
    report = data.report
    blocks: list[Block] = []
    if data.spec.question:
        blocks.append(Text(data.spec.question, "quote"))
    counts = unfinished(report)
    if counts:
        blocks.append(Text(f"The study is not finished: {', '.join(counts)}.", "note"))
    if report["best"] is None:
        return [*blocks, no_complete_trial(data)]

    config = confirmed(report)
    if config is not None:
        blocks.append(_confirmed_number(data, config))
    blocks.append(_search_number(data, is_confirmed=config is not None))
    blocks += [Text(caution, "note") for caution in report["cautions"]]
    if config is None:
        blocks.append(_unconfirmed(data))
    return blocks


def _confirmed_number(data: ReportData, config: dict[str, Any]) -> Number:
    """config: what `hpo confirm` measured of the best trial."""
    metric = data.metric
    confirm = data.findings["confirm"]
    items = "which the search saw"
    if data.spec.load_trainer().cuts_validation:
        items = f"{confirm['sentences']} {metric.items} that the search never saw"
    text = (
        f"{interval_text(config, metric)}, {confirm['partition']}, {items}: "
        f"{config['name']}, retrained with {fresh_seeds(config)}"
    )
    return Number(f"Confirmed {metric.name}", metric.text(config["value"]), text)


def _search_number(data: ReportData, is_confirmed: bool) -> Number:
    metric = data.metric
    best = data.report["best"]
    complete = data.report["trials"]["complete"]
    caveat = "; the interval ignores that" if best["interval"] else ""
    text = (
        f"trial {best['trial']}, {interval_text(best, metric)}, "
        f"{best['partition']}{items_text(best, metric)}. "
        f"Selected as the {metric.lowest} of {complete} on these, so it is optimistic{caveat}"
    )
    title = f"Search {metric.name}" if is_confirmed else f"Best {metric.name} (search)"
    return Number(title, metric.text(best["value"]), text)


def _unconfirmed(data: ReportData) -> Text:
    metric = data.metric
    trial = data.report["best"]["trial"]
    status = f"This {metric.name} is unconfirmed."
    if "confirm" in data.findings:
        status = f"`hpo confirm` has not measured trial {trial}, which is best now."
    advice = "Fresh seeds show what to expect."
    if data.spec.load_trainer().cuts_validation:
        advice = f"Fresh seeds and {metric.items} that the search never saw show what to expect."
    return missing(data, "confirm", f"{status} {advice}")


def _starts(data: ReportData) -> list[Block]:
    metric = data.metric
    rows = []
    for name, start in data.report["starts"].items():
        above_best = start["points_above_best"]
        if above_best is not None:
            above_best /= metric.scale
        state = start["state"] or "not tried yet"
        if start["reason"]:
            state += f": {start['reason']}"
        rows.append(
            (
                name,
                trial_cell(start["trial"]),
                value_cell(start["value"], metric),
                metric.between(start["interval"]),
                metric.difference(above_best),
                state,
            )
        )
    if not rows:
        return []
    head = (
        "start",
        "trial",
        f"search {metric.name}",
        "95 % interval",
        f"{metric.difference_unit} above best",
        "state",
    )
    return [Table(head, rows, long=("state",))]


def _best_configuration(data: ReportData) -> list[Block]:
    if not data.best:
        return [no_complete_trial(data)]
    return [Code(data.best, "yaml")]
