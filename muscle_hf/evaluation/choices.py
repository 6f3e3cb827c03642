"""Log-likelihoods of continuations under a causal language model, the prompt computed once for all of them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from muscle_hf.compat.transformers import CACHE
from muscle_hf.errors import MuscleError
from muscle_hf.evaluation.batching import chunks_of_similar_length
from muscle_hf.evaluation.models import ModelFacts

logger = logging.getLogger(__name__)

# Numbers of logits turned into log-probabilities at once (fp32).
_LOGITS_AT_ONCE = 2**26


@dataclass(frozen=True)
class Group:
    """Token ids of continuations and of their one context, and where each one's result belongs: (item, choice)."""

    context: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]
    owners: tuple[tuple[int, int], ...]

    @property
    def length(self) -> int:
        """Tokens of the longest sequence."""
        return len(self.context) + max(map(len, self.continuations))


def group_by_context(
    pairs: Sequence[tuple[list[int], list[int]]], owners: Sequence[tuple[int, int]], facts: ModelFacts
) -> list[Group]:
    """Collect pairs of context and continuation of an item with the same context, by their owners (item, choice).

    What is too long for the model loses tokens on the left; the last one of a continuation is predicted, not read.
    """
    collected: dict[tuple[int, tuple[int, ...]], list[tuple[tuple[int, ...], tuple[int, int]]]] = {}
    cut = 0
    for (context, continuation), owner in zip(pairs, owners, strict=True):
        if len(continuation) > facts.max_length:
            # As the harness does: the end of the answer is scored, after the one token before it.
            before, continuation = continuation[: -facts.max_length], continuation[-facts.max_length :]
            context = context if facts.encoder_decoder else before[-1:]
            cut += 1
        room = facts.max_length + 1 - len(continuation)
        room = facts.max_length if facts.encoder_decoder else room
        cut += len(context) > room
        key = (owner[0], tuple(context[-room:]))
        collected.setdefault(key, []).append((tuple(continuation), owner))
    if cut:
        logger.warning(
            "%d of %d sequences were cut on the left to the model's %d tokens", cut, len(pairs), facts.max_length
        )
    return [
        Group(context, tuple(ids for ids, _ in members), tuple(owner for _, owner in members))
        for (_, context), members in collected.items()
    ]


