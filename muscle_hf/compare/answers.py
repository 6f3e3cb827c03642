"""When two answers are one answer: the rule that every format shares, with types (JSON) or without (CSV).

Numbers are compared as numbers, truth values as truth values, everything else as text without outer blanks. Answers
that are objects or lists are no answers yet: which part of them counts is for the reader to say.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Mapping
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal
from typing import Any

from muscle_hf.errors import MuscleError

# What became of an item in one model's log; 0 is an answer that was judged.
KINDS = ("answered", "no answer", "no score", "error", "absent", "changed")
ANSWERED, NO_ANSWER, NO_SCORE, ERROR, ABSENT, CHANGED = range(len(KINDS))

_NUMBER = re.compile(r"[+-]?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_INDEX = re.compile("0|[1-9][0-9]*")
_NO_VALUE = {"", "nan", "null", "<na>"}
# Where right and wrong or numbers are expected, these say nothing either; among answers they may be one.
_NO_JUDGEMENT = {"none", "n/a", "#n/a", "na", "nat", "-", "--"}
# Zeros behind a fraction in a text, where writers of numbers put none: 3.10 is a version or a date.
_WRITTEN_ZEROS = re.compile(r"\.[0-9]*[1-9]0+")
# Beyond this a number is not written out in digits.
_MAX_DIGITS = 400
_EXACT = Context(prec=MAX_PREC, Emin=MIN_EMIN, Emax=MAX_EMAX)
_YES = {"1", "true", "t", "yes", "y", "right", "correct", "pass", "passed", "success", "resolved", "✓", "✔", "✅"}
_NO = {"0", "false", "f", "no", "n", "wrong", "incorrect", "fail", "failed", "failure", "unresolved", "✗", "✘", "❌"}
# Around a text: blanks, marks of direction, and what no reader sees.
_UNSEEN = " \t\r\n\u00a0\u200b\u200e\u200f\u2060\ufeff"
_DECIMAL_COMMA = re.compile(r"[+-]?(?:0,\d+|\d+,(?!\d{3}\b)\d+)\s*%?")
# Answers of this many words are free text, which hardly ever equals a reference.
_WORDS = 5
_LOWER_WORDS = """
    wer cer ter mer eer fpr fnr perplexity ppl nll loss losses latency delay ttft rank error errors err mae mse rmse
    nrmse rmsle mape smape brier ece distance lpips cost price duration seconds time runtime steps turns attempts
    retries tokens bits bpb bpc entropy divergence regret fid toxicity hallucination hallucinations bias harm
    violation violations jailbreak wrong incorrect failed failure failures fails mistake mistakes elapsed ms memory
    energy timeouts crashes misses
"""
_LOWER = frozenset(_LOWER_WORDS.split())
_HIGHER = {"reciprocal", "inverse", "inv", "neg", "negative", "free"}


class NotJudged(MuscleError):
    """A task cannot be compared, though others of the same log can."""


def is_missing(value: Any) -> bool:
    """Whether a field holds nothing: null, nan, an empty text or list, or what CSV files write for these."""
    if value is None:
        return True
    if isinstance(value, str):
        return not value.strip() or (len(value) < 5 and value.strip().lower() in _NO_VALUE)
    if isinstance(value, (float, Decimal)):
        return math.isnan(value)
    # pandas has values of its own for nothing.
    return type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, (list, tuple)) and not value)


def normal(value: Any) -> str:
    """The text that stands for an answer: equal for equal answers.

    ``2``, ``2.0``, ``"2"`` and ``"2.00"`` are one answer, and so are ``True`` and ``"true"``. Integers count with all
    their digits. A text with zeros before a number or behind a fraction (``007``, ``3.10``) is no number. Line ends
    and composed letters are the same in every coding.
    """
    if isinstance(value, str):
        text = value.strip()
        if not text.isascii():
            text = unicodedata.normalize("NFC", text).strip(_UNSEEN)
        if "\r" in text:
            text = text.replace("\r\n", "\n")
        if text[-1:].isdigit() and _NUMBER.fullmatch(text) and not _WRITTEN_ZEROS.search(text):
            return _digits(text)
        return text.lower() if text.lower() in ("true", "false") else text
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, (float, Decimal)):  # a Decimal keeps its zeros: 1.50
        return _digits(str(value)) if math.isfinite(value) else str(value)
    if isinstance(value, (list, tuple, Mapping)):
        return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
    return str(value)


def _digits(number: str) -> str:
    value = Decimal(number)
    if not value:
        return "0"
    value = value.normalize(_EXACT)
    return format(value, "f") if abs(value.adjusted()) < _MAX_DIGITS else str(value)


def answer_key(value: Any) -> int:
    """A number of 63 bits that is equal for equal answers within this process: an index is itself, a text its hash."""
    if value.__class__ is int and 0 <= value < 10**17:
        return value
    text = normal(value)
    return int(text) if len(text) < 18 and _INDEX.fullmatch(text) else hash(text) & 0x7FFFFFFFFFFFFFFF


def targets_of(value: Any) -> list[Any]:
    """The right answers: one, or a list of several."""
    return list(value) if isinstance(value, (list, tuple)) else [] if is_missing(value) else [value]


def matches(prediction: Any, target: Any, names: tuple[str, str]) -> bool:
    """Whether an answer is one of the right ones; a MuscleError where one of them is an object, or the answer is a
    list, which text never equals. ``names`` are the two columns', for messages."""
    for role, name, values in (("prediction", names[0], [prediction]), ("target", names[1], targets_of(target))):
        odd = next((value for value in values if isinstance(value, (list, tuple, Mapping))), None)
        if odd is not None:
            raise MuscleError(
                f"the column {name!r} holds {odd!r:.80}, which no answer equals{_part_of(role, name, odd)}"
            )
    return any(_equal(prediction, right) for right in targets_of(target))


