"""What a teacher's hidden states of one sequence depend on, as a hash: the same in every batch that holds it."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers.utils import logging

from muscle_hf.teachers.batch import IGNORED, LABEL_KEYS, sequences_of
from muscle_hf.teachers.kinds import ModelKind
from muscle_hf.teachers.weights import base_of

logger = logging.get_logger(__name__)

# Arguments that say how to return or store results, not what to compute.
_INERT_INPUTS = frozenset({"skip_logits", "use_cache", "return_dict", "num_items_in_batch", "logits_to_keep"})
# What collators of packed rows add; all of it follows from the position ids.
_PACKING_INPUTS = frozenset({"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"})
_MEDIA_TOKENS = ("image_token_id", "image_token_index", "video_token_id", "audio_token_id", "audio_token_index")
_DECODER_INPUTS = frozenset({"decoder_input_ids", "decoder_attention_mask"})
# Rotary scalings whose angles follow the longest row of the batch.
_BATCH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})
_SEPARATING_ATTENTION = ("eager", "sdpa", "flex_attention", "flash_attention")


class SequenceKey(NamedTuple):
    """One sequence of a batch's ``row`` that has ``count`` = n trained positions: 32 bytes, or None where its content
    does not tell its hidden states apart, so that it must not be cached."""

    key: bytes | None
    count: int
    row: int


@dataclass(frozen=True)
class KeyRules:
    """What of a batch a model's hidden states depend on.

    Args:
        inputs: Names of what its forward takes; None if it takes anything.
        decodes: Encoder-decoder: labels lie in the decoder, which they are the inputs of if there are no others.
        looks_back: A position sees none after it, so that what follows the last trained one does not count.
        relative: Only distances between positions count, so that padding on the left changes nothing.
        separates: Packed sequences of a row do not see each other, where only position ids tell them apart.
        one_row_only: ... provided that the batch is one row, or that its sequences' lengths are given.
        media_tokens: Ids that stand for images or sound in the text; empty for a model of text alone, None where they
            are not known.
        pools: One prediction per row (sequence classification).
        pad_token_id: By which such a model may look for a row's last token.
        spells: What is kept is said of the trained tokens themselves, so that these count too, the last one as well.
        excluded: Why nothing can be cached; None if it can.
    """

    inputs: frozenset[str] | None
    decodes: bool = False
    looks_back: bool = False
    relative: bool = False
    separates: bool = False
    one_row_only: bool = False
    media_tokens: frozenset[int] | None = frozenset()
    pools: bool = False
    pad_token_id: int | None = None
    spells: bool = False
    excluded: str | None = None

    @classmethod
    def of(cls, model: nn.Module, kind: ModelKind) -> KeyRules:
        """The rules for a model; says once, as a warning, why nothing of it can be cached."""
        base = base_of(model)
        config = base.config
        text = config.get_text_config()
        accepted = inspect.signature(base.forward).parameters
        takes_anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
        rope = getattr(text, "rope_parameters", None) or {}
        decodes = bool(getattr(config, "is_encoder_decoder", False))
        attention = getattr(text, "_attn_implementation", None) or ""
        excluded = why_excluded(config)
        if excluded is not None:
            logger.warning(f"{type(base).__name__} cannot be cached: {excluded}.")
        pools = kind.name == "sequence classification"
        media = frozenset(i for name in _MEDIA_TOKENS if (i := getattr(config, name, None)) is not None)
        return cls(
            inputs=None if takes_anything else frozenset(accepted),
            decodes=decodes,
            looks_back=kind.shifts_labels and not decodes and _is_causal(base, text),
            relative=bool(rope) and not decodes and not _scales_by_position(text),
            separates=not decodes and attention.startswith(_SEPARATING_ATTENTION) and _masks_packed(base, text),
            one_row_only=attention.startswith("flash_attention"),
            media_tokens=media if media or text is config else None,
            pools=pools,
            pad_token_id=getattr(text, "pad_token_id", None),
            excluded=excluded,
        )


# Of a model that reads texts alone, such as one behind a server.
TEXT_RULES = KeyRules(inputs=None, looks_back=True, relative=True, separates=True, spells=True)


def why_excluded(config: Any) -> str | None:
    """Why nothing of a model of this configuration can be cached; None if it can."""
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = {part.get("rope_type") for part in (rope, *rope.values()) if isinstance(part, Mapping)}
    if found := kinds & _BATCH_DEPENDENT_ROPE:
        return f"its rotary embedding ({', '.join(map(str, found))}) follows the longest row of the batch"
    if getattr(text, "expert_capacity", None) is not None:
        return "its experts drop tokens when the rest of the batch fills them"
    return None


def _scales_by_position(text: Any) -> bool:
    return bool(getattr(text, "attn_temperature_tuning", None)) or "llama_4_scaling_beta" in (
        getattr(text, "rope_parameters", None) or {}
    )


def _is_causal(base: nn.Module, text: Any) -> bool:
    # Where a module can also make masks that look ahead, whether it does depends on more than is read here.
    module = sys.modules[type(base).__module__]
    looks_ahead = getattr(text, "use_bidirectional_attention", None) or hasattr(module, "create_bidirectional_mask")
    return hasattr(module, "create_causal_mask") and not looks_ahead


def _masks_packed(base: nn.Module, text: Any) -> bool:
    # transformers' shared mask functions separate packed sequences; recurrent layers carry their state across.
    recurrent = getattr(base, "_is_stateful", False) or any(
        "attention" not in layer or layer == "linear_attention" for layer in getattr(text, "layer_types", None) or ()
    )
    return not recurrent and hasattr(sys.modules[type(base).__module__], "create_causal_mask")


def row_keys(inputs: Mapping[str, Any], labels: Tensor, rules: KeyRules) -> list[SequenceKey]:
    """The keys of a batch's sequences (a row, or a packed part of it) that have trained tokens, in the batch's order
    and independent of the batch they are in: splitting the trained tokens' (N, d) hidden states by the counts gives
    the sequences' entries. ``labels`` are aligned and trained, (B, L') or (B, 1) for sequence classification, int64,
    -100 where nothing is trained; ``rules`` are of the teacher that the rows are for.

    A key covers the sequence's own tokens (padding, on either side, does not count), which of its positions are
    trained, and every other input that the teacher's forward would get. Where only earlier tokens can matter, the
    tokens after the last trained position do not count.
    """
    batch = _Batch(inputs, labels, rules)
    found = []
    for row, trained in enumerate(batch.trained):
        if not batch.packed:
            if trained.any():
                found.append(SequenceKey(batch.key(row, None, trained), int(np.count_nonzero(trained)), row))
            continue
        sequences = batch.sequences[row]
        own = sequences[: trained.size]
        for sequence in np.unique(own[trained]).tolist():
            chosen = trained & (own == sequence)
            key = batch.key(row, sequences == sequence, chosen)
            found.append(SequenceKey(key, int(np.count_nonzero(chosen)), row))
    return found


class _Batch:
    """A batch as arrays; ``key`` is None for what has no well-defined content of its own."""

    def __init__(self, inputs: Mapping[str, Any], labels: Tensor, rules: KeyRules):
        taken = LABEL_KEYS | _INERT_INPUTS
        kept = {name: value for name, value in inputs.items() if name not in taken and value is not None}
        if rules.inputs is not None:
            kept = {name: value for name, value in kept.items() if name in rules.inputs}
        self.rules = rules
        self.labels = labels.cpu().numpy()
        self.trained = self.labels != IGNORED
        self.raw_labels = _array(inputs["labels"]) if rules.decodes and "labels" in inputs else None
        self.inputs = {name: _array(value) for name, value in kept.items()}
        self.ids = self.inputs.pop("input_ids", None)
        self.mask = self.inputs.pop("attention_mask", None)
        self.positions = self.inputs.pop("position_ids", None)
        self.rows = len(self.trained)
        self.packed = self._is_packed(kept)
        if self.packed:
            self.inputs = {name: value for name, value in self.inputs.items() if name not in _PACKING_INPUTS}
            # By the position whose logits predict, not by the label's: that is where the hidden state comes from.
            ids, positions = (torch.as_tensor(kept[name]).cpu() for name in ("input_ids", "position_ids"))
            self.sequences = sequences_of(ids, positions, predicts_next=False).numpy()
        else:
            self.sequences = np.zeros((self.rows, 0), dtype=np.int64)
        self.usable = rules.excluded is None and self._has_plain_text()

    def _is_packed(self, kept: Mapping[str, Any]) -> bool:
        rules = self.rules
        if not rules.separates or self.mask is not None or self.ids is None or self.positions is None:
            return False
        if self.positions.shape != self.ids.shape:
            return False
        return not rules.one_row_only or self.rows == 1 or "cu_seq_lens_q" in kept

    def _has_plain_text(self) -> bool:
        if self.ids is None or self.ids.ndim != 2 or len(self.ids) != self.rows or self.ids.dtype.kind not in "iu":
            return False
        if any(isinstance(value, np.ndarray) and value.dtype == object for value in self.inputs.values()):
            return False
        if self.mask is None:
            return True
        return self.mask.shape == self.ids.shape and bool(np.isin(self.mask, (0, 1)).all())

    def key(self, row: int, member: np.ndarray | None, chosen: np.ndarray) -> bytes | None:
        """Of the tokens ``member`` (L,) of a row (None: all that are not padding), trained at ``chosen`` (L',)."""
        if not self.usable:
            return None
        real = np.ones(self.ids.shape[1], dtype=bool) if self.mask is None else self.mask[row] != 0
        own: np.ndarray = real if member is None else member
        if self.rules.looks_back and not self.inputs:
            own = own & (np.arange(own.size) <= np.flatnonzero(chosen)[-1])
        digest = hashlib.sha256(b"muscle_hf.row/1")
        _add(digest, "input_ids", self.ids[row][own])
        _add(digest, "positions", self._own_positions(row, own))
        parts = self._decoder(row, chosen) if self.rules.decodes else self._trained(row, own, chosen)
        if parts is None or (rest := self._rest(row, own)) is None:
            return None
        said = {"labels": self.labels[row][chosen]} if self.rules.spells else {}
        for name, value in (*parts.items(), *rest.items(), *said.items()):
            _add(digest, name, value)
        return digest.digest()

    def _own_positions(self, row: int, member: np.ndarray) -> np.ndarray:
        if self.positions is None:
            positions = np.flatnonzero(member)
        elif self.positions.shape[-1] == member.size:
            # Some models have several positions per token; one row may serve the whole batch.
            positions = np.broadcast_to(self.positions, (*self.positions.shape[:-2], *self.ids.shape))
            positions = positions[..., row, :][..., member]
        else:
            positions = self.positions
        if self.rules.relative and positions.size and positions.ndim == 1:
            positions = positions - positions[0]
        return positions

    def _trained(self, row: int, member: np.ndarray, chosen: np.ndarray) -> dict[str, Any] | None:
        at = np.flatnonzero(chosen)
        if self.rules.pools:
            pad = self.rules.pad_token_id
            # Such a classifier would take padding of another kind for the row's last token.
            return {"trained": at} if pad is None or bool((self.ids[row][~member] == pad).all()) else None
        if at[-1] >= member.size or not bool(member[at].all()):
            return None  # what padding sees depends on how much of it there is
        return {"trained": (np.cumsum(member) - 1)[at]}

    def _decoder(self, row: int, chosen: np.ndarray) -> dict[str, Any] | None:
        if "decoder_inputs_embeds" in self.inputs:
            return None
        at = np.flatnonzero(chosen)
        length = int(at[-1]) + 1  # decoders look back only
        given = {name: self.inputs[name] for name in _DECODER_INPUTS if name in self.inputs}
        if "decoder_input_ids" not in given:
            if self.raw_labels is None:
                return None
            given["labels"] = self.raw_labels
        if any(value.ndim != 2 or len(value) != self.rows for value in given.values()):
            return None
        return {"trained": at, **{name: value[row, :length] for name, value in sorted(given.items())}}

    def _rest(self, row: int, member: np.ndarray) -> dict[str, Any] | None:
        parts = {}
        for name, value in sorted(self.inputs.items()):
            if self.rules.decodes and name in _DECODER_INPUTS:
                continue
            if not isinstance(value, np.ndarray) or value.ndim == 0 or (self.rows == 1 and len(value) != 1):
                parts[name] = value
            elif value.shape[:2] == self.ids.shape and (value.ndim == 2 or value.dtype.kind in "iub"):
                parts[name] = value[row][member]
            elif len(value) == self.rows and self._one_each():
                parts[name] = value[row]
            else:
                return None  # which part of it is this row's cannot be told
        return parts

    def _one_each(self) -> bool:
        """Whether a tensor with as many entries as rows has one entry per row."""
        media = self.rules.media_tokens
        if not media or self.rows == 1:
            return media is not None or self.rows == 1
        held = [set(row.tolist()) & media for row in self.ids]
        return len(set().union(*held)) == 1 and all(held)


def _array(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return value.view(torch.uint16).numpy() if value.dtype is torch.bfloat16 else value.numpy()
    if isinstance(value, (bool, int, float, str)):
        return value
    return np.asarray(None, dtype=object)  # of no known content


def _add(digest: Any, name: str, value: Any) -> None:
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "iub" and value.dtype != np.int64:
            value = value.astype(np.int64)
        digest.update(f"{name}:{value.dtype.str}{value.shape};".encode())
        digest.update(np.ascontiguousarray(value).data)
    else:
        digest.update(f"{name}={value!r};".encode())
