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
