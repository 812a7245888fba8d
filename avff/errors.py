"""Every error that a user of avff can cause, in one tree.

    AvffError
    ├── ConfigError       a config file, an override or a command line says something impossible   (also ValueError)
    ├── MediaError        a raw media file cannot be read, or holds nothing usable                  (also ValueError)
    ├── ShardError        a shard directory, its index or a sample in it is not what it should be   (also ValueError)
    │   └── ReadError     a sample could not be read this time: I/O error, time-out, crashed decoder
    ├── CheckpointError   a run folder, checkpoint or weight file is missing, torn or of another model (also ValueError)
    ├── EvaluationError   scores are incomplete, doubled, or were made for something else           (also ValueError)
    └── TrainingError     training cannot go on: non-finite numbers, too many bad samples           (also RuntimeError)
        └── LostRankError     another rank died or hangs; a new start may go better

A message says what is wrong, where, both values, and what to write instead. It is printed without a
traceback, and `exit_code` says with which code the process ends.
"""


class AvffError(Exception):
    """Root of the tree; `except AvffError` catches what a user can mend."""


class ConfigError(AvffError, ValueError):
    """A config value, a key, or a combination of them is invalid."""


class MediaError(AvffError, ValueError):
    """A media file cannot be decoded, or lacks what was asked of it.

    Args:
        message: the whole sentence for the user.
        reason: a short stable code for tables and counters, such as `UNDECODABLE` or `NO_VIDEO`.
    """

    def __init__(self, message: str, *, reason: str = "UNDECODABLE"):
        super().__init__(message)
        self.reason = reason


class ShardError(AvffError, ValueError):
    """A shard directory, an index or a stored sample is broken or inconsistent."""


class ReadError(ShardError):
    """A sample could not be read in these circumstances; its bytes may be good."""


class CheckpointError(AvffError, ValueError):
    """A checkpoint or weight file is missing, incomplete, or belongs to another model."""


class EvaluationError(AvffError, ValueError):
    """A table of scores is incomplete, holds a clip twice, or does not belong to what it is compared with."""


class TrainingError(AvffError, RuntimeError):
    """Training has to stop; the message names step, value and keys."""


class LostRankError(TrainingError):
    """Another rank died, or keeps the others waiting; the message names it."""


REFUSED_EXIT_CODE = 2
STOPPED_EXIT_CODE = 3
LOST_RANK_EXIT_CODE = 4
PREEMPTED_EXIT_CODE = 75
"""EX_TEMPFAIL: the run was saved and wants to be started again."""
INTERRUPTED_EXIT_CODE = 130


def exit_code(error: BaseException) -> int:
    """Returns the code that a process ends with because of an error.

    2: refused, for the caller to mend. 3: training stopped itself. 4: another rank died or hangs. 130: interrupted.
    1: a bug of ours.
    """
    if isinstance(error, LostRankError):
        return LOST_RANK_EXIT_CODE
    if isinstance(error, TrainingError):
        return STOPPED_EXIT_CODE
    if isinstance(error, AvffError):
        return REFUSED_EXIT_CODE
    return INTERRUPTED_EXIT_CODE if isinstance(error, KeyboardInterrupt) else 1


def is_final(code: int) -> bool:
    """Whether starting `avff train` again after this code is of no use until somebody has looked.

    All else wants another start: saved and stopped (75), a lost rank (4), a crash (1, or death by a signal). A loop of
    crashes ends all the same, because after `faults.max_failed_starts` of them `avff train` refuses with code 3.
    """
    return code in (0, REFUSED_EXIT_CODE, STOPPED_EXIT_CODE, INTERRUPTED_EXIT_CODE)


def describe(error: BaseException) -> str:
    """Returns the sentence about an error that the user reads; an error of no AvffError class is named by its own."""
    if isinstance(error, AvffError):
        return " ".join([str(error), *(f"({note})" for note in getattr(error, "__notes__", []))])
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; the same command goes on where it stopped"
    return f"{type(error).__name__}: {error}"
