"""Places in the repository."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
STAND_INS = ROOT / "tests" / "stand_ins"
