"""What can go wrong, drawn as a tree. Every message says what was found, what was expected, one
thing to try.

    WeftError
    +-- ConfigError         the recipe or an override is wrong: key, value, rule, a legal neighbour
    +-- LayoutError         a parallel layout that cannot exist for this model
    +-- DataError           a corpus, a shard or a token that cannot be used: file, offset, reason
    +-- CheckpointError     a checkpoint that is absent, half written, damaged or of another model
    +-- ProgramError        a program or a schedule that breaks a rule of the graph (a weft bug)
    +-- CommunicationError  a collective that failed, was mismatched or cannot complete
    |   +-- DeadlockError   no rank of a stacked run can advance: rank, task and group are named
    +-- RankError           a process of a run that ended badly, with the end of its log
    +-- NonFiniteError      a loss or a gradient that is not finite, where the recipe says to stop
    +-- StoppedError        a run that was asked to stop, and did
    +-- VerificationError   an agreement check that did not hold, with the culprit

The exit codes of the command line:

    0    done
    1    failed
    2    the first three: found before any rank computes, and again if nothing is changed
    75   asked to stop (SIGTERM, SIGINT), and saved: the same command goes on (EX_TEMPFAIL)
    143  asked to stop, and ended without saving: asked twice, or before the first step
"""


class WeftError(Exception):
    """The root of everything weft raises on purpose."""


class ConfigError(WeftError):
    """A recipe, an override or a combination of settings that weft refuses."""


class LayoutError(WeftError):
    """A parallel layout that cannot exist for this model or this number of ranks."""


class DataError(WeftError):
    """A corpus, shard or token that cannot be used."""


class CheckpointError(WeftError):
    """A checkpoint that is absent, half written, damaged or belongs to another model."""


class ProgramError(WeftError):
    """A program or schedule that breaks a rule of the graph."""


class CommunicationError(WeftError):
    """A collective that failed, was mismatched or cannot complete."""


class DeadlockError(CommunicationError):
    """No rank can advance."""


class RankError(WeftError):
    """A process of a run that ended badly."""


class NonFiniteError(WeftError):
    """A loss or a gradient that is not finite, in a run that is to stop there."""


class StoppedError(WeftError):
    """A run that was asked to stop, and did; `code` is what its process exits with."""

    def __init__(self, message: str, *, code: int = 75) -> None:
        super().__init__(message)
        self.code = code


class VerificationError(WeftError):
    """An agreement check that did not hold."""
