"""How v1 and v2 become teachers: from memory, by name, behind a server, or by what they have said; and
what of them is followed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from transformers.utils import logging

from muscle_hf.teachers import Teacher, make_teacher
from muscle_hf.teachers.tokenizers import set_reader
from muscle_hf.teachers.weights import base_of
from muscle_hf.training.row_checks import has_messages

logger = logging.get_logger(__name__)


def teacher_of(trainer: Any, role: str, source: Any, arguments: Mapping[str, Any] | None) -> Teacher:
    """A teacher of a trainer whose student is in place, of what it was given as ``old_model`` or ``new_model`` and
    beside it."""
    settings, student, kind = trainer.settings, trainer.student, trainer.kind
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        from muscle_hf.served.teacher import served_teacher

        folder = settings.teacher_cache or os.path.join(settings.output_dir or "", "teacher_cache")
        size = base_of(student).config.get_text_config().vocab_size
        served = served_teacher(role, source, arguments, kind, size, folder)
        served.require_enough(trainer.muscle_objective, settings.calibrate_teachers)
        return served
    return make_teacher(role, source, student, kind, arguments, check_base=settings.check_base)


def settle_targets(
    trainer: Any, formatting: Callable[[Any], Any] | None, transfer: Any, given: Mapping[str, Any]
) -> None:
    """Find out how v1 reads the rows, and what of it is followed (``trainer.old_targets``); ``given`` has the rows as
    they were before they were prepared."""
    old, chats = trainer.teachers["old"], has_messages(trainer.train_dataset)

    def in_own_chats(mine: Any, new: Any) -> bool:
        template, other = (getattr(tokenizer, "chat_template", None) for tokenizer in (mine, new))
        return chats and template is not None and template != other

    def own_words(mine: Any, new: Any) -> bool:
        return formatting is not None or in_own_chats(mine, new) or getattr(transfer, "old_prompts", None) is not None

    if old.recorded is None:
        set_reader(old, trainer.tokenizers["old"], trainer.tokenizer, trainer.student, own_words)
    if old.reader is None:
        trainer.old_targets = _followed(trainer)
        return
    from muscle_hf.training.reading import look_at, tell_old_rows
    from muscle_hf.training.transfer_rows import AnsweredRows

    if formatting is not None or in_own_chats(old.tokenizer, trainer.tokenizer):
        old.reader.words = "chat template" if formatting is None else "old_formatting_func"
        for name in ("train_dataset", "eval_dataset"):
            tell_old_rows(old, trainer.tokenizer, getattr(trainer, name), given.get(name), formatting)
        if not isinstance(transfer, AnsweredRows) and (formatting is not None or has_messages(transfer)):
            tell_old_rows(old, trainer.tokenizer, transfer, None, formatting)
        elif transfer is not None and getattr(transfer, "old_prompts", None) is None:
            logger.warning_once(
                "v1 has words of its own for the training rows, but reads transfer_dataset in v2's. Pass "
                "TransferPrompts(prompts, old_prompts=...), or rows with messages"
            )
    trainer.old_targets = _followed(trainer)
    look_at(old, trainer)
    # Rows may have shown that it cuts texts otherwise.
    trainer.old_targets = _followed(trainer)
    if trainer.settings.start_from == "old":
        from muscle_hf.teachers.start import require_own_tokens

        require_own_tokens(old.reader.level)


def _followed(trainer: Any) -> str:
    wanted, old = trainer.settings.old_targets, trainer.teachers["old"]
    # For what is looked at before it is known.
    trainer.old_targets = "answer" if wanted == "answer" or (wanted == "auto" and old.foreign) else "tokens"
    recorded = any(teacher.recorded is not None for teacher in trainer.teachers.values())
    if trainer.old_targets == "tokens" and wanted != "choices" and not recorded:
        return "tokens"
    from muscle_hf.training.answer_targets import choose_targets

    trainer._signature_columns = None
    chosen, trainer._signature_columns = choose_targets(trainer), None
    return chosen
