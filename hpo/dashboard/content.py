"""What optuna-dashboard shows of a study and its trials: notes in Markdown, and files."""

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
from hpo.study.trial import DONE, LEARNED_NOTHING, Record
from hpo.text import PICTURE_STYLE, duration, value_text
from hpo.trainer import Metric

LOG_LINES = 200
# The files of each trial, with their MIME types.
FILES = {
    "curve.png": "image/png",
    "configuration.yaml": "text/plain; charset=utf-8",
    "log.txt": "text/plain; charset=utf-8",
}


@dataclass(frozen=True)
class Reference:
    """The trial of a start, which notes compare other trials with."""

    number: int
    name: str
    config: Mapping[str, Any]
    link: str


def plain(text: str) -> str:
    """Text in which Markdown shows every character as it is."""
    one_line = " ".join(text.split())
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&$])", r"\\\1", one_line)


# ---- notes


def trial_note(
    record: Record, attributes: Mapping[str, Any], reference: Reference | None, metric: Metric
) -> str:
    """A list in Markdown.

    Nothing in it changes at every step, because the page would reload it each time.
    """
    mark = f", {LEARNED_NOTHING}" if record.learned_nothing else ""
    lines = [f"**{record.state}**{mark}{_reason(record)}"]
    if record.value is not None and record.best_value is not None:
        lines.append(
            f"{metric.name} {metric.text(record.value)} at the end; "
            f"{metric.lowest} {metric.text(record.best_value)} at step {record.best_step}"
        )
    if record.start:
        lines.append(f"start *{plain(record.start)}*")
    if ENQUEUED in attributes:
        lines.append(f"enqueued by {plain(str(attributes[ENQUEUED]))}")
    if record.host:
        lines.append(_where_it_ran(record))
    if reference and record.config and record.number != reference.number:
        link = f"[trial {reference.number}, the start {plain(reference.name)}]({reference.link})"
        lines.append(f"Compared with {link}: {_differences(record, reference)}")
    return "\n".join(f"- {line}" for line in lines)


def _reason(record: Record) -> str:
    if not record.reason:
        return ""
    return f": {plain(record.reason)}"


def _where_it_ran(record: Record) -> str:
    parts = [plain(record.host), plain(record.device)]
    if record.state in ("complete", "stopped", "failed"):
        parts.append(f"{duration(record.gpu_seconds)} on its device")
    if record.attempts > 1:
        parts.append(f"attempt {record.attempts}")
    return f"{', '.join(parts)}; code {plain(record.code_version)}"


def _differences(record: Record, reference: Reference) -> str:
    changes = []
    for name, before in reference.config.items():
        value = record.config.get(name)
        if name != "seed" and value != before:
            changes.append(f"`{name}` {plain(value_text(before))} → {plain(value_text(value))}")
    if not changes:
        return "the same, apart from the seed"
    return ", ".join(changes)


def study_note(study: Study, records: Sequence[Record], worker_place: str, address: str) -> str:
    """worker_place: where workers can join, in words. address: the path of the study's page."""
    spec = study.spec
    metric = spec.metric

    def link(record: Record) -> str:
        return f"[trial {record.number}]({address}/trials?numbers={record.number})"

    lines = []
    if spec.question:
        lines.append(plain(spec.question) + "\n")
    best = best_of(records, metric)
    if best and best.value is not None:
        lines.append(f"- **Best**: {metric.name} {metric.text(best.value)}, {link(best)}")
    record_of_start = {record.start: record for record in records if record.start}
    for name in spec.starts:
        record = record_of_start.get(name)
        if record is None:
            continue
        if record.value is not None:
            result = f"{metric.name} {metric.text(record.value)}"
        else:
            result = f"{record.state}{_reason(record)}"
        lines.append(f"- **Start** {plain(name)}: {link(record)}, {result}")
    source = study.data["path"] or spec.load_trainer().bundled
    fingerprint = study.data["fingerprint"]
    lines.append(f"- **Data**: {plain(str(source))}, fingerprint {fingerprint}")
    done = [record for record in records if record.state in DONE]
    budget = f"- **Budget**: {plain(str(study.budget))}; {len(done)} done"
    if study.halt:
        budget += f". {plain(str(study.halt))}"
    lines.append(budget)
    lines.append(f"- **Join**: `hpo worker --study {study.name}`, on {plain(worker_place)}")
    return "\n".join(lines)


# ---- files


def files_of(record: Record) -> list[dict[str, str | None]]:
    """The trial's files as optuna-dashboard lists them. Each is made when somebody opens it."""
    if not record.config:
        return []
    files: list[dict[str, str | None]] = []
    for name, mimetype in FILES.items():
        short_type = mimetype.partition(";")[0]
        files.append(
            {"artifact_id": name, "filename": name, "mimetype": short_type, "encoding": None}
        )
    return files


def curve_png(record: Record, curve: Sequence[Point], metric: Metric) -> bytes:
    """The metric, the losses and, if the trainer reports it, the learning rate over steps."""
    # Imported here because it takes a second, and most pages never need it.
    import matplotlib

    with matplotlib.rc_context(PICTURE_STYLE):
        return _draw_curve(record, curve, metric)


def _draw_curve(record: Record, curve: Sequence[Point], metric: Metric) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 1))
    steps = [point.step for point in curve]
    top.plot(steps, [metric.scale * point.value for point in curve], color=BEST)
    top.set_title(f"trial {record.number}, {record.state}", fontsize=10)
    top.set_ylabel(metric.label)
    middle.plot(steps, [point.loss for point in curve], color=GREY, label="training")
    validated = [point for point in curve if point.validation_loss is not None]
    if validated:
        middle.plot(
            [point.step for point in validated],
            [point.validation_loss for point in validated],
            color=BEST,
            label="validation",
        )
    middle.set_ylabel("loss")
    middle.legend()
    with_rate = [point for point in curve if "lr" in point.metrics]
    if with_rate:
        rates = [point.metrics["lr"] for point in with_rate]
        bottom.plot([point.step for point in with_rate], rates, color=GREY)
    bottom.set_ylabel("lr")
    bottom.set_xlabel("step (optimizer updates)")
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()


def log_tail(study: Study, record: Record) -> str:
    """The last lines that workers on this machine logged, and where the trial's other logs are."""
    # Imported here because it imports PyTorch.
    from hpo.study.logs import TrialLog

    log = TrialLog.of(study, record.number)
    lines = log.read()[-LOG_LINES:]
    elsewhere = log.missing_attempts(study, record)
    if elsewhere:
        lines = [*lines, elsewhere]
    return "\n".join(lines) + "\n"
