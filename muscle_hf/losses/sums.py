"""Sums of the objective's terms, from which the logged means are formed exactly over any number of batches."""

from __future__ import annotations

import torch
from torch import Tensor

from muscle_hf.losses.objective import TokenTerms

_COLUMNS = ("tokens", "loss", "weight_old", "kl_old", "kl_new", "cross_entropy", "correct")
# The figures of `mean_terms` beside the loss.
FIGURES = ("kl_old", "kl_new", "ce", "share_old", "token_accuracy")


def sum_terms(terms: TokenTerms, sequence_ids: Tensor, sequences: int) -> Tensor:
    """Sum the terms of the trained tokens over each sequence of a batch.

    Args:
        terms: Of N tokens.
        sequence_ids: (N,), the sequence of each token.
        sequences: B, how many sequences the batch has.

    Returns:
        (B, 7), float64 (float32 where the device has no such), no gradient. Adding rows, batches and processes keeps
        the meaning.
    """
    weight = terms.weight_old
    columns = torch.stack(
        [
            torch.ones_like(weight),
            terms.loss.detach(),
            weight,
            weight * terms.kl_old,
            (1 - weight) * terms.kl_new,
            terms.cross_entropy,
            terms.correct,
        ],
        dim=-1,
    )
    if columns.device.type != "mps":
        columns = columns.double()  # float32 stops counting at 2^24 tokens
    return columns.new_zeros(sequences, len(_COLUMNS)).index_add_(0, sequence_ids, columns)


def mean_terms(sums: Tensor) -> dict[str, float]:
    """The logged figures from the sums.

    Args:
        sums: (7,), added over sequences, batches and processes.

    Returns:
        ``loss`` (L), ``kl_old`` and ``kl_new`` (mean over the tokens that follow that model), ``ce``, ``share_old``
        (of tokens that follow the old model) and ``token_accuracy``; nan where there was no such token.
    """
    total = dict(zip(_COLUMNS, sums.tolist(), strict=True))

    def ratio(name: str, count: float) -> float:
        return total[name] / count if count else float("nan")

    tokens = total["tokens"]
    return {
        "loss": ratio("loss", tokens),
        "kl_old": ratio("kl_old", total["weight_old"]),
        "kl_new": ratio("kl_new", tokens - total["weight_old"]),
        "ce": ratio("cross_entropy", tokens),
        "share_old": ratio("weight_old", tokens),
        "token_accuracy": ratio("correct", tokens),
    }
