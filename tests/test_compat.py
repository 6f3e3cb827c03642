"""What is used of libraries beyond their documentation is listed with why, and the installed versions have it."""

from __future__ import annotations

import argparse
import ast
import functools
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
_SWITCH = "adapters are switched without walking the model: PEFT's own way costs as much as starting a forward pass"
# By owner: name -> why.
PRIVATE: dict[str, dict[str, str]] = {
    "ArgumentParser": {"_negative_number_matcher": "-2% and -1e-3 are values, not options"},
    "Dataset": {"_fingerprint": "a hash of the rows and of what was done to them, without reading them"},
    "PeftModel": {"_adapters_disabled": _SWITCH},
    "BaseTunerLayer": {"_active_adapter": _SWITCH, "_disable_adapters": _SWITCH},
    "AuxiliaryTrainingWrapper": {"_active_adapter": _SWITCH, "_adapters": _SWITCH, "_disable_adapters": _SWITCH},
    "torch": {"_dynamo": "the loss is compiled for any number of tokens, and runs uncompiled where that fails"},
    "Tensor": {
        "_make_subclass": "parameters of any class over the storage of others",
        "_version": "whether frozen weights were changed in place",
    },
    "Module": {
        "_buffers": "what a module holds itself",
        "_modules": "what a module holds itself",
        "_parameters": "what a module holds itself",
        "_save_to_state_dict": "what a module holds itself, as it is saved",
    },
    "Trainer": {
        "_get_collator_with_removed_columns": "rows are looked at before training as its loaders show them",
        "_get_num_items_in_batch": "overridden: the tokens that are trained on are counted",
        "_get_output_dir": "where a checkpoint will be, to write it there whole or not at all",
        "_hp_search_setup": "overridden: each trial has teachers and an objective of its own",
        "_inner_training_loop": "overridden: what holds only while training runs",
        "_load_best_model": "overridden: the student's adapter alone is read",
        "_load_from_checkpoint": "overridden: the student's adapter alone is read",
        "_prepare_inputs": "teachers are calibrated on batches as training sees them",
        "_push_from_checkpoint": "overridden: the adapter is published without optimizer states",
        "_remove_unused_columns": "rows are looked at before training as its loaders show them",
        "_save": "overridden: the student's adapter alone is written",
        "_save_checkpoint": "overridden: a checkpoint is whole or not there",
        "_set_signature_columns_if_needed": "overridden: masks and marks of rows reach the batch",
    },
    "PreTrainedConfig": {"_attn_implementation": "a cache of hidden states belongs to one attention"},
    "PreTrainedModel": {
        "_hf_peft_config_loaded": "an adapter of transformers' own integration is refused",
        "_is_stateful": "recurrent layers carry their state across packed sequences",
    },
    # Set where a configuration is read from the Hub, so that no class has it.
    "a configuration from the Hub": {"_commit_hash": "which commit a base was loaded at"},
}
LISTED = [(owner, name) for owner, names in PRIVATE.items() for name in names]
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


@functools.cache
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


@functools.cache
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


@pytest.mark.parametrize(("owner", "name"), LISTED)
def test_the_installed_version_has_what_is_used(owner, name):
    at = uses().get(name)
    assert at, f"{owner}.{name} is listed, but nothing uses it: take it out"
    if owner != "a configuration from the Hub":
        assert hasattr(owner_of(owner), name), f"{owner} has no {name} any more; used at {', '.join(at)}"


def test_private_names_of_others_are_listed():
    listed = {name for _, name in LISTED}
    others = set(dir(transformers.Trainer)) | (set(uses()) - ours())
    missing = {name: at for name, at in uses().items() if name in others - listed}
    assert not missing, f"list these above, with why, or do without: {missing}"


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
