"""Our own prediction files (:mod:`muscle_hf.evaluation.predictions`), read row by row into columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from muscle_hf.compare.table import Batch, Detail, Row, hash_key, text_key
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
            and set(map(type, ids)) == {str}
            and set(map(len, digests)) == {16}
            and set(map(len, columns)) == {len(names)}
        )
        if not simple:
            return None
        answers = predictions if kinds == {int} else list(map(text_key, predictions))
        return Batch(
            task=first["task"],
            metric=first["metric"],
            graded=graded,
            choice=kinds == {int},
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
