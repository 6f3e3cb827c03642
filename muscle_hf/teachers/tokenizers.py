"""Whose tokens are which: v1's tokenizer and v2's, and what follows for how v1 reads rows."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.utils import cached_file, logging

from muscle_hf.errors import MuscleError
from muscle_hf.files import readable
from muscle_hf.record import json_sha256
from muscle_hf.teachers.checks import text_tokenizer
from muscle_hf.teachers.forward import context_window
from muscle_hf.teachers.kinds import kind_of
from muscle_hf.teachers.origin import origin_of
from muscle_hf.teachers.teacher import Teacher
from muscle_hf.teachers.weights import base_of, input_embeddings, same_weights

logger = logging.get_logger(__name__)


def vocabulary_hash(tokenizer: Any) -> str:
    """SHA-256 over a tokenizer's tokens and their ids, 64 hex digits."""
    return json_sha256(tokenizer.get_vocab())


# A folder or Hub id, and the revision there.
_Place = tuple[str, str | None]


def own_tokenizer(given: Any, places: Sequence[_Place]) -> Any:
    """A model's tokenizer: what is ``given``, a tokenizer, a processor that has it, or its folder or Hub id; else the
    one in the places of its adapter, which may add tokens, or of its base. None if there is none that can be read."""
    given = load_tokenizer(given) if isinstance(given, (str, os.PathLike)) else text_tokenizer(given)
    if isinstance(given, Tokenizer):
        return PreTrainedTokenizerFast(tokenizer_object=given)
    if hasattr(given, "get_vocab"):
        return given
    place = next((place for place in places if _has_tokenizer(*place)), None)
    try:
        return None if place is None else load_tokenizer(*place)
    except MuscleError as error:
        logger.warning(f"{error}; vocabularies are compared by size.")
        return None


def _has_tokenizer(name: str, revision: str | None) -> bool:
    for file in ("tokenizer_config.json", "tokenizer.json", "tokenizer.model"):
        with contextlib.suppress(OSError):
            return bool(cached_file(name, file, revision=revision))  # fetched, which loading a model does not do
    return False


def _places_of(model: nn.Module, teacher: Teacher | None = None) -> list[_Place]:
    base = base_of(model)
    name = getattr(getattr(base, "config", None), "name_or_path", None)
    places = [(name, origin_of(base).revision)] if name else []
    return places if teacher is None or teacher.source is None else [(teacher.source, teacher.revision), *places]


def load_tokenizer(name: str | os.PathLike, revision: str | None = None) -> Any:
    """The tokenizer of a folder or Hub id."""
    with readable(f"the tokenizer of {os.path.basename(os.fspath(name))}"):
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)


def set_reader(
    teacher: Teacher, given: Any, tokenizer: Any, new: nn.Module, own_words: Callable[[Any, Any], bool]
) -> None:
    """Find out how v1 reads rows of v2's ids, and leave that, and v1's tokenizer, at the teacher.

    The tokenizers are v1's, as ``given`` (None: beside its adapter and its base), and v2's (None: beside its model,
    ``new``). ``own_words`` says of these two whether v1 is given words of its own. Errors are those of
    :func:`~muscle_hf.teachers.reading.reader_of`.
    """
    if teacher.on_students_base:
        teacher.tokenizer = own_tokenizer(given, []) or tokenizer
        mine = tokenizer
    else:
        mine, teacher.tokenizer = find_tokenizers(tokenizer, given, teacher, new) or (tokenizer, None)
        for model in teacher.models:
            remedy = f"as {teacher.role}_processing_class"
            require_embeddings(teacher.tokenizer, base_of(model).config, f"the {teacher.role} model", remedy)
    words = own_words(teacher.tokenizer, mine)
    if teacher.tokenizer is not None and (words or mine.get_vocab() != teacher.tokenizer.get_vocab()):
        from muscle_hf.teachers.reading import reader_of

        teacher.reader = reader_of(teacher.tokenizer, mine, kind_of(new), own_words=words)
        if teacher.reader is not None and teacher.models:
            teacher.reader.window = context_window(teacher.model)


def require_embeddings(tokenizer: Any, config: PreTrainedConfig, whose: str, where: str) -> None:
    """Refuse a tokenizer with more tokens than the model of a configuration, but for such as were added: it is another
    model's. ``whose`` it is, and ``where`` the right one is to be given, is for the message."""
    vocabulary = getattr(tokenizer, "backend_tokenizer", None)
    tokens = {} if vocabulary is None else vocabulary.get_vocab(with_added_tokens=False)
    largest, size = max(tokens.values(), default=-1), getattr(config.get_text_config(), "vocab_size", None)
    if size is not None and largest >= size:
        raise MuscleError(
            f"{whose} has {size} embeddings, but its tokenizer has {largest + 1} tokens; give the one that belongs to "
            f"it {where}"
        )


def find_tokenizers(tokenizer: Any, old_tokenizer: Any, teacher: Teacher, new: nn.Module) -> tuple[Any, Any] | None:
    """v2's tokenizer and v1's, which is ``teacher``; those that are None are looked for beside the models. None where
    one of them is not known, but both number as many tokens; refused where they number different ones."""
    own = own_tokenizer(tokenizer, _places_of(new))
    olds = [place for model in teacher.models for place in _places_of(model, teacher)]
    others = own_tokenizer(old_tokenizer, olds)
    if own is not None and others is not None:
        return own, others
    old = teacher.models[0] if teacher.models else new
    if _same_embeddings(old, new) or (input_embeddings(old) is None and input_embeddings(new) is None):
        return None  # one base, or models of sound, say: there are no tokens to number
    sizes = [getattr(base_of(model).config.get_text_config(), "vocab_size", None) for model in (old, new)]
    if sizes[0] != sizes[1]:
        raise MuscleError(
            f"the old model has {sizes[0]} embeddings, the new one {sizes[1]}, and a tokenizer was not found to "
            "compare their tokens; pass processing_class= and old_processing_class="
        )
    names = " and ".join(origin_of(model).name or type(base_of(model)).__name__ for model in (old, new))
    logger.warning_once(
        f"A tokenizer was not found, so only the sizes of the vocabularies of {names} were compared. Pass "
        "processing_class= and old_processing_class= to compare the tokens."
    )
    return None


def _same_embeddings(old: nn.Module, new: nn.Module) -> bool:
    """Whether both number the tokens in one way for certain: two copies of a base, or of one that was trained."""
    found = [input_embeddings(model) for model in (old, new)]
    weights = [getattr(layer, "weight", None) for layer in found]
    known = [{"embeddings": weight} for weight in weights if isinstance(weight, Tensor) and not weight.is_meta]
    return len(known) == 2 and same_weights(*known)
