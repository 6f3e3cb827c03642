"""A task model that is known by a log of its answers, in the place of the model."""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from muscle_hf.encoding import continuation, encode_pairs, encode_texts
from muscle_hf.errors import MuscleError
from muscle_hf.evaluation.predictions import Prediction
from muscle_hf.evaluation.tasks import Item
from muscle_hf.row_files import read_rows, rows_of
from muscle_hf.teachers.recorded import Record, RecordedTeacher

# What a base is described by where the log does not say which it was.
_UNKNOWN_BASE = dict.fromkeys(("revision", "architecture", "dtype", "quantization", "sha256"))


@dataclass(frozen=True)
class _Question:
    """What was answered to one prompt; ``scores`` are log-likelihoods, or logs of shares of samples (nats)."""

    prompt: str
    answers: tuple[str, ...]
    scores: tuple[float, ...]
    said: str


class ChoiceLog(RecordedTeacher):
    """A task model by its logged answers: ``old_model=ChoiceLog("old.jsonl")``, and ``new_model`` likewise.

    Nothing else of the model is needed: neither its weights nor its tokenizer, whatever asked it in whatever format.
    Rows with log-likelihoods of choices give the answer's likelihood or the distribution over the choices, as
    ``MuscleConfig.old_targets`` says; answers that are texts give the shares of those that are different, so that one
    answer is plain cross-entropy on it. Rows to train on are found by their tokens: a prompt of the log and one of its
    answers, as v2's tokenizer encodes them (:func:`~muscle_hf.training.data.encode_answers`). Others say nothing of
    v1 and follow v2.

    Args:
        logs: What ``muscle-hf evaluate`` wrote, or rows with ``prompt`` and ``prediction``, or ``prompt``, ``choices``
            and ``log_likelihoods``: files (``.jsonl``, ``.json``, ``.csv``, ``.parquet``), data frames, or lists of
            predictions or dictionaries. Several rows of one prompt are samples of its answer.
        items: The same questions as v2 is asked them, where the logs have no prompts or other ones: joined by ``id``,
            with as many choices in the same order.

    Raises:
        MuscleError: A log is empty or damaged, its rows lack a field, or ``items`` are others.
    """

    def __init__(self, *logs: Any, items: Sequence[Item] | None = None):
        super().__init__()
        if not logs:
            raise MuscleError("ChoiceLog needs a file of answers, or several")
        self._logged: list[Mapping[str, Any]] = []
        by_id = None if items is None else {item.id: item for item in items}
        names = []
        for log in logs:
            named = isinstance(log, (str, os.PathLike))
            names.append(Path(log).name if named else "answers in memory")
            self._logged += _rows(log, names[-1])
        self.source = ", ".join(names)
        self._questions = _questions(self._logged, by_id, self.source)
        if not self._questions:
            raise MuscleError(
                f"none of the {len(self._logged)} answers in {self.source} is to one of the "
                f"{len(by_id or ())} items, whose ids are, for example, {list(by_id or ())[:3]}; is it the log of "
                "other items?"
            )
        self.has_likelihoods = all("log_likelihoods" in row for row in self._logged)
        self._said = {question.prompt: question.said for question in self._questions}

    def records(self, tokenizer: Any) -> Iterable[Record]:
        pairs = [(question.prompt, answer) for question in self._questions for answer in question.answers]
        encoded = iter(encode_pairs(tokenizer, pairs))
        for question in self._questions:
            own = [next(encoded) for _ in question.answers]
            # Where a prompt's last token depends on what follows it, the answers have different prompts.
            for prompt in {tuple(prompt) for prompt, _ in own}:
                those = [index for index, (other, _) in enumerate(own) if tuple(other) == prompt]
                yield Record(prompt, [own[i][1] for i in those], [question.scores[i] for i in those])
        empty = (question.prompt.rstrip() for question in self._questions if not question.answers)
        for prompt in encode_texts(tokenizer, empty):
            yield Record(prompt, [], [])

    def said(self, prompt: str) -> str | None:
        return self._said.get(prompt)

    @property
    def examples(self) -> list[str]:
        """The ends of some prompts, for messages."""
        return [question.prompt[-60:] for question in self._questions[:2]]

    @property
    def predictions(self) -> list[Prediction]:
        """The log, where it is one of predictions; a MuscleError where its rows lack a field of these."""
        return [Prediction.from_dict(row) for row in self._logged]

    def describe(self, hashes: dict[Any, str]) -> dict[str, Any]:
        origins = [row.get("origin") or {} for row in self._logged]
        base, adapter = ({str(o.get(part)): o.get(part) for o in origins} for part in ("base", "adapter"))
        known = len(base) == 1 and all(base.values())
        content = hashlib.sha256(repr(self._questions).encode("utf-8", "surrogatepass")).hexdigest()
        return {
            "base": next(iter(base.values())) if known else {"name": self.source, "on_hub": False, **_UNKNOWN_BASE},
            "adapter": next(iter(adapter.values())) if known and len(adapter) == 1 else None,
            "answers": {"rows": len(self._questions), "sha256": content, "targets": self.form},
        }


