"""The section about where the numbers come from: data, code, seeds, machines and the space."""

from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hpo.report.page import Block, Table
from hpo.report.report_data import ReportData
from hpo.space.budget import hours_unit
from hpo.space.spec import StudySpec
from hpo.study.record import ran_on_cpus
from hpo.study.trial import Record
from hpo.text import duration, value_text

# Packages whose versions the page names.
PACKAGES = ("bci-hpo", "optuna", "torch", "matplotlib")


def provenance(data: ReportData) -> list[Block]:
    ran = [record for record in data.records if record.device]
    blocks: list[Block] = [Table(("what", "value"), _origins(data, ran), long=("value",))]
    if ran:
        blocks.append(Table(("host", "device", "trials", "worker time"), _machines(ran)))
    head = ("searched parameter", "values", "only if")
    blocks.append(Table(head, _space(data.spec), long=("values", "only if")))
    return blocks


def _origins(data: ReportData, ran: list[Record]) -> list[tuple[str, str]]:
    report = data.report
    spec = data.spec
    profile = f", profile {spec.profile}" if spec.profile else ""
    seeds = (
        f"training {spec.base['seed']} + trial number, sampler {spec.sampler.seed}, "
        f"validation {spec.validation.seed}"
    )
    code = ", ".join(sorted({record.code_version for record in ran})) or "-"
    limits = [
        f"{name.replace('_', ' ')} {value}"
        for name, value in report["budget"].items()
        if value is not None
    ]
    spent = report["gpu_seconds"]["spent"]
    unit = hours_unit(ran_on_cpus(data.records))
    worker_time = (
        f"{duration(spent)} ({spent / 3600:.3g} {unit}), about "
        f"{duration(report['gpu_seconds']['saved'])} saved by stopping"
    )
    return [
        ("data", f"{_data_source(data)}, fingerprint {report['data']['fingerprint']}"),
        _scored_on(spec),
        ("space", f"{spec.space}{profile}, digest {report['digest']}"),
        ("seeds", seeds),
        ("code", code),
        *_script(data),
        ("policy", str(spec.policy)),
        ("budget", ", ".join(limits)),
        ("worker time", worker_time),
        ("this page", ", ".join(f"{name} {version(name)}" for name in PACKAGES)),
    ]


def _data_source(data: ReportData) -> str:
    """The name of the data's file or folder, without its place, which a reader may not need."""
    path = data.report["data"]["path"]
    if path:
        return Path(path).name
    return data.spec.load_trainer().bundled


def _scored_on(spec: StudySpec) -> tuple[str, str]:
    """Which items the figures are on."""
    trainer = spec.load_trainer()
    if trainer.cuts_validation:
        return "validation", f"{100 * spec.validation.fraction:g} % of {trainer.cut}"
    return "figures", f"on {trainer.partition}, as the script reports them"


def _script(data: ReportData) -> list[tuple[str, str]]:
    """The code of a study's script, and how exactly it resumes; empty for other trainers."""
    script = data.report["data"].get("script")
    if script is None:
        return []
    code = f"{script['folder']}, "
    code += script["commit"] or f"state {script['digest']}, no git"
    if script["changed"]:
        code += ", with uncommitted changes"
    return [("script", code), ("resumes", data.spec.load_trainer().resume)]


def _machines(ran: list[Record]) -> list[tuple[str, str, str, str]]:
    rows = []
    for host, device in sorted({(record.host, record.device) for record in ran}):
        records = [record for record in ran if (record.host, record.device) == (host, device)]
        seconds = sum(record.gpu_seconds for record in records)
        rows.append((host, device, str(len(records)), duration(seconds)))
    return rows


def _space(spec: StudySpec) -> list[tuple[str, str, str]]:
    rows = []
    for name, parameter in spec.parameters.items():
        values = str(parameter)
        if parameter.choices:
            values = _joined(parameter.choices, ", ")
        conditions = [
            f"{parent} is {_joined(allowed, ' or ')}" for parent, allowed in parameter.when.items()
        ]
        rows.append((name, values, "; ".join(conditions)))
    return rows


def _joined(values: Iterable[Any], separator: str) -> str:
    return separator.join(map(value_text, values))
