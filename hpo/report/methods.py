"""A paragraph for a paper's methods section: the study's own numbers, and only what was measured."""

import re
from collections.abc import Mapping
from typing import Any

from hpo.analysis.effects import stands_out
from hpo.report.page import Block, Text
from hpo.report.report import confirmed, fresh_seeds, sources
from hpo.space.spec import Policy, StudySpec
from hpo.space.stopping import OwnPast
from hpo.study.trial import Record
from hpo.text import plural
from hpo.trainer import Metric


def methods(report: dict[str, Any], spec: StudySpec, records: list[Record]) -> list[Block]:
    """Nothing before a trial is complete."""
    if report["best"] is None:
        return []
    metric = spec.metric
    sentences = [
        *_search(report, spec),
        *_outcome(report, records, metric),
        *_confirm(report, metric),
        *_further(report, metric),
    ]
    return [Text(" ".join(sentences))]


def _search(report: dict[str, Any], spec: StudySpec) -> list[str]:
    searched, metric, rule = spec.parameters, spec.metric, spec.stopping
    trainer = spec.load_trainer()
    sizes = trainer.sizes(spec.config())
    criterion = metric.description.rstrip(".") or metric.name
    fixed = ", ".join(text for name, text in sizes.items() if name not in searched)
    lines = [
        f"We searched {len(searched)} hyperparameters of {trainer.what} ({fixed}): {', '.join(searched)}.",
        _drawn(report, spec),
        _criterion(report, spec, criterion),
    ]
    if rule:
        lines.append(_rule(rule, metric))
    return lines


def _tested(confirm: dict[str, Any], metric: Metric) -> str:
    if confirm["sentences"] <= 1:
        return ", p by Welch's t test over seeds"
    return f", paired over {metric.items}, p by permutation"


def _scored_on(finding: dict[str, Any], metric: Metric) -> str:
    """880 test sentences; or the part alone, where only one number is known of a training."""
    if finding["sentences"] <= 1:
        return f"the {finding['partition']} partition"
    return f"{finding['sentences']} {finding['partition']} {metric.items}"


def _criterion(report: dict[str, Any], spec: StudySpec, criterion: str) -> str:
    trainer, metric = spec.load_trainer(), spec.metric
    when = (
        "at the end of training"
        if trainer.take == "last"
        else "at the best evaluation of a training"
    )
    sentences = report["best"]["sentences"]
    if trainer.cuts_validation:
        return (
            f"The criterion was {criterion} {when} on {sentences} "
            f"validation {metric.items}, {100 * spec.validation.fraction:g} % of {trainer.cut} drawn with seed "
            f"{spec.validation.seed}; the search did not use the test partition."
        )
    items = f" ({sentences} {metric.items})" if sentences > 1 else ""
    if trainer.partition == "test":
        return f"The criterion was {criterion} {when} on the test partition{items}, on which the search therefore selected."
    return f"The criterion was {criterion} {when} on the validation partition of the training script{items}."


def _rule(rule: OwnPast, metric: Metric) -> str:
    conditions = []
    if rule.margin is not None:
        learned = ""
        if rule.learned is not None:
            below, bound = (
                ("below", rule.learned)
                if metric.direction == "minimize"
                else ("above", 1 - rule.learned)
            )
            learned = f", once {below} {bound:g},"
        exceeded = "exceeded" if metric.direction == "minimize" else "fell behind"
        conditions.append(
            f"when its {metric.name}{learned} {exceeded} its own best by more than {rule.margin:g} in {rule.patience} evaluations in a row"
        )
    conditions.append(
        f"when its loss exceeded {rule.loss_factor:g} times its own best in {rule.loss_patience} in a row"
    )
    return f"A trial was stopped early {', '.join(conditions)}, or when a value was not finite."


def _drawn(report: dict[str, Any], spec: StudySpec) -> str:
    given, startup = (
        ", ".join(report["starts"]) or "none",
        min(spec.sampler.startup_trials, sum(report["trials"].values())),
    )
    if spec.policy == Policy.RANDOM:
        how = f"at random or given ({given})"
    elif spec.policy == Policy.TPE:
        how = f"by Optuna's multivariate tree-structured Parzen estimator, the first {startup} trials at random or given ({given})"
    else:
        how = (
            f"by the largest expected improvement under a Gaussian process of {_modelled(spec.metric)} (Matern 5/2 kernel), "
            f"the first {startup} trials from a scrambled Sobol sequence or given ({given})"
        )
    return f"Configurations were drawn {how}; sampler seed {spec.sampler.seed}."


def _modelled(metric: Metric) -> str:
    if not metric.bounded:
        return metric.name
    return f"log {metric.name}" if metric.direction == "minimize" else f"log (1 - {metric.name})"


