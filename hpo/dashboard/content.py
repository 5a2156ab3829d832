"""What a lab wants to see of a study and its trials, as optuna-dashboard shows it: notes in Markdown, and a trial's files."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpo.curve import Point
from hpo.dashboard.plots import BEST, GREY
from hpo.store.standing import ENQUEUED
from hpo.study.pick import best_of
from hpo.study.study import Study
from hpo.study.trial import DONE, Record
from hpo.text import duration, value_text
from hpo.trainer import Metric

LOG_LINES = 200
FILES = {
    "curve.png": "image/png",
    "configuration.yaml": "text/plain; charset=utf-8",
    "log.txt": "text/plain; charset=utf-8",
}


@dataclass(frozen=True)
class Parent:
    """The configuration that others are compared with: a start."""

    number: int
    name: str
    config: Mapping[str, Any]
    link: str


def plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&$])", r"\\\1", " ".join(text.split()))


# ---- notes


def trial_note(
    record: Record, attributes: Mapping[str, Any], parent: Parent | None, metric: Metric
) -> str:
    """Nothing that changes with every step: a page would read it again and again."""
    lines = [f"**{record.state}**{_why(record)}"]
    if record.value is not None and record.best_value is not None:
        lines.append(
            f"{metric.name} {metric.text(record.value)} at the end; {metric.lowest} {metric.text(record.best_value)} "
            f"at step {record.best_step}"
        )
    if record.start:
        lines.append(f"start *{plain(record.start)}*")
    if ENQUEUED in attributes:
        lines.append(f"put into the queue by {plain(str(attributes[ENQUEUED]))}")
    if record.host:
        used = (
            f", {duration(record.gpu_seconds)} of its device"
            if record.state in ("complete", "stopped", "failed")
            else ""
        )
        tries = f", attempt {record.attempts}" if record.attempts > 1 else ""
        lines.append(
            f"{plain(record.host)}, {plain(record.device)}{used}{tries}; code {plain(record.code_version)}"
        )
    if parent and record.config and record.number != parent.number:
        lines.append(
            f"Against [trial {parent.number}, the start {plain(parent.name)}]({parent.link}): {_differences(record, parent)}"
        )
    return "\n".join(f"- {line}" for line in lines)


def _why(record: Record) -> str:
    return f": {plain(record.reason)}" if record.reason else ""


def _differences(record: Record, parent: Parent) -> str:
    found = [f"`{name}` {plain(value_text(before))} → {plain(value_text(record.config.get(name)))}"
             for name, before in parent.config.items() if name != "seed" and record.config.get(name) != before]  # fmt: skip
    return ", ".join(found) or "the same but for the seed"


def study_note(study: Study, records: Sequence[Record], where: str, address: str) -> str:
    """where: a worker can join. address: of the study's page."""
    spec, metric = study.spec, study.spec.metric
    best = best_of(records, metric)
    done = sum(record.state in DONE for record in records)
    starts = {record.start: record for record in records if record.start}
    lines = [plain(spec.question) + "\n"] if spec.question else []
    if best and best.value is not None:
        lines.append(
            f"- **Best**: {metric.name} {metric.text(best.value)}, [trial {best.number}]({address}/trials?numbers={best.number})"
        )
    for name in spec.starts:
        if found := starts.get(name):
            result = (
                f"{metric.name} {metric.text(found.value)}"
                if found.value is not None
                else f"{found.state}{_why(found)}"
            )
            lines.append(
                f"- **Start** {plain(name)}: [trial {found.number}]({address}/trials?numbers={found.number}), {result}"
            )
    source = str(study.data["path"] or spec.load_trainer().bundled)
    lines.append(f"- **Data**: {plain(source)}, fingerprint {study.data['fingerprint']}")
    lines.append(
        f"- **Budget**: {plain(str(study.budget))}; {done} done"
        + (f". {plain(str(study.halt))}" if study.halt else "")
    )
    lines.append(f"- **Join**: `hpo worker --study {study.name}`, on {plain(where)}")
    return "\n".join(lines)


# ---- files


def files_of(record: Record) -> list[dict[str, str | None]]:
    """As optuna-dashboard lists them; they are made when somebody looks at them."""
    there = FILES if record.config else {}
    return [{"artifact_id": name, "filename": name, "mimetype": mimetype.partition(";")[0], "encoding": None}
            for name, mimetype in there.items()]  # fmt: skip


def curve_png(record: Record, curve: Sequence[Point], metric: Metric) -> bytes:
    """The metric, the losses and, if the trainer tells one, the learning rate over steps."""
    from matplotlib.figure import Figure  # takes a second, and nobody may look

    figure = Figure(figsize=(7, 6), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 1))
    steps = [point.step for point in curve]
    top.plot(steps, [metric.scale * point.value for point in curve], color=BEST)
    top.set_title(f"trial {record.number}, {record.state}", fontsize=10)
    top.set_ylabel(metric.label)
    middle.plot(steps, [point.loss for point in curve], color=GREY, label="training")
    on_validation = [
        (point.step, point.validation_loss) for point in curve if point.validation_loss is not None
    ]
    if on_validation:
        middle.plot(*zip(*on_validation, strict=True), color=BEST, label="validation")
    middle.set_ylabel("loss")
    middle.legend()
    lrs = [(point.step, point.metrics["lr"]) for point in curve if "lr" in point.metrics]
    if lrs:
        bottom.plot(*zip(*lrs, strict=True), color=GREY)
    bottom.set_ylabel("lr")
    bottom.set_xlabel("step (optimizer updates)")
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()


def log_tail(study: Study, record: Record) -> str:
    """The last lines that workers on this machine logged of a trial, and where others are."""
    from hpo.study.logs import TrialLog  # with it comes PyTorch

    log = TrialLog.of(study, record.number)
    lines = log.read()[-LOG_LINES:]
    return "\n".join([*lines, *filter(None, [log.elsewhere(study, record)])]) + "\n"
