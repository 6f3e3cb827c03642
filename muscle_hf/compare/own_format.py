"""Our own prediction files (:mod:`muscle_hf.evaluation.predictions`), read row by row into columns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from muscle_hf.compare.answers import (
    ANSWERED,
    NO_ANSWER,
    NO_SCORE,
    answer_key,
    as_number,
    directed,
    is_lower_better,
    is_missing,
)
from muscle_hf.compare.table import Batch, Detail, Row, hash_key
from muscle_hf.errors import MuscleError
from muscle_hf.evaluation.predictions import Prediction

# More than one model in a file is wrong already; the rest need not be told apart.
_MOST_ORIGINS = 10
_SIGNS = {"task", "id", "prediction", "hash"}


class OwnFormat:
    """Rows as :class:`~muscle_hf.evaluation.predictions.Prediction` writes them."""

    name = "muscle-hf"

    def __init__(self, lower_is_better: bool | None = None) -> None:
        self.lower_is_better = lower_is_better
        # What gave the answers, each once; None for rows that do not say.
        self.origins: list[Mapping[str, Any] | None] = []

    def _note(self, origins: list[Mapping[str, Any] | None]) -> None:
        """Keep the origins of rows that were read."""
        for origin in origins[:1] if origins.count(origins[0]) == len(origins) else origins:
            if origin not in self.origins and len(self.origins) < _MOST_ORIGINS:
                self.origins.append(origin if isinstance(origin, Mapping) else None)

    @staticmethod
    def recognises(row: Mapping[str, Any]) -> bool:
        """Whether a row is of this format."""
        return row.keys() >= _SIGNS

    def extract(self, row: Mapping[str, Any]) -> Row:
        """What counts in a row."""
        self._note([row.get("origin")])
        try:
            correct, prediction, key = row["correct"], row["prediction"], row["id"]
            choice, missing, metric = _is_choice(row), ANSWERED, row["metric"]
            if is_missing(correct):
                value, graded = as_number(row["score"], "score"), False
                metric, value = directed(metric, value, self.lower_is_better)
                if math.isnan(value):
                    graded, missing = None, NO_ANSWER if is_missing(prediction) else NO_SCORE
            elif correct is True or correct is False:
                value, graded = float(correct), True
            else:
                raise MuscleError(f"'correct' must be true, false or null, not {correct!r}")
            return Row(
                row["task"],
                key if key.__class__ is str else str(key),
                value,
                graded,
                None if is_missing(prediction) else answer_key(prediction),
                hash_key(row["hash"]),
                0,
                metric,
                choice,
                row.get("columns"),
                missing,
            )
        except MuscleError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            Prediction.from_dict(row)
            raise MuscleError(f"not a prediction ({error.__class__.__name__}: {error})") from error

    def extract_batch(self, rows: list[dict[str, Any]]) -> Batch | None:
        """:meth:`extract` of many rows at once, several times as fast; None if they are not of one simple kind."""
        first = rows[0]
        try:
            if any(
                len(set(entries)) > 1 for entries in ([row["task"] for row in rows], [row["metric"] for row in rows])
            ):
                return None
            correct, predictions = [row["correct"] for row in rows], [row["prediction"] for row in rows]
            kinds, graded = set(map(type, predictions)), first["correct"] is not None
            values = np.array(correct if graded else [row["score"] for row in rows])
            ids, digests = [row["id"] for row in rows], [row["hash"][:16] for row in rows]
            choices = set(map(_is_choice, rows))
            content = bytes.fromhex("".join(digests))
            columns = [row.get("columns") or {} for row in rows]
            names = columns[0].keys()
            shared = {name: [entry[name] for entry in columns] for name in names}
        except (KeyError, TypeError, ValueError):
            return None
        simple = (
            values.dtype == (np.bool_ if graded else np.float64)
            and (graded or correct.count(None) == len(rows))
            and kinds in ({int}, {str})
            and len(choices) == 1
            and (graded or not (self.lower_is_better or is_lower_better(first["metric"])))
            and set(map(type, ids)) == {str}
            and set(map(len, digests)) == {16}
            and set(map(len, columns)) == {len(names)}
        )
        if not simple:
            return None
        self._note([row.get("origin") for row in rows])
        answers = list(map(answer_key, predictions))
        return Batch(
            task=first["task"],
            metric=first["metric"],
            graded=graded,
            choice=choices.pop(),
            ids=ids,
            values=values.astype(np.float64),
            answers=np.array(answers, dtype=np.int64),
            content=np.frombuffer(content, dtype=">u8").astype(np.uint64),
            columns=shared,
        )

    def detail(self, row: Mapping[str, Any]) -> Detail:
        """The texts of a row."""
        prediction, target = row["prediction"], row["target"]
        choices = row.get("choices") or []
        targets = target if isinstance(target, list) else [target]

        def text(answer: Any) -> str:
            known = isinstance(answer, int) and 0 <= answer < len(choices)
            return str(choices[answer] if known else answer)

        return Detail(
            prompt=row.get("prompt"),
            target=" | ".join(map(text, targets)),
            answer=text(prediction),
            choices=list(choices),
            target_indices=[entry for entry in targets if isinstance(entry, int)],
            log_likelihoods=row.get("log_likelihoods") or [],
            columns=row.get("columns") or {},
        )


def _is_choice(row: Mapping[str, Any]) -> bool:
    """Whether the prediction is the index of a choice; an integer alone may be a number."""
    return row["prediction"].__class__ is int and bool(row.get("choices") or row.get("log_likelihoods"))
