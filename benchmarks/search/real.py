"""Real searches at equal compute.

    python benchmarks/search/real.py

Run it again to continue. Each policy and each of three seeds is a study of the demo (lr-aug on the
bundled recordings) with the same budget of GPU-hours. hpo's workers run the studies one after the
other, so that each has the machine to itself. The decoder of each with the lowest validation PER is
scored once on `test`, on which nothing is selected. The wall clock includes the cost of the policy,
GPU-hours do not.
"""

import argparse
import time
from statistics import mean, stdev

import torch

from hpo.analysis.weights import weights_of
from hpo.decoder.scoring import score
from hpo.launch.launcher import Launcher, Plan
from hpo.space.budget import Budget
from hpo.space.load import find_space, load_spec
from hpo.space.sections import SamplerSettings
from hpo.space.spec import DEFAULT_POLICY
from hpo.store.database import open_database
from hpo.study.pick import best_of
from hpo.study.study import Study
from hpo.study.version import code_version
from hpo.worker.dataset import look_at_data


def search(policy: str, seed: int, hours: float, workers: int) -> tuple[Study, float]:
    """Search, or continue to. Returns the study and the wall-clock seconds of this call."""
    budget = Budget.model_validate({"trials": 10_000, "gpu_hours": hours})
    sampler = SamplerSettings.model_validate({"seed": seed, "startup_trials": 10})
    spec = load_spec(find_space("lr-aug"), "demo", policy=policy)
    spec = spec.model_copy(update={"budget": budget, "sampler": sampler})
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
        help="of each study, over all workers; on CPUs worker-hours",
    )
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    validation_pers: dict[str, list[float]] = {policy: [] for policy in arguments.policies}
    test_pers: dict[str, list[float]] = {policy: [] for policy in arguments.policies}
    print(
        "| policy | seed | trials | GPU-s | wall s | best trial | validation PER, % "
        "| test PER of it, % |"
    )
    print("|" + "---|" * 8)
    for seed in arguments.seeds:
        for policy in arguments.policies:
            study, seconds = search(policy, seed, arguments.gpu_hours, arguments.workers)
            best = best_of(study.records(), study.spec.metric)
            spent = study.standing()
            assert best is not None and best.value is not None
            weights = weights_of(study, str(best.number), "last")
            scored = score(weights, study.data_path, "test", torch.device("cpu"), None)
            validation_pers[policy].append(best.value)
            test_pers[policy].append(scored["per"])
            cells = [
                policy,
                seed,
                spent.ended,
                round(spent.gpu_seconds),
                round(seconds),
                best.number,
                f"{100 * best.value:.1f}",
                f"{100 * scored['per']:.1f}",
            ]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    for policy in arguments.policies:
        validation = spread(validation_pers[policy])
        print(f"{policy}: validation {validation}, test {spread(test_pers[policy])}")


def spread(pers: list[float]) -> str:
    """Mean and standard deviation, in percent."""
    return f"{100 * mean(pers):.1f} (SD {100 * stdev(pers):.1f})"


if __name__ == "__main__":
    main()
