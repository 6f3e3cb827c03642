"""How far two tokenizers agree: one vocabulary, one in another numbering, or two."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from tokenizers import Tokenizer
from torch import Tensor

from muscle_hf.errors import MuscleError
from muscle_hf.tokens.vocabulary import ByteVocabulary, backend_of, special_ids, special_pairs

Level = Literal["same", "renumbered", "foreign"]

# Texts of random tokens of v1, by which two vocabularies of the same tokens are tried: do they segment alike?
_TRIALS, _TRIAL_TOKENS, _ALIKE = 400, 8, 0.9


@dataclass(frozen=True)
class Vocabularies:
    """What v1's and v2's vocabularies have in common.

    Attributes:
        level: ``same``: every token has its id in both. ``renumbered``: v1's tokens are v2's under other ids, and text
            is segmented alike, up to tokens that were added; ask :meth:`agree` about each row. ``foreign``: neither.
        to_old: (V2,) int64, v1's id of the same token by v2's id; -1 where v1 has none. Tokens are the same by their
            bytes; special ones by their text, else by their role (the end of a text, padding, ...).
        known: int64, the ids of v2 that v1 has, ascending.
        shared: How many byte strings are tokens of both.
        old: v1's tokenizer.
        new: v2's.
    """

    level: Level
    to_old: Tensor
    known: Tensor
    shared: int
    old: Any
    new: Any

    def agree(self, new_ids: Sequence[int]) -> bool:
        """Whether v1's tokenizer segments a row's text into just the tokens that the row has, given in v2's ids,
        without padding. Then ``to_old[new_ids]`` is the row as v1 reads it, and v1's logits are those of the same
        tokens."""
        if self.level != "renumbered":
            return self.level == "same"
        mapped = self.to_old[torch.as_tensor(new_ids, dtype=torch.long)].tolist()
        return -1 not in mapped and _segmented(self.old, self.new, [list(new_ids)])[0] == mapped


def compare_vocabularies(old_tokenizer: Any, new_tokenizer: Any) -> Vocabularies:
    """Compare two tokenizers by the content of their tokens and by what they do with text; refused where they differ,
    and the tokens of one are not byte strings."""
    old, new = old_tokenizer.get_vocab(), new_tokenizer.get_vocab()
    if old == new:
        size = max(new.values(), default=-1) + 1
        ids = torch.arange(size)
        return Vocabularies("same", ids, ids, len(new), old_tokenizer, new_tokenizer)
    try:
        pairs, missing, shared = _by_bytes(ByteVocabulary.of(old_tokenizer), ByteVocabulary.of(new_tokenizer))
        refusal = None
    except MuscleError as error:
        pairs, missing, shared = _by_text(old_tokenizer, new_tokenizer)
        refusal = error
    pairs |= special_pairs(special_ids(old_tokenizer), special_ids(new_tokenizer))
    to_old = torch.full((max(new.values()) + 1,), -1)
    to_old[list(pairs)] = torch.tensor(list(pairs.values()), dtype=torch.long)
    alike = not missing and _alike(old_tokenizer, new_tokenizer, to_old)
    if refusal and not alike:
        raise refusal
    known = (to_old >= 0).nonzero()[:, 0]
    return Vocabularies("renumbered" if alike else "foreign", to_old, known, shared, old_tokenizer, new_tokenizer)


def _by_bytes(old: ByteVocabulary, new: ByteVocabulary) -> tuple[dict[int, int], int, int]:
    """v1's id by v2's id, how many ordinary tokens of v1 have no twin, and how many byte strings both have."""
    pairs: dict[int, int] = {}
    # A letter's byte-fallback twin is another token than the letter: what text is segmented into is matched first.
    for canonical in (True, False):
        olds = {string: id for id, string in enumerate(old.strings) if string and old.canonical[id] == canonical}
        news = {string: id for id, string in enumerate(new.strings) if string and new.canonical[id] == canonical}
        pairs |= {news[string]: olds[string] for string in olds.keys() & news.keys()}
    twins = set(pairs.values())
    missing = sum(old.canonical[id] and id not in twins and id not in old.added for id in range(old.size))
    return pairs, int(missing), len(set(old.strings) & set(new.strings) - {None})


def _by_text(old_tokenizer: Any, new_tokenizer: Any) -> tuple[dict[int, int], int, int]:
    """The same for tokens that are no byte strings: what they are called counts."""
    old, new = (backend_of(one).get_vocab(with_added_tokens=True) for one in (old_tokenizer, new_tokenizer))
    texts = (
        set(old) - set(special_ids(old_tokenizer)[0].values()),
        set(new) - set(special_ids(new_tokenizer)[0].values()),
    )
    shared = texts[0] & texts[1]
    return {new[text]: old[text] for text in shared}, len(texts[0] - shared), len(shared)


def _alike(old_tokenizer: Any, new_tokenizer: Any, to_old: Tensor) -> bool:
    """Whether both segment alike nearly all texts that are put together from random tokens of both."""
    ordinary = sorted(set((to_old >= 0).nonzero()[:, 0].tolist()) - special_ids(new_tokenizer)[0].keys())
    if not ordinary:
        return False
    draw = random.Random(0)
    rows = [draw.choices(ordinary, k=_TRIAL_TOKENS) for _ in range(_TRIALS)]
    segmented = zip(
        _segmented(old_tokenizer, new_tokenizer, rows), _segmented(new_tokenizer, new_tokenizer, rows), strict=True
    )
    return sum(one == to_old[other].tolist() for one, other in segmented) >= _ALIKE * _TRIALS


def _segmented(tokenizer: Any, new_tokenizer: Any, rows: list[list[int]]) -> list[list[int]]:
    """The ids that a tokenizer gives for the text of rows of v2; special tokens are those of the same text or role."""
    try:
        vocabulary, new = ByteVocabulary.of(tokenizer), ByteVocabulary.of(new_tokenizer)
    except MuscleError:
        decoded = backend_of(new_tokenizer).decode_batch(rows, skip_special_tokens=False)
        backend = backend_of(tokenizer)
        plain = _without_padding(backend, backend.get_vocab_size())
        return [one.ids for one in plain.encode_batch(decoded, add_special_tokens=False)]
    pairs = special_pairs(vocabulary.specials, new.specials)
    found = []
    for row in rows:
        ids: list[int] = []
        for section in new.sections(row, new.special):
            ids += vocabulary.segmented([section.text])[0]
            ids += [pairs.get(section.closed_by, -1)] if section.closed_by >= 0 else []
        found.append(ids)
    return found


@lru_cache(maxsize=4)
def _without_padding(backend: Tokenizer, size: int) -> Tokenizer:
    """A copy, of so many tokens, without the padding and truncation of the last call of its tokenizer."""
    plain = Tokenizer.from_str(backend.to_str())
    plain.no_padding()
    plain.no_truncation()
    return plain
