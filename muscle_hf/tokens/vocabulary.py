"""A tokenizer's tokens as byte strings, and how it segments text in mid-sequence."""

from __future__ import annotations

import hashlib
import json
import re
import weakref
from bisect import bisect_left, bisect_right
from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, models

from muscle_hf.compat.transformers import bytes_to_unicode, convert_slow_tokenizer
from muscle_hf.errors import MuscleError
from muscle_hf.files import readable

_BLANK = "▁"  # what SentencePiece writes for a blank
# Bytes that are no UTF-8, as the error handler "surrogateescape" decodes them; with the word around them, or alone.
_BROKEN_WORD = re.compile("( ?[^ ]*[\udc80-\udcff][^ ]*)")
_BROKEN_BYTES = re.compile("([\udc80-\udcff]+)")
_KEPT_PIECES = 2**18
# Texts by id, and ids by role.
Specials = tuple[dict[int, str], dict[str, int]]
_KEPT: weakref.WeakKeyDictionary[Any, tuple[int, ByteVocabulary]] = weakref.WeakKeyDictionary()


_LETTERS: dict[int, str] = bytes_to_unicode()
_BYTES = {letter: byte for byte, letter in _LETTERS.items()}


@dataclass(frozen=True)
class Section:
    """Tokens between two special ones. Bytes are counted from its end, so that they are 0 and less.

    Attributes:
        ids: The tokens.
        start: Position of the first in its row.
        closed_by: The special token behind, -1 for none.
        text: Their bytes.
        bounds: (len(ids) + 1,) where each token begins, and the end.
    """

    ids: list[int]
    start: int
    closed_by: int
    text: bytes
    bounds: list[int]

    def cut(self, start: int, end: int) -> bytes:
        """A part of the text."""
        return self.text[len(self.text) + start : len(self.text) + end]


