"""Import paths of earlier versions, which name other modules now; they go with the next minor version."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Nearest first: what is under a package that moved moved with it.
MOVED = {
    "muscle_hf.losses": "muscle_hf.objective",
    "muscle_hf.teachers.body": "muscle_hf.teachers.head",
    "muscle_hf.teachers.casting": "muscle_hf.teachers.roles",
    "muscle_hf.teachers.placing": "muscle_hf.teachers.sharding",
    "muscle_hf.teachers.cached": "muscle_hf.cache.teacher",
    "muscle_hf.teachers.cache.head": "muscle_hf.cache.head_files",
    "muscle_hf.teachers.cache": "muscle_hf.cache",
    "muscle_hf.teachers.calibration": "muscle_hf.training.calibration",
    "muscle_hf.config": "muscle_hf.training.config",
    "muscle_hf.data": "muscle_hf.training.data",
    "muscle_hf.provenance": "muscle_hf.training.provenance",
    "muscle_hf.checkpoints": "muscle_hf.training.checkpoints",
    "muscle_hf.evaluation.encoding": "muscle_hf.encoding",
    "muscle_hf.transfer.prompts": "muscle_hf.prompts",
}


class _Moved(MetaPathFinder, Loader):
    """Gives the module that an old path stands for."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        if fullname == "muscle_hf.transfer":
            return importlib.util.spec_from_loader(fullname, self, is_package=True)
        return importlib.util.spec_from_loader(fullname, self) if _now(fullname) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        now = _now(spec.name)
        if now is None:
            return None
        warnings.warn(f"{spec.name} is called {now} now", DeprecationWarning, stacklevel=2)
        return importlib.import_module(now)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is left to do: it is loaded under its new name."""


def _now(name: str) -> str | None:
    for old, new in MOVED.items():
        if name == old or name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    return None


def offer_old_paths() -> None:
    """Let imports of old paths find what they stand for; called when the package is imported."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        # Ahead of the finder of files, which would load what is under a package that moved a second time.
        sys.meta_path.insert(0, _Moved())