def _outcome(report: dict[str, Any], records: list[Record], metric: Metric) -> list[str]:
    trials, best = report["trials"], report["best"]
    devices = sorted(
        {
            re.sub(r"^cuda:\d+ \((.*)\)$", r"\1", record.device)
            for record in records
            if record.device
        }
    )
    hours = f"{report['gpu_seconds']['spent'] / 3600:.3g} {'worker' if devices == ['cpu'] else 'GPU'}-hours"
    counts = f"{trials['complete']} were complete, {trials['stopped']} stopped early and {trials['failed']} failed"
    open_ones = trials["running"] + trials["waiting"]
    over = f"; {open_ones} were not over" if open_ones else ""
    lines = [
        f"Of {sum(trials.values())} trials {counts}{over} ({hours} on {', '.join(devices)}).",
        f"The {metric.lowest} {best['partition']} {metric.name} was {metric.text(best['value'])} "
        f"({_interval(best['interval'], metric)}trial {best['trial']}); as the {metric.lowest} of "
        f"{trials['complete']} it is optimistic.",
    ]
    others = []
    for name, start in report["starts"].items():
        if start["value"] is not None and start["trial"] != best["trial"]:
            interval = f" ({metric.between(start['interval'])})" if start["interval"] else ""
            others.append(f"{name} {metric.text(start['value'])}{interval}")
    return lines + ([f"For comparison: {', '.join(others)}."] if others else [])


def _interval(interval: tuple[float, float] | None, metric: Metric) -> str:
    """Nothing where only one number is known of a training."""
    if interval is None:
        return ""
    return f"95 % bootstrap interval over {metric.items} {metric.between(interval)}; "


def _confirm(report: dict[str, Any], metric: Metric) -> list[str]:
    confirm = report["findings"].get("confirm")
    if confirm is None or confirmed(report) is None:
        return []
    measured = [f"{found['name']} {metric.text(found['value'])} ({metric.between(found['interval'])}; {fresh_seeds(found)})"
                for found in confirm["configs"] if found["value"] is not None]  # fmt: skip
    pairs = []
    for pair in confirm["comparisons"]:
        undecided = ", not decided" if pair.get("decided") is False else ""
        p = f", p = {pair['p_holm']:.2g}{undecided}"
        pairs.append(f"{pair['a']} minus {pair['b']} {_difference(pair, 'interval', metric, p)}")
    lines = [
        f"Trained anew with fresh seeds and scored on {_scored_on(confirm, metric)}, mean "
        f"{metric.name}s were (with {100 * confirm['level']:g} % intervals over {sources(confirm, metric)}): "
        f"{', '.join(measured)}."
    ]
    return lines + (
        [f"Differences{_tested(confirm, metric)} with Holm's correction: {'; '.join(pairs)}."]
        if pairs
        else []
    )


def _difference(found: Mapping[str, Any], interval: str, metric: Metric, more: str = "") -> str:
    """+1.20 points (+0.40 to +2.00)"""
    low, high = found[interval]
    within = f"{metric.difference(low)} to {metric.difference(high)}{more}"
    return f"{metric.difference(found['difference'])} {metric.difference_unit} ({within})"


def _further(report: dict[str, Any], metric: Metric) -> list[str]:
    findings, lines = report["findings"], []
    if effects := findings.get("effects"):
        first = [row["name"] for row in effects["importance"][:3]]
        clear = (
            ", ".join(
                row["name"]
                for row in effects["importance"]
                if stands_out(row["trials"], row["p_holm"])
            )
            or "none"
        )
        lines += [f"By importance (PED-ANOVA, fANOVA; {effects['trials']} trials) {', '.join(first)} came first; {clear} stood out of the "
                  "noise."] if first else []  # fmt: skip
    if ablation := findings.get("ablation"):
        lines.append(
            f"The changes from {ablation['from']} to {ablation['to']} were measured one after the other with "
            f"{plural(ablation['seeds'], 'seed')} each on {_scored_on(ablation, metric)}."
        )
        lines.append(_largest(ablation["steps"], metric))
    if ensemble := findings.get("ensemble"):
        several, pair = ensemble["ensemble"], ensemble["comparison"]
        lines.append(f"The {several['mean']} mean of {len(several['members'])} trained decoders, selected on "
                     f"{ensemble['partition_selected']}, reached {metric.name} {metric.text(several['test_value'])} "
                     f"({metric.between(several['test_interval'])}) on {ensemble['partition']}, "
                     f"{metric.difference(pair['difference'])} {metric.difference_unit} from the best single one "
                     f"(p = {pair['p']:.2g}).")  # fmt: skip
    return lines


def _largest(steps: list[dict[str, Any]], metric: Metric) -> str:
    """Of the changes that are decided: the others may be noise, or of the seeds that did not diverge."""
    decided = [step for step in steps if step["decided"]]
    measured = [step for step in decided if step["difference"] is not None]
    if measured:
        most = max(measured, key=lambda step: abs(step["difference"]))
        return f"The largest decided one was {most['label']}: {_difference(most, 'difference_interval', metric)}."
    return (
        f"With {decided[0]['label']} {decided[0]['in_words']}."
        if decided
        else "None of them was decided."
    )
