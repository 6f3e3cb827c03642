"""Small tokenizers, and given ones under other ids or with other tokens."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import builders
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from muscle_hf.teachers.weights import base_of

# Of the tokens of `builders.tokenizer`; the first one stands for what is unknown in any order.
ORDER = torch.randperm(builders.VOCABULARY - 1, generator=torch.Generator().manual_seed(3)) + 1
ORDER = torch.cat([torch.tensor([0]), ORDER])


def byte_level(
    merges: Sequence[tuple[str, str]], letters: str = "abc", split: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level BPE of a few letters; ``</s>`` ends a text. ``split``: at words, as GPT-2 does."""
    written = str.maketrans({" ": "Ġ", "\n": "Ċ"})
    letters, merges = letters.translate(written), [(a.translate(written), b.translate(written)) for a, b in merges]
    vocab = {token: id for id, token in enumerate(["<s>", "</s>", *letters, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def unigram(pieces: dict[str, float], prepend: str = "always", words: bool = False) -> PreTrainedTokenizerFast:
    """A Unigram model as SentencePiece makes them; ``▁`` is a blank. ``words``: split at blanks first, as T5 does."""
    vocab = [("<unk>", 0.0), ("</s>", 0.0), *pieces.items()]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0))
    blanks = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), blanks]) if words else blanks
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prepend)
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def word_piece(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer, as BERT has it."""
    tokenizer = Tokenizer(models.WordPiece({word: id for id, word in enumerate(["[UNK]", *words])}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def renumbered(
    folder: Path | PreTrainedTokenizerFast, seed: int = 0, special: Sequence[str] = (), plain: Sequence[str] = ()
) -> tuple[PreTrainedTokenizerFast, list[int]]:
    """A tokenizer under random ids, with tokens added in front.

    Returns:
        The tokenizer, and the new id of each old one.
    """
    given = PreTrainedTokenizerFast.from_pretrained(folder) if isinstance(folder, Path) else folder
    spec = json.loads(given.backend_tokenizer.to_str())
    ids = list(range(len(special) + len(plain), len(spec["model"]["vocab"]) + len(special) + len(plain)))
    random.Random(seed).shuffle(ids)
    spec["model"]["vocab"] = {token: ids[id] for token, id in spec["model"]["vocab"].items()}
    for token in spec["added_tokens"]:
        token["id"] = ids[token["id"]]
    for id, content in enumerate([*special, *plain]):
        added = {"id": id, "content": content, "special": id < len(special), "normalized": False}
        spec["added_tokens"].append(added | dict.fromkeys(("single_word", "lstrip", "rstrip"), False))
        spec["model"]["vocab"][content] = id
    for token in (spec["post_processor"] or {}).get("special_tokens", {}).values():
        token["ids"] = [ids[id] for id in token["ids"]]
    names: dict[str, Any] = {
        name: getattr(given, name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")
    }
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(spec)), **names), ids


def renumbered_model(model, order=ORDER):
    """The same model with its token ``order[i]`` under the id i."""
    model = copy.deepcopy(model)
    base = base_of(model)
    with torch.no_grad():
        layers = [base.get_input_embeddings(), base.get_output_embeddings()]
        # Tied ones are one tensor.
        for weight in {id(layer.weight): layer.weight for layer in layers if layer is not None}.values():
            if weight.size(0) == builders.VOCABULARY:
                weight.copy_(weight[order])
    for name in ("pad_token_id", "decoder_start_token_id"):
        if getattr(base.config, name, None) is not None:
            setattr(base.config, name, order.tolist().index(getattr(base.config, name)))
    return model