class ChoiceScorer:
    """Scores groups of continuations, at most ``batch_size`` in one forward pass.

    ``share``: compute a context once for all its continuations; None: where two of ``groups``, all that will be
    scored (the same on all processes, so that they decide alike), show that it is exact.
    """

    def __init__(self, facts: ModelFacts, groups: Sequence[Group], batch_size: int | None, share: bool | None):
        self.facts = facts
        self.batch_size = batch_size
        self.share = self._sharing_is_exact(groups) if share is None else share

    def __call__(self, groups: list[Group]) -> list[list[float]]:
        """Summed log-likelihood (nats) of each continuation of each group."""
        if self.facts.encoder_decoder:
            return self._score_decoded(groups)
        return self._score_shared(groups) if self.share else self._score_whole(groups)

    def _sharing_is_exact(self, groups: Sequence[Group]) -> bool:
        """Compare both ways on two groups: left padding or a cached prefix may not mean the same to a model."""
        by_length = sorted((group for group in groups if len(group.context) > 1), key=lambda group: group.length)
        probe = [by_length[0], by_length[len(by_length) // 2]] if by_length else []
        if self.facts.encoder_decoder or not probe or not self._has_plain_cache(probe[0]):
            return False
        shared, whole = self._score_shared(probe), self._score_whole(probe)
        tolerance = 1e-3 if self.facts.dtype == torch.float32 else 5e-2
        for first, second in zip(chain(*shared), chain(*whole), strict=True):
            if not abs(first - second) <= tolerance * (1 + abs(second)):
                logger.warning("prompts are not shared between choices: the model's cache is not exact with padding")
                return False
        return True

    def _has_plain_cache(self, group: Group) -> bool:
        from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

        if not self.facts.can_share:
            return False
        ids = torch.tensor([group.context], device=self.facts.device)
        cache = self.facts.model(input_ids=ids, use_cache=True, **self.facts.keep(1)).get(CACHE)
        plain = (DynamicLayer, DynamicSlidingWindowLayer)
        return isinstance(cache, DynamicCache) and all(type(layer) in plain for layer in cache.layers)

    def _score_shared(self, groups: list[Group]) -> list[list[float]]:
        facts = self.facts
        ids, mask = facts.pad([group.context for group in groups], side="left")
        out = facts.model(input_ids=ids, attention_mask=mask, use_cache=True, **facts.positions(mask), **facts.keep(1))
        rows = [(g, ids) for g, group in enumerate(groups) for ids in group.continuations]
        index = torch.tensor([g for g, _ in rows], device=facts.device)
        first = torch.tensor([ids[0] for _, ids in rows], device=facts.device)
        opening = out.logits[:, -1].float().log_softmax(-1)
        sums = opening[index, first].double()

        # The second and later tokens of a continuation need a pass over it; similar lengths go together.
        longer = [r for r, (_, ids) in enumerate(rows) if len(ids) > 1]
        lengths = [len(rows[r][1]) - 1 for r in longer]
        for chunk in chunks_of_similar_length(lengths, facts.device, self.batch_size):
            chosen = [longer[i] for i in chunk]
            cache = copy.copy(out[CACHE])
            cache.layers = [copy.copy(layer) for layer in cache.layers]
            cache.batch_select_indices(index[chosen])
            tokens, tail = facts.pad([rows[r][1][:-1] for r in chosen], side="right")
            full = torch.cat([mask[index[chosen]], tail], dim=1)
            logits = facts.model(
                input_ids=tokens,
                attention_mask=full,
                use_cache=True,
                **{CACHE: cache},
                **facts.positions(full, last=tokens.shape[1]),
            ).logits
            targets, _ = facts.pad([rows[r][1][1:] for r in chosen], side="right")
            sums[chosen] += _summed(logits, targets, tail.bool())
        return _regroup(sums.tolist(), groups)

    def _score_whole(self, groups: list[Group]) -> list[list[float]]:
        facts = self.facts
        rows = [(group.context, ids) for group in groups for ids in group.continuations]
        sums: list[float] = []
        at_once = self.batch_size or len(rows)
        for start in range(0, len(rows), at_once):
            chosen = rows[start : start + at_once]
            ids, mask = facts.pad([(*context, *ids[:-1]) for context, ids in chosen], side="right")
            width = ids.shape[1]
            begin = min(len(context) for context, _ in chosen) - 1
            out = facts.model(input_ids=ids, attention_mask=mask, use_cache=False, **facts.keep(width - begin))
            # From the right: prompt tuning puts virtual tokens in front.
            logits = out.logits[:, begin - width :]
            targets = torch.zeros_like(ids[:, begin:])
            scored = torch.zeros_like(targets, dtype=torch.bool)
            for row, (context, continuation) in enumerate(chosen):
                span = slice(len(context) - 1 - begin, len(context) - 1 - begin + len(continuation))
                targets[row, span] = torch.tensor(continuation, device=facts.device)
                scored[row, span] = True
            sums += _summed(logits, targets, scored).tolist()
        return _regroup(sums, groups)

    def _score_decoded(self, groups: list[Group]) -> list[list[float]]:
        """Encoder-decoder models: each context is encoded once, its continuations are decoded from it."""
        facts = self.facts
        ids, mask = facts.pad([group.context for group in groups], side="right")
        encoder: Any = facts.base.get_encoder()
        encoded = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        rows = [(g, ids) for g, group in enumerate(groups) for ids in group.continuations]
        start = self._decoder_start()
        sums: list[float] = []
        at_once = self.batch_size or len(rows)
        for begin in range(0, len(rows), at_once):
            chosen = rows[begin : begin + at_once]
            index = torch.tensor([g for g, _ in chosen], device=facts.device)
            targets, scored = facts.pad([ids for _, ids in chosen], side="right")
            fed, _ = facts.pad([(start, *ids[:-1]) for _, ids in chosen], side="right")
            logits = facts.model(
                encoder_outputs=(encoded[index],),
                attention_mask=mask[index],
                decoder_input_ids=fed,
                use_cache=False,
            ).logits
            sums += _summed(logits, targets, scored.bool()).tolist()
        return _regroup(sums, groups)

    def _decoder_start(self) -> int:
        base = self.facts.base
        for config in (base.generation_config, base.config, base.config.get_text_config()):
            for name in ("decoder_start_token_id", "bos_token_id"):
                start = getattr(config, name, None)
                if start is not None:
                    return int(start)
        raise MuscleError("the model does not say which token its decoder starts with; set decoder_start_token_id")


def _summed(logits: torch.Tensor, targets: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of ``targets`` (token ids) summed over the ``scored`` positions of each row; float64, (rows,).

    ``logits`` are of any float dtype, ``(rows, positions, vocabulary)``; the softmax is taken in fp32.
    """
    found = torch.zeros(targets.shape, dtype=torch.float64, device=logits.device)
    where = scored.nonzero()
    for part in where.split(max(1, _LOGITS_AT_ONCE // logits.shape[-1])):
        row, position = part.unbind(1)
        needed = logits[row, position].float()
        chosen = needed.gather(1, targets[row, position].unsqueeze(1)).squeeze(1)
        found[row, position] = (chosen - needed.logsumexp(-1)).double()
    return found.sum(1)


def _regroup(flat: list[float], groups: list[Group]) -> list[list[float]]:
    values = iter(flat)
    return [[next(values) for _ in group.continuations] for group in groups]
