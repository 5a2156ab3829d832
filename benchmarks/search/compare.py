"""Compare searches on the stored tables.

    python benchmarks/search/compare.py

It writes results.md and regret.svg next to this file. Each method runs with several seeds on the
surrogate of each table (simulate.py): 100 times if the claims are about it, else less often. Regret
is how much worse than the table's best the expected PER is of the configuration that the search
would name, the complete trial with the lowest measured PER so far. Seconds are those of all workers
together.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from methods import METHODS as OURS
from numpy.typing import NDArray
from rivals import METHODS as RIVALS
from rivals import absent
from simulate import (
    EVALUATION_SECONDS,
    STEP_SECONDS,
    Limits,
    Surrogate,
    Trace,
    simulate,
    surrogate_of,
)
from threadpoolctl import threadpool_limits

from hpo.space.spec import DEFAULT_POLICY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HERE = Path(__file__).parent
CLOSE = (0.05, 0.02)
METHODS = OURS | RIVALS
# They take a minute a search, so they run only when named.
SLOW = ("gpsampler", "syne-bohb")
# The claims are about the ratios to these.
RIVALRY = ("optuna", "random")


@dataclass(frozen=True)
class Run:
    """One repetition."""

    # When the named configuration changed.
    seconds: tuple[float, ...]
    # Of the named configuration from then on.
    regret: tuple[float, ...]
    trials: int
    complete: int
    # Whether the trial that would have ended best, of all that began, was not completed.
    killed: bool
    # Seconds of this process for each trial: sampling, rules, and the simulation itself.
    cost: float

    def at(self, horizon: float) -> float | None:
        """The regret at that time; None if no trial was complete."""
        latest = None
        for second, regret in zip(self.seconds, self.regret, strict=True):
            if second <= horizon:
                latest = regret
        return latest

    def reached(self, within: float) -> float:
        """When the regret first was that small; infinity if never."""
        for second, regret in zip(self.seconds, self.regret, strict=True):
            if regret <= within:
                return second
        return float("inf")


# By table, by method.
Results = dict[str, dict[str, list[Run]]]
fitted = cache(surrogate_of)


def training_seconds(surrogate: Surrogate) -> float:
    steps: int = surrogate.spec.base["steps"]
    evaluations: float = steps / surrogate.spec.base["evaluate_every"]
    return steps * STEP_SECONDS + evaluations * EVALUATION_SECONDS


def repeat(table: str, method: str, seed: int, trainings: float) -> Run:
    """Simulate a method once. trainings: the horizon, in whole trainings."""
    surrogate = fitted(table)
    limits = Limits(
        horizon=trainings * training_seconds(surrogate),
        goal=surrogate.best * (1 + CLOSE[0]),
        longest=METHODS[method].longest * training_seconds(surrogate),
    )
    begin = time.process_time()
    search = METHODS[method].search(surrogate.spec, seed)
    traces = simulate(surrogate, search, METHODS[method].rules(search), seed, limits)
    cost = (time.process_time() - begin) / len(traces)
    return run_of(traces, surrogate.best, cost)


def run_of(traces: Sequence[Trace], best: float, cost: float = 0.0) -> Run:
    """best: the table's lowest expected PER."""
    complete = [trace for trace in traces if trace.state == "complete"]
    complete.sort(key=lambda trace: trace.ended)
    seconds = []
    regret = []
    lowest = float("inf")
    for trace in complete:
        if trace.curve[-1].value < lowest:
            lowest = trace.curve[-1].value
            seconds.append(round(trace.ended, 1))
            regret.append(round(trace.truth / best - 1, 4))
    return Run(tuple(seconds), tuple(regret), len(traces), len(complete), _killed(traces), cost)


def _killed(traces: Sequence[Trace]) -> bool:
    """Whether the trial that would have ended best was stopped or left paused."""
    ended = [trace for trace in traces if trace.state != "running"]
    if not ended:
        return False
    # A PER that is not finite counts as worse than any other.
    best = min(ended, key=lambda trace: np.nan_to_num(trace.training.per[-1], nan=9.0))
    return best.state != "complete"


