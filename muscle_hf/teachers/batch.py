"""What is trained in a batch: its labels, aligned with the logits, and where they are. Found once for each batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from muscle_hf.errors import MuscleError
from muscle_hf.teachers.kinds import KINDS, ModelKind
from muscle_hf.teachers.labels import IGNORED, no_class, require_labels, unknown_class

# The column that is true for rows whose labels only say where something is trained, not what is right there.
UNLABELLED = "unlabelled"
# In such a row: how many of its own labels say that something is trained.
TRAINED_COUNT = "unlabelled_count"
# Where the labels are kept that :func:`trained_labels` has found.
_FOUND = "trained_labels"
# Columns of a batch that say what is trained on, which no model's forward needs to give logits.
LABEL_KEYS = frozenset({"shift_labels", "completion_mask", "assistant_masks", UNLABELLED, _FOUND}).union(
    *(kind.label_columns for kind in KINDS)
)
MASK_COLUMNS = {"completion": "completion_mask", "assistant": "assistant_masks"}
# Inputs with one entry per token, which end where the last trained token is predicted.
_TOKEN_TYPES = frozenset({"token_type_ids", "mm_token_type_ids"})
PER_TOKEN = LABEL_KEYS | _TOKEN_TYPES | {"input_ids", "attention_mask", "position_ids"}
# Inputs with one entry per row of the batch. Images and sound are none: a row may have several of them.
_PER_ROW = PER_TOKEN | {"inputs_embeds", "global_attention_mask", "decoder_input_ids", "decoder_attention_mask"}
# Lengths are cut to multiples of this, which tensor cores like.
_ALIGNMENT = 8


@dataclass(frozen=True)
class Batch:
    """A batch, as the collator made it, and its N trained tokens: labels aligned with the logits, (B, L'), or (B, 1)
    for sequence classification, int64, -100 where nothing is trained. ``whole`` is the batch that this one was cut
    from; None for one that was not."""

    inputs: Mapping[str, Any]
    labels: Tensor
    kind: ModelKind
    whole: Batch | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def chosen(self) -> Tensor:
        """Where the trained tokens are, (B, L'), boolean."""
        return self.labels != IGNORED

    @cached_property
    def places(self) -> tuple[Tensor, Tensor]:
        """The rows and columns of the trained tokens, (N,) each."""
        rows, columns = self.chosen.nonzero(as_tuple=True)
        return rows, columns

    @property
    def rows(self) -> Tensor:
        """The row of each trained token, (N,), int64."""
        return self.places[0]

    @cached_property
    def targets(self) -> Tensor:
        """The label of each trained token, (N,), int64."""
        return self.labels[self.places]

    @cached_property
    def sequences(self) -> Tensor:
        """The sequence of each trained token, (N,), int64: its row, or its part of a row that packs several."""
        positions = self.inputs.get("position_ids")
        return sequences_of(self.labels, positions, predicts_next=self.kind.shifts_labels)[self.places]

    @cached_property
    def labelled(self) -> Tensor | None:
        """Whether the labels of the trained tokens are right answers, (N,), boolean; None where all are."""
        marks = self.inputs.get(UNLABELLED)
        return None if marks is None else ~marks.bool()[self.rows]

    @cached_property
    def next_tokens(self) -> Tensor:
        """The token of the row that each trained place of a causal LM predicts, (N,), int64, whatever its label."""
        ids = (self.whole or self).inputs["input_ids"]
        rows, columns = self.places
        return ids[rows, (columns + 1).clamp(max=ids.size(1) - 1)]

    @cached_property
    def of_answers(self) -> Tensor:
        """Which trained tokens are of their row's answer, (N,), boolean: by its ``completion_mask``, else all."""
        mask = (self.whole or self).inputs.get("completion_mask")
        if mask is None:
            return torch.ones_like(self.rows, dtype=torch.bool)
        rows, columns = self.places
        return mask[rows, (columns + 1).clamp(max=mask.size(1) - 1)] != 0

    @cached_property
    def own_tokens(self) -> Tensor:
        """What is right at each trained place, (N,), int64; in rows without labels what stands there."""
        labelled = self.labelled
        return self.targets if labelled is None else torch.where(labelled, self.targets, self.next_tokens)

    def answers(self) -> Batch:
        """The rows as they came, with their answers alone trained, whose tokens are the labels."""
        whole = self.whole or self
        tokens = whole.own_tokens.masked_fill(~whole.of_answers, IGNORED)
        labels = torch.full_like(whole.labels, IGNORED).index_put_(whole.places, tokens)
        return replace(whole, labels=labels, whole=None)

    def require_apart(self, what: str) -> None:
        """Refuse rows that pack several sequences."""
        if len(self.rows) and int(self.sequences.max()) >= len(self):
            raise MuscleError(
                f"the batch packs several sequences into a row, but {what} are found by whole rows; use a collator "
                "that pads (packing=False, padding_free=False)"
            )

    def of_trained(self, outputs: Tensor) -> Tensor:
        """What a model says at the trained tokens, (N, ...), of its outputs (B, L, ...); (B, C) for sequence
        classification."""
        return (outputs.unsqueeze(1) if outputs.dim() == 2 else outputs[:, : self.labels.size(1)])[self.places]

    @property
    def has_rows(self) -> bool:
        """Whether some of the rows can be computed without the others."""
        return all(_is_per_row(name, value) for name, value in self.inputs.items())

    def only(self, needed: Tensor) -> Batch:
        """Some of the rows, where :attr:`has_rows`; ``needed`` is (B,), boolean."""
        inputs = {name: _rows_of(value, needed) for name, value in self.inputs.items()}
        return replace(self, inputs=inputs, labels=self.labels[needed])

    def trimmed(self) -> Batch:
        """Without the positions behind which nothing is trained: a causal model does not look at them."""
        tensors = {
            key: value
            for key, value in self.inputs.items()
            if isinstance(value, Tensor) and value.dim() > 0 and key != UNLABELLED
        }
        plain = tensors.keys() <= PER_TOKEN and all(value.dim() == 2 for value in tensors.values())
        # A mask for each kind of layer, say.
        plain = plain and not any(isinstance(value, Mapping) for value in self.inputs.values())
        # Tokens of an image, or of a prefix, see those of their type that follow.
        plain = plain and not any(bool(tensors[name].any()) for name in _TOKEN_TYPES & tensors.keys())
        if not self.kind.shifts_labels or not plain or "input_ids" not in tensors or not self.labels.numel():
            return self
        positions = self.chosen.any(dim=0).nonzero()
        end = int(positions[-1]) + 1 if len(positions) else 1
        end = -(-end // _ALIGNMENT) * _ALIGNMENT
        inputs = {**self.inputs, **{key: value[:, :end] for key, value in tensors.items()}}
        return Batch(inputs, self.labels[:, :end], self.kind, self.whole or self)


def trained_labels(
    inputs: Mapping[str, Any], kind: ModelKind, trained_tokens: str = "labels", classes: int | None = None
) -> Tensor:
    """The labels that are trained on (``trained_tokens``: ``labels``, ``completion`` or ``assistant``) aligned with
    the logits, (B, L'), or (B, 1) for sequence classification, int64: -100 where nothing is trained, 0 for a trained
    token of a transfer row. Refused: no labels, no mask that ``trained_tokens`` asks for, and none of the ``classes``
    that a classifier knows."""
    if (found := inputs.get(_FOUND)) is not None:
        return found
    shifted = inputs.get("shift_labels")
    labels = require_labels(inputs, kind) if shifted is None else shifted
    column = MASK_COLUMNS.get(trained_tokens)
    if column is not None:
        if inputs.get(column) is None:
            raise MuscleError(
                f"trained_tokens={trained_tokens!r} needs the column {column!r} in every batch (0 or 1 per "
                f"token); this batch has {', '.join(inputs)}"
            )
        kept = inputs[column] if shifted is None else nn.functional.pad(inputs[column][:, 1:], (0, 1))
        labels = labels.masked_fill(kept == 0, IGNORED)
    if inputs.get(UNLABELLED) is not None:
        # What marks a trained place in a transfer row need be neither a token nor a class.
        marks = inputs[UNLABELLED].bool().view(-1, *[1] * (labels.dim() - 1))
        labels = labels.masked_fill(marks & (labels != IGNORED), 0)
    # Elsewhere, looking at them waits for the device.
    if classes is not None and labels.device.type == "cpu" and bool((wrong := no_class(labels, classes)).any()):
        raise unknown_class("a batch", labels[wrong][0].item(), classes)
    return labels if shifted is not None else kind.trained_labels(labels)


def keep_trained_labels(inputs: dict[str, Any], labels: Tensor) -> None:
    """Leave a batch's trained labels in it, so that they are not made again where it is trained on."""
    inputs[_FOUND] = labels


def sequences_of(labels: Tensor, position_ids: Tensor | None, *, predicts_next: bool) -> Tensor:
    """The sequence (B, L'), int64, that each label belongs to: its row, or its part of a row where several are packed
    into one, which ``position_ids`` (B, L) tell, since they start again there. Labels are aligned with the logits: of
    position i + 1 at i if ``predicts_next`` (causal LMs)."""
    rows = torch.arange(labels.size(0), device=labels.device).unsqueeze(1).expand_as(labels)
    if position_ids is None or position_ids.dim() != 2 or position_ids.size(0) != labels.size(0):
        return rows
    starts = torch.ones_like(position_ids)
    starts[:, 1:] = position_ids[:, 1:] <= position_ids[:, :-1]
    sequences = starts.flatten().cumsum(0).view_as(position_ids) - 1
    if predicts_next:
        sequences = torch.cat([sequences[:, 1:], sequences[:, -1:]], dim=1)
    return sequences[:, : labels.size(1)]


def _is_per_row(name: str, value: Any) -> bool:
    """Whether a batch of some of its rows has those rows of this input, or all of what has no rows."""
    if isinstance(value, Tensor) and value.dim():
        # Of three dimensions the rows come first in some models, second in others.
        return name in _PER_ROW and (name != "position_ids" or value.dim() == 2)
    return isinstance(value, (Tensor, NoneType, str, bool, int, float))


def _rows_of(value: Any, needed: Tensor) -> Any:
    return value[needed] if isinstance(value, Tensor) and value.dim() and value.size(0) != 1 else value
