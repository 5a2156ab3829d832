"""Every error that users are meant to read.

The text is one line: what was given, what is valid, what to do.

HpoError
|-- CallerError    exit code 2: the user asked for something that is wrong
|   |-- SpecError      a study file, a profile, a --set
|   |   `-- UnknownFieldError  a name that is no field of the trainer's configuration
|   |-- DataError      a data set
|   `-- StudyError     a study name, a study that differs, a trial that does not exist
`-- MachineError   exit code 1: the machine or the network failed
    |-- DatabaseError  no server, no permission, no binaries
    |   `-- DatabaseAwayError  it may answer again, so the call is repeated later
    |-- SlurmError     SLURM's commands are missing or refused a request
    `-- WorkerError    no worker could continue
        |-- MemoryShortError   exit code 3: the trials on this device need more memory than it has;
        |                      fewer at once may fit
        `-- BadNodeError       exit code 4: trials fail on this host that succeed on others
"""

import errno
import reprlib
from typing import Any

# How much of what a person or a file gave is repeated in a message, in characters.
MOST_SHOWN = 200
# The longest message: lists of what is valid are longer than what was given.
LONGEST_MESSAGE = 4000


class HpoError(Exception):
    exit_code = 1

    def __str__(self) -> str:
        return shortened(super().__str__(), LONGEST_MESSAGE)


class CallerError(HpoError):
    exit_code = 2


class SpecError(CallerError):
    pass


class UnknownFieldError(SpecError):
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


class _Shown(reprlib.Repr):
    """Writes values as Python does, but not more of them than fits into a message.

    A few lines of YAML can stand for a list of millions, which must not be written out first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 20
        self.maxstring = self.maxother = self.maxlong = MOST_SHOWN

    def repr_int(self, value: int, level: int) -> str:
        try:
            return super().repr_int(value, level)
        # Python writes no number of more than 4,300 digits.
        except ValueError:
            return f"a whole number of {value.bit_length():,} bits"


_WRITER = _Shown()


def shown(value: Any) -> str:
    """A value that a person or a file gave, for a message: at most MOST_SHOWN characters.

    Text is in quotes.
    """
    return shortened(_WRITER.repr(value))


def shortened(text: object, most: int = MOST_SHOWN) -> str:
    """A text of others on one line, with "..." for its middle if it has more characters."""
    line = " ".join(str(text).splitlines())
    if len(line) <= most:
        return line
    end = (most - 5) // 3
    start = most - 5 - end
    return f"{line[:start]} ... {line[-end:]}"


# What to do about an error of the operating system.
_ADVICE = {
    errno.ENOSPC: "Free the space or give another place",
    errno.EDQUOT: "Free some of your quota or give another place",
    errno.EACCES: "Give a place that you may use, or change its permissions",
    errno.EPERM: "Give a place that you may use, or change its permissions",
    errno.EROFS: "Give a place that can be written",
    errno.ENOENT: "Give a place that exists",
    errno.ENOTDIR: "Give a path of which every part but the last is a folder",
    errno.EISDIR: "Give a file, not a folder",
    errno.ENAMETOOLONG: "Give a shorter name",
    errno.EFBIG: "Raise the limit of file sizes (ulimit -f), or give another file system",
    errno.EMFILE: "Raise the limit of open files: ulimit -n",
    errno.ENOMEM: "Free memory, or use another machine",
    errno.EIO: "The disk or its network is failing: look at `dmesg`, or give another place",
    errno.ESTALE: "The network file system lost the file: mount it again, or give another place",
}


def os_error_text(error: OSError) -> str:
    """One line: the file if it is known, what the system says, and what to do."""
    text = error.strerror or str(error) or type(error).__name__
    if error.filename is not None:
        text = f"{error.filename}: {text}"
    if isinstance(error, ConnectionError | TimeoutError):
        return f"{text}. The network or the other side does not answer: try again later"
    advice = _ADVICE.get(error.errno or 0)
    return text if advice is None else f"{text}. {advice}"