def _equal(left: Any, right: Any) -> bool:
    """Whether two answers are one; beside a number, a text is read as one whatever its zeros."""
    if isinstance(left, str) is not isinstance(right, str):
        left, right = (_WRITTEN_ZEROS.sub(lambda at: at[0].rstrip("0"), str(side).strip()) for side in (left, right))
    return normal(left) == normal(right)


def paths_below(name: str, value: Any) -> list[str]:
    """The paths below a value that lead to plain values."""
    if isinstance(value, Mapping):
        return [path for key, entry in value.items() for path in paths_below(f"{name}.{key}", entry)] or [name]
    if isinstance(value, (list, tuple)):
        return paths_below(f"{name}[0]", value[0]) if value else [name]
    return [name]


def is_text(prediction: Any, target: Any) -> bool:
    """Whether an answer can hardly equal its target: one is a sentence, or the answer has the target amid more."""
    answer, right = str(prediction), [str(text) for text in targets_of(target)]
    if any(len(text.split(None, _WORDS)) >= _WORDS for text in (answer, *right)):
        return True
    return any(
        place >= 0 and not (answer[:place][-1:] + answer[place + len(text) :][:1]).strip().isalnum()
        for text in right
        for place in {answer.find(text), answer.rfind(text)}
        if text != answer
    )


def as_number(value: Any, column: str) -> float:
    """A score; nan where there is none, a MuscleError where it is something else."""
    if _says_nothing(value):
        return math.nan
    if isinstance(value, str) and (word := normal(value)) in ("true", "false"):
        return float(word == "true")
    try:
        if isinstance(value, str):
            text = value.strip().replace(",", ".") if _DECIMAL_COMMA.fullmatch(value.strip()) else value.strip()
            return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise MuscleError(
            f"the column {column!r} holds {value!r}, which is no number{_part_of('score', column, value)}"
        ) from None


def _says_nothing(value: Any) -> bool:
    return is_missing(value) or (isinstance(value, str) and value.strip().lower() in _NO_JUDGEMENT)


def is_failure(value: Any) -> bool:
    """Whether a field for errors tells of one."""
    return not _says_nothing(value) and normal(value).lower() not in ("0", "false", "no")


def _part_of(role: str, column: str, value: Any) -> str:
    paths = paths_below(column, value)
    if paths == [column]:
        return ""
    return f"; say which part counts, of {', '.join(paths[:10])}, for example with --columns '{role}={paths[0]}'"


def as_flag(value: Any, column: str) -> float:
    """1 for right, 0 for wrong; nan where nothing is said, a MuscleError where it is something else."""
    if value is True or value is False:
        return float(value)
    if _says_nothing(value):
        return math.nan
    word = normal(value).lower()
    if word in _YES | _NO:
        return float(word in _YES)
    raise MuscleError(
        f"the column {column!r} must say right or wrong (true/false, 1/0), not {value!r}"
        + (
            _part_of("correct", column, value)
            or f"; say which words mean right with --right, or for scores use --columns score={column}"
        )
    )


def is_lower_better(name: str) -> bool:
    """Whether a measure's name says that lower is better: ``wer``, ``perplexity``, ``latency_ms``, ``rank``, ..."""
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    return bool(_LOWER.intersection(words)) and not _HIGHER.intersection(words)


def sign_of(name: str, lower_is_better: bool | None) -> int:
    """1 where higher is better, -1 where lower is; ``lower_is_better`` is what the user says, None for nothing, which
    is not enough (NotJudged) where the name says that lower is better."""
    if lower_is_better is None and is_lower_better(name):
        raise NotJudged(
            f"{name!r} is better when lower, by its name; say so with --lower-is-better (its negative is compared "
            "then), or that it is not with --higher-is-better, or choose another measure (--metric, --columns)"
        )
    return -1 if lower_is_better else 1
