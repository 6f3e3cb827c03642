"""Public names and submodules that are imported at first use: importing a package, or ``--help``, loads no torch."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Mapping
from typing import Any

Exports = tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]


def lazy_exports(package: str, homes: Mapping[str, str]) -> Exports:
    """What a package needs to offer names whose modules are not imported yet, public name -> module that defines it,
    relative to the package (``.name``: beside the package): its ``__getattr__`` (of its submodules too), ``__dir__``
    and ``__all__``; names that are added to the last are listed by the second."""
    names = sorted(homes)

    def get(name: str) -> Any:
        if name not in homes:
            if not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}") is not None:
                return importlib.import_module(f"{package}.{name}")
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f".{homes[name]}", package), name)
        setattr(sys.modules[package], name, value)
        return value

    def listed() -> list[str]:
        submodules = (module.name for module in pkgutil.iter_modules(sys.modules[package].__path__))
        return sorted({*names, *submodules})

    return get, listed, names