def _rows(log: Any, name: str) -> list[Mapping[str, Any]]:
    if isinstance(log, (str, os.PathLike)):
        if not Path(log).is_file():
            raise MuscleError(f"there is no file of answers {log}")
        rows = read_rows(Path(log))
    else:
        rows = rows_of(log)
    if not rows:
        raise MuscleError(f"{name} holds no answers")
    # What a data frame lacks is nan.
    known: list[Mapping[str, Any]]
    known = [{key: value for key, value in row.items() if value is not None and value == value} for row in rows]
    for number, row in enumerate(known):
        if "prediction" not in row and not {"choices", "log_likelihoods"} <= row.keys():
            raise MuscleError(
                f"{name}, answer {number + 1}, has neither 'prediction' nor 'choices' with 'log_likelihoods'; it has: "
                f"{', '.join(row)}"
            )
    return known


def _questions(rows: Sequence[Mapping[str, Any]], items: Mapping[str, Item] | None, name: Any) -> list[_Question]:
    # Rows to train on are told by their prompts: two items with one prompt are one question.
    groups: dict[tuple[Any, ...], list[tuple[Mapping[str, Any], Item | None]]] = {}
    for number, row in enumerate(rows):
        identity = str(row.get("id", row.get("prompt", number)))
        if items is not None and identity not in items:
            continue
        asked = None if items is None else items[identity]
        words = (row.get("prompt"), row.get("choices", ())) if asked is None else (asked.prompt, asked.choices)
        # Without a prompt each is an error of its own; a damaged row may hold what is no key.
        key = (repr(words), "log_likelihoods" in row, identity if words[0] is None else "")
        groups.setdefault(key, []).append((row, asked))
    found = []
    scores: dict[tuple[str, str], float] = {}
    for group in groups.values():
        first, asked = group[0]
        where = f"{name}, item {str(first.get('id', first.get('prompt')))!r}"
        question = _question([row for row, _ in group], asked, where)
        for row, _ in group if "log_likelihoods" in first else ():
            for answer, score in zip(question.answers, row["log_likelihoods"], strict=True):
                known = scores.setdefault((question.prompt, answer), score)
                # Of batches that were put together otherwise, the last digits differ.
                if not math.isclose(known, score, rel_tol=1e-3, abs_tol=1e-2):
                    raise MuscleError(
                        f"{where}: one prompt is there twice, and its answer {answer!r} is scored {known:.3f} and "
                        f"{score:.3f}. If these are two models, pass the rows of one; else keep one of the two"
                    )
        found.append(question)
    return found


def _question(group: Sequence[Mapping[str, Any]], item: Item | None, where: str) -> _Question:
    first = group[0]
    prompt = first.get("prompt") if item is None else item.prompt
    given = first.get("choices", ()) if item is None else item.choices
    if isinstance(given, str) or not hasattr(given, "__iter__") or not all(isinstance(text, str) for text in given):
        raise MuscleError(f"{where}: choices must be a list of texts, not {given!r:.200}")
    choices = tuple(given)
    if not isinstance(prompt, str):
        raise MuscleError(f"{where}: there is no prompt; pass the items that v2 is asked as ChoiceLog(..., items=)")
    if (scores := first.get("log_likelihoods")) is not None:
        for row in group:
            require_likelihoods(row["log_likelihoods"], choices, where)
        best = first.get("prediction")
        best = best if isinstance(best, int) else max(range(len(scores)), key=scores.__getitem__)
        return _Question(prompt, choices, tuple(map(float, scores)), _text(best, prompt, choices, None, where))
    lead = None
    if item is not None and item.references:
        lead = item.references[0][: len(item.references[0]) - len(item.references[0].lstrip())]
    texts = [_text(row["prediction"], prompt, choices, lead, where) for row in group]
    counted = Counter(text for text in texts if text.strip())
    # An empty answer has no token to train on.
    answers = tuple(counted)
    shares = tuple(math.log(count / counted.total()) for count in counted.values())
    return _Question(prompt, answers, shares, counted.most_common(1)[0][0] if answers else "")


def require_likelihoods(scores: Any, choices: Sequence[str], where: str) -> None:
    """Refuse scores that are not a log-likelihood for each choice."""
    several = hasattr(scores, "__len__") and not isinstance(scores, (str, Mapping)) and len(scores) == len(choices)
    if not several or not all(
        isinstance(score, Real) and -math.inf < float(score) < 1e-3 for score in scores
    ):  # rounding
        raise MuscleError(
            f"{where}: {len(choices)} choices, but the scores {scores!r:.200}; each needs its log-likelihood, which "
            "is not above 0"
        )


def _text(said: Any, prompt: str, choices: Sequence[str], lead: str | None, where: str) -> str:
    if not isinstance(said, (str, Real)) or (choices and isinstance(said, float) and not said.is_integer()):
        raise MuscleError(f"{where}: the answer {said!r:.200} is neither a text nor the number of a choice")
    if not choices or isinstance(said, str):
        # A table reads answers that are numbers as such.
        text = str(said)
        return continuation(prompt, text) if lead is None else lead + text.lstrip()
    number = int(float(said))
    if not 0 <= number < len(choices):
        raise MuscleError(f"{where}: the answer {number} is the number of no choice; there are {len(choices)}")
    return choices[number]
