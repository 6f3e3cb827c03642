"""From a prompt and a continuation to token ids: one rule for training, for scoring and for other tools' logs.

The rule is the one of lm-evaluation-harness's Hugging Face backend, so that log-likelihoods agree with it: blanks at
the end of the prompt belong to the continuation, both are tokenized together, and the continuation's tokens are
those after as many as the prompt has by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from muscle_hf.errors import MuscleError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_pair(tokenizer: PreTrainedTokenizerBase, prompt: str, continuation: str) -> tuple[list[int], list[int]]:
    """Ids of a prompt and of its continuation, which has its leading space if it needs one; a MuscleError where that
    has no tokens of its own.

    The tokenizer adds its BOS if it is set up to, unless the prompt already starts with it; for an empty prompt BOS
    (or EOS) stands in.
    """
    return encode_pairs(tokenizer, [(prompt, continuation)])[0]


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]], *, encoder_decoder: bool = False
) -> list[tuple[list[int], list[int]]]:
    """:func:`encode_pair` for many pairs in one call of the tokenizer; a prompt that occurs often is encoded once.

    With ``encoder_decoder`` the two go into an encoder and a decoder and are tokenized apart, the prompt with all its
    special tokens.
    """
    if encoder_decoder:
        return _encode_apart(tokenizer, pairs)
    moved = [_move_blanks(prompt, continuation) for prompt, continuation in pairs]
    prompts = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompt for prompt, _ in moved if prompt))}
    prompt_ids = encode_texts(tokenizer, prompts)
    whole_ids = encode_texts(tokenizer, (prompt + continuation for prompt, continuation in moved if prompt))
    encoded: list[tuple[list[int], list[int]]] = []
    wholes = iter(whole_ids)
    for prompt, continuation in moved:
        if prompt:
            context = prompt_ids[prompts[prompt]]
            rest = next(wholes)[len(context) :]
        else:
            context, rest = _encode_unprompted(tokenizer, continuation)
        if not context or not rest:
            raise MuscleError(
                f"the continuation {continuation!r} adds no tokens to the prompt {prompt[-60:]!r}; "
                "give each choice or target some text of its own"
            )
        encoded.append((context, rest))
    return encoded


def _encode_apart(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]
) -> list[tuple[list[int], list[int]]]:
    moved = [_move_blanks(prompt, continuation) for prompt, continuation in pairs]
    contexts = encode_prompts(tokenizer, [prompt for prompt, _ in moved])
    rest = tokenizer(text_target=[text for _, text in moved], add_special_tokens=False, verbose=False)["input_ids"]
    for (prompt, continuation), context, ids in zip(moved, contexts, rest, strict=True):
        if not context or not ids:
            raise MuscleError(f"the prompt {prompt[-60:]!r} or its continuation {continuation!r} has no tokens")
    return list(zip(contexts, rest, strict=True))


def continuation(prompt: str, text: str) -> str:
    """A generated answer, which may be kept without outer blanks, as it follows its prompt."""
    return text if not text or text[0].isspace() or prompt.endswith((" ", "\n")) else f" {text}"


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, special_tokens: bool = True
) -> list[list[int]]:
    """Token ids of whole inputs of an encoder or a classifier, with all special tokens."""
    try:
        encoded = tokenizer(
            list(prompts), add_special_tokens=special_tokens, return_attention_mask=False, verbose=False
        )
        return encoded["input_ids"]
    except (TypeError, UnicodeEncodeError) as error:
        halves = next((text for text in prompts if any("\ud800" <= sign <= "\udfff" for sign in text)), None)
        if halves is None:
            raise
        raise MuscleError(f"{halves[-200:]!r} holds half a surrogate pair, which no tokenizer reads") from error


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> list[list[int]]:
    """Token ids of each text, with the special tokens that open a text and without those that close one."""
    texts = list(texts)
    if not texts:
        return []
    prefix_id = prefix_token_id(tokenizer)
    prefix = str(tokenizer.decode(prefix_id)) if prefix_id is not None else ""
    closing = _closing_tokens(tokenizer)
    # A chat template already writes BOS as text; a second one would change the answers.
    opened = [bool(prefix) and text.startswith(prefix) for text in texts]
    ids: list[list[int]] = [[] for _ in texts]
    for has_prefix in set(opened):
        chosen = [i for i, already in enumerate(opened) if already == has_prefix]
        rows = encode_prompts(tokenizer, [texts[i] for i in chosen], special_tokens=not has_prefix)
        for i, row in zip(chosen, rows, strict=True):
            ids[i] = row if has_prefix else row[: len(row) - closing]
    return ids


def prefix_token_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that stands for an empty prompt: BOS, else EOS, else none."""
    found: Any = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return found


def _move_blanks(prompt: str, continuation: str) -> tuple[str, str]:
    stripped = prompt.rstrip()
    return stripped, prompt[len(stripped) :] + continuation


def _encode_unprompted(tokenizer: PreTrainedTokenizerBase, continuation: str) -> tuple[list[int], list[int]]:
    prefix = prefix_token_id(tokenizer)
    if prefix is None:
        raise MuscleError("an empty prompt needs a tokenizer with a BOS or EOS token; give every item a prompt")
    ids = list(tokenizer.encode(continuation, add_special_tokens=False))
    return (ids[:1], ids[1:]) if ids and ids[0] == prefix else ([prefix], ids)


def _closing_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens (EOS, SEP) the tokenizer appends to a text; they must not follow a prompt."""
    plain = tokenizer.encode("a", add_special_tokens=False)
    full = tokenizer.encode("a", add_special_tokens=True)
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return len(full) - start - len(plain)
    return 0
