"""Sums of the objective's terms, from which the logged means are formed exactly over any number of batches."""

from __future__ import annotations

import torch
from torch import Tensor

from muscle_hf.objective.masks import widest_float
from muscle_hf.objective.objective import TokenTerms

_COLUMNS = ("tokens", "loss", "weight_old", "weight_new", "kl_old", "kl_new", "labelled", "cross_entropy", "correct")
# The figures of `mean_terms` beside the loss.
FIGURES = ("kl_old", "kl_new", "ce", "share_old", "token_accuracy")


def sum_terms(terms: TokenTerms, sequence_ids: Tensor, sequences: int) -> Tensor:
    """Sum the terms of N tokens over each of B sequences.

    The result is (B, 9), float64 (float32 where the device has no such), no gradient. Adding rows, batches and
    processes keeps the meaning.
    """
    weight = terms.weight_old
    columns = torch.stack(
        [
            torch.ones_like(weight),
            terms.loss.detach(),
            weight,
            terms.weight_new,
            weight * terms.kl_old,
            terms.weight_new * terms.kl_new,
            terms.labelled,
            terms.cross_entropy,
            terms.correct,
        ],
        dim=-1,
    )
    columns = columns.to(widest_float(columns.device))  # float32 stops counting at 2^24 tokens
    return columns.new_zeros(sequences, len(_COLUMNS)).index_add_(0, sequence_ids, columns)


def mean_terms(sums: Tensor) -> dict[str, float]:
    """The logged figures from the sums, (9,), added over sequences, batches and processes: ``loss`` (L), ``kl_old``
    and ``kl_new`` (mean over the tokens that follow that model), ``share_old`` (of tokens that follow the old model),
    and over the tokens with a label ``ce`` and ``token_accuracy``. A mean over no token at all is left out: nan is no
    JSON."""
    total: dict[str, float] = dict(zip(_COLUMNS, sums.tolist(), strict=True))
    parts = {
        "loss": ("loss", "tokens"),
        "kl_old": ("kl_old", "weight_old"),
        "kl_new": ("kl_new", "weight_new"),
        "ce": ("cross_entropy", "labelled"),
        "share_old": ("weight_old", "tokens"),
        "token_accuracy": ("correct", "labelled"),
    }
    return {name: total[of] / total[over] for name, (of, over) in parts.items() if total[over]}
