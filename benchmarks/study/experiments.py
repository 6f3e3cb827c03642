"""What the study tries and the package does not have: other divergences, for the time of one training, and transfer
rows drawn by what v1 has learned.

- ``reverse``: KL(student || mean of both), Gu et al. 2023 (MiniLLM, 2306.08543);
- ``jsd``: the Jensen-Shannon divergence of the student from the mean of both, Agarwal et al. 2023 (GKD, 2306.13649);
- ``non_target``: the KL from v1 over all tokens but the label, renormalised, which leaves the label to the
  cross-entropy beside it (2605.29498).

The first two want ``blend: logits``, where a token that follows both has one target: here it becomes the mean of both
models' probabilities at the temperature.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from muscle_hf.evaluation import Item
from muscle_hf.evaluation.engine import choice_log_likelihoods
from muscle_hf.evaluation.loading import load_for_evaluation
from muscle_hf.objective import objective
from muscle_hf.objective.divergence import Divergence

if TYPE_CHECKING:
    from study import Cell

TEMPERATURE = 2.0  # the package's default, which every method of the study has
_NEVER = -1e4


def _logs(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits / TEMPERATURE, dim=-1)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """Of log-probabilities."""
    return (p.exp() * (p - q)).sum(dim=-1)


def mean_of_both(old: Tensor, new: Tensor, share_old: Tensor, share_new: Tensor) -> Tensor:
    """Logits whose probabilities at the temperature are the mean of both models'; shapes as those of ``blended``."""
    share = (share_old / (share_old + share_new)).unsqueeze(-1)
    return TEMPERATURE * torch.logaddexp(_logs(old) + share.log(), _logs(new) + (1 - share).log())


def reverse(teacher: Tensor, student: Tensor, labels: Tensor) -> Tensor:
    return _kl(_logs(student), _logs(teacher))


def jsd(teacher: Tensor, student: Tensor, labels: Tensor) -> Tensor:
    p, q = _logs(teacher), _logs(student)
    middle = torch.logaddexp(p, q) - math.log(2)
    return (_kl(p, middle) + _kl(q, middle)) / 2


def non_target(teacher: Tensor, student: Tensor, labels: Tensor) -> Tensor:
    p, q = (_logs(logits.scatter(-1, labels.unsqueeze(-1), _NEVER)) for logits in (teacher, student))
    return _kl(p, q)


EXPERIMENTS = {"reverse": reverse, "jsd": jsd, "non_target": non_target}


@contextmanager
def tried(name: str | None) -> Iterator[None]:
    """Every training within has this divergence; none: the package's own."""
    if name is None:
        yield
        return
    distance, terms, asked = EXPERIMENTS[name], objective.Objective.terms, []

    class Tried(Divergence):
        def __call__(self, teacher: Tensor, student: Tensor) -> Tensor:
            return distance(teacher, student, asked[-1])

    def with_labels(self, student, of_teacher, weight, labels, *more, **given):
        asked[:] = [labels]
        return terms(self, student, of_teacher, weight, labels, *more, **given)

    with ExitStack() as stack:
        stack.enter_context(patch.object(objective, "Divergence", Tried))
        stack.enter_context(patch.object(objective, "blended", mean_of_both))
        stack.enter_context(patch.object(objective.Objective, "terms", with_labels))
        yield


def drawn_by_excess(cell: Cell, items: Sequence[Item]) -> list[Item]:
    """As many transfer rows as there are, each drawn as often as v1's task model knows its own answer better than its
    base does (log p minus log p, nats, none below 0): the excess of TiTok (2510.04682), as weights of rows."""
    old = cell.version("old")
    said = {answer.id: answer for answer in cell.answers(old, "transfer", items)}
    model, tokenizer = load_for_evaluation(old.model, cell.rows[0], attn_implementation=cell.plan["attention"])
    pairs = [(item.prompt, item.choices[said[item.id].prediction]) for item in items]
    of_base = choice_log_likelihoods(model, tokenizer, pairs)
    of_task = [said[item.id].log_likelihoods[said[item.id].prediction] for item in items]
    excess = np.clip(np.subtract(of_task, of_base), 0, None)
    drawn = np.random.default_rng(cell.seed).choice(len(items), len(items), p=excess / excess.sum())
    return [replace(items[i], id=f"{items[i].id}-{n}") for n, i in enumerate(drawn)]
