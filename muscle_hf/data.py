"""From items of a task to batches, and the checks that a dataset can be trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from muscle_hf.errors import MuscleError
from muscle_hf.teachers.kinds import CAUSAL_LM, IGNORED, LABEL_COLUMNS, SEQUENCE_CLASSIFICATION, ModelKind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from muscle_hf.evaluation import Item


def encode_items(
    tokenizer: PreTrainedTokenizerBase, items: Sequence[Item], *, answers_only: bool = False, end_answers: bool = True
) -> list[dict[str, list[int]]]:
    """Tokenize each item's prompt and right answer for training; the same for task and compatibility adapters.

    Args:
        tokenizer: Of both bases.
        items: With a target each.
        answers_only: Ignore the context's labels; by default context and answer are trained on (A.1 of the paper).
        end_answers: Close each answer with the tokenizer's EOS, if it has one.

    Returns:
        Rows with ``input_ids``, ``labels`` and ``completion_mask``
        (1 on the answer), all of one length.
    """
    pairs = [(item.prompt, item.target) for item in items]
    return encode_answers(tokenizer, pairs, answers_only=answers_only, end_answers=end_answers)


def encode_answers(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    *,
    answers_only: bool = False,
    end_answers: bool = True,
) -> list[dict[str, list[int]]]:
    """:func:`encode_items` for prompts and answers that are texts."""
    from muscle_hf.evaluation.encoding import encode_pairs

    closing = [tokenizer.eos_token_id] if end_answers and tokenizer.eos_token_id is not None else []
    rows = []
    for prompt, answer in encode_pairs(tokenizer, pairs):
        answer = answer + closing
        ids = prompt + answer
        labels = [IGNORED] * len(prompt) + answer if answers_only else list(ids)
        rows.append({"input_ids": ids, "labels": labels, "completion_mask": [0] * len(prompt) + [1] * len(answer)})
    return rows


@dataclass
class PaddingCollator:
    """Pads rows of token lists on the right to the longest of the batch.

    Args:
        pad_id: Fills ``input_ids``; padding is not attended to, so any id will do.
        multiple_of: Pads lengths up to a multiple of this (tensor cores like 8).
    """

    pad_id: int = 0
    multiple_of: int = 1

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Collate rows with ``input_ids``, ``labels`` and further lists of the same length.

        Returns:
            int64 tensors (B, L): the rows' columns and ``attention_mask``.
        """
        length = max(len(row["input_ids"]) for row in rows)
        length = -(-length // self.multiple_of) * self.multiple_of
        fill = {"input_ids": self.pad_id, "labels": IGNORED}

        def padded(name: str) -> Tensor:
            return torch.tensor([list(row[name]) + [fill.get(name, 0)] * (length - len(row[name])) for row in rows])

        batch = {name: padded(name) for name in rows[0]}
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        batch["attention_mask"] = (torch.arange(length) < lengths.unsqueeze(1)).long()
        return batch


def require_trained_labels(
    batches: Iterable[Mapping[str, Any]], trained_labels: Callable[[Mapping[str, Any]], Tensor], name: str
) -> None:
    """Stop before training where a dataset has nothing to train on; reads up to the first trained label.

    Args:
        batches: As the collator makes them.
        trained_labels: The aligned labels of a batch, -100 where nothing is trained.
        name: Of the dataset, for the message.

    Raises:
        MuscleError: There are no rows, no labels, or every label is ignored.
    """
    rows = 0
    for batch in batches:
        labels = trained_labels(batch)
        if bool((labels != IGNORED).any()):
            return
        rows += len(labels)
    if not rows:
        raise MuscleError(f"the {name} is empty")
    raise nothing_to_train_on(f"the {name} ({rows} rows)")


def nothing_to_train_on(what: str) -> MuscleError:
    """The error for data of which every label is ignored."""
    return MuscleError(
        f"every label of {what} is ignored (-100), so there is nothing to train on. Check that prompts are not longer "
        "than the truncation length, and that masks mark the answers"
    )


def require_labels(batch: Mapping[str, Any], kind: ModelKind = CAUSAL_LM) -> Tensor:
    """The labels of a batch.

    Args:
        batch: As the collator makes it.
        kind: Of the model.

    Returns:
        (B, L), or (B,) for sequence classification, or (B, 2) for the two positions of an answer in a text, int64.

    Raises:
        MuscleError: It has none, or they are no class numbers or tokens.
    """
    if not kind.has_labels(batch):
        raise MuscleError(
            f"the batch has no {' and '.join(kind.label_columns)} (it has {', '.join(batch)}). MUSCLE compares "
            "predictions with right answers: add these columns, or a collator that makes them, such as "
            "DataCollatorForLanguageModeling(tokenizer, mlm=False) for language models"
        )
    labels = batch[kind.label_columns[0]]
    if len(kind.label_columns) > 1:
        # As in the models: an answer that truncation has cut off is not trained on.
        labels = torch.stack([batch[column] for column in kind.label_columns], dim=-1).clamp(min=0)
        labels = labels.masked_fill(labels >= batch["input_ids"].size(1), IGNORED)
    wide = kind is SEQUENCE_CLASSIFICATION and labels.dim() > 1 and labels.size(1) > 1
    if labels.is_floating_point() or labels.dtype is torch.bool or wide:
        raise MuscleError(
            f"the labels are {str(labels.dtype).removeprefix('torch.')} of shape {tuple(labels.shape)}, but a "
            f"{kind.name} model is trained on whole numbers, one for each prediction. Regression and several right "
            "classes per row have no flips"
        )
    return labels


def require_class_numbers(labels: Tensor, classes: int) -> None:
    """Refuse labels of a batch that are not in [0, classes), nor -100, where looking at them waits for no device.

    Args:
        labels: Whole numbers, any shape.
        classes: How many the model knows.

    Raises:
        MuscleError: Names the first that is none.
    """
    if labels.device.type == "cpu" and bool((wrong := _no_class(labels, classes)).any()):
        raise _unknown_class("a batch", labels[wrong][0].item(), classes)


def require_class_column(rows: Any, classes: int, name: str) -> None:
    """:func:`require_class_numbers` for a whole dataset whose labels are collated as they stand.

    Args:
        rows: A ``datasets.Dataset`` or a list of dictionaries, or several of them by name; of anything else, whose
            rows are made one by one, nothing is read.
        classes: How many the model knows.
        name: Of the dataset, for the message.

    Raises:
        MuscleError: Names the column, the row and what is there.
    """
    if isinstance(rows, dict):
        for part, its_rows in rows.items():
            require_class_column(its_rows, classes, f"{name} {part!r}")
        return
    if hasattr(rows, "column_names") and hasattr(rows, "with_format"):
        names, table = rows.column_names, rows.with_format(None)
    elif isinstance(rows, list) and rows and isinstance(rows[0], Mapping):
        names, table = rows[0], None
    else:
        return
    column = next((column for column in LABEL_COLUMNS if column in names), None)
    if column is None:
        return
    for index, label in enumerate(table[column] if table is not None else (row.get(column) for row in rows)):
        values = label.tolist() if hasattr(label, "tolist") else label
        for value in values if isinstance(values, Sequence) and not isinstance(values, str) else [values]:
            if not isinstance(value, Integral) or _no_class(value, classes):
                raise _unknown_class(f"the column {column!r} of the {name}, row {index}", value, classes)


def _no_class(labels: Any, classes: int) -> Any:
    return (labels != IGNORED) & ((labels < 0) | (labels >= classes))


def _unknown_class(where: str, label: Any, classes: int) -> MuscleError:
    return MuscleError(
        f"{where}: the label {label!r} is no class of the model; these are numbered from 0 to {classes - 1} "
        f"({IGNORED} where nothing is trained). Map the labels to these numbers, or give the model as many "
        "classes as there are"
    )
