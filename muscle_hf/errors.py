"""Errors that a user can act on."""

import importlib.metadata
import re
import shlex


class MuscleError(ValueError):
    """Something in the input is wrong; the message says what it is and what to do."""


class MismatchError(MuscleError):
    """An adapter and what it is put on, or its own record, do not belong together."""


class SaveError(MuscleError):
    """Something could not be written; what was saved before is whole."""


class MissingDependencyError(MuscleError, ImportError):
    """An optional package is needed for this feature and is not installed."""

    def __init__(self, package: str, extra: str, purpose: str):
        from muscle_hf.console import python

        super().__init__(f"{purpose} needs {package}; install it with: {python()} -m pip install {_of_extra(extra)}")


def _of_extra(extra: str) -> str:
    """What an extra of this package asks for, for a shell."""
    try:
        asked = importlib.metadata.requires("muscle-hf") or []
    except importlib.metadata.PackageNotFoundError:  # run from a folder, not installed
        asked = []
    found = [line.partition(";")[0].strip() for line in asked if re.search(rf"extra == ['\"]{extra}['\"]", line)]
    return shlex.join(found or [f"muscle-hf[{extra}]"])
