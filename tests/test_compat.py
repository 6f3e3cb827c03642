"""What is used of libraries beyond their documentation is listed with why, and the installed versions have it."""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import builders
import datasets
import peft
import pytest
import torch
import transformers
from peft.utils.other import ModulesToSaveWrapper

import muscle_hf
from muscle_hf import MuscleSFTTrainer, MuscleTrainer

PACKAGE = Path(muscle_hf.__file__).parent
COMPAT = PACKAGE / "compat"
LIBRARIES = ("accelerate", "datasets", "huggingface_hub", "peft", "torch", "transformers", "trl")
LISTED: dict[tuple[str, str, str], str] = {
    (file.stem, owner, name): why
    for file in sorted(COMPAT.glob("[a-z]*.py"))
    for owner, names in getattr(importlib.import_module(f"muscle_hf.compat.{file.stem}"), "PRIVATE", {}).items()
    for name, why in names.items()
}
# Modules that their libraries' documentation tells users to import from; the others are for compat alone.
DOCUMENTED = re.compile(
    r"torch\b.*|transformers(\.(utils|integrations(\.deepspeed)?|trainer|trainer_callback|trainer_utils|cache_utils))?"
    r"|peft(\.utils)?|accelerate(\.utils)?|trl(\.experimental\.\w+)?|datasets"
    r"|huggingface_hub(\.(errors|utils|hf_api))?"
)
PRIVATE_NAME = re.compile(r"_[a-z]\w*")


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for file in sorted(PACKAGE.rglob("*.py")):
        if file.parent != COMPAT:
            yield file, ast.parse(file.read_text(encoding="utf-8"))


def ours() -> set[str]:
    """Names with an underscore that the package gives itself."""
    found = set()
    for _, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
                found.add(node.attr)
    return found


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def uses() -> dict[str, list[str]]:
    """Where names with an underscore are asked of something, or defined as a method."""
    found: dict[str, list[str]] = {}
    for file, tree in sources():
        for node in ast.walk(tree):
            for name, line in _named_by(node):
                if isinstance(name, str) and PRIVATE_NAME.fullmatch(name):
                    found.setdefault(name, []).append(f"{file.relative_to(PACKAGE.parent)}:{line}")
    return found


def _named_by(node: ast.AST) -> list[tuple[object, int]]:
    if isinstance(node, ast.Attribute):
        return [(node.attr, node.lineno)]
    if isinstance(node, ast.ClassDef):
        return [(method.name, method.lineno) for method in node.body if isinstance(method, ast.FunctionDef)]
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr", "setattr"):
        return [(getattr(node.args[1], "value", None), node.lineno)]
    return []


def owner_of(owner: str) -> object:
    """What has the names listed under an owner."""
    task = builders.with_lora(builders.llama(1), 10)
    return {
        "ArgumentParser": argparse.ArgumentParser(),
        "Trainer": transformers.Trainer,
        "PreTrainedConfig": task.get_base_model().config,
        "PreTrainedModel": transformers.PreTrainedModel,
        "PeftModel": task,
        "BaseTunerLayer": next(m for m in task.modules() if isinstance(m, peft.tuners.tuners_utils.BaseTunerLayer)),
        "AuxiliaryTrainingWrapper": ModulesToSaveWrapper(torch.nn.Linear(2, 2), "default"),
        "Dataset": datasets.Dataset.from_list([{"a": 1}]),
        "torch": torch,
        "Tensor": torch.zeros(1),
        "Module": torch.nn.Linear(2, 2),
    }[owner]


@pytest.mark.parametrize(("library", "owner", "name"), LISTED)
def test_the_installed_version_has_what_is_used(library, owner, name):
    at = uses().get(name)
    assert at, f"muscle_hf/compat/{library}.py lists {owner}.{name}, which nothing uses: take it out"
    if owner != "a configuration from the Hub":
        message = f"{library} {importlib.import_module(library).__version__} has no {owner}.{name}; used at"
        assert hasattr(owner_of(owner), name), f"{message} {', '.join(at)}"


def test_private_names_of_others_are_listed():
    listed = {name for _, _, name in LISTED}
    others = set(dir(transformers.Trainer)) | (set(uses()) - ours())
    missing = {name: at for name, at in uses().items() if name in others - listed}
    assert not missing, f"list these in muscle_hf/compat, with why, or do without: {missing}"


def test_undocumented_modules_are_imported_by_compat_alone():
    found = []
    for file, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in LIBRARIES:
                private = [alias.name for alias in node.names if alias.name.startswith("_")]
                if private or not DOCUMENTED.fullmatch(node.module):
                    found.append(f"{file.relative_to(PACKAGE.parent)}:{node.lineno}: {node.module}")
    assert not found, f"import these from muscle_hf.compat: {found}"


@pytest.mark.parametrize("trainer", [MuscleTrainer, MuscleSFTTrainer])
def test_what_is_overridden_takes_what_trainer_gives(trainer):
    for name, theirs in inspect.getmembers(transformers.Trainer, inspect.isfunction):
        mine = getattr(trainer, name)
        if not mine.__module__.startswith("muscle_hf") or name == "__init__":
            continue
        takes = inspect.signature(mine).parameters
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values()):
            continue
        lacks = [parameter for parameter in inspect.signature(theirs).parameters if parameter not in takes]
        where = f"{inspect.getsourcefile(mine)}:{inspect.getsourcelines(mine)[1]}"
        assert not lacks, f"transformers {transformers.__version__} gives {name} also {lacks}: {where}"
