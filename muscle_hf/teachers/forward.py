"""A forward pass that gives logits and no loss: what a model is given of a batch, and what may not come out of it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from muscle_hf.errors import MuscleError
from muscle_hf.teachers.batch import IGNORED, LABEL_KEYS
from muscle_hf.teachers.kinds import SEQ2SEQ_LM, kind_of
from muscle_hf.teachers.weights import base_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What Trainer adds for fused loss kernels, which give no logits to compare.
_KERNEL_KEYS = frozenset({"skip_logits"})
MEDIA_INPUTS = ("pixel_values", "image_patches", "input_features", "input_values")


class TeacherOutputError(MuscleError):
    """A teacher gave logits that are nan or infinite."""


def logits_of(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """What a model, with or without an adapter, says of a batch: (B, L, V), or (B, C) for sequence classification."""
    base = base_of(model)
    prepared = without_labels(base, inputs)
    accepted = inspect.signature(base.forward).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values()):
        # The old model may take fewer inputs than the student (token_type_ids, say).
        prepared = {key: value for key, value in prepared.items() if key in accepted}
    return kind_of(base).logits_of(model(**prepared))


def without_labels(base: PreTrainedModel, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a forward pass of a base that computes logits and no loss; seq2seq labels become decoder inputs
    where these are missing. Images or sound that the model does not take are refused."""
    prepared = {key: value for key, value in inputs.items() if key not in LABEL_KEYS | _KERNEL_KEYS}
    decoder_inputs = {"decoder_input_ids", "decoder_inputs_embeds"}
    if kind_of(base) is SEQ2SEQ_LM and "labels" in inputs and not decoder_inputs & prepared.keys():
        prepared["decoder_input_ids"] = made = _shifted_right(base, inputs["labels"])
        if base.config.model_type == "encoder-decoder":
            # The one model that does not look at places of its decoder where nothing is trained.
            prepared.setdefault("decoder_attention_mask", made.ne(base.config.pad_token_id).to(made.dtype))
    accepted = inspect.signature(base.forward).parameters
    unseen = [name for name in prepared if name.startswith(MEDIA_INPUTS) and name not in accepted]
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


def context_window(model: nn.Module, unsaid: int | None = None) -> int | None:
    """The longest sequence that a model takes, in tokens, beside the virtual ones of its adapter: as its configuration
    says, else ``unsaid``."""
    base = base_of(model)
    # RoBERTa's positions begin behind that of padding, in a table that is so much longer than what it reads.
    tables = (module for name, module in base.named_modules() if name.endswith("position_embeddings"))
    padding = next((table.padding_idx for table in tables if isinstance(table, nn.Embedding)), None)
    adapter: Any = getattr(model, "active_peft_config", None)
    virtual = adapter.num_virtual_tokens if getattr(adapter, "is_prompt_learning", False) else 0
    names = ("n_positions", "max_position_embeddings", "n_ctx")
    said = next(
        (n for n in (getattr(base.config.get_text_config(), name, None) for name in names) if n is not None), None
    )
    places = unsaid if said is None else int(said) - (0 if padding is None else padding + 1)
    return None if places is None else places - virtual


def _shifted_right(base: PreTrainedModel, labels: Tensor) -> Tensor:
    """The decoder's inputs, as the model itself makes them of labels (B, L)."""
    own = getattr(base, "prepare_decoder_input_ids_from_labels", None)
    if own is not None:
        return own(labels=labels)
    # Models without that method (M2M100, Blenderbot, Whisper, ...) all do this within their forward.
    start, padding = (_token(base, name) for name in ("decoder_start_token_id", "pad_token_id"))
    started = labels.roll(1, dims=-1)
    started[:, 0] = start
    return started.masked_fill(started == IGNORED, padding)


def _token(base: PreTrainedModel, name: str) -> int:
    for config in (base.config, base.config.get_text_config()):
        if (token := getattr(config, name, None)) is not None:
            return token
    raise MuscleError(f"the configuration of {type(base).__name__} has no {name}, without which nothing is decoded")


def require_finite(teacher: str, logits: Tensor, sequence_ids: Tensor, where: str) -> None:
    """Stop where a teacher's logits (N, V) on trained tokens, of these sequences (N,), are not finite, before they
    reach the student; ``where`` names the batch."""
    finite = torch.isfinite(logits).all(dim=-1)
    if bool(finite.all()):
        return
    rows = sorted(set(sequence_ids[~finite].tolist()))
    raise TeacherOutputError(
        f"the {teacher} model's logits are nan or infinite at {where}, in rows {rows} of the batch. Training stopped "
        "before this step, so the model and the last checkpoint are unharmed. Look at these rows, load the teacher in "
        "bfloat16 or float32 instead of float16, and resume from the last checkpoint"
    )
