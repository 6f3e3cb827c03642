"""Errors that a user can act on."""


class MuscleError(ValueError):
    """Something in the input is wrong; the message says what it is and what to do."""


class MismatchError(MuscleError):
    """An adapter and what it is put on, or its own record, do not belong together."""


class MissingDependencyError(MuscleError, ImportError):
    """An optional package is needed for this feature and is not installed."""

    def __init__(self, package: str, extra: str, purpose: str):
        super().__init__(f'{purpose} needs {package}; install it with: pip install "muscle-hf[{extra}]"')
