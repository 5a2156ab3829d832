"""Make a table of trained configurations.

    python benchmarks/search/table.py a --workers 2

Run it again to continue; Ctrl-C stops it. A table is made of studies that hpo's workers run without
a stopping rule, so each curve goes to the end: `sobol` (a fixed design that includes the starts),
`tpe` (what a plain search visits) and `again` (60 of both with other seeds). Other machines join
with `hpo worker --study table-a-sobol`. Each run exports what is complete to table_a.npz next to
this file.

Trade-off: a table is the demo's decoder on real speech, which takes hours of two cores. It is no
lab's decoder: the ranks of its configurations say little about their ranks in a lab; the shapes of
its curves (divergence, warmup, crossing) say more.
"""

import argparse
import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import qmc

from hpo.curve import Point
from hpo.data.formats import read_sentences
from hpo.errors import StudyError
from hpo.launch.launcher import Launcher, Plan
from hpo.space.cube import Cube
from hpo.space.load import find_space, load_spec
from hpo.space.spec import StudySpec
from hpo.store.database import home, open_database
from hpo.study.study import Study
from hpo.study.version import code_version
from hpo.worker.dataset import look_at_data

HERE = Path(__file__).parent
SIZES = {"a": {"sobol": 200, "tpe": 104, "again": 60}, "b": {"sobol": 80, "tpe": 40, "again": 20}}
FIELDS = ("step", "per", "validation_loss", "loss", "grad_norm", "lr", "step_seconds")


def spec_of(table: str) -> StudySpec:
    """lr-aug for the bundled recordings.

    Table b has averaged weights and long warmups, which make curves cross, and fewer steps.
    """
    settings: dict[str, Any] = {}
    if table == "b":
        settings = {"optimizer.ema_decay": 0.98, "steps": 240, "evaluate_every": 12}
    spec = load_spec(find_space("lr-aug"), "demo", settings, policy="tpe")
    parameters = dict(spec.parameters)
    if table == "b":
        warmup = parameters["schedule.warmup"]
        parameters["schedule.warmup"] = warmup.model_copy(update={"low": 0.2, "high": 0.6})
    return spec.model_copy(update={"stopping": None, "parameters": parameters})


def data_of(table: str) -> Path | None:
    """The data of a table; None: the bundled recordings.

    Table b has every second training sentence of them, as a ptDecoder_ctc pickle.
    """
    if table == "a":
        return None
    path = home() / "table_b.pickle"
    if path.exists():
        return path
    sentences = read_sentences(None, "train")
    features = np.split(sentences.features_NC, np.cumsum(sentences.lengths_S)[:-1])
    labels = np.split(sentences.labels_L, np.cumsum(sentences.label_lengths_S)[:-1])
    days = []
    for day in range(sentences.n_days):
        of_day = np.flatnonzero(sentences.days_S == day)
        numbers = of_day[::2]
        lengths = [len(labels[number]) for number in numbers]
        padding = [(0, max(lengths) - length) for length in lengths]
        days.append(
            {
                "sentenceDat": [np.array(features[number]) for number in numbers],
                "phonemes": [
                    np.pad(labels[number], pad)
                    for number, pad in zip(numbers, padding, strict=True)
                ],
                "phoneLens": np.array(lengths),
            }
        )
    path.write_bytes(pickle.dumps({"train": days, "test": []}))
    return path


def design(spec: StudySpec, count: int) -> dict[str, dict[str, Any]]:
    """Points of a scrambled Sobol sequence in the space, one dimension a parameter.

    Parameters that do not exist in a point are left out of it.
    """
    points = qmc.Sobol(len(spec.parameters), seed=0).random_base2(8)[:count]
    cube = Cube(spec)
    return {f"sobol-{row}": cube.values(points[row]) for row in range(count)}


def part_spec(table: str, part: str) -> StudySpec:
    spec = spec_of(table)
    count = SIZES[table][part]
    if part == "sobol":
        starts = spec.starts | design(spec, count - len(spec.starts))
        spec = spec.model_copy(update={"starts": starts})
    if part == "tpe":
        # As many as in a real study; the demo has fewer.
        sampler = spec.sampler.model_copy(update={"startup_trials": 20})
        spec = spec.model_copy(update={"sampler": sampler})
    if part == "again":
        base = spec.base | {"seed": 10_000}
        spec = spec.model_copy(update={"base": base, "starts": chosen_again(table, count)})
    return spec.model_copy(update={"budget": spec.budget.model_copy(update={"trials": count})})


