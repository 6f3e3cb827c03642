"""Kinds of model: how logits and labels of each line up, and which Auto class loads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from muscle_hf.errors import MuscleError
from muscle_hf.teachers.weights import base_of

IGNORED = -100
# The column that is true for rows whose labels only say where something is trained, not what is right there.
UNLABELLED = "unlabelled"
# In such a row: how many of its own labels say that something is trained.
TRAINED_COUNT = "unlabelled_count"


@dataclass(frozen=True)
class ModelKind:
    """One kind of head.

    Args:
        name: In messages and provenance.
        class_suffixes: What the class names of such models end with.
        auto_class: Name of the ``transformers`` class that loads one.
        task_type: PEFT's name of it.
        generates_text: Labels are tokens of the vocabulary (else classes of ``config.id2label``).
        shifts_labels: The logits at position i predict the label at i + 1.
    """

    name: str
    class_suffixes: tuple[str, ...]
    auto_class: str
    task_type: str
    generates_text: bool
    shifts_labels: bool = False

    def trained_labels(self, labels: Tensor) -> Tensor:
        """The labels that have a prediction, as (B, L').

        Args:
            labels: (B, L) as the collator gives them, or (B,) for sequence classification.

        Returns:
            All but the first position of each row for causal LMs; (B, 1) for sequence classification.
        """
        if labels.dim() == 1:
            return labels.unsqueeze(1)
        return labels[:, 1:] if self.shifts_labels else labels


def aligned(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits that predict the labels of :meth:`ModelKind.trained_labels`.

    Args:
        logits: (B, L, V), or (B, C) for sequence classification.
        labels: (B, L'), L' <= L.

    Returns:
        (B, L', V).
    """
    return logits.unsqueeze(1) if logits.dim() == 2 else logits[:, : labels.size(1)]


CAUSAL_LM = ModelKind(
    "causal LM", ("ForCausalLM", "LMHeadModel"), "AutoModelForCausalLM", "CAUSAL_LM", True, shifts_labels=True
)
SEQ2SEQ_LM = ModelKind("seq2seq LM", ("ForConditionalGeneration",), "AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM", True)
SEQUENCE_CLASSIFICATION = ModelKind(
    "sequence classification", ("ForSequenceClassification",), "AutoModelForSequenceClassification", "SEQ_CLS", False
)
TOKEN_CLASSIFICATION = ModelKind(
    "token classification", ("ForTokenClassification",), "AutoModelForTokenClassification", "TOKEN_CLS", False
)
KINDS = (CAUSAL_LM, SEQ2SEQ_LM, SEQUENCE_CLASSIFICATION, TOKEN_CLASSIFICATION)


def kind_of(model: nn.Module) -> ModelKind:
    """The kind of a model, by the name of its class.

    Raises:
        MuscleError: Another kind of head, or a classifier that does not choose one of several classes.
    """
    base = base_of(model)
    config = getattr(base, "config", None)
    kind = next((kind for kind in KINDS if type(base).__name__.endswith(kind.class_suffixes)), None)
    if kind is SEQ2SEQ_LM and not getattr(config, "is_encoder_decoder", False):
        kind = CAUSAL_LM  # vision-language models with a decoder alone
    if kind is None:
        raise MuscleError(
            f"{type(base).__name__} is not a kind of model that MuscleTrainer trains; it trains "
            + ", ".join(kind.name for kind in KINDS)
        )
    if not kind.generates_text:
        problem = getattr(config, "problem_type", None)
        if config.num_labels < 2 or problem not in (None, "single_label_classification"):
            raise MuscleError(
                f"{type(base).__name__} has {config.num_labels} labels and problem_type {problem!r}; flips are "
                "defined for choosing one of two or more classes (problem_type 'single_label_classification')"
            )
    return kind


def trained_rows(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Where the trained tokens of aligned labels are.

    Args:
        labels: (B, L), int64, -100 where nothing is trained.

    Returns:
        Boolean (B, L), and the sequence in the batch that each trained token belongs to, (N,), int64.
    """
    chosen = labels != IGNORED
    return chosen, torch.arange(labels.size(0), device=labels.device).unsqueeze(1).expand_as(labels)[chosen]


def labelled_tokens(inputs: Mapping[str, Any], rows: Tensor) -> Tensor | None:
    """Whether the labels of trained tokens are right answers.

    Args:
        inputs: The batch; transfer rows are marked in its column ``unlabelled``, (B,).
        rows: The batch row of each trained token, (N,), int64.

    Returns:
        (N,), boolean; None where all are.
    """
    marks = inputs.get(UNLABELLED)
    return None if marks is None else ~marks.bool()[rows]


def sequences_of(labels: Tensor, position_ids: Tensor | None, *, predicts_next: bool) -> Tensor:
    """The sequence that each label belongs to: its row, or its part of a row where several are packed into one.

    Args:
        labels: (B, L'), aligned with the logits.
        position_ids: (B, L) if the collator made them; they start again where a packed sequence starts.
        predicts_next: Whether the label at i is of position i + 1 (causal LMs).

    Returns:
        (B, L'), int64.
    """
    rows = torch.arange(labels.size(0), device=labels.device).unsqueeze(1).expand_as(labels)
    if position_ids is None or position_ids.dim() != 2 or position_ids.size(0) != labels.size(0):
        return rows
    starts = torch.ones_like(position_ids)
    starts[:, 1:] = position_ids[:, 1:] <= position_ids[:, :-1]
    sequences = starts.flatten().cumsum(0).view_as(position_ids) - 1
    if predicts_next:
        sequences = torch.cat([sequences[:, 1:], sequences[:, -1:]], dim=1)
    return sequences[:, : labels.size(1)]
