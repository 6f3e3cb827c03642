"""A teacher's distribution in a few numbers per token: its k likeliest tokens, and all the others as one.

Smaller than hidden states where 4 k is below their width (in half precision), and needs no product with the teacher's
output layer, but not exact: within the bucket of the rest the student is not told anything. The KL of the coarser
distributions is never above the true one (data processing inequality), and equals it when k is the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from muscle_hf.errors import MuscleError
from muscle_hf.objective import Objective
from muscle_hf.objective.chunked import Stream, chunk_rows

# Stands for the log of no probability at all: what is kept has to be finite.
NOTHING = -1e30
# Ids are kept beside the probabilities as float32, which counts exactly up to here.
_LARGEST_VOCABULARY = 2**24


@dataclass(frozen=True)
class TopTokens:
    """The form in which a compact cache keeps a token: the k likeliest, 1 <= k <= vocabulary, of distributions at the
    temperature at which they are compared; ids below ``vocabulary`` are, the smaller width where teacher and student
    are padded to different ones."""

    k: int
    temperature: float
    vocabulary: int

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.vocabulary:
            raise MuscleError(
                f"{self.k} tokens of a teacher cannot be kept: teacher_cache_top_k, or top_k of a server, must be "
                f"between 1 and the vocabulary's {self.vocabulary}"
            )
        if self.vocabulary > _LARGEST_VOCABULARY:
            raise MuscleError(f"a vocabulary of {self.vocabulary} is too large for the compact cache")

    @property
    def name(self) -> str:
        """What rows of this form are called beside those of another."""
        return f"top{self.k}-T{self.temperature:g}-V{self.vocabulary}"

    @property
    def width(self) -> int:
        """Numbers per token, float32."""
        return 2 * self.k + 1

    def of(self, logits: Tensor) -> Tensor:
        """Reduce logits (n, V) to (n, 2 k + 1), float32: log-probabilities of the k likeliest tokens, falling; their
        ids; and the log of the probability of all others together."""
        logits = logits[:, : self.vocabulary]
        scaled = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)) / self.temperature, -1)
        top, ids = scaled.topk(self.k, dim=-1)
        rest = scaled.scatter(-1, ids, -torch.inf).logsumexp(dim=-1, keepdim=True).clamp(min=NOTHING)
        return torch.cat([top.float(), ids.float(), rest.float()], dim=-1)

    def of_hidden(self, hidden: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
        """:meth:`of` the logits that a head makes of hidden states (n, d), a few at a time."""
        with torch.no_grad():
            parts = hidden.split(chunk_rows(self.vocabulary, hidden.device))
            return torch.cat([self.of(head(part)) for part in parts])

    def beside(self, kept: Tensor, tokens: Tensor, scores: Tensor) -> Tensor:
        """What :meth:`of` gives, (n, 2 k + 1), with one more token at each place, (n,), which may be among the k, and
        its log-probability, (n,): (n, 2 k + 3), as of k + 1 tokens."""
        top, ids, rest = kept.split([self.k, self.k, 1], dim=-1)
        others = (rest[:, 0].exp() - scores.exp()).clamp(min=0).log().clamp(min=NOTHING)
        others = torch.where((ids == tokens[:, None]).any(dim=-1), rest[:, 0], others)
        columns = [top, scores[:, None], ids, tokens[:, None].to(ids), others[:, None]]
        return torch.cat(columns, dim=-1)

    def dense(self, kept: Tensor) -> Tensor:
        """Log-probabilities of what :meth:`beside` gives: (n, vocabulary + 1); the last is all others together."""
        top, ids, rest = kept.split([self.k + 1, self.k + 1, 1], dim=-1)
        found = kept.new_full((len(kept), self.vocabulary), NOTHING).scatter(-1, ids.long(), top)
        return torch.cat([found, rest], dim=-1)

    def logits(self, kept: Tensor, student: Tensor) -> Tensor:
        """Logits (n, vocabulary) with the kept probabilities, (n, 2 k + 1), the rest being spread as the student
        spreads its own, by its logits (n, V), float32 or float64.

        The KL from them to the student's is that over k tokens and the rest as one, and so is its gradient as long as
        they are held constant: the student's own shares within the rest cancel.
        """
        top, ids, rest = kept.split([self.k, self.k, 1], dim=-1)
        ids = ids.long()
        own = torch.log_softmax(student[:, : self.vocabulary] / self.temperature, dim=-1)
        own_rest = own.scatter(-1, ids, -torch.inf).logsumexp(dim=-1, keepdim=True)
        spread = own + (rest.to(own) - own_rest)
        return spread.scatter(-1, ids, top.to(own)).mul_(self.temperature)


@dataclass(frozen=True)
class CompactStream(Stream):
    """What a compact cache says of the trained tokens; ``hidden`` is (N, 2 k + 1), and there is no head."""

    form: TopTokens

    @property
    def leans(self) -> str:
        return "student"

    def logits(self, rows: slice | Tensor, student: Tensor | None = None, chosen: Tensor | None = None) -> Tensor:
        own = cast("Tensor", student)
        return self.form.logits(self.hidden[rows], own if chosen is None else own[chosen])


def require_kl_alone(objective: Objective, reads: Iterable[str], what: str, remedy: str) -> None:
    """Refuse an objective, whose masks read ``reads``, that needs more of a teacher than its likeliest tokens and the
    rest as one; ``what`` is kept, and ``remedy``, are for the message."""
    if set(reads) - {"student"} or objective.divergence != "kl" or objective.blend == "logits":
        raise MuscleError(
            f"{what}, which are enough for the KL, but not for masks that read a teacher's logits, logit_difference, "
            f"or blended logits; {remedy}"
        )
