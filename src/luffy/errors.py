"""The errors of this library: one family, each also the built-in error it refines.

A message names what is wrong (file, row, key), what was expected, and what to do. The command line prints it as one
line without a traceback; everything that is not a `LuffyError` is a bug of ours and keeps its traceback.
"""

from __future__ import annotations


class LuffyError(Exception):
    """Base of every error that is the user's to resolve; ends a command with exit status 1."""


class ConfigError(LuffyError, ValueError):
    """A recipe, an override or a command-line value that cannot be used; ends a command with exit status 2."""


class DataError(LuffyError, ValueError):
    """A data file, or a row of one, that cannot be used."""


class ModelError(LuffyError, ValueError):
    """A model folder or tokenizer that cannot be used."""


class RunError(LuffyError, RuntimeError):
    """A run that cannot start, go on or be read: a foreign run folder, a full disk, too many failures in a row."""


class EngineLostError(RunError):
    """What generates is gone for good, and the policy is whole: a run leaves a checkpoint before it stops.

    Of several processes each raises it at the same place, so that they can save together.
    """


def first_line(error: BaseException, longest: int | None = None) -> str:
    """The first line of what an error says, its kind where it says nothing. longest: characters that are kept."""
    return str(error).strip().partition("\n")[0][:longest] or type(error).__name__