class ByteVocabulary:
    """The tokens of a byte-level or SentencePiece tokenizer (BPE or Unigram) as byte strings.

    Args:
        tokenizer: Of transformers or tokenizers. Use :meth:`of`, which makes one vocabulary per tokenizer.

    Attributes:
        size: V, the largest id + 1; a model's output may be wider.
        strings: (V,) the bytes of each token; None for special tokens and ids without a token.
        special: Text of each special token by its id.
        fallback: The byte of each of SentencePiece's single-byte tokens, ``<0x0A>``, by its id.
        added: Ids of added tokens that are not special.
        roles: Id by role (``bos_token``, ``eos_token``, ...) of those that the tokenizer has.

    Raises:
        MuscleError: The tokens are not byte strings.
    """

    def __init__(self, tokenizer: Any) -> None:
        backend = backend_of(tokenizer)
        parts = _parts(backend)
        self._byte_level = _check(backend, parts)
        added = backend.get_added_tokens_decoder()
        tokens = backend.get_vocab(with_added_tokens=True)
        self.specials = self.special, self.roles = special_ids(tokenizer)
        self.size = max(tokens.values()) + 1
        self.added = frozenset(added) - self.special.keys()
        self.fallback: dict[int, int] = {}
        self.strings: list[bytes | None] = [None] * self.size
        own = backend.get_vocab(with_added_tokens=False)
        for token, id in tokens.items():
            if id not in self.special:
                # An added token is text as it is, unless SentencePiece's model has it as well, with its blanks.
                as_given = id in self.added and (self._byte_level or token not in own)
                self.strings[id] = token.encode() if as_given else self._bytes(token, id)
        self._byte_ids = {byte: id for id, byte in self.fallback.items()}
        self._in_text = _in_text(backend, parts, [added[id] for id in self.added])
        own = ((id, self._in_text.token_to_id(added[id].content)) for id in self.added)
        self._renumbered = {other: id for id, other in own if other != id}
        self._letters = Tokenizer(backend.model)
        # Places of a text ask for the same ones, and for single tokens.
        self._known: dict[bytes, list[int]] = {}
        self._backend = backend

    @classmethod
    def of(cls, tokenizer: Any) -> ByteVocabulary:
        """The vocabulary of a tokenizer: made once, and anew after tokens were added to it."""
        size = tokenizer.get_vocab_size() if isinstance(tokenizer, Tokenizer) else len(tokenizer)
        found = _KEPT.get(tokenizer)
        if found is None or found[0] != size:
            found = _KEPT[tokenizer] = (size, cls(tokenizer))
        return found[1]

    def _bytes(self, token: str, id: int) -> bytes | None:
        if self._byte_level:
            return bytes(map(_BYTES.__getitem__, token)) if _BYTES.keys() >= set(token) else None
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            self.fallback[id] = int(token[3:5], 16)
            return bytes([self.fallback[id]])
        return token.replace(_BLANK, " ").encode()

    # ---- Segmentation ----

    def pieces(self, texts: Sequence[bytes]) -> list[list[int]]:
        """The ids of each text as it stands in mid-sequence.

        No blank is put before it, nothing is normalised, and special tokens are neither found in it nor added. A text
        may begin and end within a character.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if len(self._known) + len(new) > _KEPT_PIECES:
            self._known, new = {}, list(dict.fromkeys(texts))
        self._known.update(zip(new, self.segmented(new), strict=True))
        return [self._known[text] for text in texts]

    def segmented(self, texts: Sequence[bytes]) -> list[list[int]]:
        """As :meth:`pieces`, for long texts, which are not remembered."""
        strings = [text.decode(errors="surrogateescape") for text in texts]
        broken = {index: string for index, string in enumerate(strings) if _BROKEN_BYTES.search(string)}
        found = self._whole(["" if index in broken else string for index, string in enumerate(strings)])
        for index, string in broken.items():
            found[index] = self._cut(string)
        return found

    def _whole(self, strings: list[str]) -> list[list[int]]:
        found = [encoding.ids for encoding in self._in_text.encode_batch_fast(strings, add_special_tokens=False)]
        if self._renumbered:
            found = [[self._renumbered.get(id, id) for id in ids] for ids in found]
        return found

    def _cut(self, string: str) -> list[int]:
        parts = (_BROKEN_WORD if self._byte_level else _BROKEN_BYTES).split(string)
        ids: list[int] = []
        for whole, broken in zip(parts[::2], [*parts[1::2], ""], strict=True):
            data = broken.encode(errors="surrogateescape")
            ids += self._whole([whole])[0]
            if self._byte_level:
                ids += self._letters.encode("".join(_LETTERS[byte] for byte in data), add_special_tokens=False).ids
            else:
                ids += [self._byte_ids[byte] for byte in data if byte in self._byte_ids]
        return ids

    def first_pieces(self, texts: Sequence[bytes]) -> NDArray[np.int64]:
        """(len(texts),) the first id of each text in mid-sequence, -1 where there is none."""
        return np.array([ids[0] if ids else -1 for ids in self.pieces(texts)], dtype=np.int64)

    @cached_property
    def sha256(self) -> str:
        """Of all that decides how the tokenizer segments text and what its tokens are, 64 hex digits."""
        roles = json.dumps([sorted(self.roles.items()), sorted(self.special.items())])
        return hashlib.sha256((self._backend.to_str() + roles).encode()).hexdigest()

    @cached_property
    def canonical(self) -> NDArray[np.bool_]:
        """(V,) whether the tokenizer gives the token, and nothing else, for the token's own bytes.

        A byte-fallback twin of a letter is not, nor a token that other merges never lead to.
        """
        canonical = np.zeros(self.size, dtype=bool)
        ids = [id for id, string in enumerate(self.strings) if string]
        found = self.pieces([self.strings[id] or b"" for id in ids])
        canonical[ids] = [pieces == [id] for id, pieces in zip(ids, found, strict=True)]
        return canonical

    # ---- Bytes ----

    @cached_property
    def _sorted(self) -> tuple[list[bytes], NDArray[np.int64]]:
        pairs = sorted((string, id) for id, string in enumerate(self.strings) if string)
        return [string for string, _ in pairs], np.array([id for _, id in pairs], dtype=np.int64)

    def extending(self, prefix: bytes) -> NDArray[np.int64]:
        """Ids of the tokens that begin with some bytes and go on, in the order of their bytes."""
        return self._between(bisect_right(self._sorted[0], prefix), prefix)

    def beginning(self, prefix: bytes) -> NDArray[np.int64]:
        """Ids of the tokens that begin with some bytes, or are them, in the order of their bytes."""
        return self._between(bisect_left(self._sorted[0], prefix), prefix)

    def _between(self, start: int, prefix: bytes) -> NDArray[np.int64]:
        keys, ids = self._sorted
        return ids[start : bisect_left(keys, _successor(prefix), start)]

    def extends(self, prefix: bytes) -> bool:
        """Whether there is a token that begins with some bytes and goes on."""
        return len(self.extending(prefix)) > 0

    def begins(self, prefix: bytes) -> bool:
        """Whether there is one, or one of just these bytes."""
        return len(self.beginning(prefix)) > 0

    def string(self, id: int) -> bytes:
        """The bytes of a token; none for a special one."""
        return self.strings[id] or b""

    def text(self, ids: Sequence[int]) -> bytes:
        """The bytes of some tokens in a row."""
        return b"".join(map(self.string, ids))

    def sections(self, row: Sequence[int], cuts: Container[int]) -> list[Section]:
        """A row cut at some special tokens, without an empty section at its end."""
        found, start = [], 0
        for index, id in enumerate([*row, None]):
            if id is None or id in cuts:
                ids = list(row[start:index])
                text, ends = self.text(ids), self.ends(ids).tolist()
                bounds = [end - len(text) for end in [0, *ends]]
                found.append(Section(ids, start, -1 if id is None else id, text, bounds))
                start = index + 1
        return found if len(found) == 1 or found[-1].ids else found[:-1]

    def ends(self, ids: Sequence[int]) -> NDArray[np.int64]:
        """(len(ids),) where each token ends, in bytes from the first one's beginning; special ones have no width."""
        return np.cumsum([len(self.string(id)) for id in ids], dtype=np.int64)


