"""Frozen teachers: a model that gives logits and never changes."""

from __future__ import annotations

import contextlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from muscle_hf.errors import MuscleError
from muscle_hf.teachers.adapters import adapter_parameters, frozen_view, keep_quantized_trainable
from muscle_hf.teachers.kinds import IGNORED, KINDS, SEQ2SEQ_LM, UNLABELLED, kind_of
from muscle_hf.teachers.weights import base_of, base_weights

# Columns of a batch that say what is trained on, which no model's forward needs to give logits.
LABEL_KEYS = frozenset({"shift_labels", "completion_mask", "assistant_masks", UNLABELLED}).union(
    *(kind.label_columns for kind in KINDS)
)
# What Trainer adds for fused loss kernels, which give no logits to compare.
_KERNEL_KEYS = frozenset({"skip_logits"})
_MEDIA_INPUTS = ("pixel_values", "image_patches", "input_features", "input_values")


class TeacherOutputError(MuscleError):
    """A teacher gave logits that are nan or infinite."""


class Teacher(ABC):
    """A frozen task model, old (v1) or new (v2).

    Args:
        role: ``old`` or ``new``.

    Attributes:
        source: What its adapter was loaded from, a folder or Hub id; None if it was given in memory.
        revision: The revision of ``source``.
    """

    def __init__(self, role: str):
        self.role = role
        self.source: str | None = None
        self.revision: str | None = None

    @abstractmethod
    def logits(self, inputs: Mapping[str, Any]) -> Tensor:
        """Logits for a batch: (B, L, V), or (B, C) for sequence classification; no gradient."""

    @property
    @abstractmethod
    def model(self) -> nn.Module:
        """The module that computes the logits; for a teacher on the student's base, the student's model."""

    @abstractmethod
    def adapter_weights(self) -> dict[str, Tensor]:
        """The weights of the teacher's adapter by name; empty if it has none."""

    @abstractmethod
    def base_weights(self) -> dict[str, Tensor]:
        """The weights of the teacher's base model by name, without what its adapter replaces as a whole."""

    @property
    def known_hashes(self) -> tuple[str, str | None] | None:
        """Content hashes of base and adapter, where they are known without reading the weights."""
        return None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(role={self.role!r}, base={type(base_of(self.model)).__name__})"


class AdapterTeacher(Teacher):
    """A teacher on the student's own base: another adapter of the same model, or the base with adapters off.

    Args:
        role: ``old`` or ``new``.
        model: The student's model.
        adapter: The teacher's adapter in it; None for adapters off.
    """

    def __init__(self, role: str, model: PeftModel, adapter: str | None):
        super().__init__(role)
        self._model = model
        self.adapter = adapter

    @property
    def model(self) -> PeftModel:
        return self._model

    def logits(self, inputs: Mapping[str, Any]) -> Tensor:
        with frozen_view(self._model, self.adapter):
            return _forward(self._model, inputs)

    def adapter_weights(self) -> dict[str, Tensor]:
        return {} if self.adapter is None else dict(adapter_parameters(self._model, self.adapter))

    def base_weights(self) -> dict[str, Tensor]:
        return base_weights(self._model, self.adapter)


class ModelTeacher(Teacher):
    """A teacher with a base of its own.

    Args:
        role: ``old`` or ``new``.
        model: A ``PeftModel`` whose active adapter is the teacher's, or a plain model. It is frozen for good.
        autocast: Makes the context in which its forward runs, so that both models compute in the same precision.
    """

    def __init__(
        self,
        role: str,
        model: nn.Module,
        autocast: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    ):
        super().__init__(role)
        # Layers that repacked themselves would round, and hash to another model than the one that was given.
        keep_quantized_trainable(model)
        self._model = model.eval().requires_grad_(False)
        self.autocast = autocast

    @property
    def model(self) -> nn.Module:
        return self._model

    @model.setter
    def model(self, prepared: nn.Module) -> None:
        self._model = prepared

    def logits(self, inputs: Mapping[str, Any]) -> Tensor:
        with torch.no_grad(), self.autocast():
            return _forward(self._model, inputs)

    @property
    def adapter(self) -> str | None:
        """The teacher's adapter in its model; None if that has none."""
        return self._model.active_adapter if isinstance(self._model, PeftModel) else None

    def adapter_weights(self) -> dict[str, Tensor]:
        return {} if self.adapter is None else dict(adapter_parameters(self._model, self.adapter))

    def base_weights(self) -> dict[str, Tensor]:
        return base_weights(self._model, self.adapter)


