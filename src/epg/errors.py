"""What a user can put right: every message names the file or flag and the cure.

The command line prints these without a traceback and exits with `exit_code`; anything else is a bug and keeps its
traceback.
"""


class UserError(Exception):
    """Wrong usage: a flag, a recipe, a combination of settings."""

    exit_code = 2


class DataError(UserError):
    """Images or labels that cannot be used."""

    exit_code = 65


class DivergedError(UserError):
    """A loss or gradient that is not finite."""

    exit_code = 70


class RunLockedError(UserError):
    """Another process is writing to this run folder."""

    exit_code = 73


class OutputError(UserError):
    """A file that could not be written."""

    exit_code = 74


class InterruptedRunError(UserError):
    """The run was asked to stop and saved a checkpoint first."""

    exit_code = 75


class ArtefactError(UserError):
    """A checkpoint or weight file that is missing, damaged or of another architecture."""

    exit_code = 77


class PeerError(UserError):
    """Another process of this run failed; it says why. Has that process's exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
