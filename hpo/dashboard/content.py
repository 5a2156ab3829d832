"""What a lab wants to see of a study and its trials, as optuna-dashboard shows it: notes in Markdown, and a trial's files."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpo.dashboard.plots import BEST, GREY
from hpo.search.ledger import ENQUEUED, Point
from hpo.search.pick import best_of
from hpo.search.study import Study
from hpo.search.trial import DONE, Record
from hpo.text import duration, percent, value_text

LOG_LINES = 200
FILES = {"curve.png": "image/png", "configuration.yaml": "text/plain; charset=utf-8", "log.txt": "text/plain; charset=utf-8"}


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


def trial_note(record: Record, attributes: Mapping[str, Any], parent: Parent | None) -> str:
    """Nothing that changes with every step: a page would read it again and again."""
    lines = [f"**{record.state}**{_why(record)}"]
    if record.per is not None and record.best_per is not None:
        lines.append(f"PER {percent(record.per)} at the end; lowest {percent(record.best_per)} at step {record.best_step}")
    if record.start:
        lines.append(f"start *{plain(record.start)}*")
    if ENQUEUED in attributes:
        lines.append(f"put into the queue by {plain(str(attributes[ENQUEUED]))}")
    if record.host:
        used = f", {duration(record.gpu_seconds)} of its device" if record.state in ("complete", "stopped", "failed") else ""
        tries = f", attempt {record.attempts}" if record.attempts > 1 else ""
        lines.append(f"{plain(record.host)}, {plain(record.device)}{used}{tries}; code {plain(record.code_version)}")
    if parent and record.config and record.number != parent.number:
        lines.append(f"Against [trial {parent.number}, the start {plain(parent.name)}]({parent.link}): {_differences(record, parent)}")
    return "\n".join(f"- {line}" for line in lines)


def _why(record: Record) -> str:
    return f": {plain(record.reason)}" if record.reason else ""


def _differences(record: Record, parent: Parent) -> str:
    found = [f"`{name}` {plain(value_text(before))} → {plain(value_text(record.config.get(name)))}"
             for name, before in parent.config.items() if name != "seed" and record.config.get(name) != before]  # fmt: skip
    return ", ".join(found) or "the same but for the seed"


def study_note(study: Study, records: Sequence[Record], where: str, address: str) -> str:
    """where: a worker can join. address: of the study's page."""
    spec, best = study.spec, best_of(list(records))
    done = sum(record.state in DONE for record in records)
    starts = {record.start: record for record in records if record.start}
    lines = [plain(spec.question) + "\n"] if spec.question else []
    if best and best.per is not None:
        lines.append(f"- **Best**: PER {percent(best.per)}, [trial {best.number}]({address}/trials?numbers={best.number})")
    for name in spec.starts:
        if found := starts.get(name):
            result = f"PER {percent(found.per)}" if found.per is not None else f"{found.state}{_why(found)}"
            lines.append(f"- **Start** {plain(name)}: [trial {found.number}]({address}/trials?numbers={found.number}), {result}")
    lines.append(f"- **Data**: {plain(str(study.data['path'] or 'the bundled recordings'))}, fingerprint {study.data['fingerprint']}")
    lines.append(f"- **Budget**: {plain(str(study.budget))}; {done} done" + (f". {plain(str(study.halt))}" if study.halt else ""))
    lines.append(f"- **Join**: `hpo worker --study {study.name}`, on {plain(where)}")
    return "\n".join(lines)


# ---- files


def files_of(record: Record) -> list[dict[str, str | None]]:
    """As optuna-dashboard lists them; they are made when somebody looks at them."""
    there = FILES if record.config else {}
    return [{"artifact_id": name, "filename": name, "mimetype": mimetype.partition(";")[0], "encoding": None}
            for name, mimetype in there.items()]  # fmt: skip


def curve_png(record: Record, curve: Sequence[Point]) -> bytes:
    """PER, losses and learning rate over steps."""
    from matplotlib.figure import Figure  # takes a second, and nobody may look

    figure = Figure(figsize=(7, 6), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 1))
    steps = [point["step"] for point in curve]
    top.plot(steps, [100 * point["per"] for point in curve], color=BEST)
    top.set_title(f"trial {record.number}, {record.state}", fontsize=10)
    top.set_ylabel("PER (%)")
    middle.plot(steps, [point["loss"] for point in curve], color=GREY, label="training")
    middle.plot(steps, [point["validation_loss"] for point in curve], color=BEST, label="validation")
    middle.set_ylabel("CTC loss")
    middle.legend()
    bottom.plot(steps, [point["lr"] for point in curve], color=GREY)
    bottom.set_ylabel("lr")
    bottom.set_xlabel("step (optimizer updates)")
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()


def log_tail(study: Study, record: Record) -> str:
    """The last lines that workers on this machine logged of a trial, and where others are."""
    from hpo.search.logs import TrialLog  # with it comes PyTorch

    log = TrialLog(study, record.number)
    lines = log.read()[-LOG_LINES:]
    return "\n".join([*lines, *filter(None, [log.elsewhere(study, record)])]) + "\n"
