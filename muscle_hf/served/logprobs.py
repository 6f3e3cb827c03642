"""Log-probabilities of given texts from a server: the likeliest tokens at each place, by token ids, never by strings.

Three ways are known: ``prompt_logprobs`` of vLLM, whose answer names tokens by their ids; ``echo`` with ``logprobs``
of OpenAI's completions, whose answer spells them; and, where a server tells no more than what it might generate, a
request for each trained token, behind the text before it. What a server says is believed after it has been looked at:
see :meth:`ServedModel.check`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from muscle_hf.cache.compact import NOTHING
from muscle_hf.errors import MuscleError
from muscle_hf.served.server import Server

# The most by which the probabilities of some tokens may pass 1, and the least that has to be left for all the others.
_ABOVE_ONE, _LEFT = 1e-3, 1e-6
# By how many nats two kernels may differ in what is likeliest.
_AHEAD = 0.05
# What is said at a place: log-probabilities by token, and that of the token that the text has there.
_Said = tuple[dict[int, float], float]


class NoLogProbs(MuscleError):
    """A server does not give the log-probabilities of a given text."""


class LogProbs(NamedTuple):
    """What a model says at n places of a text.

    Args:
        top: Log-probabilities of the k likeliest tokens, (n, k) float32, falling. Where a server spells some of them
            in a way that several tokens have in common, these are among the rest, and the last one is repeated.
        ids: Of these, (n, k) int64.
        rest: Log of the probability of all others together, (n,) float32; finite.
        own: Log-probability of the token that the text has there, (n,) float32; ``NOTHING`` where it is not known.
    """

    top: Tensor
    ids: Tensor
    rest: Tensor
    own: Tensor


class ServedModel:
    """A model on a server that is asked for the log-probabilities of ``k`` tokens at a place of a text, of those with
    ids below ``vocabulary``. The server's ``tokenizer`` is needed where that spells tokens."""

    def __init__(self, server: Server, k: int, vocabulary: int):
        if not 1 <= k <= vocabulary:
            raise MuscleError(f"top_k is {k}; it must be between 1 and the vocabulary's {vocabulary}")
        self.server, self.k, self.vocabulary, self.client = server, k, vocabulary, server.client()
        self._ask: Callable[[Sequence[int], Sequence[int]], list[_Said]] | None = None

    # ---- Asking ----

    def along(self, ids: Sequence[int], places: Sequence[int] | None = None) -> LogProbs:
        """Log-probabilities along a text.

        Args:
            ids: Token ids, two at least.
            places: Of tokens of the text, each >= 1 (what is said of it before it is read); by default all.

        Raises:
            NoLogProbs: The server does not give them.
            MuscleError: It fails, or what it answers is not about these tokens.
        """
        places = range(1, len(ids)) if places is None else places
        chosen = (self._ask or self._ask_somehow)(ids, places)
        top = torch.full((len(chosen), self.k), -torch.inf, dtype=torch.float64)
        tokens = torch.zeros(len(chosen), self.k, dtype=torch.int64)
        rest = torch.zeros(len(chosen), dtype=torch.float64)
        for place, (each, _) in enumerate(chosen):
            known = [pair for pair in each.items() if pair[0] < self.vocabulary]
            likeliest = sorted(known, key=lambda pair: -pair[1])[: self.k]
            rest[place] = max(0.0, 1 - sum(math.exp(value) for _, value in likeliest))
            likeliest += likeliest[-1:] * (self.k - len(likeliest))
            tokens[place] = torch.tensor([token for token, _ in likeliest])
            top[place] = torch.tensor([value for _, value in likeliest])
        own = torch.tensor([value for _, value in chosen])
        return LogProbs(top.float(), tokens, rest.log().clamp(min=NOTHING).float(), own)

    def continued(self, ids: Sequence[int], max_new_tokens: int) -> str:
        """The greedy continuation of a text, as a text."""
        return self.server.complete(self.client, ids, max_tokens=max_new_tokens, temperature=0.0)[0].text or ""

    # ---- How a server is asked ----

    def _ask_somehow(self, ids: Sequence[int], places: Sequence[int]) -> list[_Said]:
        reasons: list[str] = []
        for way in (self._prompt_logprobs, self._echo, self._generated):
            try:
                found = way(ids, places)
            except NoLogProbs as error:
                reasons.append(str(error))
                continue
            except MuscleError:
                raise
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                reasons.append(f"its answer has another form ({type(error).__name__}: {error})")
                continue
            self._ask = way
            return found
        raise NoLogProbs(
            f"{self.server} does not give the {self.k} likeliest tokens along a given text: "
            f"{'; '.join(dict.fromkeys(reasons))}. vLLM does (its --max-logprobs is 20 unless set). Of a server that "
            "gives answers alone, the answers can be trained on: transfer rows with them as labels"
        )

    def _prompt_logprobs(self, ids: Sequence[int], places: Sequence[int]) -> list[_Said]:
        choice, _ = self._answer(ids, prompt_logprobs=self.k)
        found = getattr(choice, "prompt_logprobs", None)
        if not found:
            raise NoLogProbs("it knows no prompt_logprobs")
        self._require_length(ids, len(found))
        self._require_k(found[1:])
        values = [{int(token): entry["logprob"] for token, entry in each.items()} for each in found[1:]]
        if any(token not in each for token, each in zip(ids[1:], values, strict=True)):
            raise self._other_text("the tokens that it echoes are not those that were sent")
        return [(values[place - 1], values[place - 1][ids[place]]) for place in places]

    def _echo(self, ids: Sequence[int], places: Sequence[int]) -> list[_Said]:
        choice, usage = self._answer(ids, echo=True, logprobs=self.k)
        found, generated = choice.logprobs, usage.completion_tokens if usage else 1
        tokens, own, top = (getattr(found, name, None) or [] for name in ("tokens", "token_logprobs", "top_logprobs"))
        if len(own) <= generated or not top:
            raise NoLogProbs("it does not echo a text with its log-probabilities")
        self._require_length(ids, len(own) - generated)
        self._require_k(top[1 : len(ids)])
        known = self._spelt
        if any(known.get(spelt, token) != token for spelt, token in zip(tokens, ids, strict=False)):
            raise self._other_text("the tokens that it echoes are not those that were sent")
        return [(self._known(top[place]) | {ids[place]: own[place]}, own[place]) for place in places]

    def _generated(self, ids: Sequence[int], places: Sequence[int]) -> list[_Said]:
        found = []
        for place in places:
            choice, usage = self._answer(ids[:place], logprobs=self.k)
            # Of what it reads no more is known than how much it is.
            self._require_length(ids[:place], getattr(usage, "prompt_tokens", None) or place)
            top = getattr(choice.logprobs, "top_logprobs", None) or [{}]
            if not top[0]:
                raise NoLogProbs("it does not tell what it might have generated either")
            self._require_k(top)
            known = self._known(top[0])
            found.append((known, known.get(ids[place], NOTHING)))
        return found

    def _known(self, spelt: Mapping[str, float]) -> dict[int, float]:
        """By id what a server gives by text."""
        return {self._spelt[text]: value for text, value in spelt.items() if text in self._spelt}

    @cached_property
    def _spelt(self) -> Mapping[str, int]:
        """Ids of tokens by their text; of those that several have in common, none."""
        tokenizer: Any = self.server.tokenizer
        if tokenizer is None:
            raise MuscleError(f"{self.server} spells tokens as text; pass its tokenizer, so that their ids are known")
        texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
        found = dict(zip(texts, range(len(texts)), strict=True))
        twice = {text for text, token in zip(texts, range(len(texts)), strict=True) if found[text] != token}
        return {text: token for text, token in found.items() if text not in twice}

    def _answer(self, ids: Sequence[int], **fields: Any) -> tuple[Any, Any]:
        # One token is generated, since some servers refuse none; nothing that shapes its distribution may be left to
        # the server's own defaults.
        try:
            return self.server.complete(self.client, ids, max_tokens=1, temperature=1.0, top_p=1.0, **fields)
        except MuscleError as error:
            status = getattr(error.__cause__, "status_code", None)
            if status not in (400, 422):
                raise
            raise NoLogProbs(str(error)) from error

    def _require_k(self, given: Sequence[Any]) -> None:
        if (most := max(map(len, given))) < self.k:
            raise NoLogProbs(f"it gives {most} tokens at a place where {self.k} were asked for")

    def _require_length(self, ids: Sequence[int], count: int) -> None:
        if count != len(ids):
            raise self._other_text(f"it answers about {count} tokens where {len(ids)} were sent")

    def _other_text(self, what: str) -> MuscleError:
        return MuscleError(
            f"{self.server} reads another text than it is given: {what}. Serve the model without a system prompt, "
            "without truncation and without tokens of its own in front, and with the tokenizer that the rows are "
            "tokenized with"
        )

    # ---- Is it what it seems? ----

    def check(self, ids: Sequence[int]) -> LogProbs:
        """Ask about one text of some ten tokens or more, and refuse a server that reads another text, or whose
        log-probabilities are not the model's own."""
        found = self.along(ids)
        repeated = functional.pad(found.ids[:, 1:] == found.ids[:, :-1], (1, 0))
        mass = found.top.double().exp().masked_fill(repeated, 0).sum(dim=-1)
        raw = "Have it give the model's own (vLLM: --logprobs-mode raw_logprobs)"
        if bool((mass > 1 + _ABOVE_ONE).any()) or bool((found.top > _ABOVE_ONE).any()):
            raise MuscleError(
                f"{self.server} gives {self.k} tokens probabilities that sum to {float(mass.max()):.4g}: these are no "
                f"log-probabilities. {raw}"
            )
        if self.k < self.vocabulary and bool((mass > 1 - _LEFT).all()):
            raise MuscleError(
                f"{self.server} gives {self.k} of {self.vocabulary} tokens the probability 1 together at every place: "
                f"it normalises after the sampling settings (top_p, top_k). {raw}"
            )
        self._check_greedy(ids, found)
        return found

    def _check_greedy(self, ids: Sequence[int], found: LogProbs) -> None:
        tokenizer: Any = self.server.tokenizer
        if self.k < 2 or tokenizer is None:
            return
        # Where the likeliest is furthest ahead, it alone can be said, but for what two kernels differ.
        place = int((found.top[:, 0] - found.top[:, 1]).argmax())
        likeliest = found.ids[place][found.top[place] > found.top[place, 0] - _AHEAD]
        if len(likeliest) == self.k < self.vocabulary:
            return  # others may be as likely
        said, expected = self.continued(ids[: place + 1], 1), [tokenizer.decode([int(token)]) for token in likeliest]
        if said.strip() not in (text.strip() for text in expected) and "\ufffd" not in "".join([said, *expected]):
            raise MuscleError(
                f"{self.server} says {said!r} where its own log-probabilities have {expected[0]!r} as the likeliest: "
                "something changes one of the two (a penalty, a bias, a temperature). Serve the model without it "
                "(vLLM: --generation-config vllm)"
            )
