"""The sections about findings: what `hpo confirm`, `hpo effects` and other commands measured.

A finding is the dictionary that the command stored, described by its model in `hpo.analysis`.
"""

from collections.abc import Mapping
from typing import Any

from hpo.analysis.effects import stands_out
from hpo.report import report_pictures as pictures
from hpo.report.blocks import (
    comparison_table,
    differences_cell,
    missing,
    notes_of,
    p_cell,
    trial_cell,
    value_cell,
)
from hpo.report.page import Block, Picture, Table, Text
from hpo.report.report import interval_sources
from hpo.report.report_data import ReportData
from hpo.text import duration, plural
from hpo.trainer import Metric

# Heat maps that are shown.
MAPS = 6


# ---- confirmation


def confirmation(data: ReportData) -> list[Block]:
    """Empty if nothing was confirmed: the headline says so already."""
    confirm = data.findings.get("confirm")
    if confirm is None:
        return []
    metric = data.metric
    blocks: list[Block] = [
        Text(_what_was_confirmed(confirm, metric)),
        _confirmed_table(confirm, metric),
    ]
    if confirm["comparisons"]:
        pairs = [(f"{pair['a']} minus {pair['b']}", pair) for pair in confirm["comparisons"]]
        blocks.append(comparison_table(pairs, metric))
        if _has_several_top(confirm):
            blocks.append(Text(_separation(confirm)))
    time = duration(confirm["gpu_seconds"])
    blocks.append(Text(f"Trials: study {confirm['child']}; {time} of worker time.", "note"))
    return blocks + notes_of(confirm)


def _what_was_confirmed(confirm: Mapping[str, Any], metric: Metric) -> str:
    items = ""
    if confirm["sentences"] > 1:
        items = f" ({confirm['sentences']} {metric.items})"
    level = f"{100 * confirm['level']:g} %"
    return (
        f"Mean {metric.name} over seeds on {confirm['partition']}{items}, with {level} intervals "
        f"over {interval_sources(confirm, metric)}. These values were not used for selection."
    )


def _confirmed_table(confirm: Mapping[str, Any], metric: Metric) -> Table:
    rows = []
    for config in confirm["configs"]:
        seeds = []
        for seed in config["seeds"]:
            ended = seed["state"] if seed["value"] is None else metric.text(seed["value"])
            seeds.append(ended)
        rows.append(
            (
                config["name"],
                value_cell(config["value"], metric),
                metric.between(config["interval"]),
                value_cell(config["search_value"], metric),
                metric.difference(config["optimism"]),
                ", ".join(seeds),
            )
        )
    head = (
        "configuration",
        f"{metric.name} on {confirm['partition']}",
        "interval",
        f"search {metric.name}",
        f"optimism ({metric.difference_unit})",
        "seeds",
    )
    return Table(head, rows, long=("seeds",))


def _has_several_top(confirm: Mapping[str, Any]) -> bool:
    """Whether more than one of the search's best was retrained.

    Findings of earlier versions do not have `top`: in them, every configuration that is not a
    start was one of the best.
    """
    top = [config for config in confirm["configs"] if config.get("top", config["start"] is None)]
    return len(top) > 1


def _separation(confirm: Mapping[str, Any]) -> str:
    if confirm["separated"]:
        return "The best configuration is separated from the other top ones."
    return "These data do not separate the best configuration from all other top ones."


# ---- effects


def effects(data: ReportData) -> list[Block]:
    finding = data.findings.get("effects")
    if finding is None:
        what = "Not measured yet: how much each parameter matters, and which ones act together."
        return [missing(data, "effects", what)]
    count = f"{finding['trials']} trials, {finding['diverged']} of them stopped."
    blocks: list[Block] = [Text(f"{count} Outcome: {finding['outcome']}")]
    rows = finding["importance"]
    if rows:
        blocks.append(_importance_picture(rows))
    for pair in finding["interactions"][:MAPS]:
        blocks.append(_interaction_picture(pair, data.metric))
    if rows:
        blocks.append(_importance_table(rows))
    return blocks + notes_of(finding)


def _importance_picture(rows: list[dict[str, Any]]) -> Picture:
    svg = pictures.importance([(row["name"], row["ped_anova"], row["fanova"]) for row in rows])
    caption = "Importance by two methods."
    if len(rows) > pictures.BARS:
        caption += f" The {pictures.BARS} most important parameters."
    return Picture(svg, caption)


def _interaction_picture(pair: Mapping[str, Any], metric: Metric) -> Picture:
    verdict = "no more than a hint"
    if stands_out(len(pair["trials"]), pair["p_holm"]):
        verdict = "stands out from the noise"
    caption = (
        f"{pair['x']} and {pair['y']}: interaction strength {pair['strength']:.2g}, "
        f"p {p_cell(pair['p_holm'])} (Holm): {verdict}."
    )
    return Picture(pictures.heat_map(pair, metric), caption)


def _importance_table(rows: list[dict[str, Any]]) -> Table:
    cells = []
    for row in rows:
        clear = stands_out(row["trials"], row["p_holm"])
        cells.append(
            (
                row["name"],
                _share(row["ped_anova"]),
                _share(row["fanova"]),
                str(row["trials"]),
                p_cell(row["p_holm"]),
                "stands out" if clear else "",
            )
        )
    head = ("parameter", "PED-ANOVA", "fANOVA", "trials", "p (Holm)", "")
    return Table(head, cells, long=("parameter",))


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


# ---- ablation


