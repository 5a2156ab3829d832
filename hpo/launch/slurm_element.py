"""Inside an element of a SLURM job: the wall limit, the workers of its node, and requeueing."""

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

# Workers leave this long before the wall limit, but at most a tenth of the job's length.
MARGIN_SECONDS = 120.0
# Overrides the margin, in seconds.
MARGIN_VARIABLE = "HPO_WALL_MARGIN"
# Tells the workers of a node when to leave, in seconds since the epoch.
LEAVE_VARIABLE = "HPO_LEAVE_AT"
log = logging.getLogger(__name__)


def this_element() -> str | None:
    """The ARRAY_INDEX of the element that this process runs in; None outside SLURM.

    scontrol would take the number of the array alone for all of its elements.
    """
    array = _number_in("SLURM_ARRAY_JOB_ID")
    index = _number_in("SLURM_ARRAY_TASK_ID")
    if array and index:
        return f"{array}_{index}"
    return _number_in("SLURM_JOB_ID")


def _number_in(variable: str) -> str | None:
    """The whole number that the variable holds; None if it is unset, empty or a word."""
    text = os.environ.get(variable, "").strip()
    return text if re.fullmatch(r"[0-9]+", text) else None


def _moment_in(variable: str) -> float | None:
    """The seconds since the epoch that the variable holds; None if it holds none."""
    text = os.environ.get(variable, "").strip()
    return float(text) if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) else None


def leave_at() -> float | None:
    """When to leave because of the job's wall limit, in seconds since the epoch; None: no limit.

    Raises CallerError for a margin that is not a number or leaves no time.
    """
    inherited = _moment_in(LEAVE_VARIABLE)
    if inherited is not None:
        return inherited
    element = this_element()
    if element is None:
        return None
    now = time.time()
    end = _job_end(element, now)
    if end is None:
        return None
    start = _moment_in("SLURM_JOB_START_TIME") or now
    return end - _margin(end - min(start, now))


def _job_end(element: str, now: float) -> float | None:
    """When the wall limit ends the job; None if it has no limit or SLURM does not tell it."""
    end = _moment_in("SLURM_JOB_END_TIME")
    if end is not None and end > now:
        return end
    # SLURM sets the variable since version 23. A shell that was opened in a job keeps it, even
    # after the job has ended.
    try:
        printed = call_slurm(["squeue", "--noheader", f"--job={element}", "--format=%L"]).strip()
    except SlurmError as error:
        # In a container, for example. A worker without its last minutes is better than none.
        log.warning("the wall limit is unknown: %s", error)
        return None
    if not printed:
        log.warning("SLURM's variables are of job %s, which has ended: no wall limit", element)
        return None
    # Without an index, squeue prints a line for each element of an array.
    left = seconds_of(printed.splitlines()[0].strip())
    return None if left is None else now + left


def _margin(length: float) -> float:
    """How many seconds before the end of a job of this length its workers leave."""
    given = os.environ.get(MARGIN_VARIABLE)
    if given is None:
        return min(MARGIN_SECONDS, length / 10)
    # A job whose workers leave at once would be requeued forever.
    if not re.fullmatch(r"\d+(\.\d+)?", given) or float(given) >= length:
        raise CallerError(
            f"{MARGIN_VARIABLE}={given}: valid is a number of seconds, less than the job's "
            f"{length:.0f}"
        )
    return float(given)


def seconds_of(left: str) -> int | None:
    """The seconds of [[DAYS-]HOURS:]MINUTES:SECONDS; None for UNLIMITED and other words."""
    if not re.fullmatch(r"(\d+-)?(\d+:){1,2}\d+", left):
        return None
    days, _, clock = left.rpartition("-")
    seconds = 0
    for part in clock.split(":"):
        seconds = 60 * seconds + int(part)
    return 86400 * int(days or 0) + seconds


# Study, database, plan and data are the launcher's own arguments; no two of them belong together.
def run_node(  # noqa: PLR0913
    study: Study,
    database: Database,
    plan: Plan,
    data: Path | None,
    stop: StopFlag,
    allow_different_code: bool,
) -> bool:
    """Run the workers of this machine until they leave.

    Returns whether work is left to do, because of a signal or the wall limit.
    """
    # The study may have ended while the job waited in the queue.
    if study.why_over():
        return False
    if stop.leave_at is not None:
        os.environ[LEAVE_VARIABLE] = str(stop.leave_at)
    launcher = Launcher(study, database, plan, data, allow_different_code=allow_different_code)
    element = this_element()
    if element:
        launcher.label = f"slurm-{element}"
    end = launcher.run()
    if end == "done" and not stop():
        return False
    try:
        return study.why_over() is None
    except DatabaseError as error:
        # A requeued element asks again; one that is not requeued would be lost to the study.
        log.warning("cannot tell whether work is left: %s", error)
        return True


def requeue() -> str | None:
    """Put this element back into the queue and return its name; None outside SLURM.

    `Incomplete` makes SLURM do nothing if the element no longer runs, because it was cancelled or
    because SLURM itself requeues it after pre-emption. Within the grace time the element must ask:
    one that leaves by itself would count as completed. Raises SlurmError.
    """
    element = this_element()
    if element:
        call_slurm(["scontrol", "requeue", "Incomplete", element])
    return element
