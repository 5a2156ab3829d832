"""Inside an element of a SLURM job: its wall limit, the workers of its node, and its way back into the queue."""

import logging
import os
import re
import time
from pathlib import Path

from hpo.errors import CallerError, DatabaseError, SlurmError
from hpo.launch.launcher import Launcher, Plan
from hpo.launch.slurm import call_slurm
from hpo.store.database import Database
from hpo.study.study import Study
from hpo.worker.signals import StopFlag

# Workers leave so long before the wall limit, at most a tenth of the job's length.
MARGIN_SECONDS = 120.0
# Another margin, in seconds.
MARGIN_VARIABLE = "HPO_WALL_MARGIN"
# Seconds since the epoch; a node's first process tells its workers.
LEAVE_VARIABLE = "HPO_LEAVE_AT"
log = logging.getLogger(__name__)


def this_element() -> str | None:
    """ARRAY_INDEX of the job that we run in; its number alone would name all the elements to scontrol. None outside SLURM."""
    job, array = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else job


def leave_at() -> float | None:
    """When to leave for the wall limit of the job that we run in, in seconds since the epoch; None: there is none.

    Raises CallerError for a margin that is no number or leaves no time.
    """
    if told := os.environ.get(LEAVE_VARIABLE):
        return float(told)
    element = this_element()
    if element is None:
        return None
    now, end = time.time(), os.environ.get("SLURM_JOB_END_TIME")
    if end is None:  # before SLURM 23
        try:
            left = seconds_of(
                call_slurm(["squeue", "--noheader", f"--job={element}", "--format=%L"]).strip()
            )
        except (
            SlurmError
        ) as error:  # in a container, say: a worker is worth more than its last minutes
            log.warning("the wall limit is not known: %s", error)
            return None
        if left is None:
            return None
        end = str(now + left)
    length = float(end) - float(os.environ.get("SLURM_JOB_START_TIME", now))
    given = os.environ.get(MARGIN_VARIABLE)
    if given is None:
        return float(end) - min(MARGIN_SECONDS, length / 10)
    if (
        not re.fullmatch(r"\d+(\.\d+)?", given) or float(given) >= length
    ):  # who leaves at once would be requeued for ever
        raise CallerError(
            f"{MARGIN_VARIABLE}={given}: valid is a number of seconds, less than the job's {length:.0f}"
        )
    return float(end) - float(given)


def seconds_of(left: str) -> int | None:
    """Of [[DAYS-]HOURS:]MINUTES:SECONDS; None for UNLIMITED and the like."""
    if not re.fullmatch(r"(\d+-)?(\d+:){1,2}\d+", left):
        return None
    days, _, clock = left.rpartition("-")
    seconds = 0
    for part in clock.split(":"):
        seconds = 60 * seconds + int(part)
    return 86400 * int(days or 0) + seconds


def run_node(
    study: Study,
    database: Database,
    plan: Plan,
    data: Path | None,
    stop: StopFlag,
    allow_different_code: bool,
) -> bool:
    """Run the workers of this machine until they leave. Returns whether they left early: for a signal or the wall limit, with
    work left to do.
    """
    if study.why_over():  # done while the job waited in the queue
        return False
    if stop.leave_at is not None:
        os.environ[LEAVE_VARIABLE] = str(stop.leave_at)
    element = this_element()
    launcher = Launcher(study, database, plan, data, allow_different_code=allow_different_code)
    if element:
        launcher.label = f"slurm-{element}"
    end = launcher.run()
    if end == "done" and not stop():
        return False
    try:
        return study.why_over() is None
    except (
        DatabaseError
    ) as error:  # an element that is not requeued is lost to the study; one that is asks again
        log.warning("whether work is left is not known: %s", error)
        return True


def requeue() -> str | None:
    """Put the element that we run in back into the queue. Returns its name, or None outside SLURM. Raises SlurmError.

    `Incomplete`: SLURM does nothing if the element does not run any more, because it was cancelled, or because SLURM itself
    requeues it after pre-emption. Within the grace time we must ask: an element that leaves by itself would count as completed.
    """
    element = this_element()
    if element:
        call_slurm(["scontrol", "requeue", "Incomplete", element])
    return element