def ablation(data: ReportData) -> list[Block]:
    finding = data.findings.get("ablation")
    if finding is None:
        what = "Not measured yet: which changes from a start to the best make the difference."
        return [missing(data, "ablation", what)]
    metric = data.metric
    method = (
        f"From {finding['from']} to {finding['to']}, one change at a time, each on top of "
        f"those before: {plural(finding['seeds'], 'seed')} per step, {finding['partition']}, "
        f"{finding['sentences']} {metric.items} (study {finding['child']})."
    )
    caption = f"Dots: {metric.name} with its interval. Bars: what each change adds or takes away."
    return [
        Text(method),
        Picture(pictures.waterfall(finding["steps"], metric), caption),
        _step_table(finding["steps"], metric),
        *notes_of(finding),
    ]


def _step_table(steps: list[dict[str, Any]], metric: Metric) -> Table:
    rows = []
    for step in steps:
        rows.append(
            (
                step["label"],
                value_cell(step["value"], metric),
                metric.between(step["interval"]),
                metric.difference(step["difference"]),
                differences_cell(step["difference_interval"], metric),
                p_cell(step["p"]),
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
    return Table(head, rows, long=("change",))


# ---- questions


def questions(data: ReportData) -> list[Block]:
    """Empty if the space asks none."""
    finding = data.findings.get("questions")
    if finding is None:
        if not data.spec.questions:
            return []
        return [missing(data, "questions", "The study's questions are not answered yet.")]
    blocks: list[Block] = []
    for answer in finding["answers"]:
        blocks += _answer(answer)
    seeds = plural(finding["seeds"], "seed")
    method = f"Measured on {finding['partition']} with {seeds} per side (study {finding['child']})."
    blocks.append(Text(method, "note"))
    return blocks + notes_of(finding)


def _answer(answer: Mapping[str, Any]) -> list[Block]:
    """The question, its answer, and the evidence unless the answer already has all of it."""
    verdict = "Decided" if answer["verdict"] == "decided" else "Not decided"
    blocks: list[Block] = [
        Text(answer["ask"], "quote"),
        Text(f"{verdict}. {answer['answer']}"),
    ]
    evidence = [measured["in_words"] for measured in answer["evidence"]]
    if not all(words in answer["answer"] for words in evidence):
        blocks += [Text(words, "note") for words in evidence]
    return blocks


# ---- ensemble


def ensemble(data: ReportData) -> list[Block]:
    """Empty if the trainer cannot combine models."""
    finding = data.findings.get("ensemble")
    if finding is None:
        if "ensemble" not in data.spec.load_trainer().offers:
            return []
        what = "Not measured yet: whether several finished trials together do better."
        return [missing(data, "ensemble", what)]
    metric = data.metric
    title = f"ensemble minus single, {finding['partition']}"
    blocks: list[Block] = [
        Text(_how_combined(finding)),
        _ensemble_table(finding, metric),
        comparison_table([(title, finding["comparison"])], metric),
    ]
    if finding["curve"]:
        blocks.append(_ensemble_picture(finding, metric))
    blocks.append(Text(_decoding_time(finding["cost"], metric), "note"))
    return blocks + notes_of(finding)


def _how_combined(finding: Mapping[str, Any]) -> str:
    combined = finding["ensemble"]
    members = []
    for member in combined["members"]:
        times = "" if member["weight"] == 1 else f" x {member['weight']}"
        members.append(f"trial {member['trial']}{times}")
    return (
        f"{combined['mean'].capitalize()} mean of {', '.join(members)}, selected on "
        f"{finding['partition_selected']} from {finding['candidates']} trials."
    )


def _ensemble_table(finding: Mapping[str, Any], metric: Metric) -> Table:
    single = finding["single"]
    rows = []
    for name, part in ((f"trial {single['trial']}", single), ("ensemble", finding["ensemble"])):
        rows.append(
            (
                name,
                value_cell(part["validation_value"], metric),
                metric.between(part["validation_interval"]),
                value_cell(part["test_value"], metric),
                metric.between(part["test_interval"]),
            )
        )
    head = (
        "",
        f"validation {metric.name}",
        "validation interval",
        f"test {metric.name}",
        "test interval",
    )
    return Table(head, rows)


def _ensemble_picture(finding: Mapping[str, Any], metric: Metric) -> Picture:
    combined = finding["ensemble"]
    size = sum(member["weight"] for member in combined["members"])
    svg = pictures.ensemble(finding["curve"], size, combined["mean"], metric)
    return Picture(svg, f"{metric.name} by size; size and mean were chosen on validation.")


def _decoding_time(cost: Mapping[str, Any], metric: Metric) -> str:
    return (
        f"Decoding {cost['sentences']} {metric.items} takes {cost['seconds_ensemble']:.3g} s "
        f"instead of {cost['seconds_single']:.3g} s ({cost['ratio']:.3g} times as long)."
    )


# ---- past runs


def past_runs(data: ReportData) -> list[Block]:
    """Empty if none were imported."""
    finding = data.findings.get("past_runs")
    if finding is None:
        return []
    metric = data.metric
    rows = []
    for run in finding["runs"]:
        warnings = list(run["doubts"])
        if run["why_not"]:
            warnings.insert(0, run["why_not"])
        rows.append(
            (
                run["name"],
                trial_cell(run["trial"]),
                value_cell(run["best_value"], metric),
                value_cell(run["last_value"], metric),
                run["split"],
                "; ".join(warnings),
            )
        )
    head = (
        "run",
        "trial",
        f"{metric.lowest} {metric.name}",
        f"last {metric.name}",
        "scored on",
        "warnings",
    )
    return [Table(head, rows, long=("warnings",)), *notes_of(finding)]
