"""Kinds of model: how logits and labels of each line up, and which Auto class loads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from muscle_hf.compat.transformers import modeling_auto
from muscle_hf.errors import MuscleError
from muscle_hf.teachers.weights import base_of


@dataclass(frozen=True)
class ModelKind:
    """One kind of head: how ``transformers`` loads it (``auto_class``) and PEFT calls it (``task_type``);
    ``mappings``, the tables of ``transformers`` that list such models, and where none does, ``class_suffixes``.

    If it ``generates_text``, labels are tokens of the vocabulary, else classes of ``config.id2label`` or positions of
    the input. With ``shifts_labels`` the logits at position i predict the label at i + 1. Of several ``label_columns``
    each is one label of a row; ``outputs`` hold the logits in what a forward returns.
    """

    name: str
    auto_class: str
    task_type: str
    generates_text: bool
    mappings: tuple[str, ...]
    class_suffixes: tuple[str, ...] = ()
    shifts_labels: bool = False
    label_columns: tuple[str, ...] = ("labels",)
    outputs: tuple[str, ...] = ("logits",)

    @property
    def names_classes(self) -> bool:
        """Whether labels are classes of ``config.id2label``."""
        return not self.generates_text and self.label_columns == ("labels",)

    def has_labels(self, batch: Mapping[str, Any]) -> bool:
        """Whether a batch says what is right."""
        return all(batch.get(column) is not None for column in self.label_columns)

    def has_class(self, name: str) -> bool:
        """Whether a class of that name is a model of this kind."""
        tables = (getattr(modeling_auto, f"MODEL_FOR_{mapping}_MAPPING_NAMES") for mapping in self.mappings)
        listed = (entry for table in tables for entry in table.values())
        return any(name in ((entry,) if isinstance(entry, str) else entry) for entry in listed) or (
            bool(self.class_suffixes) and name.endswith(self.class_suffixes)
        )

    def logits_of(self, outputs: Any) -> Tensor:
        """The logits in what a model's forward returned without labels (an output of ``transformers``, a tuple, any
        object with these attributes, or the logits): (B, L, V), (B, C) for sequence classification, (B, 2, L) for
        extractive question answering."""
        if isinstance(outputs, Tensor):
            return outputs
        if isinstance(outputs, Mapping):
            found = [outputs[name] for name in self.outputs]
        elif all(hasattr(outputs, name) for name in self.outputs):
            found = [getattr(outputs, name) for name in self.outputs]
        else:
            found = outputs[: len(self.outputs)]
        return found[0] if len(found) == 1 else torch.stack(tuple(found), dim=1)

    def trained_labels(self, labels: Tensor) -> Tensor:
        """The labels that have a prediction, as (B, L'), of those that the collator gives, (B, L) or (B,): all but the
        first position of each row for causal LMs; (B, 1) for sequence classification."""
        if labels.dim() == 1:
            return labels.unsqueeze(1)
        return labels[:, 1:] if self.shifts_labels else labels


CAUSAL_LM = ModelKind(
    "causal LM",
    "AutoModelForCausalLM",
    "CAUSAL_LM",
    generates_text=True,
    mappings=("CAUSAL_LM",),
    class_suffixes=("ForCausalLM", "LMHeadModel"),
    shifts_labels=True,
)
SEQ2SEQ_LM = ModelKind(
    "seq2seq LM",
    "AutoModelForSeq2SeqLM",
    "SEQ_2_SEQ_LM",
    generates_text=True,
    mappings=("SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "IMAGE_TEXT_TO_TEXT"),
    class_suffixes=("ForConditionalGeneration",),
)
SEQUENCE_CLASSIFICATION = ModelKind(
    "sequence classification",
    "AutoModelForSequenceClassification",
    "SEQ_CLS",
    generates_text=False,
    mappings=("SEQUENCE_CLASSIFICATION",),
    class_suffixes=("ForSequenceClassification",),
)
TOKEN_CLASSIFICATION = ModelKind(
    "token classification",
    "AutoModelForTokenClassification",
    "TOKEN_CLS",
    generates_text=False,
    mappings=("TOKEN_CLASSIFICATION",),
    class_suffixes=("ForTokenClassification",),
)
# The classes are the positions of the input: where the answer starts, and where it ends.
QUESTION_ANSWERING = ModelKind(
    "extractive question answering",
    "AutoModelForQuestionAnswering",
    "QUESTION_ANS",
    generates_text=False,
    mappings=("QUESTION_ANSWERING",),
    label_columns=("start_positions", "end_positions"),
    outputs=("start_logits", "end_logits"),
)
KINDS = (CAUSAL_LM, SEQ2SEQ_LM, SEQUENCE_CLASSIFICATION, TOKEN_CLASSIFICATION, QUESTION_ANSWERING)


def kind_of(model: nn.Module) -> ModelKind:
    """The kind of a model, by its class or the nearest one that it is derived from; another kind of head is refused,
    and a classifier that does not choose one of several classes."""
    base = base_of(model)
    config = getattr(base, "config", None)
    names = [parent.__name__ for parent in type(base).__mro__]
    kind = next((kind for name in names for kind in KINDS if kind.has_class(name)), None)
    if kind is SEQ2SEQ_LM and not getattr(config, "is_encoder_decoder", False):
        kind = CAUSAL_LM  # vision-language models with a decoder alone
    if kind is None:
        raise MuscleError(
            f"{type(base).__name__} is not a kind of model that MuscleTrainer trains; it trains "
            + ", ".join(kind.name for kind in KINDS)
        )
    if kind.names_classes:
        config, problem = base.config, getattr(base.config, "problem_type", None)
        if (config.num_labels or 0) < 2 or problem not in (None, "single_label_classification"):
            raise MuscleError(
                f"{type(base).__name__} has {config.num_labels} labels and problem_type {problem!r}; flips are "
                "defined for choosing one of two or more classes (problem_type 'single_label_classification')"
            )
    return kind
