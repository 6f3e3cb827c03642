"""Who plays which part: the student, and its two frozen teachers on as few copies of the base as possible."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers.utils import logging

from muscle_hf.compat.peft import BaseTunerLayer
from muscle_hf.compat.transformers import QuantizationMethod
from muscle_hf.errors import MuscleError
from muscle_hf.teachers.adapters import NEW_ADAPTER, OLD_ADAPTER, STUDENT_ADAPTER, adapter_parameters
from muscle_hf.teachers.checks import (
    check_moved_base,
    check_recorded_base,
    only_active_adapter,
    same_architecture,
    same_config,
)
from muscle_hf.teachers.copies import copy_adapter
from muscle_hf.teachers.kinds import ModelKind, kind_of
from muscle_hf.teachers.origin import local_model_folder
from muscle_hf.teachers.sharing import adds_only, can_share, changes_base, check_student, same_base_after
from muscle_hf.teachers.teacher import AdapterTeacher, ModelTeacher, Teacher
from muscle_hf.teachers.weights import (
    base_of,
    base_weights,
    is_quantized,
    same_as_files,
    same_weights,
)

if TYPE_CHECKING:
    from muscle_hf.teachers.loading import AdapterFolder

logger = logging.get_logger(__name__)

# Where a model remembers the name of its task adapter, for the next trainer that is given it.
_TASK_ADAPTER = "_muscle_task_adapter"


def make_student(
    model: nn.Module, peft_config: PeftConfig | None, *, check_base: bool = True
) -> tuple[PeftModel, AdapterTeacher]:
    """Turn v2's task model into the student, whose trainable adapter is ``default`` and active, and v2's teacher, both
    on the same base. Of a ``PeftModel`` the active adapter is copied; a merged or fully fine-tuned model gets a fresh
    LoRA by ``peft_config``. ``check_base`` refuses an adapter that records another base."""
    if not isinstance(model, PeftModel):
        return _fresh_student(model, peft_config)
    if peft_config is not None:
        raise MuscleError(
            "model already has an adapter, which becomes the student, so peft_config has no use; drop one of them (or "
            "pass model.merge_and_unload() to start from a fresh adapter)"
        )
    active = only_active_adapter(model, "model")
    check_student(model.peft_config[active], "model")
    _check_tied(model, active)
    others = [name for name in model.peft_config if name != active]
    changing = [name for name in others if changes_base(model.peft_config[name])]
    if changing and not changes_base(model.peft_config[active]):
        raise MuscleError(
            f"model has the adapter {changing[0]!r} beside {active!r}, which changed the base that both are on. Load "
            f"v2 alone, and give {changing[0]!r} as a folder or a model of its own"
        )
    if check_base:
        check_recorded_base(model, active)
    if active == STUDENT_ADAPTER:
        task_adapter = getattr(model, _TASK_ADAPTER, NEW_ADAPTER)
        if task_adapter in model.peft_config:
            logger.warning(
                "This model already went through a MuscleTrainer: its first task adapter stays the new teacher, and "
                "the student goes on from its present weights."
            )
        else:
            copy_adapter(model, active, model, NEW_ADAPTER)
            task_adapter = NEW_ADAPTER
    else:
        if adapter_parameters(model, STUDENT_ADAPTER):
            raise MuscleError(
                f"the active adapter is {active!r}, but the name {STUDENT_ADAPTER!r}, which the compatibility adapter "
                "needs, is taken by another one on this base; delete that, model.delete_adapter("
                f"{STUDENT_ADAPTER!r}), or load it under another name (adapter_name=)"
            )
        copy_adapter(model, active, model, STUDENT_ADAPTER)
        task_adapter = active
    setattr(model, _TASK_ADAPTER, task_adapter)
    activate_student(model)
    return model, AdapterTeacher("new", model, task_adapter)


def _check_tied(model: PeftModel, adapter: str) -> None:
    # PEFT trains such an adapter in one place and loads it into another.
    tied = getattr(model.peft_config[adapter], "ensure_weight_tying", False)
    base = base_of(model)
    if tied and any(
        isinstance(e, BaseTunerLayer) for e in (base.get_input_embeddings(), base.get_output_embeddings())
    ):
        raise MuscleError(
            "the adapter of model is on embeddings that are tied (ensure_weight_tying=True), which PEFT does not load "
            "as they were trained; train it with ensure_weight_tying=False, or merge it and pass a peft_config"
        )


def _fresh_student(model: nn.Module, peft_config: PeftConfig | None) -> tuple[PeftModel, AdapterTeacher]:
    if peft_config is None:
        raise MuscleError(
            f"model is a {type(model).__name__} without an adapter. Pass v2's task model as a PeftModel "
            "(PeftModel.from_pretrained(base, adapter)), or, if the task training is merged into it, pass "
            "peft_config=LoraConfig(...) for the adapter to train"
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise MuscleError(
            "model has an adapter of transformers' own integration (model.load_adapter); load it as a PeftModel "
            "instead: PeftModel.from_pretrained(base, adapter)"
        )
    if is_quantized(model):
        # Trainer itself enables the recomputation of activations, as its arguments say.
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    check_student(peft_config, "peft_config")
    with same_base_after(model, peft_config, "peft_config"):
        student = get_peft_model(model, peft_config)
    only_active_adapter(student, "peft_config")
    activate_student(student)
    return student, AdapterTeacher("new", student, None)


def activate_student(model: PeftModel) -> None:
    """Make the compatibility adapter the active one and the only parameters with gradients."""
    config = model.peft_config[STUDENT_ADAPTER]
    plain = adds_only(config)
    if not plain or model.active_adapter != STUDENT_ADAPTER:
        model.set_adapter(STUDENT_ADAPTER)
    config.inference_mode = False
    parameters = adapter_parameters(model, STUDENT_ADAPTER).values()
    # Some other kinds keep a part of the adapter as it was drawn, and PEFT knows which.
    trained = {id(p) for p in parameters if plain or p.requires_grad}
    held = [parameter for module in model.modules() for parameter in module._parameters.values()]
    for parameter in held:
        if parameter is not None:
            parameter.requires_grad = id(parameter) in trained


def make_teacher(
    role: str,
    source: nn.Module | str | os.PathLike | Teacher,
    student: PeftModel,
    kind: ModelKind,
    arguments: Mapping[str, Any] | None = None,
    *,
    check_base: bool = True,
) -> Teacher:
    """A frozen teacher (``old`` or ``new``) from a ``PeftModel``, a plain model, or a folder or Hub id of an adapter
    or a model; on the student's base wherever the two bases are the same.

    ``arguments``, for a path or Hub id: ``revision``, ``base_model`` and what ``from_pretrained`` takes; for a
    ``PeftModel``: ``adapter``, the name of the teacher's if it is not the active one. ``check_base`` refuses an
    adapter that records another base.
    """
    arguments = dict(arguments or {})
    if isinstance(source, Teacher):
        source.role = role
        return source
    if isinstance(source, nn.Module):
        adapter = arguments.pop("adapter", None)
        if arguments:
            raise MuscleError(f"{role}_model is loaded already: {', '.join(arguments)} would have no effect")
        return _from_model(role, source, student, kind, adapter, check_base)
    if not isinstance(source, (str, os.PathLike)):
        raise MuscleError(f"{role}_model is a {type(source).__name__}; pass a model, a folder or a Hub id")
    return _from_name(role, os.fspath(source), student, kind, arguments, check_base)


def _from_model(
    role: str, model: nn.Module, student: PeftModel, kind: ModelKind, adapter: str | None, check_base: bool
) -> Teacher:
    if model is student:
        if adapter is None or adapter == STUDENT_ADAPTER or adapter not in student.peft_config:
            raise MuscleError(
                f"{role}_model is model itself; name its adapter: {role}_model_kwargs={{'adapter': NAME}}, one of "
                + ", ".join(name for name in student.peft_config if name not in (STUDENT_ADAPTER, NEW_ADAPTER))
            )
        if changes_base(student.peft_config[STUDENT_ADAPTER]):
            raise MuscleError(
                f"{role}_model is the adapter {adapter!r} beside that of model, which changed the base that both are "
                f"on. Give {adapter!r} as a folder or a model of its own"
            )
        return AdapterTeacher(role, student, adapter)
    if kind_of(model) is not kind:
        raise MuscleError(f"{role}_model is a {kind_of(model).name}, but model is a {kind.name}")
    if isinstance(model, PeftModel):
        if adapter is not None:
            model.set_adapter(adapter)
        adapter = only_active_adapter(model, f"{role}_model")
        if check_base:
            check_recorded_base(model, adapter)
    if base_of(model) is base_of(student) and adapter == STUDENT_ADAPTER:
        raise MuscleError(
            f"{role}_model and model are two PeftModels around one base, and both call their adapter {adapter!r}, so "
            "that the one loaded last has replaced the other. Give the adapters different names (adapter_name=)"
        )
    config = model.peft_config[adapter] if isinstance(model, PeftModel) and adapter is not None else None
    if not can_share(student, config):
        if base_of(model) is base_of(student):
            raise MuscleError(
                f"{role}_model and model are on one base in memory, but an adapter on it may do more than add to that "
                f"base. Load the base a second time for {role}_model"
            )
        return ModelTeacher(role, model)
    if not _same_base(model, adapter, student):
        return ModelTeacher(role, model)
    if not isinstance(model, PeftModel) or adapter is None:
        return AdapterTeacher(role, student, None)
    name = _free_name(role, student)
    if copy_adapter(model, adapter, student, name):
        activate_student(student)
    return AdapterTeacher(role, student, name)


def _same_base(model: nn.Module, adapter: str | None, student: PeftModel) -> bool:
    if base_of(model) is base_of(student):
        return True
    return same_architecture(model, student) and same_weights(base_weights(model, adapter), base_weights(student))


def _from_name(
    role: str, name: str, student: PeftModel, kind: ModelKind, arguments: dict[str, Any], check_base: bool
) -> Teacher:
    from muscle_hf.teachers.loading import adapter_or_model, load_model

    # A teacher computes in the student's precision unless told otherwise.
    base = base_of(student)
    arguments.setdefault("dtype", getattr(base, "dtype", None))
    if getattr(base, "quantization_method", None) == QuantizationMethod.BITS_AND_BYTES:
        arguments.setdefault("quantization_config", copy.deepcopy(base.config.quantization_config))
    adapter, arguments = adapter_or_model(name, arguments)
    if adapter is None:
        model = load_model(name, kind, arguments, whole=True)
        return _from_model(role, model, student, kind, None, check_base=False)
    if check_base and adapter.moved_base is not None:
        check_moved_base(name, adapter.config.base_model_name_or_path, adapter.moved_base, adapter.moved_base_revision)
    teacher = _from_adapter(role, adapter, student, kind, arguments)
    teacher.source, teacher.revision = name, adapter.commit
    return teacher


def _from_adapter(
    role: str, adapter: AdapterFolder, student: PeftModel, kind: ModelKind, arguments: dict[str, Any]
) -> Teacher:
    from muscle_hf.teachers.adapter_files import put_beside
    from muscle_hf.teachers.loading import load_adapter_base, put_adapter

    # The order matters: the base's files are read only for an adapter that can be put on the student's.
    if can_share(student, adapter.config):
        folder = local_model_folder(adapter.base, adapter.base_revision)
        if folder is not None and _is_base_of(student, folder, adapter.config):
            name = _free_name(role, student)
            if put_beside(student, adapter.folder, adapter.config, name):
                activate_student(student)
                return AdapterTeacher(role, student, name)
    labels = base_of(student).config if kind.names_classes else None
    model = put_adapter(adapter, load_adapter_base(adapter, kind, arguments, labels))
    return _from_model(role, model, student, kind, None, check_base=False)


def _is_base_of(student: PeftModel, folder: Path, adapter: PeftConfig | None) -> bool:
    """Whether the base in a folder, as far as an adapter does not replace it, is the student's own; read tensor by
    tensor, so that no second copy is ever built where it is the same."""
    base = base_of(student)
    if is_quantized(base) or not any(folder.glob("*.safetensors")):
        return False
    config = type(base.config).from_pretrained(folder, trust_remote_code=False)
    replaced = getattr(adapter, "modules_to_save", None) or ()
    used = {
        name: tensor
        for name, tensor in base_weights(base).items()
        if not any(f"{module}." in name for module in replaced)
    }
    return same_config(config, base.config) and same_as_files(used, folder, base)


def _free_name(role: str, student: PeftModel) -> str:
    name = OLD_ADAPTER if role == "old" else NEW_ADAPTER
    if name in student.peft_config:
        student.delete_adapter(name)
    return name
