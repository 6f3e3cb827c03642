"""What v1 is given in the place of v2's rows, and how much of them it reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch.utils.data import IterableDataset
from transformers.utils import logging

from muscle_hf.encoding import encode_texts
from muscle_hf.errors import MuscleError
from muscle_hf.teachers import Teacher
from muscle_hf.teachers.batch import Batch
from muscle_hf.teachers.reading import ForeignReader, Reader
from muscle_hf.training.data import encode_answers

logger = logging.get_logger(__name__)

# Of the rows that are looked at, so many have to be read.
_READ = 0.95
_LEVELS = {
    "same": "v2's tokens, and words of its own",
    "renumbered": "v2's tokens under other ids",
    "foreign": "other tokens than v2",
}
# Gives v1's prompt and the answer of a row, or v1's whole text of it, or its messages.
OldFormat = Callable[[Any], tuple[str, str] | str | Sequence[Mapping[str, Any]]]


def tell_old_rows(teacher: Teacher, tokenizer: Any, rows: Any, raw: Any, formatting: OldFormat | None) -> None:
    """Tell v1's reader what v1 is given in the place of each of the rows that are trained on, by ``formatting``, from
    a row to v1's words, or by default v1's chat template around the row's messages.

    ``raw`` are the same rows as they were given (None: ``rows`` have it all); streams, and others than were given, are
    refused.
    """
    if rows is None:
        return
    if isinstance(rows, Mapping):
        for name, part in rows.items():
            tell_old_rows(teacher, tokenizer, part, raw[name] if isinstance(raw, Mapping) else None, formatting)
        return
    if isinstance(rows, IterableDataset) or not hasattr(rows, "__getitem__"):
        raise MuscleError("v1's own words are made of rows with a length, not of a stream; read the rows into memory")
    # Conversations are still in the rows that were prepared of them, and there in one form.
    given = rows if raw is None or formatting is None else raw
    if len(given) != len(rows):
        raise MuscleError(
            f"{len(given)} rows became {len(rows)} when they were prepared, so v1's words cannot be told apart any "
            "more; leave packing and filters out, or tokenize the rows yourself and keep their columns"
        )
    words = formatting or partial(_in_own_chat, teacher.tokenizer or tokenizer)

    def told() -> Iterator[tuple[list[int], Any]]:
        for index in range(len(rows)):
            row = rows[index]
            yield list(row["input_ids"]), words({**row} if given is rows else {**row, **given[index]})

    tell_old_words(teacher, tokenizer, told())


def tell_old_words(teacher: Teacher, tokenizer: Any, told: Iterable[tuple[Sequence[int], Any]]) -> None:
    """:func:`tell_old_rows` of v2's ids of rows, each with v1's words."""
    assert isinstance(teacher.reader, ForeignReader)
    for ids, said in told:
        ended = bool(len(ids)) and ids[-1] == tokenizer.eos_token_id
        teacher.reader.tell(ids, _encoded(teacher.tokenizer or tokenizer, said, ended))


def _encoded(tokenizer: Any, said: Any, ended: bool) -> list[int]:
    given = said.tolist() if hasattr(said, "tolist") else said
    if isinstance(given, str):
        ids = encode_texts(tokenizer, [given])[0]
        end = tokenizer.eos_token_id
        return [*ids, end] if ended and end is not None and ids[-1:] != [end] else ids
    parts = list(given) if isinstance(given, (list, tuple)) else []
    if len(parts) == 2 and all(isinstance(part, str) for part in parts):
        return encode_answers(tokenizer, [tuple(parts)], end_answers=ended)[0]["input_ids"]
    if parts and all(isinstance(part, int) for part in parts):
        return parts
    if parts and all(isinstance(message, Mapping) for message in parts):
        return _in_template(tokenizer, parts)
    raise MuscleError(
        f"old_formatting_func gives {said!r:.200}; it has to give v1's prompt and the answer of a row as a tuple, "
        "v1's whole text or its token ids, or its messages"
    )


def _in_template(tokenizer: Any, messages: list[Any], **given: Any) -> list[int]:
    try:
        return list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **given)["input_ids"])
    except Exception as error:  # templates raise Python's own
        raise MuscleError(f"v1's chat template cannot be filled: {error}") from error


def _in_own_chat(tokenizer: Any, row: Mapping[str, Any]) -> list[int]:
    """A row's conversation in a tokenizer's chat template, with its tools and the template's settings as TRL's rows
    have them."""
    found, prompt, tools = row.get("messages"), row.get("prompt"), row.get("tools")
    if not found and isinstance(prompt, list):
        found = [*prompt, *row["completion"]]
    if not found:
        raise MuscleError(
            "the rows have no messages to put into v1's chat template; pass old_formatting_func=, which makes v1's "
            "prompt and the answer of a row"
        )
    tools = json.loads(tools) if isinstance(tools, str) else tools
    given = {"tools": tools, **(row.get("chat_template_kwargs") or {})}
    return _in_template(tokenizer, found, **given)


def look_at(teacher: Teacher, trainer: Any, first: Batch | None = None) -> None:
    """Read some of the training rows, or the first batch of a stream, as v1 will, and say how much of them it reads;
    where that is less than 95 %, or nothing of the first batch, refuse them.

    Where v1's tokens are v2's under other ids, but it segments text otherwise, it is read as one with other tokens.
    """
    reader = cast("Reader", teacher.reader)
    reader.reference = trainer.settings.old_reference
    rows, tokens = torch.zeros(2), torch.zeros(2)
    for batch in map(trainer.batch_of, trainer.sample()) if first is None else [first]:
        # Words around the answers need not be the same.
        asked = batch.answers() if trainer.old_targets == "answer" else batch
        missing = reader.silent(asked)
        said = torch.ones_like(asked.rows, dtype=torch.bool) if missing is None else ~missing
        if trainer.old_targets == "answer":  # has a number as a whole, or none
            said &= ~torch.isin(asked.rows, asked.rows[~said])
        rows += torch.tensor([len(asked.rows[said].unique()), len(asked.rows.unique())])
        tokens += torch.tensor([int(said.sum()), len(said)])
    if first is not None:
        # All processes have to read alike.
        counts = trainer.accelerator.reduce(torch.stack([rows, tokens]).to(trainer.accelerator.device))
        rows, tokens = counts.cpu()
    if not rows[1]:
        return
    few = bool(rows[0] < _READ * rows[1])
    if few and (general := reader.general()) is not None:
        teacher.reader = general
        look_at(teacher, trainer, first)
        return
    if few and (first is None or not rows[0]):
        raise MuscleError(
            f"v1 reads only {int(rows[0])} of {int(rows[1])} training rows in its own tokens: of the others its "
            "tokenizer changes the text, or they are longer than its window, or its words have another answer than "
            "the row, or prompts in other words are trained on too. Normalise the texts as both tokenizers do, "
            "shorten them, give old_formatting_func the row's own answer, train on the answers alone "
            "(assistant_only_loss or completion_only_loss of TRL) or try old_targets='tokens', or write v1's answers "
            "with muscle-hf evaluate and pass old_model=ChoiceLog(FILE)"
        )
    shared = reader.vocabularies.shared
    reader.share = {"level": reader.level, "shared_tokens": shared, "rows_read": float(rows[0] / rows[1])}
    reader.share["tokens_with_target"] = float(tokens[0] / tokens[1])
    if trainer.is_world_process_zero():
        what = "the answers' tokens" if trainer.old_targets == "answer" else "the trained tokens"
        seen, reached = (f"{reader.share[name]:.0%}" for name in ("rows_read", "tokens_with_target"))
        logger.warning(
            f"v1 has {_LEVELS[reader.level]} ({shared:,} of its tokens are v2's too). Of the training rows it reads "
            f"{seen}, and {reached} of {what} have a target from it; the others follow v2."
        )
