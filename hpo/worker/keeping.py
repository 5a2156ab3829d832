"""Which trials keep their weights, and the removal of files that nobody needs any more.

A trial whose weights have dropped out never comes back among the best: later trials only push more
out. So workers may remove files without asking each other.
"""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpo.space.spec import StudySpec
from hpo.study.paths import trial_folder
from hpo.study.pick import best_first
from hpo.study.reader import StudyReader
from hpo.study.trial import Record
from hpo.trainer import Weights
from hpo.worker.checkpoint import TORCH_WEIGHTS, checkpoints, remove_drafts

OVER = ("complete", "stopped", "failed")


def rule_of(spec: StudySpec) -> str | None:
    """Which trials keep their weights, in words; None if all do."""
    keep = _number_kept(spec)
    if keep is None:
        return None
    best = "best trial" if keep == 1 else f"best {keep} trials"
    return f"of the {best}, of starts, and of what confirm, ablate and ensemble have used"


def _number_kept(spec: StudySpec) -> int | None:
    """None: the weights of all trials are kept."""
    # Retrainings are few, and each belongs to a finding. A script decides itself what it keeps.
    if spec.weights is None or spec.child is not None or spec.load_trainer().keeps_files:
        return None
    return spec.weights.keep


def trials_that_keep_weights(study: StudyReader, records: Sequence[Record]) -> set[int]:
    """The numbers of the complete trials whose weights are kept.

    records: of all trials of the study.
    """
    complete = best_first(records, study.spec.metric)
    keep = _number_kept(study.spec)
    kept = {record.number for record in complete[:keep]}
    kept |= {record.number for record in complete if record.start}
    return kept | set(_used_in(study.results()))


def _used_in(results: Mapping[str, Mapping[str, Any]]) -> Iterator[int]:
    """The numbers of the trials that findings were made from, some perhaps twice."""
    for config in results.get("confirm", {}).get("configs", ()):
        if config.get("trial") is not None:
            yield config["trial"]
    ensemble = results.get("ensemble", {})
    members = ensemble.get("ensemble", {}).get("members", ())
    for part in (ensemble.get("single", {}), *members):
        if part.get("trial") is not None:
            yield part["trial"]
    # Paths and questions name their ends: a start, best, 7 or trial 7.
    text = str([results.get("ablation"), results.get("questions")])
    for number in re.findall(r"'(?:from|to)': '(?:trial )?(\d+)'", text):
        yield int(number)


@dataclass
class Tidying:
    """Removes, from the files of one study on this machine, what nobody needs any more."""

    study: StudyReader
    # Of the study's files.
    folder: Path
    # The trials that are tidied for good.
    _done: set[int] = field(default_factory=set)

    def tidy(self) -> None:
        """Tidy the folders of all trials that are over. Raises DatabaseError."""
        records = self.study.records()
        over = [record for record in records if record.state in OVER]
        new = [record for record in over if record.number not in self._done]
        if not new:
            return
        trainer = self.study.spec.load_trainer()
        weights = trainer.weights or TORCH_WEIGHTS
        kept = trials_that_keep_weights(self.study, records)
        for record in new:
            folder = trial_folder(self.folder, record.number)
            has_result = record.state == "complete" and record.number in kept
            if record.state == "stopped":
                shutil.rmtree(folder, ignore_errors=True)
            elif folder.is_dir():
                _tidy_folder(folder, weights, has_result, trainer.keeps_files)
            # One that is kept may drop out later.
            if not has_result:
                self._done.add(record.number)


def _tidy_folder(folder: Path, weights: Weights, has_result: bool, keeps_files: bool) -> None:
    """has_result: whether its weights are kept. keeps_files: whether its trainer writes none."""
    best = folder / f"best{weights.suffix}"
    last = folder / f"last{weights.suffix}"
    # The checkpoint of a complete trial whose weights could not be written stands for them.
    if keeps_files or last.exists() or not has_result:
        for checkpoint in checkpoints(folder):
            checkpoint.unlink(missing_ok=True)
    if not has_result:
        best.unlink(missing_ok=True)
        last.unlink(missing_ok=True)
    remove_drafts(folder)
