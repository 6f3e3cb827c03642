"""A model known by what it says of whole answers: how likely they are (X4), or how likely each of several is (X3).

Neither needs to know how that model cuts a text into tokens. (X4) is ALM with one group (Minixhofer et al. 2025,
"Universal cross-tokenizer distillation via approximate likelihood matching"), (X3) the chain rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from muscle_hf.objective.chunked import Stream
from muscle_hf.objective.divergence import Divergence, label_log_likelihood

# Log-probability of what cannot be: finite, since masks and temperatures calculate with it.
FLOOR = -1e4
# An answer is not held to be more certain than this, in nats: the odds against it would be rounding errors.
SUREST = -1e-4


@dataclass(frozen=True)
class AnswerStream(Stream):
    """One number for each answer, its log-likelihood l_1(A), shared out evenly over the answer's n tokens (X4).

    With l_C(A) of the student, P_1 = exp(l_1 / T) and P_C = exp(l_C / T), both l at most :data:`SUREST`:

        a_1(A) = P_1 log(P_1 / P_C) + (1 - P_1) log((1 - P_1) / (1 - P_C)),    a_1,i = a_1(A) / n

    Args:
        hidden: l_1 of the answer that each token is of, (N,), nats.
        head: None.
        tokens: The answers' tokens, (N,), int64.
        answers: The answer that each is of, (N,), int64, below N.
        spoken: Of which answers there is a number, (N,), boolean.
        own: l_C of the answer that each token is of, (N,); known :meth:`beside` a student.
    """

    tokens: Tensor
    answers: Tensor
    spoken: Tensor
    own: Tensor | None = None

    @property
    def whole_answers(self) -> bool:
        return True

    def logits(self, rows: slice | Tensor, student: Tensor | None = None, chosen: Tensor | None = None) -> Tensor:
        """The numbers themselves, (n, 1): there are no logits."""
        return self.hidden[rows].unsqueeze(-1)

    def shared(self, weights: Tensor) -> Tensor:
        """The mean over each answer, so that the gradient is that of the value."""
        mean = self._summed(weights) / self._count.to(weights).clamp(min=1)
        return torch.where(self.spoken, mean, weights)

    def beside(self, student: Callable[[Tensor, Tensor], Tensor]) -> AnswerStream:
        rows = self.spoken.nonzero().squeeze(-1)
        said = student(rows, self.tokens[rows])
        return replace(self, own=self._summed(said.new_zeros(len(self.tokens)).index_put_((rows,), said)))

    @cached_property
    def _count(self) -> Tensor:
        return self._summed(self.spoken.long())

    def _summed(self, values: Tensor) -> Tensor:
        """Over the spoken tokens of the answer that each token is of."""
        totals = values.new_zeros(len(values)).index_add_(0, self.answers, values * self.spoken)
        return totals[self.answers]

    def distance(
        self, rows: slice | Tensor, student: Tensor, divergence: Divergence, logits: Callable[[], Tensor]
    ) -> Tensor:
        assert self.own is not None, "an answer is compared with the student's"
        temperature = divergence.temperature
        old, own = (values[rows].to(student).clamp(max=SUREST) / temperature for values in (self.hidden, self.own))
        old_against, own_against = (torch.log(-torch.expm1(values)) for values in (old, own))
        value = old.exp() * (old - own) + old_against.exp() * (old_against - own_against)
        slope = (own.exp() - old.exp()) / own_against.exp() / temperature
        said = label_log_likelihood(student, self.tokens[rows])
        # Each token has its part of the value; the gradient of all of them is that of a_1 by l_C.
        return value / self._count[rows] + slope * (said - said.detach())


@dataclass(frozen=True)
class ChoiceStream(Stream):
    """The distribution over an answer's next token that gives each choice its probability (X3): as ``hidden`` the
    log-probabilities of k tokens at each place, (N, k), :data:`FLOOR` behind those that there are, of ``tokens``, (N,
    k) int64; ``spoken``, (N,) boolean: at which places there are some."""

    tokens: Tensor
    spoken: Tensor

    @property
    def leans(self) -> str:
        """Masks are shown what the student says itself where nothing is known."""
        return "student"

    def logits(self, rows: slice | Tensor, student: Tensor | None = None, chosen: Tensor | None = None) -> Tensor:
        assert student is not None
        own = student if chosen is None else student[chosen]
        known = torch.full_like(own, FLOOR).scatter_reduce_(
            -1, self.tokens[rows], self.hidden[rows].to(own), reduce="amax"
        )
        return torch.where(self.spoken[rows].unsqueeze(-1), known, own)


def along_choices(
    choices: Sequence[Sequence[int]], scores: Sequence[float], path: Sequence[int]
) -> list[dict[int, float]]:
    """q_i(u) of (X3) along one of several choices of tokens: of those that begin as it does so far, those that go on
    with u. Gives of each token of the path log q of what may stand in its place, by token. No choice may go on where
    another one ends."""
    left, found = list(zip(choices, scores, strict=True)), []
    for place, token in enumerate(path):
        by_token: dict[int, list[float]] = {}
        for choice, score in left:
            by_token.setdefault(choice[place], []).append(score)
        sums = torch.tensor([_log_sum(those) for those in by_token.values()], dtype=torch.float64).log_softmax(0)
        found.append(dict(zip(by_token, sums.tolist(), strict=True)))
        left = [(choice, score) for choice, score in left if choice[place] == token]
    return found


def _log_sum(logarithms: Sequence[float]) -> float:
    return torch.tensor(logarithms, dtype=torch.float64).logsumexp(0).item()
