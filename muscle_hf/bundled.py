"""Files that lie at the top of a checkout and travel inside an installed package."""

from __future__ import annotations

from pathlib import Path

from muscle_hf.errors import MuscleError


def bundled(name: str) -> Path:
    """A folder that the package brings along: ``recipes`` or ``model_cards``.

    Args:
        name: Of the folder.

    Returns:
        Inside the installed package, or at the top of the checkout that the package is run from.

    Raises:
        MuscleError: It is in neither place: the installation is incomplete.
    """
    package = Path(__file__).parent
    for folder in (package / "_bundled" / name, package.parent / name):
        if folder.is_dir():
            return folder
    raise MuscleError(f"the folder {name!r} is missing from this installation of muscle-hf; install it again")