def _forward(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    base = base_of(model)
    prepared = without_labels(base, inputs)
    accepted = inspect.signature(base.forward).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values()):
        # The old model may take fewer inputs than the student (token_type_ids, say).
        prepared = {key: value for key, value in prepared.items() if key in accepted}
    return kind_of(base).logits_of(model(**prepared))


def without_labels(base: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a forward pass that computes logits and no loss.

    Args:
        base: The model without its adapter wrapper.
        inputs: A batch as the collator made it; seq2seq labels become decoder inputs where these are missing.

    Raises:
        MuscleError: There are images or sound, which the model does not take.
    """
    prepared = {key: value for key, value in inputs.items() if key not in LABEL_KEYS | _KERNEL_KEYS}
    decoder_inputs = {"decoder_input_ids", "decoder_inputs_embeds"}
    if kind_of(base) is SEQ2SEQ_LM and "labels" in inputs and not decoder_inputs & prepared.keys():
        prepared["decoder_input_ids"] = made = _shifted_right(base, inputs["labels"])
        if base.config.model_type == "encoder-decoder":
            # The one model that does not look at places of its decoder where nothing is trained.
            prepared.setdefault("decoder_attention_mask", (made != base.config.pad_token_id).to(made.dtype))
    accepted = inspect.signature(base.forward).parameters
    unseen = [name for name in prepared if name.startswith(_MEDIA_INPUTS) and name not in accepted]
    if unseen and "input_ids" in accepted:
        # A forward that takes any keyword would leave them out without a word.
        raise MuscleError(
            f"the rows have {', '.join(unseen)}, which {type(base).__name__} does not take; train on rows of text "
            "alone, or load the model with its parts for images or sound (AutoModelForImageTextToText, say)"
        )
    if "use_cache" in accepted:
        # Not only a waste: with a cache, packed sequences see each other where attention is not flash attention.
        prepared["use_cache"] = False
    return prepared


def _shifted_right(base: nn.Module, labels: Tensor) -> Tensor:
    """The decoder's inputs, as the model itself makes them of labels (B, L)."""
    own = getattr(base, "prepare_decoder_input_ids_from_labels", None)
    if own is not None:
        return own(labels=labels)
    # Models without that method (M2M100, Blenderbot, Whisper, ...) all do this within their forward.
    start, padding = (_token(base, name) for name in ("decoder_start_token_id", "pad_token_id"))
    started = labels.roll(1, dims=-1)
    started[:, 0] = start
    return started.masked_fill(started == IGNORED, padding)


def _token(base: nn.Module, name: str) -> int:
    for config in (base.config, base.config.get_text_config()):
        if (token := getattr(config, name, None)) is not None:
            return token
    raise MuscleError(f"the configuration of {type(base).__name__} has no {name}, without which nothing is decoded")


def require_finite(teacher: str, logits: Tensor, sequence_ids: Tensor, where: str) -> None:
    """Stop where a teacher's logits on trained tokens are not finite, before they reach the student.

    Args:
        teacher: ``old`` or ``new``.
        logits: (N, V).
        sequence_ids: (N,), the sequence of the batch that each row belongs to.
        where: Names the batch.

    Raises:
        TeacherOutputError: Names the teacher, the batch and its rows.
    """
    finite = torch.isfinite(logits).all(dim=-1)
    if bool(finite.all()):
        return
    rows = sorted(set(sequence_ids[~finite].tolist()))
    raise TeacherOutputError(
        f"the {teacher} model's logits are nan or infinite at {where}, in rows {rows} of the batch. Training stopped "
        "before this step, so the model and the last checkpoint are unharmed. Look at these rows, load the teacher in "
        "bfloat16 or float32 instead of float16, and resume from the last checkpoint"
    )
