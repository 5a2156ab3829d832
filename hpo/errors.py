"""Every error that a person is meant to read. The text is one line: what was given, what is valid, what to do.

HpoError
|-- CallerError    exit code 2: something that was asked for is wrong
|   |-- SpecError      a study file, a profile, a --set
|   |-- DataError      a data set
|   `-- StudyError     a study name, a study that differs, a trial that is not there
`-- MachineError   exit code 1: the machine or the network failed
    |-- DatabaseError  no server, no permission, no binaries
    |   `-- DatabaseAwayError  it may answer again: asked again later
    |-- SlurmError     what SLURM's commands refused, or they are not there
    `-- WorkerError    no worker could go on
        |-- MemoryShortError   exit code 3: the trials of this device need more memory than it has; fewer at once may do
        `-- BadNodeError       exit code 4: trials fail on this host that other hosts bring to their end
"""

import errno


class HpoError(Exception):
    exit_code = 1


class CallerError(HpoError):
    exit_code = 2


class SpecError(CallerError):
    pass


class DataError(CallerError):
    pass


class StudyError(CallerError):
    pass


class MachineError(HpoError):
    pass


class DatabaseError(MachineError):
    pass


class DatabaseAwayError(DatabaseError):
    pass


class SlurmError(MachineError):
    pass


class WorkerError(MachineError):
    pass


class MemoryShortError(WorkerError):
    exit_code = 3


class BadNodeError(WorkerError):
    exit_code = 4


_ADVICE = {
    errno.ENOSPC: "Free the space or give another place",
    errno.EDQUOT: "Free some of your quota or give another place",
    errno.EACCES: "Give a place that you may use, or change its permissions",
    errno.EPERM: "Give a place that you may use, or change its permissions",
    errno.EROFS: "Give a place that can be written",
    errno.ENOENT: "Give a place that exists",
    errno.ENOTDIR: "Give a path whose folders are folders",
    errno.EISDIR: "Give a file, not a folder",
    errno.ENAMETOOLONG: "Give a shorter name",
    errno.EFBIG: "Raise the limit of file sizes (ulimit -f), or give another file system",
    errno.EMFILE: "Raise the limit of open files: ulimit -n",
    errno.ENOMEM: "Free memory, or take another machine",
    errno.EIO: "The disk or its network fails: look at `dmesg`, or give another place",
    errno.ESTALE: "The network file system lost the file: mount it again, or give another place",
}


def os_error_text(error: OSError) -> str:
    """One line: the file if one is known, what the system says, and what to do."""
    place = f"{error.filename}: " if error.filename is not None else ""
    said = error.strerror or str(error) or type(error).__name__
    if isinstance(error, ConnectionError | TimeoutError):
        return f"{place}{said}. The network or the other side does not answer: try again later"
    advice = _ADVICE.get(error.errno or 0)
    return f"{place}{said}. {advice}" if advice else f"{place}{said}"
