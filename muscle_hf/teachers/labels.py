"""What labels have to be: whole numbers, tokens of the vocabulary or classes that the model has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from muscle_hf.errors import MuscleError
from muscle_hf.teachers.kinds import SEQUENCE_CLASSIFICATION, ModelKind

IGNORED = -100
# Names of the label column that Trainer's collators know; Trainer itself renames the others to the first.
LABEL_COLUMNS = ("labels", "label", "label_ids")


def require_labels(inputs: Mapping[str, Any], kind: ModelKind) -> Tensor:
    """The labels of a batch: (B, L), or (B,) for sequence classification, or (B, 2) for the two positions of an answer
    in a text, int64. Refused where it has none, or they are no class numbers or tokens."""
    if not kind.has_labels(inputs):
        raise MuscleError(
            f"the batch has no {' and '.join(kind.label_columns)} (it has {', '.join(inputs)}). MUSCLE compares "
            "predictions with right answers: add these columns, or a collator that makes them, such as "
            "DataCollatorForLanguageModeling(tokenizer, mlm=False) for language models"
        )
    labels = inputs[kind.label_columns[0]]
    if len(kind.label_columns) > 1:
        # As in the models: an answer that truncation has cut off is not trained on.
        labels = torch.stack([inputs[column] for column in kind.label_columns], dim=-1).clamp(min=0)
        labels = labels.masked_fill(labels >= inputs["input_ids"].size(1), IGNORED)
    wide = kind is SEQUENCE_CLASSIFICATION and labels.dim() > 1 and labels.size(1) > 1
    if labels.is_floating_point() or labels.dtype is torch.bool or wide:
        raise MuscleError(
            f"the labels are {str(labels.dtype).removeprefix('torch.')} of shape {tuple(labels.shape)}, but a "
            f"{kind.name} model is trained on whole numbers, one for each prediction. Regression and several right "
            "classes per row have no flips"
        )
    return labels


def no_class(labels: Any, classes: int) -> Any:
    """Where labels are neither in [0, classes) nor -100."""
    return (labels != IGNORED) & ((labels < 0) | (labels >= classes))


def unknown_class(where: str, label: Any, classes: int) -> MuscleError:
    """The error for a label that is no class of the model."""
    return MuscleError(
        f"{where}: the label {label!r} is no class of the model; these are numbered from 0 to {classes - 1} "
        f"({IGNORED} where nothing is trained). Map the labels to these numbers, or give the model as many "
        "classes as there are"
    )
