"""Scores of generated text against its references: exact match, ROUGE, BLEU, chrF, BERTScore, or any callable.

Every similarity is a callable ``(prediction, references) -> float``, higher is better; the built-in ones lie in
[0, 1]. With several references the best one counts (BLEU and chrF handle several references by themselves).
"""

from __future__ import annotations

import functools
import importlib.util
import re
import string
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muscle_hf.errors import MissingDependencyError, MuscleError
from muscle_hf.metrics.flips import check_lengths
from muscle_hf.metrics.smooth import as_scores

Similarity = Callable[[str, Sequence[str]], float]
Extractor = Callable[[str], "str | None"]

_NUMBER = re.compile(r"-?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


def _plain_number(text: str) -> str:
    """A number without currency signs, thousands separators and trailing zeros, so that equal numbers are equal."""
    digits = text.replace("$", "").replace(",", "")
    try:
        value = Decimal(digits)
    except InvalidOperation:
        return digits
    return format(value.normalize() if value else Decimal(0), "f")


def extract_last_number(text: str) -> str | None:
    """The last number of a text, without "$" and thousands separators; None if there is none.

    Examples:
        >>> extract_last_number("5 + 1,195 is $1,200.00 in all.")
        '1200'
    """
    found = _NUMBER.findall(text)
    return _plain_number(found[-1]) if found else None


def extract_gsm8k(text: str) -> str | None:
    """The number after the first "####", the mark of a final answer in GSM8K; None if there is none.

    Examples:
        >>> extract_gsm8k("48/2 = <<48/2=24>>24 clips in May.\\n#### 72\\n#### 9")
        '72'
    """
    found = re.search(r"####\s*(" + _NUMBER.pattern + ")", text)
    return _plain_number(found.group(1)) if found else None


EXTRACTORS: dict[str, Extractor] = {"gsm8k": extract_gsm8k, "last_number": extract_last_number}


def exact_match(
    prediction: str,
    references: Sequence[str],
    *,
    extract: str | Extractor | None = None,
    ignore_case: bool = False,
    ignore_punctuation: bool = False,
) -> float:
    """1.0 if the prediction equals one of the references, else 0.0; surrounding white space never counts.

    Args:
        prediction: The model's text.
        references: The right texts.
        extract: What to compare: ``"gsm8k"`` (the number after "####"), ``"last_number"``, a function that returns the
            answer in a text or None, or None for the whole text. A prediction without an answer is wrong; a
            reference without one (often the bare answer) is compared as a number, or as it stands.
        ignore_case: Compare without regard to case.
        ignore_punctuation: Compare without ASCII punctuation.

    Examples:
        >>> exact_match("So she has 12.\\n#### 12", ["7+5=12\\n#### 12"], extract="gsm8k")
        1.0
    """

    def normalise(text: str) -> str:
        text = text.lower() if ignore_case else text
        return (text.translate(_DROP_PUNCTUATION) if ignore_punctuation else text).strip()

    if extract is None:
        return float(any(normalise(prediction) == normalise(reference) for reference in references))
    find = get_extractor(extract)
    answer = find(prediction)
    if answer is None:
        return 0.0
    right = (find(text) or extract_last_number(text) or text for text in references)
    return float(any(normalise(answer) == normalise(text) for text in right))


_DROP_PUNCTUATION = str.maketrans("", "", string.punctuation)


def get_extractor(extract: str | Extractor) -> Extractor:
    """What finds the answer in a text, by name, or the given function itself."""
    if callable(extract):
        return extract
    if extract not in EXTRACTORS:
        raise MuscleError(f"unknown answer extraction {extract!r}; known: {', '.join(EXTRACTORS)}, or pass a function")
    return EXTRACTORS[extract]


def _rouge(kind: str, *, use_stemmer: bool = False) -> Similarity:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([kind], use_stemmer=use_stemmer)
    # Per example: the package's own aggregator resamples at random.
    return lambda prediction, references: scorer.score_multi(references, prediction)[kind].fmeasure


def _sacrebleu(kind: str, **options: Any) -> Similarity:
    from sacrebleu.metrics import BLEU, CHRF

    metric = BLEU(effective_order=True, **options) if kind == "bleu" else CHRF(**options)
    return lambda prediction, references: metric.sentence_score(prediction, list(references)).score / 100.0


def _bertscore(**options: Any) -> Similarity:
    from muscle_hf.metrics.bertscore import BertScore

    return BertScore(**options)


# Name -> maker of the similarity; options are keyword arguments of the maker.
SIMILARITIES: dict[str, Callable[..., Similarity]] = {
    "exact_match": lambda **options: functools.partial(exact_match, **options),
    "gsm8k": lambda **options: functools.partial(exact_match, **{"extract": "gsm8k", **options}),
    "rouge1": functools.partial(_rouge, "rouge1"),
    "rouge2": functools.partial(_rouge, "rouge2"),
    "rougeL": functools.partial(_rouge, "rougeL"),
    "bleu": functools.partial(_sacrebleu, "bleu"),
    "chrf": functools.partial(_sacrebleu, "chrf"),
    "bertscore": _bertscore,
}


def get_similarity(similarity: str | Similarity, **options: Any) -> Similarity:
    """A similarity by name, or the given callable itself.

    Args:
        similarity: A name of :data:`SIMILARITIES`, or any function ``(prediction, references) -> float`` (a judge
            model, for example).
        **options: For the named one: ``use_stemmer`` (ROUGE), ``extract``, ``ignore_case``, ``ignore_punctuation``
            (exact match), options of ``sacrebleu``'s BLEU and CHRF, ``model`` and more (:class:`BertScore
            <muscle_hf.metrics.bertscore.BertScore>`).

    Raises:
        MuscleError: Unknown name, or options with a callable.
        MissingDependencyError: The package behind it is not installed.
    """
    if callable(similarity):
        if options:
            raise MuscleError(f"options {sorted(options)} cannot be passed on to a callable; bind them beforehand")
        return similarity
    check_similarity(similarity)
    return SIMILARITIES[similarity](**options)


def check_similarity(name: str) -> None:
    """Refuse what :func:`get_similarity` would refuse about a name, without building anything."""
    if name not in SIMILARITIES:
        raise MuscleError(f"unknown similarity {name!r}; known: {', '.join(SIMILARITIES)}, or pass a callable")
    if name in ("bleu", "chrf") and importlib.util.find_spec("sacrebleu") is None:
        raise MissingDependencyError("sacrebleu", "eval", f"the similarity {name!r}")


def score_texts(
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    similarity: str | Similarity = "rouge1",
    **options: Any,
) -> NDArray[np.float64]:
    """The similarity of each prediction to its references.

    Args:
        predictions: One text per item.
        references: One text, or a list of texts, per item.
        similarity: See :func:`get_similarity`, also for its options.

    Returns:
        Scores, float64, shape ``(items,)``.

    Raises:
        MuscleError: Unequal lengths, an item without references, or a score that is not a finite number.

    Examples:
        >>> score_texts(["a cat sat"], [["the cat sat", "dogs"]], "rouge1").round(3).tolist()
        [0.667]
    """
    check_lengths(predictions=predictions, references=references)
    lists = [[texts] if isinstance(texts, str) else list(texts) for texts in references]
    for i, (prediction, texts) in enumerate(zip(predictions, lists, strict=True)):
        if not texts:
            raise MuscleError(f"item {i} has no references to score against")
        for text in (prediction, *texts):
            if not isinstance(text, str):
                raise MuscleError(f"item {i}: predictions and references must be texts, not {text!r}")
    score = get_similarity(similarity, **options)
    batched = getattr(score, "score_batch", None)
    values = batched(predictions, lists) if batched else [score(p, r) for p, r in zip(predictions, lists, strict=True)]
    return as_scores(values, "what the similarity returned")
