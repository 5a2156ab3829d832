"""Real searches at equal compute: `python benchmarks/search/real.py`, again to go on.

Each policy and each of three seeds is a study of the demo (lr-aug on the bundled recordings) with the same budget of GPU-hours,
run by our own workers, one after the other so that all have the machine alone. Of each, the decoder with the lowest validation
PER is scored once on `test`, which nothing is selected on. The wall clock has the cost of the policy in it, GPU-hours have not.
"""

import argparse
import time
from statistics import mean, stdev

import torch

from hpo.analysis.weights import weights_of
from hpo.decoder.scoring import score
from hpo.launch.launcher import Launcher, Plan
from hpo.space.spec import DEFAULT_POLICY, find_space, load_spec
from hpo.store.database import open_database
from hpo.study.pick import best_of
from hpo.study.study import Study
from hpo.study.version import code_version
from hpo.worker.dataset import look_at_data


def search(policy: str, seed: int, hours: float, workers: int) -> tuple[Study, float]:
    """The study, and seconds of the wall clock of this call."""
    settings = {
        "budget": {"trials": 10_000, "gpu_hours": hours},
        "sampler": {"seed": seed, "startup_trials": 10},
    }
    spec = load_spec(find_space("lr-aug"), "demo", policy=policy)
    changed = {
        name: type(getattr(spec, name)).model_validate(values) for name, values in settings.items()
    }
    spec = spec.model_copy(update=changed)
    database = open_database()
    name = f"real-{policy}-{seed}-{hours:g}"
    study = Study.create_or_open(database, name, spec, look_at_data(None, spec).facts)
    study.settle(None, code_version())
    begin = time.monotonic()
    if study.why_over() is None:
        Launcher(study, database, Plan(("cpu",) * workers, threads=1), None).run()
    return study, time.monotonic() - begin


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policies", nargs="+", default=[str(DEFAULT_POLICY), "random"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--gpu-hours",
        type=float,
        default=0.08,
        help="of each study, all workers together; on CPUs worker-hours",
    )
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {policy: [] for policy in arguments.policies}
    print(
        "| policy | seed | trials | GPU-s | wall s | best trial | validation PER, % | test PER of it, % |\n|"
        + "---|" * 8
    )
    for seed in arguments.seeds:
        for policy in arguments.policies:
            study, seconds = search(policy, seed, arguments.gpu_hours, arguments.workers)
            best = best_of(study.records(), study.spec.metric)
            spent = study.standing()
            assert best is not None and best.value is not None
            test = score(
                weights_of(study, str(best.number), "last"),
                study.data_path,
                "test",
                torch.device("cpu"),
                None,
            )["per"]
            found[policy].append((best.value, test))
            cells = [
                policy,
                seed,
                spent.ended,
                round(spent.gpu_seconds),
                round(seconds),
                best.number,
            ]
            scores = [f"{100 * value:.1f}" for value in (best.value, test)]
            print("| " + " | ".join(map(str, [*cells, *scores])) + " |", flush=True)
    for policy, pers in found.items():
        spread = [
            f"{100 * mean(values):.1f} (SD {100 * stdev(values):.1f})"
            for values in zip(*pers, strict=True)
        ]
        print(f"{policy}: validation {spread[0]}, test {spread[1]}")


if __name__ == "__main__":
    main()