def over_time(runs: Sequence[Run], grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """Regret as (run, moment); NaN before the first complete trial."""
    curves = np.full((len(runs), len(grid)), np.nan)
    for run, curve in zip(runs, curves, strict=True):
        for second, regret in zip(run.seconds, run.regret, strict=True):
            curve[grid >= second] = regret
    return curves


def quartiles(times: Sequence[float]) -> list[float]:
    """Each is one of the times, because some are infinite and cannot be interpolated."""
    return list(map(float, np.quantile(times, [0.25, 0.5, 0.75], method="nearest")))


def in_words(times: Sequence[float]) -> str:
    """Median [quartiles] and how many are infinite; an infinite quartile is shown as >."""
    low, middle, high = quartiles(times)
    text = f"{middle:.0f} [{low:.0f}, {high:.0f}]".replace("inf", ">")
    never = sum(np.isinf(times))
    if never:
        text += f", {never} of {len(times)} never"
    return text


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


def line_of(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def row_of(label: str, runs: Sequence[Run], horizon: float) -> tuple[str, ...]:
    regrets = [run.at(horizon) for run in runs]
    at_the_end = np.array([regret for regret in regrets if regret is not None])
    low, high = interval(at_the_end)
    times = [in_words([run.reached(within) for run in runs]) for within in CLOSE]
    return (
        label,
        str(len(runs)),
        *times,
        f"{100 * np.median(at_the_end):.1f} [{100 * low:.1f}, {100 * high:.1f}]",
        f"{100 * np.mean([run.killed for run in runs]):.0f} %",
        f"{1000 * np.median([run.cost for run in runs]):.0f}",
    )


def ratio(table: str, methods: dict[str, list[Run]], other: str, horizon: float) -> str:
    """A line on the default policy's median time to within 5 %, over another method's."""
    default = _median_time(methods[DEFAULT_POLICY])
    rival = _median_time(methods[other])
    longest = max(horizon, METHODS[other].longest * training_seconds(fitted(table)))
    rival_in_words = f"{rival:.0f} s" if np.isfinite(rival) else f"more than {longest:.0f} s"
    if np.isinf(default):
        share = "none"
    elif np.isinf(rival):
        share = f"below {default / longest:.2f}"
    else:
        share = f"{default / rival:.2f}"
    return (
        f"- Within 5 %, medians: {DEFAULT_POLICY} {default:.0f} s, {METHODS[other].label} "
        f"{rival_in_words}: ratio {share}"
    )


def _median_time(runs: Sequence[Run]) -> float:
    _, median, _ = quartiles([run.reached(CLOSE[0]) for run in runs])
    return median


def draw(results: Results, trainings: float, path: Path) -> None:
    """A figure of regret over time, a panel for each table."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "regret"
    plot, axes = plt.subplots(1, len(results), figsize=(6 * len(results), 4.5), squeeze=False)
    for axis, (table, methods) in zip(axes[0], results.items(), strict=True):
        grid = np.linspace(0, trainings * training_seconds(fitted(table)), 200)
        for index, (method, runs) in enumerate(methods.items()):
            style = "--" if index >= 10 else "-"
            _draw_method(axis, grid, runs, METHODS[method].label, style)
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


def _draw_method(
    axis: "Axes", grid: NDArray[np.float64], runs: Sequence[Run], label: str, style: str
) -> None:
    """The median with a band of the quartiles, where more than half of the runs have a regret."""
    curves = over_time(runs, grid)
    known = np.isfinite(curves).mean(axis=0) > 0.5
    low, middle, high = np.nanquantile(curves[:, known], [0.25, 0.5, 0.75], axis=0)
    (line,) = axis.plot(grid[known], 100 * middle, label=label, linestyle=style)
    axis.fill_between(
        grid[known], 100 * low, 100 * high, color=line.get_color(), alpha=0.08, linewidth=0
    )


def report(results: Results, trainings: float, out: Path) -> None:
    """Write results.md and regret.svg."""
    lines: list[str] = []
    for table, methods in results.items():
        seconds = training_seconds(fitted(table))
        horizon = trainings * seconds
        lines += ["", f"Table {table}, a training {seconds:.1f} s", ""]
        lines += [line_of(HEAD), "|" + "---|" * len(HEAD)]
        lines += [line_of(row_of(METHODS[name].label, methods[name], horizon)) for name in methods]
        lines.append("")
        for other in RIVALRY:
            if DEFAULT_POLICY in methods and other in methods:
                lines.append(ratio(table, methods, other, horizon))
    (out / "results.md").write_text("\n".join(lines[1:]) + "\n")
    draw(results, trainings, out / "regret.svg")


def load_runs(path: Path) -> Results:
    stored = json.loads(path.read_text())
    results: Results = {}
    for table, methods in stored.items():
        results[table] = {name: [Run(**run) for run in runs] for name, runs in methods.items()}
    return results


def store_runs(results: Results, path: Path) -> None:
    stored = {}
    for table, methods in results.items():
        stored[table] = {name: [asdict(run) for run in runs] for name, runs in methods.items()}
    path.write_text(json.dumps(stored))


def choose_methods(parser: argparse.ArgumentParser, named: list[str] | None) -> list[str]:
    """The methods to compare: those named, else all that are installed except the slow ones.

    Ends with a usage error if a named one is not installed.
    """
    missing = [name for name in named or METHODS if name in absent()]
    if missing:
        how = (
            f"{', '.join(missing)}: Ray Tune or Syne Tune is not installed: "
            f"`pip install -e .[rivals]`"
        )
        if named:
            parser.error(how)
        print(f"left out: {how}", flush=True)
    if named:
        return named
    return [name for name in METHODS if name not in missing and name not in SLOW]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", nargs="+", default=["a", "b"])
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=list(METHODS),
        help=f"default: all that are installed, except {', '.join(SLOW)}",
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
        "--add", action="store_true", help="keep the runs of other methods in runs.json"
    )
    parser.add_argument(
        "--draw",
        action="store_true",
        help="results.md and regret.svg from runs.json, no simulation",
    )
    arguments = parser.parse_args()
    runs_file = arguments.out / "runs.json"
    results: Results = {table: {} for table in arguments.tables}
    if arguments.draw or arguments.add:
        results = load_runs(runs_file)
    if arguments.draw:
        report(results, arguments.trainings, arguments.out)
        return
    methods = choose_methods(parser, arguments.methods)
    with ProcessPoolExecutor(
        arguments.processes, initializer=threadpool_limits, initargs=(1,)
    ) as pool:
        for table in arguments.tables:
            horizon = arguments.trainings * training_seconds(fitted(table))
            for name in methods:
                repetitions = max(2, round(arguments.repetitions * METHODS[name].share))
                once = partial(repeat, table, name, trainings=arguments.trainings)
                runs = list(pool.map(once, range(repetitions)))
                results[table][name] = runs
                print(line_of(row_of(METHODS[name].label, runs, horizon)), flush=True)
                store_runs(results, runs_file)
    report(results, arguments.trainings, arguments.out)


if __name__ == "__main__":
    main()
