"""What a batch run ends in when it does not publish: one tree, and the exit code of each kind for schedulers.

BatchError
├── JobError         3  the job's declaration cannot be run
├── InputError       3  a file, column, day or release cannot be used; it stays so until somebody repairs it
├── StorageError     4  warehouse, Redis, Spark or its executors refused, lost something or ended; trying again may help
├── ChecksFailed     5  the run was made and kept, and is not published; `--force REASON` publishes
├── Superseded       6  a newer cut-off is published, or a newer run took over; nothing to repeat
└── JobBusy         75  another run of the job is at work (EX_TEMPFAIL: try again later)

0 is published, 1 a bug, 2 wrong usage, 130 Ctrl-C. Every message names what was found and what would be right.
"""

from __future__ import annotations


class BatchError(Exception):
    """A batch command that did not do what was asked."""

    exit_code = 1


class JobError(BatchError):
    """A job's declaration, or what its functions make, cannot be run."""

    exit_code = 3


class InputError(BatchError):
    """What the run reads cannot be used: the message names the file, column, day or release."""

    exit_code = 3


class StorageError(BatchError):
    """The warehouse cannot be written, Redis does not hold what was written to it, or Spark ended under the run."""

    exit_code = 4


class ChecksFailed(BatchError):
    """A check before publishing failed; the run is kept in the warehouse."""

    exit_code = 5


class Superseded(BatchError):
    """The pointer is not for this run to move: a newer cut-off is published, or a newer run holds the fence."""

    exit_code = 6


class JobBusy(BatchError):
    """Another run of the job holds its lease."""

    exit_code = 75
