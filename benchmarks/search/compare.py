"""Compare searches on the stored tables: `python benchmarks/search/compare.py` writes results.md and regret.svg beside this file.

Each method runs with other seeds on the surrogate of each table (simulate.py): 100 times what the claims are about, others less.
Regret is how much worse than the table's best the expected PER is of the configuration that the search would name: the
complete trial with the lowest measured PER, at each moment. Seconds are those of all workers together.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
from methods import METHODS as OURS
from numpy.typing import NDArray
from rivals import METHODS as RIVALS
from rivals import absent
from simulate import EVALUATION_SECONDS, STEP_SECONDS, Surrogate, Trace, simulate, surrogate_of
from threadpoolctl import threadpool_limits

from hpo.space.spec import DEFAULT_POLICY

HERE = Path(__file__).parent
CLOSE = (0.05, 0.02)
METHODS = OURS | RIVALS
SLOW = ("gpsampler", "syne-bohb")  # a minute a search; only when named
RIVALRY = ("optuna", "random")  # the claims are about the ratio to these


@dataclass(frozen=True)
class Run:
    """One repetition."""

    seconds: tuple[float, ...]  # when the named configuration changed
    regret: tuple[float, ...]  # of it from then on
    trials: int
    complete: int
    killed: bool  # the best of the trials it began, had all gone to their end, was stopped or left
    cost: (
        float  # seconds of this process for each trial: sampling, rules, and the simulation itself
    )

    def at(self, horizon: float) -> float | None:
        """Regret then; None: nothing was complete."""
        before = [
            regret
            for second, regret in zip(self.seconds, self.regret, strict=True)
            if second <= horizon
        ]
        return before[-1] if before else None

    def reached(self, within: float) -> float:
        return next(
            (
                second
                for second, regret in zip(self.seconds, self.regret, strict=True)
                if regret <= within
            ),
            float("inf"),
        )


Results = dict[str, dict[str, list[Run]]]  # by table, by method
fitted = cache(surrogate_of)


def training_seconds(surrogate: Surrogate) -> float:
    steps: int = surrogate.spec.base["steps"]
    evaluations: float = steps / surrogate.spec.base["evaluate_every"]
    return steps * STEP_SECONDS + evaluations * EVALUATION_SECONDS


def repeat(table: str, method: str, seed: int, trainings: float) -> Run:
    surrogate = fitted(table)
    horizon, longest = (
        count * training_seconds(surrogate) for count in (trainings, METHODS[method].longest)
    )
    goal = surrogate.best * (1 + CLOSE[0])
    begin = time.process_time()
    search = METHODS[method].search(surrogate.spec, seed)
    traces = simulate(
        surrogate, search, METHODS[method].rules(search), seed, horizon, goal=goal, longest=longest
    )
    return run_of(traces, surrogate.best, (time.process_time() - begin) / len(traces))


def run_of(traces: Sequence[Trace], best: float, cost: float = 0.0) -> Run:
    complete = sorted(
        (trace for trace in traces if trace.state == "complete"), key=lambda trace: trace.ended
    )
    seconds, regret, lowest = [], [], float("inf")
    for trace in complete:
        if trace.curve[-1].value < lowest:
            lowest = trace.curve[-1].value
            seconds.append(round(trace.ended, 1))
            regret.append(round(trace.truth / best - 1, 4))
    ended = [trace for trace in traces if trace.state != "running"]
    killed = (
        bool(ended)
        and min(ended, key=lambda trace: np.nan_to_num(trace.training.per[-1], nan=9.0)).state
        != "complete"
    )
    return Run(tuple(seconds), tuple(regret), len(traces), len(complete), killed, cost)


def over_time(runs: Sequence[Run], grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """(run, moment): regret; that of PER 1 before there is a complete trial is left out as NaN."""
    curves = np.full((len(runs), len(grid)), np.nan)
    for run, curve in zip(runs, curves, strict=True):
        for second, regret in zip(run.seconds, run.regret, strict=True):
            curve[grid >= second] = regret
    return curves


def quartiles(times: Sequence[float]) -> list[float]:
    """Some of them: what never came is infinite, and lies between nothing."""
    return list(map(float, np.quantile(times, [0.25, 0.5, 0.75], method="nearest")))


def in_words(times: Sequence[float]) -> str:
    """Median [quartiles] and how many never came; a quartile that never came is >."""
    low, middle, high = quartiles(times)
    late = sum(np.isinf(times))
    return f"{middle:.0f} [{low:.0f}, {high:.0f}]".replace("inf", ">") + (
        f", {late} of {len(times)} never" if late else ""
    )


def interval(values: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    draws = np.random.default_rng(seed).integers(len(values), size=(1000, len(values)))
    low, high = np.quantile(np.median(values[draws], axis=1), [0.025, 0.975])
    return float(low), float(high)


HEAD = (
    "method",
    "runs",
    "GPU-s to 5 %: median [quartiles]",
    "to 2 %",
    "regret at the end, % [95 %]",
    "best one killed",
    "ms a trial",
)


def row_of(label: str, runs: Sequence[Run], horizon: float) -> tuple[str, ...]:
    last = np.array([regret for run in runs if (regret := run.at(horizon)) is not None])
    low, high = interval(last)
    times = [in_words([run.reached(within) for run in runs]) for within in CLOSE]
    return (label, str(len(runs)), *times, f"{100 * np.median(last):.1f} [{100 * low:.1f}, {100 * high:.1f}]",
            f"{100 * np.mean([run.killed for run in runs]):.0f} %",
            f"{1000 * np.median([run.cost for run in runs]):.0f}")  # fmt: skip


def ratio(table: str, methods: dict[str, list[Run]], other: str, horizon: float) -> str:
    """The default policy's median time to within 5 %, over another's."""
    times = [
        quartiles([run.reached(CLOSE[0]) for run in methods[name]])[1]
        for name in (DEFAULT_POLICY, other)
    ]
    longest = max(horizon, METHODS[other].longest * training_seconds(fitted(table)))
    share = (
        f"{times[0] / times[1]:.2f}"
        if np.isfinite(times).all()
        else "none"
        if np.isinf(times[0])
        else f"below {times[0] / longest:.2f}"
    )
    then = f"{times[1]:.0f} s" if np.isfinite(times[1]) else f"more than {longest:.0f} s"
    return f"- Within 5 %, medians: {DEFAULT_POLICY} {times[0]:.0f} s, {METHODS[other].label} {then}: ratio {share}"


def figure(results: Results, trainings: float, path: Path) -> None:
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "regret"
    plot, axes = plt.subplots(1, len(results), figsize=(6 * len(results), 4.5), squeeze=False)
    for axis, (table, methods) in zip(axes[0], results.items(), strict=True):
        grid = np.linspace(0, trainings * training_seconds(fitted(table)), 200)
        for index, (method, runs) in enumerate(methods.items()):
            curves = over_time(runs, grid)
            seen = np.isfinite(curves).mean(axis=0) > 0.5
            low, middle, high = np.nanquantile(curves[:, seen], [0.25, 0.5, 0.75], axis=0)
            line = axis.plot(
                grid[seen],
                100 * middle,
                label=METHODS[method].label,
                linestyle="--" if index >= 10 else "-",
            )[0]
            axis.fill_between(
                grid[seen], 100 * low, 100 * high, color=line.get_color(), alpha=0.08, linewidth=0
            )
        axis.set(
            title=f"table {table}",
            xlabel="GPU-seconds, all workers",
            ylabel="regret, % (median, quartiles)",
            yscale="symlog",
        )
        axis.axhline(5, color="grey", linewidth=0.5, linestyle=":")
    axes[0][0].legend(fontsize=7)
    plot.tight_layout()
    plot.savefig(path, metadata={"Date": None})


def report(results: Results, trainings: float, out: Path) -> None:
    lines: list[str] = []
    for table, methods in results.items():
        lines += ["", f"Table {table}, a training {training_seconds(fitted(table)):.1f} s", ""]
        lines += ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
        horizon = trainings * training_seconds(fitted(table))
        lines += [
            "| " + " | ".join(row_of(METHODS[name].label, runs, horizon)) + " |"
            for name, runs in methods.items()
        ]
        lines += [
            "",
            *(
                ratio(table, methods, other, horizon)
                for other in RIVALRY
                if {DEFAULT_POLICY, other} <= set(methods)
            ),
        ]
    (out / "results.md").write_text("\n".join(lines[1:]) + "\n")
    figure(results, trainings, out / "regret.svg")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", nargs="+", default=["a", "b"])
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=list(METHODS),
        help=f"all that are installed, without {SLOW}",
    )
    parser.add_argument("--repetitions", type=int, default=100)
    parser.add_argument(
        "--trainings",
        type=float,
        default=60,
        help="the horizon: GPU-seconds of so many whole trainings",
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument(
        "--add", action="store_true", help="keep what runs.json has of other methods"
    )
    parser.add_argument(
        "--draw",
        action="store_true",
        help="results.md and regret.svg from runs.json, no simulation",
    )
    arguments = parser.parse_args()
    kept = arguments.out / "runs.json"
    results: Results = {table: {} for table in arguments.tables}
    if arguments.draw or arguments.add:
        stored = json.loads(kept.read_text())
        results = {
            table: {name: [Run(**run) for run in runs] for name, runs in found.items()}
            for table, found in stored.items()
        }
    if arguments.draw:
        return report(results, arguments.trainings, arguments.out)
    lacking = [name for name in arguments.methods or METHODS if name in absent()]
    if lacking:
        how = f"{', '.join(lacking)}: Ray Tune or Syne Tune is not installed: `pip install -e .[rivals]`"
        parser.error(how) if arguments.methods else print(f"left out: {how}", flush=True)
    chosen = arguments.methods or [name for name in METHODS if name not in (*lacking, *SLOW)]
    with ProcessPoolExecutor(
        arguments.processes, initializer=threadpool_limits, initargs=(1,)
    ) as pool:
        for table in arguments.tables:
            horizon = arguments.trainings * training_seconds(fitted(table))
            for name in chosen:
                seeds = range(max(2, round(arguments.repetitions * METHODS[name].share)))
                again = (
                    [table] * len(seeds),
                    [name] * len(seeds),
                    seeds,
                    [arguments.trainings] * len(seeds),
                )
                results[table][name] = list(pool.map(repeat, *again))
                print(
                    "| "
                    + " | ".join(row_of(METHODS[name].label, results[table][name], horizon))
                    + " |",
                    flush=True,
                )
                kept.write_text(
                    json.dumps(
                        {
                            t: {m: [asdict(run) for run in runs] for m, runs in of.items()}
                            for t, of in results.items()
                        }
                    )
                )
    report(results, arguments.trainings, arguments.out)


if __name__ == "__main__":
    main()
