"""The short form of benchmarks/chaos.py: workers and Postgres are broken again and again, and every trial is as if undisturbed."""

import re
import subprocess
import sys

from helpers.paths import ROOT


def test_no_trial_is_lost_repeated_or_changed() -> None:
    script = ROOT / "benchmarks" / "chaos.py"
    short = [
        "--seconds",
        "20",
        "--trials",
        "6",
        "--workers",
        "3",
        "--every",
        "2",
        "--compare",
        "3",
        "--most-repeated",
        "0.2",
    ]
    seed = ["--seed", "2"]  # whose first six breaks are of all six kinds
    done = subprocess.run(
        [sys.executable, script, *short, *seed], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^\d+ s, [1-9]\d* breaks", done.stdout)
