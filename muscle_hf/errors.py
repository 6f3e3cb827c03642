"""Errors that a user can act on."""

import shlex
import sys


class MuscleError(ValueError):
    """Something in the input is wrong; the message says what it is and what to do."""


class MismatchError(MuscleError):
    """An adapter and what it is put on, or its own record, do not belong together."""


class SaveError(MuscleError):
    """Something could not be written; what was saved before is whole."""


class MissingDependencyError(MuscleError, ImportError):
    """An optional package is needed for this feature and is not installed."""

    def __init__(self, package: str, extra: str, purpose: str):
        install = f"{shlex.quote(sys.executable)} -m pip install 'muscle-hf[{extra}]'"
        super().__init__(f"{purpose} needs {package}; install it with: {install}")