def backend_of(tokenizer: Any) -> Tokenizer:
    """The Rust tokenizer within one of transformers; a slow one is converted, or refused."""
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    if isinstance(backend := getattr(tokenizer, "backend_tokenizer", None), Tokenizer):
        return backend
    with readable(f"the fast form of {type(tokenizer).__name__}", "; pass a tokenizer with a tokenizer.json file"):
        return convert_slow_tokenizer(tokenizer)


def special_ids(tokenizer: Any) -> Specials:
    """A tokenizer's special tokens: their texts by id, and their ids by role (``bos_token``, ``eos_token``, ...)."""
    backend = backend_of(tokenizer)
    tokens = backend.get_vocab(with_added_tokens=True)
    names = getattr(tokenizer, "SPECIAL_TOKENS_ATTRIBUTES", ())
    roles = {name: tokens[text] for name in names if (text := getattr(tokenizer, name, None)) in tokens}
    texts = {id: token.content for id, token in backend.get_added_tokens_decoder().items() if token.special}
    texts |= {tokens[text]: text for name in roles if (text := getattr(tokenizer, name))}
    if isinstance(unknown := getattr(backend.model, "unk_token", None), str) and unknown in tokens:
        texts[tokens[unknown]] = unknown
    return texts, roles


def special_pairs(old: Specials, new: Specials) -> dict[int, int]:
    """v1's id by v2's id of special tokens, as :func:`special_ids` gives both, with the same text, else in the same
    role."""
    ids = {text: id for id, text in old[0].items()}
    pairs = {id: ids[text] for id, text in new[0].items() if text in ids}
    # One token may have several roles; as one that is predicted it is the end of a text.
    for role in sorted(new[1].keys() & old[1].keys(), key=lambda role: (role != "eos_token", role)):
        if new[1][role] not in pairs and old[1][role] not in pairs.values():
            pairs[new[1][role]] = old[1][role]
    return pairs


def _parts(backend: Tokenizer) -> dict[str, Any]:
    """How a tokenizer normalises, splits and decodes, in the terms of tokenizer.json."""
    shell = Tokenizer(models.BPE())
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        if (part := getattr(backend, name)) is not None:
            setattr(shell, name, part)
    return json.loads(shell.to_str())


def _check(backend: Tokenizer, parts: dict[str, Any]) -> bool:
    """Whether the tokens are byte-level ones, rather than SentencePiece's; refuses what is neither."""
    model, text = backend.model, json.dumps(parts, ensure_ascii=False)
    byte_level = '"ByteLevel"' in text
    affixes = getattr(model, "continuing_subword_prefix", None) or getattr(model, "end_of_word_suffix", None)
    lossy = '"Lowercase"' in text or '"lowercase": true' in text or '"StripAccents"' in text
    if not isinstance(model, (models.BPE, models.Unigram)) or affixes or lossy or not (byte_level or _BLANK in text):
        raise MuscleError(
            f"the tokens of this tokenizer ({type(model).__name__}) are not byte strings of the text, so another "
            "tokenizer's cannot be compared with them; write v1's answers with muscle-hf evaluate and pass old_model="
            "ChoiceLog(FILE), which needs no common tokens, or choose models that share their tokenizer"
        )
    return byte_level


def _in_text(backend: Tokenizer, parts: dict[str, Any], added: list[AddedToken]) -> Tokenizer:
    """The tokenizer without what it does at the beginning of a text, and without normalisation or special tokens.

    T5's splits at blanks first, which drops those that its Metaspace then puts in front of each word again.
    """

    def within(part: Any) -> Any:
        if isinstance(part, list):
            return [within(one) for one in part if one != {"type": "WhitespaceSplit"}]
        if isinstance(part, dict):
            own = {"prepend_scheme": "never", "add_prefix_space": False}
            return {key: own.get(key, within(value)) for key, value in part.items()}
        return part

    blank = {"type": "Replace", "pattern": {"String": " "}, "content": _BLANK}
    replaces = _BLANK in json.dumps(parts["normalizer"], ensure_ascii=False)
    shell = Tokenizer.from_str(
        json.dumps(
            parts | {"normalizer": blank if replaces else None, "pre_tokenizer": within(parts["pre_tokenizer"])}
        )
    )
    tokenizer = Tokenizer(backend.model)
    for name in ("normalizer", "pre_tokenizer"):
        if (part := getattr(shell, name)) is not None:
            setattr(tokenizer, name, part)
    tokenizer.add_tokens(added)
    return tokenizer


def _successor(prefix: bytes) -> bytes:
    """The first byte string, in order, that is behind all that begin with a prefix."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else b"\xff" * (len(prefix) + 256)
