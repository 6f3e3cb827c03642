"""From items of a task to batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from muscle_hf.teachers.labels import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_items(
    tokenizer: PreTrainedTokenizerBase, items: Sequence[Any], *, answers_only: bool = False, end_answers: bool = True
) -> list[dict[str, list[int]]]:
    """Tokenize each item's ``prompt`` and right answer, ``target``, for training; the same for task and compatibility
    adapters.

    Gives rows with ``input_ids``, ``labels`` and ``completion_mask`` (1 on the answer), all of one length. With
    ``answers_only`` the context's labels are ignored; by default both are trained on (A.1 of the paper). With
    ``end_answers`` each answer is closed with the tokenizer's EOS, if it has one.
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
    from muscle_hf.encoding import encode_pairs

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
    """Pads rows of token lists on the right to the longest of the batch, up to a multiple of ``multiple_of`` (tensor
    cores like 8), ``input_ids`` with ``pad_id``; padding is not attended to, so any id will do."""

    pad_id: int = 0
    multiple_of: int = 1

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Rows with ``input_ids``, ``labels`` and further lists of the same length as int64 tensors (B, L), with an
        ``attention_mask``."""
        length = max(len(row["input_ids"]) for row in rows)
        length = -(-length // self.multiple_of) * self.multiple_of
        fill = {"input_ids": self.pad_id, "labels": IGNORED}

        def padded(name: str) -> Tensor:
            return torch.tensor([list(row[name]) + [fill.get(name, 0)] * (length - len(row[name])) for row in rows])

        batch = {name: padded(name) for name in rows[0]}
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        batch["attention_mask"] = (torch.arange(length) < lengths.unsqueeze(1)).long()
        return batch
