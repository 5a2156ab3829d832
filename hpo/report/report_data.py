"""Everything that the report's page shows of a study, read once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpo.curve import Point
from hpo.report.export import export_text
from hpo.report.report import build_report
from hpo.space.spec import StudySpec
from hpo.study.reader import StudyReader
from hpo.study.trial import Record
from hpo.trainer import Metric


@dataclass(frozen=True)
class ReportData:
    # As `build_report` makes it.
    report: dict[str, Any]
    spec: StudySpec
    records: list[Record]
    # By trial number.
    curves: Mapping[int, list[Point]]
    # The configuration of the best trial as YAML; empty while no trial is complete.
    best: str

    @property
    def study(self) -> str:
        name: str = self.report["study"]
        return name

    @property
    def metric(self) -> Metric:
        return self.spec.metric

    @property
    def findings(self) -> dict[str, dict[str, Any]]:
        """The results of `hpo confirm`, `hpo effects` and others, by kind."""
        return dict(self.report["findings"])


def read_report_data(study: StudyReader) -> ReportData:
    """Raises DatabaseError."""
    report = build_report(study)
    records = study.records()
    return ReportData(
        report=report,
        spec=study.spec,
        records=records,
        curves=study.curves(records),
        best=export_text(study, "best") if report["best"] else "",
    )
