"""Our own prediction files (:mod:`muscle_hf.evaluation.predictions`), read row by row into columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from muscle_hf.compare.table import Detail, Row, hash_key, text_key
from muscle_hf.errors import MuscleError
from muscle_hf.evaluation.predictions import Prediction

_SIGNS = {"task", "id", "prediction", "hash"}


class OwnFormat:
    """Rows as :class:`~muscle_hf.evaluation.predictions.Prediction` writes them."""

    name = "muscle-hf"

    @staticmethod
    def recognises(row: Mapping[str, Any]) -> bool:
        """Whether a row is of this format."""
        return row.keys() >= _SIGNS

    def extract(self, row: Mapping[str, Any]) -> Row:
        """What counts in a row."""
        try:
            correct, prediction, key = row["correct"], row["prediction"], row["id"]
            choice = prediction.__class__ is int
            if correct is None:
                value, graded = float(row["score"]), False
            elif correct is True or correct is False:
                value, graded = float(correct), True
            else:
                raise MuscleError(f"'correct' must be true, false or null, not {correct!r}")
            return Row(
                row["task"],
                key if key.__class__ is str else str(key),
                value,
                graded,
                prediction if choice else text_key(prediction),
                hash_key(row["hash"]),
                0,
                row["metric"],
                choice,
                row.get("columns"),
            )
        except (KeyError, TypeError, ValueError) as error:
            Prediction.from_dict(row)
            raise MuscleError(f"not a prediction ({error.__class__.__name__}: {error})") from error

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