def chosen_again(table: str, count: int) -> dict[str, dict[str, Any]]:
    """Trainings to repeat: half of them the best, the others spread evenly over the other ranks."""
    rows = [row for row in rows_of(table, ("sobol", "tpe")) if row["per"] is not None]
    rows.sort(key=lambda row: float(row["per"]))
    best = rows[: count // 2]
    rest = rows[count // 2 :]
    spread = [rest[int(place)] for place in np.linspace(0, len(rest) - 1, count - len(best))]
    chosen: dict[str, dict[str, Any]] = {}
    for pair in zip(best, spread, strict=True):
        for row in pair:
            chosen[f"{row['part']}-{row['number']}"] = row["params"]
    return chosen


def study_name(table: str, part: str) -> str:
    return f"table-{table}-{part}"


def rows_of(table: str, parts: tuple[str, ...]) -> list[dict[str, Any]]:
    """A row for each complete or stopped trial. `per` is None where the training diverged."""
    rows = []
    for part in parts:
        study = Study.open(open_database(), study_name(table, part))
        records = [record for record in study.records() if record.state in ("complete", "stopped")]
        curves = study.curves(records)
        for record in records:
            rows.append(
                {
                    "part": part,
                    "number": record.number,
                    "start": record.start,
                    "params": record.params,
                    "seed": record.config["seed"],
                    "per": record.value,
                    "curve": curves[record.number],
                    "seconds": record.gpu_seconds,
                }
            )
    return rows


def export(table: str, parts: tuple[str, ...]) -> None:
    """Write table_X.npz.

    `rows`: JSON, one a trial. `curves`: (trial, point, field), NaN after a loss that is not finite.
    """
    rows = rows_of(table, parts)
    spec = spec_of(table)
    points = math.ceil(spec.base["steps"] / spec.base["evaluate_every"])
    curves = np.full((len(rows), points, len(FIELDS)), np.nan, dtype=np.float32)
    for row, curve in zip(rows, curves, strict=True):
        for index, point in enumerate(row.pop("curve")):
            curve[index] = in_fields(point)
    parts_of_file: dict[str, Any] = {
        "rows": json.dumps(rows),
        "curves": curves,
        "fields": FIELDS,
        "spec": spec.model_dump_json(),
    }
    np.savez_compressed(HERE / f"table_{table}.npz", **parts_of_file)
    not_finite = sum(row["per"] is None for row in rows)
    print(f"table {table}: {len(rows)} trainings, {not_finite} not finite")


def in_fields(point: Point) -> list[float]:
    """A point of a curve in the order of FIELDS; NaN for what is not known."""
    known: dict[str, float | None] = {
        **point.metrics,
        "step": point.step,
        "per": point.value,
        "validation_loss": point.validation_loss,
        "loss": point.loss,
    }
    values = [known.get(field) for field in FIELDS]
    return [math.nan if value is None else value for value in values]


def run(table: str, part: str, workers: int) -> bool:
    """Train what is missing of a part. Returns whether the part is complete."""
    database = open_database()
    path = data_of(table)
    if _exists(table, part):
        study = Study.open(database, study_name(table, part))
    else:
        spec = part_spec(table, part)
        facts = look_at_data(path, spec).facts
        study = Study.create_or_open(database, study_name(table, part), spec, facts)
        study.settle(None, code_version())
    if study.why_over() is None:
        plan = Plan(("cpu",) * workers, threads=1)
        Launcher(study, database, plan, path, allow_different_code=True).run()
    return study.standing().ended >= study.budget.trials


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=sorted(SIZES))
    parser.add_argument("--workers", type=int, default=2, help="0: export only")
    parser.add_argument(
        "--parts", nargs="+", choices=["sobol", "tpe", "again"], default=["sobol", "tpe", "again"]
    )
    arguments = parser.parse_args()
    for part in arguments.parts:
        if arguments.workers and not run(arguments.table, part, arguments.workers):
            name = study_name(arguments.table, part)
            print(f"{name} is not complete; run the same command again to continue")
            break
    existing = [part for part in SIZES[arguments.table] if _exists(arguments.table, part)]
    export(arguments.table, tuple(existing))


def _exists(table: str, part: str) -> bool:
    try:
        Study.open(open_database(), study_name(table, part))
    except StudyError:
        return False
    return True


if __name__ == "__main__":
    main()
