"""A paragraph for a paper's methods section, made of the study's own numbers.

It claims only what was measured.
"""

import re
from collections.abc import Mapping
from typing import Any

from hpo.analysis.effects import stands_out
from hpo.report.page import Block, Text
from hpo.report.report import confirmed, fresh_seeds, interval_sources
from hpo.report.report_data import ReportData
from hpo.space.budget import hours_unit
from hpo.space.spec import Policy, StudySpec
from hpo.space.stopping import OwnPast
from hpo.study.record import ran_on_cpus
from hpo.study.trial import Record
from hpo.text import plural
from hpo.trainer import Metric

# Of parameters that are named in the order of their importance.
MOST_IMPORTANT = 3


def methods(data: ReportData) -> list[Block]:
    """Empty until a trial is complete."""
    report = data.report
    metric = data.metric
    if report["best"] is None:
        return []
    sentences = [
        *_search(report, data.spec),
        *_outcome(report, data.records, metric),
        *_confirmation(report, metric),
        *_importance(report),
        *_ablation(report, metric),
        *_ensemble(report, metric),
    ]
    return [Text(" ".join(sentences))]


# ---- how the search went about


def _search(report: dict[str, Any], spec: StudySpec) -> list[str]:
    trainer = spec.load_trainer()
    searched = spec.parameters
    sizes = trainer.sizes(spec.config())
    fixed = ", ".join(text for name, text in sizes.items() if name not in searched)
    sentences = [
        f"We searched {plural(len(searched), 'hyperparameter')} of {trainer.what} ({fixed}): "
        f"{', '.join(searched)}.",
        _drawn(report, spec),
        _criterion(report, spec),
    ]
    if spec.stopping:
        sentences.append(_stopping(spec.stopping, spec.metric))
    return sentences


def _drawn(report: dict[str, Any], spec: StudySpec) -> str:
    """How configurations were proposed."""
    starts = ", ".join(report["starts"]) or "none"
    startup = min(spec.sampler.startup_trials, sum(report["trials"].values()))
    if spec.policy == Policy.RANDOM:
        how = f"at random or given ({starts})"
    elif spec.policy == Policy.TPE:
        how = (
            "by Optuna's multivariate tree-structured Parzen estimator, "
            f"the first {startup} trials at random or given ({starts})"
        )
    else:
        how = (
            "by the largest expected improvement under a Gaussian process of "
            f"{_modelled(spec.metric)} (Matern 5/2 kernel), "
            f"the first {startup} trials from a scrambled Sobol sequence or given ({starts})"
        )
    return f"Configurations were drawn {how}; sampler seed {spec.sampler.seed}."


def _modelled(metric: Metric) -> str:
    """What the Gaussian process models."""
    if not metric.bounded:
        return metric.name
    if metric.direction == "minimize":
        return f"log {metric.name}"
    return f"log (1 - {metric.name})"


def _criterion(report: dict[str, Any], spec: StudySpec) -> str:
    trainer = spec.load_trainer()
    metric = spec.metric
    criterion = metric.description.rstrip(".") or metric.name
    moment = "the end of training"
    if trainer.take == "best":
        moment = "the best evaluation of each training"
    head = f"The criterion was {criterion} at {moment} on"

    count = report["best"]["sentences"]
    if trainer.cuts_validation:
        percentage = f"{100 * spec.validation.fraction:g} %"
        return (
            f"{head} {count} validation {metric.items}, {percentage} of {trainer.cut} drawn with "
            f"seed {spec.validation.seed}; the search did not use the test partition."
        )
    items = f" ({count} {metric.items})" if count > 1 else ""
    if trainer.partition == "test":
        return f"{head} the test partition{items}, on which the search therefore selected."
    return f"{head} the validation partition of the training script{items}."


def _stopping(rule: OwnPast, metric: Metric) -> str:
    conditions = []
    if rule.margin is not None:
        conditions.append(_metric_condition(rule, rule.margin, metric))
    conditions.append(
        f"when its loss exceeded {rule.loss_factor:g} times its own best in "
        f"{plural(rule.loss_patience, 'consecutive evaluation')}"
    )
    return f"A trial was stopped early {', '.join(conditions)}, or when a value was not finite."


def _metric_condition(rule: OwnPast, margin: float, metric: Metric) -> str:
    minimized = metric.direction == "minimize"
    learned = ""
    if rule.learned is not None:
        bound = f"below {rule.learned:g}" if minimized else f"above {1 - rule.learned:g}"
        learned = f", once {bound},"
    left = "exceeded" if minimized else "fell behind"
    return (
        f"when its {metric.name}{learned} {left} its own best by more than {margin:g} in "
        f"{plural(rule.patience, 'consecutive evaluation')}"
    )


# ---- what it found


def _outcome(report: dict[str, Any], records: list[Record], metric: Metric) -> list[str]:
    best = report["best"]
    sentences = [
        _counts(report, records),
        f"The {metric.lowest} {best['partition']} {metric.name} was {metric.text(best['value'])} "
        f"({_best_interval(best, metric)}trial {best['trial']}); "
        f"as the {metric.lowest} of {report['trials']['complete']} it is optimistic.",
    ]
    starts = []
    for name, start in report["starts"].items():
        if start["value"] is not None and start["trial"] != best["trial"]:
            interval = f" ({metric.between(start['interval'])})" if start["interval"] else ""
            starts.append(f"{name} {metric.text(start['value'])}{interval}")
    if starts:
        sentences.append(f"For comparison: {', '.join(starts)}.")
    return sentences


