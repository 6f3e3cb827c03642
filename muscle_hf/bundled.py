"""Files that travel inside an installed package: recipes and cards from the top of a checkout, the embedded bases."""

from __future__ import annotations

from pathlib import Path

from muscle_hf.errors import MuscleError


def bundled(name: str) -> Path:
    """A folder that the package brings along, ``recipes`` or ``model_cards``: inside the installed package, or at the
    top of the checkout that it is run from; a MuscleError where it is in neither place."""
    package = Path(__file__).parent
    for folder in (package / "_bundled" / name, package.parent / name):
        if folder.is_dir():
            return folder
    raise MuscleError(f"the folder {name!r} is missing from this installation of muscle-hf; install it again")


VERSIONS = ("v1", "v2")


def base(version: str) -> Path:
    """The folder of an embedded base, ``v1`` or ``v2``: a Llama-type model in safetensors with its tokenizer."""
    if version not in VERSIONS:
        raise ValueError(f"unknown base {version!r}; choose one of {', '.join(VERSIONS)}")
    return Path(__file__).parent / "demo" / "bases" / version
