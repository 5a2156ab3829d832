"""A paragraph for a paper's methods section: the study's own numbers, and only what was measured."""

import re
from typing import Any

from hpo.evidence.effects import stands_out
from hpo.evidence.page import Block, Text
from hpo.evidence.report import confirmed, fresh_seeds, sources
from hpo.search.spec import Policy, StudySpec
from hpo.search.trial import Record
from hpo.text import between, percent, plural


def methods(report: dict[str, Any], spec: StudySpec, records: list[Record]) -> list[Block]:
    """Nothing before a trial is complete."""
    if report["best"] is None:
        return []
    sentences = [*_search(report, spec), *_outcome(report, records), *_confirm(report), *_further(report)]
    return [Text(" ".join(sentences))]


def _search(report: dict[str, Any], spec: StudySpec) -> list[str]:
    base, searched = spec.base, spec.parameters
    sizes = {"model.layers": f"{base.model.layers} GRU layer{'s' * (base.model.layers != 1)}",
             "model.units": f"{base.model.units} units a layer", "model.kernel": f"windows of {base.model.kernel} bins",
             "model.stride": f"stride {base.model.stride}", "batch_size": f"batches of {base.batch_size} sentences",
             "steps": f"{base.steps} optimizer updates"}  # fmt: skip
    fixed = ", ".join(text for name, text in sizes.items() if name not in searched)
    rule = spec.stopping
    lines = [
        f"We searched {len(searched)} hyperparameters of a GRU decoder trained with CTC ({fixed}): {', '.join(searched)}.",
        _drawn(report, spec),
        "The criterion was the phoneme error rate (PER: total edit distance over total reference length, greedy decoding) at the end of "
        f"training on {report['best']['sentences']} validation sentences, {100 * spec.validation.fraction:g} % of each day's training "
        f"sentences drawn with seed {spec.validation.seed}; the search did not use the test partition.",
    ]
    if rule:
        lines.append(f"A trial was stopped early when its PER, once below {rule.learned_per:g}, exceeded its own best by more than "
                     f"{rule.per_margin:g} in {rule.per_patience} evaluations in a row, when its loss exceeded {rule.loss_factor:g} times "
                     f"its own best in {rule.loss_patience} in a row, or when a value was not finite.")  # fmt: skip
    return lines


def _drawn(report: dict[str, Any], spec: StudySpec) -> str:
    given, startup = ", ".join(report["starts"]) or "none", min(spec.sampler.startup_trials, sum(report["trials"].values()))
    if spec.policy == Policy.RANDOM:
        how = f"at random or given ({given})"
    elif spec.policy == Policy.TPE:
        how = f"by Optuna's multivariate tree-structured Parzen estimator, the first {startup} trials at random or given ({given})"
    else:
        how = (f"by the largest expected improvement under a Gaussian process of log PER (Matern 5/2 kernel), the first {startup} trials "
               f"from a scrambled Sobol sequence or given ({given})")  # fmt: skip
    return f"Configurations were drawn {how}; sampler seed {spec.sampler.seed}."


def _outcome(report: dict[str, Any], records: list[Record]) -> list[str]:
    trials, best = report["trials"], report["best"]
    devices = sorted({re.sub(r"^cuda:\d+ \((.*)\)$", r"\1", record.device) for record in records if record.device})
    hours = f"{report['gpu_seconds']['spent'] / 3600:.3g} {'worker' if devices == ['cpu'] else 'GPU'}-hours"
    counts = f"{trials['complete']} were complete, {trials['stopped']} stopped early and {trials['failed']} failed"
    open_ones = trials["running"] + trials["waiting"]
    over = f"; {open_ones} were not over" if open_ones else ""
    lines = [
        f"Of {sum(trials.values())} trials {counts}{over} ({hours} on {', '.join(devices)}).",
        f"The lowest validation PER was {percent(best['per'])} (95 % bootstrap interval over sentences {between(best['interval'])}; trial "
        f"{best['trial']}); as the lowest of {trials['complete']} it is optimistic.",
    ]
    others = [f"{name} {percent(start['per'])} ({between(start['interval'])})" for name, start in report["starts"].items()
              if start["per"] is not None and start["trial"] != best["trial"]]  # fmt: skip
    return lines + ([f"For comparison: {', '.join(others)}."] if others else [])


def _confirm(report: dict[str, Any]) -> list[str]:
    confirm = report["findings"].get("confirm")
    if confirm is None or confirmed(report) is None:
        return []
    measured = [f"{found['name']} {percent(found['per'])} ({between(found['interval'])}; {fresh_seeds(found)})"
                for found in confirm["configs"] if found["per"] is not None]  # fmt: skip
    pairs = [f"{pair['a']} minus {pair['b']} {100 * pair['difference']:+.2f} points ({100 * pair['interval'][0]:+.2f} to "
             f"{100 * pair['interval'][1]:+.2f}, p = {pair['p_holm']:.2g}{', not decided' * (pair.get('decided') is False)})"
             for pair in confirm["comparisons"]]  # fmt: skip
    lines = [f"Trained anew with fresh seeds and scored on {confirm['sentences']} {confirm['partition']} sentences, mean PERs were (with "
             f"{100 * confirm['level']:g} % intervals over {sources(confirm)}): {', '.join(measured)}."]  # fmt: skip
    return lines + ([f"Differences, paired over sentences, p by permutation with Holm's correction: {'; '.join(pairs)}."] if pairs else [])


def _further(report: dict[str, Any]) -> list[str]:
    findings, lines = report["findings"], []
    if effects := findings.get("effects"):
        first = [row["name"] for row in effects["importance"][:3]]
        clear = ", ".join(row["name"] for row in effects["importance"] if stands_out(row)) or "none"
        lines += [f"By importance (PED-ANOVA, fANOVA; {effects['trials']} trials) {', '.join(first)} came first; {clear} stood out of the "
                  "noise."] if first else []  # fmt: skip
    if ablation := findings.get("ablation"):
        lines.append(f"The changes from {ablation['from']} to {ablation['to']} were measured one after the other with "
                     f"{plural(ablation['seeds'], 'seed')} each on {ablation['sentences']} {ablation['partition']} sentences.")  # fmt: skip
        lines.append(_largest(ablation["steps"]))
    if ensemble := findings.get("ensemble"):
        several, pair = ensemble["ensemble"], ensemble["comparison"]
        lines.append(f"The {several['mean']} mean of {len(several['members'])} trained decoders, selected on "
                     f"{ensemble['partition_selected']}, reached PER {percent(several['test_per'])} ({between(several['test_interval'])}) "
                     f"on {ensemble['partition']}, {100 * pair['difference']:+.2f} points from the best single one "
                     f"(p = {pair['p']:.2g}).")  # fmt: skip
    return lines


def _largest(steps: list[dict[str, Any]]) -> str:
    """Of the changes that are decided: the others may be noise, or of the seeds that did not diverge."""
    decided = [step for step in steps if step["decided"]]
    measured = [step for step in decided if step["difference"] is not None]
    if measured:
        most = max(measured, key=lambda step: abs(step["difference"]))
        low, high = most["difference_interval"]
        return f"The largest was {most['label']}: {100 * most['difference']:+.2f} points ({100 * low:+.2f} to {100 * high:+.2f})."
    return f"With {decided[0]['label']} {decided[0]['in_words']}." if decided else "None of them was decided."