def _counts(report: dict[str, Any], records: list[Record]) -> str:
    trials = report["trials"]
    devices = sorted({_device_model(record.device) for record in records if record.device})
    unit = hours_unit(ran_on_cpus(records))
    hours = report["gpu_seconds"]["spent"] / 3600
    by_hand = report["stopped_by_hand"]
    counts = f"{trials['complete']} completed, {trials['stopped'] - by_hand} were stopped early"
    if by_hand:
        counts += f", {by_hand} were stopped by hand"
    counts += f" and {trials['failed']} failed"
    unfinished = trials["running"] + trials["waiting"]
    if unfinished:
        counts += f"; {unfinished} had not ended yet"
    return (
        f"Of {sum(trials.values())} trials, {counts} ({hours:.3g} {unit} on {', '.join(devices)})."
    )


def _device_model(device: str) -> str:
    """cuda:0 (H200) -> H200"""
    return re.sub(r"^cuda:\d+ \((.*)\)$", r"\1", device)


def _best_interval(best: dict[str, Any], metric: Metric) -> str:
    """Empty where only one number is known of a training."""
    if best["interval"] is None:
        return ""
    return f"95 % bootstrap interval over {metric.items} {metric.between(best['interval'])}; "


# ---- what was measured besides


def _confirmation(report: dict[str, Any], metric: Metric) -> list[str]:
    confirm = report["findings"].get("confirm")
    if confirm is None or confirmed(report) is None:
        return []
    values = []
    for config in confirm["configs"]:
        if config["value"] is not None:
            origin = f"{metric.between(config['interval'])}; {fresh_seeds(config)}"
            values.append(f"{config['name']} {metric.text(config['value'])} ({origin})")
    sentences = [
        f"After retraining with fresh seeds, mean {metric.name}s on {_scored_on(confirm, metric)} "
        f"were (with {100 * confirm['level']:g} % intervals over "
        f"{interval_sources(confirm, metric)}): {', '.join(values)}."
    ]
    pairs = []
    for pair in confirm["comparisons"]:
        p = f", p = {pair['p_holm']:.2g}"
        if pair.get("decided") is False:
            p += ", not decided"
        difference = _difference(pair, "interval", metric, p)
        pairs.append(f"{pair['a']} minus {pair['b']} {difference}")
    if pairs:
        test = _significance_test(confirm, metric)
        sentences.append(f"Differences ({test}, with Holm's correction): {'; '.join(pairs)}.")
    return sentences


def _scored_on(finding: dict[str, Any], metric: Metric) -> str:
    """880 test sentences; the partition alone where only one number is known of a training."""
    if finding["sentences"] <= 1:
        return f"the {finding['partition']} partition"
    return f"{finding['sentences']} {finding['partition']} {metric.items}"


def _significance_test(confirm: dict[str, Any], metric: Metric) -> str:
    if confirm["sentences"] <= 1:
        return "p by Welch's t test over seeds"
    return f"paired over {metric.items}, p by permutation"


def _difference(finding: Mapping[str, Any], key: str, metric: Metric, more: str = "") -> str:
    """+1.20 points (+0.40 to +2.00)

    key: that of the interval. more: goes into the brackets, after the interval.
    """
    low, high = finding[key]
    interval = f"{metric.difference(low)} to {metric.difference(high)}"
    difference = metric.difference(finding["difference"])
    return f"{difference} {metric.difference_unit} ({interval}{more})"


def _importance(report: dict[str, Any]) -> list[str]:
    effects = report["findings"].get("effects")
    if not effects or not effects["importance"]:
        return []
    rows = effects["importance"]
    first = ", ".join(row["name"] for row in rows[:MOST_IMPORTANT])
    clear = [row["name"] for row in rows if stands_out(row["trials"], row["p_holm"])]
    return [
        f"By importance (PED-ANOVA, fANOVA; {effects['trials']} trials), {first} came first; "
        f"{', '.join(clear) or 'none'} stood out from the noise."
    ]


def _ablation(report: dict[str, Any], metric: Metric) -> list[str]:
    ablation = report["findings"].get("ablation")
    if not ablation:
        return []
    return [
        f"The changes from {ablation['from']} to {ablation['to']} were measured one after the "
        f"other with {plural(ablation['seeds'], 'seed')} each on {_scored_on(ablation, metric)}.",
        _largest_change(ablation["steps"], metric),
    ]


def _largest_change(steps: list[dict[str, Any]], metric: Metric) -> str:
    """The largest of the decided changes.

    The others may be noise, or be known only for the seeds that did not diverge.
    """
    decided = [step for step in steps if step["decided"]]
    if not decided:
        return "None of them was decided."
    measured = [step for step in decided if step["difference"] is not None]
    if not measured:
        return f"With {decided[0]['label']} {decided[0]['in_words']}."
    largest = max(measured, key=lambda step: abs(step["difference"]))
    difference = _difference(largest, "difference_interval", metric)
    return f"The largest decided change was {largest['label']}: {difference}."


def _ensemble(report: dict[str, Any], metric: Metric) -> list[str]:
    finding = report["findings"].get("ensemble")
    if not finding:
        return []
    ensemble = finding["ensemble"]
    comparison = finding["comparison"]
    value = metric.text(ensemble["test_value"])
    interval = metric.between(ensemble["test_interval"])
    difference = f"{metric.difference(comparison['difference'])} {metric.difference_unit}"
    return [
        f"The {ensemble['mean']} mean of {len(ensemble['members'])} trained decoders, selected on "
        f"{finding['partition_selected']}, reached a {metric.name} of {value} ({interval}) on "
        f"{finding['partition']}, {difference} compared with the best single one "
        f"(p = {comparison['p']:.2g})."
    ]
