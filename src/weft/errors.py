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
    +-- VerificationError   an agreement check that did not hold, with the culprit

The first three are found before any rank computes; the command line then exits with 2, else with 1.
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


class VerificationError(WeftError):
    """An agreement check that did not hold."""
